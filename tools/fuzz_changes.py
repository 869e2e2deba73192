"""How a good file becomes a case of tools/fuzz.py: bytes, values of JSON, headers and facts are changed."""

import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from npgemma.golden.file import DTYPES, KEY, digest

ODD = (None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -1e308, "", "x", "\x1b[2J\n", "a" * 5000, [], {}, [[]])
WORDS = ("F32", "BF16", "I64", "text.layers.0.out", "logits", "(a+)+b", r"(\d+)", "{i}", "...", "additive", "LORA")
Files = dict[str, bytes]


def damaged(rng: random.Random, content: bytes) -> bytes:
    """A few bytes changed, removed, added or repeated, or the end cut off."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(len(found) + 1), rng.choice((1, 1, 1, 2, 4, 8, 40))
        match rng.randrange(6):
            case 0:
                found[at : at + size] = rng.randbytes(len(found[at : at + size]))
            case 1:
                found[at : at + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\0\0"))
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = found[at : at + size] * rng.choice((1, 2, 50))
            case 4:
                if rng.random() < 0.2:
                    del found[at:]
            case _:
                if at < len(found):
                    found[at] ^= 1 << rng.randrange(8)
    return bytes(found)


def altered(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """A JSON value with one part of it replaced, removed, moved or nested."""
    if isinstance(value, (dict, list)) and value and (depth < 1 or rng.random() < 0.85):
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        other = dict(value) if isinstance(value, dict) else list(value)
        if rng.random() < 0.1:
            del other[key]
        else:
            other[key] = altered(rng, value[key], depth + 1)
        return other
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 2, 1000))
    if rng.random() < 0.1:
        for _ in range(rng.choice((1, 100))):
            value = [value]
        return value
    return rng.choice((*ODD, *WORDS))


def changed_json(rng: random.Random, text: bytes) -> bytes:
    """A JSON text with parts replaced, or bytes changed."""
    if rng.random() < 0.2:
        return damaged(rng, text)
    value = json.loads(text)
    for _ in range(rng.randint(1, 3)):
        value = altered(rng, value)
    return json.dumps(value).encode()


def changed_safetensors(rng: random.Random, content: bytes) -> bytes:
    """A .safetensors file with another header, or bytes changed."""
    if rng.random() < 0.3:
        return damaged(rng, content)
    length = int.from_bytes(content[:8], "little")
    header = changed_json(rng, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def changed_golden(rng: random.Random, content: bytes) -> bytes:
    """A golden file with another fact or tensor, and the checksum that belongs to it."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = json.loads(header.pop("__metadata__")[KEY])
    del facts["sha256"]
    data = content[8 + length :]
    tensors: dict[str, np.ndarray] = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    if rng.random() < 0.6:
        facts = altered(rng, facts)
    else:
        name = rng.choice(list(tensors))
        other = other_array(rng, tensors.pop(name))
        tensors |= {} if other is None else {rng.choice((name, name, name, "logits", "x")): np.ascontiguousarray(other)}
    tensors = {name: x for name, x in tensors.items() if x.dtype in DTYPES.values()}
    signed = facts | {"sha256": digest(tensors, facts)} if isinstance(facts, dict) else facts
    return save(tensors, {KEY: json.dumps(signed)})


def other_array(rng: random.Random, x: np.ndarray) -> np.ndarray | None:
    """Another shape, dtype or values; None if the array is left out."""
    shapes = x.reshape(-1), x[:0], x[..., :-1], x[None], np.asfortranarray(x), x[..., ::-1]
    with np.errstate(all="ignore"):
        return rng.choice((*shapes, x.astype("f4"), x.astype("f8"), x.astype("i4"), x * np.nan, x * 2, None))


def changed_npz(rng: random.Random, content: bytes) -> bytes:
    """An .npz file with another array, compressed or not, or bytes changed."""
    if rng.random() < 0.4:
        return damaged(rng, content)
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    name = rng.choice(list(arrays))
    other = other_array(rng, arrays.pop(name))
    arrays |= {} if other is None else {rng.choice((name, name, name, "x", "../x")): other}
    packed = io.BytesIO()
    rng.choice((np.savez, np.savez_compressed))(packed, **arrays)
    return packed.getvalue()


CHANGES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".json": changed_json,
    ".safetensors": changed_safetensors,
    ".golden": changed_golden,
    ".npz": changed_npz,
}


def changed(rng: random.Random, files: Files) -> Files:
    """The files with one of them changed, by what its suffix says it is."""
    name = rng.choice(list(files))
    return files | {name: CHANGES.get(Path(name).suffix, damaged)(rng, files[name])}
