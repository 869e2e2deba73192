"""A second, strict parser of every binary format that npgemma reads as weights: what it loads must be what a file says.

Nothing of npgemma, of safetensors and of NumPy's readers is used. ValueError (or a kin of it) for anything unusual.
"""

import ast
import json
import re
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

SIZES = {"F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
SIZES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


class Stored(NamedTuple):
    """A tensor as a file has it: bits of a dtype with a name, little-endian, in C order."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes

    def floats(self) -> np.ndarray:
        """Its values in float64."""
        if self.dtype == "BF16":
            bits = np.frombuffer(self.content, "<u2").astype("<u4") << 16
            return bits.view("<f4").astype(np.float64).reshape(self.shape)
        return np.frombuffer(self.content, FLOATS[self.dtype]).astype(np.float64).reshape(self.shape)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. ValueError if a key comes twice."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key comes twice")
    return dict(pairs)


def whole(value: object) -> int:
    """A whole number that is not negative. ValueError for anything else."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def parse_safetensors(content: bytes) -> dict[str, Stored]:
    """Length of the header, the header in JSON, and the tensors one behind another, to the last byte of the file."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start].decode("utf-8"), object_pairs_hook=unique)
    metadata = header.pop("__metadata__", None) or {}
    if not all(type(text) is str for text in unique(list(metadata.items())).values()):
        raise ValueError("metadata are texts")
    found, ends = {}, [0]
    for name, entry in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
        shape = tuple(map(whole, entry["shape"]))
        begin, end = map(whole, entry["data_offsets"])
        size = SIZES[entry["dtype"]]
        for axis in shape:
            size *= axis
        if begin != ends[-1] or end - begin != size:
            raise ValueError(f"{name!r} does not lie behind the one before")
        ends.append(end)
        found[name] = Stored(entry["dtype"], shape, content[start + begin : start + end])
    if start + ends[-1] != len(content):
        raise ValueError("there are bytes behind the last tensor")
    return found


def parse_npz(content: bytes) -> dict[str, np.ndarray]:
    """A ZIP archive, read from its central directory, of .npy files with numbers."""
    at = content.rindex(END)
    count, _, begin = struct.unpack_from("<HLL", content, at + 10)
    found = {}
    for _ in range(count):
        if content[begin : begin + 4] != CENTRAL:
            raise ValueError("the directory of the archive is damaged")
        method, crc, packed, size, name_, extra, comment, place = struct.unpack_from("<10xH4xLLLHHH8xL", content, begin)
        name = content[begin + 46 : begin + 46 + name_].decode().removesuffix(".npy")
        begin += 46 + name_ + extra + comment
        if content[place : place + 4] != LOCAL:
            raise ValueError(f"{name!r} is not where the directory says")
        data = place + 30 + sum(struct.unpack_from("<HH", content, place + 26))
        member = content[data : data + packed]
        member = zlib.decompress(member, -15) if method else member
        if len(member) != size or zlib.crc32(member) != crc or name in found:
            raise ValueError(f"{name!r} is damaged, or comes twice")
        found[name] = parse_npy(member)
    return found


def parse_npy(content: bytes) -> np.ndarray:
    """Magic, version, length of the header, the header, and the numbers."""
    magic, major, length = struct.unpack_from("<6sBxH", content)
    start = 10
    if major > 1:
        (length,), start = struct.unpack_from("<L", content, 8), 12
    header = ast.literal_eval(content[start : start + length].decode("latin1").strip())
    if magic != b"\x93NUMPY" or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("it is not an array")
    if not re.fullmatch(r"[<>|][fiub]\d", header["descr"]):
        raise ValueError("it is not an array of numbers")
    flat = np.frombuffer(content[start + length :], header["descr"])
    return flat.reshape(tuple(map(whole, header["shape"])), order="F" if header["fortran_order"] else "C")


def parse_adapter(tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> dict[str, tuple[np.ndarray, float]]:
    """What a LoRA adapter without DoRA adds to each module, from PEFT's rules: B A, and the scale."""
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name, x in tensors.items():
        if part := re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight", name):
            halves.setdefault(part[1], {})[part[2]] = x.floats()
    found = {}
    for module, half in halves.items():
        alpha, rank = config.get("lora_alpha") or 8, len(half["A"])
        for pattern, other in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = other
                break
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        found[module] = half["B"].reshape(-1, rank) @ half["A"].reshape(rank, -1), scale
    return found
