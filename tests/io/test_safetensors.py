"""One safetensors file: tensors as views of a memory map, and BadModel for every malformed file."""

import errno
import json
import os
import random
import struct
import sys
import tracemalloc

import numpy as np
import pytest
import tiny

from npgemma.errors import BadModel
from npgemma.io.safetensors import open_file, open_folder
from npgemma.layers.bits import pack


def entry(shape: list, start: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """The content of a safetensors file: the length of the header in 8 bytes, the header (bytes, or JSON), the data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


GOOD_HEADER = {"a": entry([2, 3], 0, 24), "b": entry([4], 24, 40)}
GOOD = file(GOOD_HEADER, bytes(40))
DEEP = b'{"a":{"dtype":"F32","shape":' + b"[" * 100_000 + b"]" * 100_000 + b',"data_offsets":[0,0]}}'

MALFORMED = {
    "empty file": b"",
    "one byte": b"\0",
    "seven bytes": GOOD[:7],
    "only the header length": GOOD[:8],
    "header of length 0": bytes(8),
    "header longer than the file": file(GOOD_HEADER, length=10_000),
    "header one byte longer than the file": file({}, length=3),
    "header of 2**63 bytes": file(GOOD_HEADER, bytes(40), 1 << 63),
    "header of 2**64 - 1 bytes": file(GOOD_HEADER, bytes(40), (1 << 64) - 1),
    "header above 100 MB": file(GOOD_HEADER, bytes(40), 100_000_001),
    "header length too small": file(GOOD_HEADER, bytes(40), 20),
    "a web page": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n",
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n",
    "a zip archive": b"PK\x03\x04" + bytes(100),
    "header not UTF-8": file(b'{"\xff":' + json.dumps(entry([0], 0, 0)).encode() + b"}"),
    "header not JSON": file(b"hello world"),
    "header cut off": file(b'{"a":{"dtype":"F32"'),
    "header a list": file([]),
    "header a string": file("a"),
    "header null": file(None),
    "header a number": file(7),
    "NUL after the header": file(json.dumps(GOOD_HEADER).encode() + bytes(8), bytes(40)),
    "words after the header": file(json.dumps(GOOD_HEADER).encode() + b" x", bytes(40)),
    "NaN in the header": file(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "integer of 5,000 digits": file(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'),
    "100,000 nested lists": file(DEEP),
    "a repeated name": file(
        json.dumps({"a": entry([1], 0, 4)})[:-1].encode() + b"," + json.dumps({"a": entry([1], 4, 8)})[1:].encode(),
        bytes(8),
    ),
    "a repeated name with the same offsets": file(
        json.dumps({"a": entry([1], 0, 4)})[:-1].encode() + b"," + json.dumps({"a": entry([1], 0, 4)})[1:].encode(),
        bytes(4),
    ),
    "a repeated dtype": file(b'{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "entry a list": file({"a": [1]}),
    "entry null": file({"a": None}),
    "no dtype": file({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "no shape": file({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
    "no offsets": file({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "metadata not text": file({"__metadata__": {"step": 3}} | GOOD_HEADER, bytes(40)),
    "unknown dtype": file({"a": entry([1], 0, 4, "F31")}, bytes(4)),
    "lower-case dtype": file({"a": entry([1], 0, 4, "f32")}, bytes(4)),
    "dtype null": file({"a": entry([1], 0, 4, None)}, bytes(4)),
    "two tensors overlap": file({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "two tensors with the same offsets": file({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
    "a gap between tensors": file({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "a gap before the first tensor": file({"a": entry([1], 4, 8)}, bytes(8)),
    "bytes after the last tensor": file(GOOD_HEADER, bytes(41)),
    "last byte missing": file(GOOD_HEADER, bytes(39)),
    "no data": file(GOOD_HEADER),
    "offsets reversed": file({"a": entry([1], 4, 0)}, bytes(4)),
    "offset negative": file({"a": entry([1], -4, 0)}, bytes(4)),
    "offset beyond the file": file({"a": entry([1 << 40], 0, 1 << 42)}, bytes(4)),
    "offset above 64 bits": file({"a": entry([1], 0, 1 << 65)}, bytes(4)),
    "offset a float": file({"a": entry([1], 0, 4.0)}, bytes(4)),
    "offset a string": file({"a": entry([1], 0, "4")}, bytes(4)),
    "three offsets": file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, bytes(4)),
    "one offset": file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, bytes(4)),
    "shape too small for the data": file({"a": entry([1], 0, 8)}, bytes(8)),
    "shape too large for the data": file({"a": entry([3], 0, 8)}, bytes(8)),
    "shape negative": file({"a": entry([-1], 0, 4)}, bytes(4)),
    "shape a float": file({"a": entry([1.0], 0, 4)}, bytes(4)),
    "shape a bool": file({"a": entry([True], 0, 4)}, bytes(4)),
    "shape a string": file({"a": entry(["1"], 0, 4)}, bytes(4)),
    "shape a number": file({"a": entry(1, 0, 4)}, bytes(4)),
    "shape whose product overflows": file({"a": entry([1 << 40, 1 << 40], 0, 4)}, bytes(4)),
    "shape whose product wraps to its size": file({"a": entry([1 << 63, 2, 1], 0, 0)}),
    "an empty tensor of 2**63 rows": file({"a": entry([0, 1 << 63], 0, 0)}),
    "an empty tensor of 2**63 - 1 rows": file({"a": entry([0, (1 << 63) - 1], 0, 0)}),
    "65 axes": file({"a": entry([1] * 65, 0, 4)}, bytes(4)),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_named_in_the_error(content, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadModel) as error:
        open_file(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("dtype", ["I64", "I32", "U32", "U16", "I8", "U8", "BOOL", "F8_E4M3"])
def test_an_unsupported_dtype_is_refused_with_the_name_of_the_tensor(dtype, tmp_path):
    """Quantised weights, read as plain numbers, would give wrong answers."""
    size = {"I64": 8, "I32": 4, "U32": 4, "U16": 2}.get(dtype, 1)
    path = tmp_path / "model.safetensors"
    path.write_bytes(file({"text.q": entry([1], 0, size, dtype)}, bytes(size)))
    with pytest.raises(
        BadModel, match=rf"model\.safetensors: tensor 'text\.q' is stored as {dtype}; npgemma reads F32"
    ):
        open_file(path)


def test_an_error_escapes_control_characters_in_a_tensor_name(tmp_path):
    """The format allows any text as a name, even escape sequences of a terminal."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(file({"\x1b[2J\n": entry([1], 0, 1, "U8")}, bytes(1)))
    with pytest.raises(BadModel) as error:
        open_file(path)
    assert "'\\x1b[2J\\n'" in str(error.value)
    assert str(error.value).isprintable()


def test_a_file_truncated_at_any_byte_is_refused(tmp_path):
    """An interrupted download must not give its complete tensors, nor zeros for the others."""
    path = tmp_path / "model.safetensors"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(BadModel) as error:
            open_file(path)
        assert str(path) in str(error.value)
    path.write_bytes(GOOD)
    assert open_file(path).keys() == {"a", "b"}


def test_a_checkpoint_truncated_after_any_tensor_is_refused(tmp_path):
    folder = tiny.write_folder(tmp_path)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    ends = sorted(each["data_offsets"][1] for each in json.loads(whole[8:start]).values())
    assert len(ends) == len(tiny.random_tensors())
    for end in ends[:-1]:
        path.write_bytes(whole[: start + end])
        with pytest.raises(
            BadModel,
            match=r"model\.safetensors .*: it has [\d,]+ bytes and its tensors need 58,640, so the download may",
        ):
            open_folder(folder)


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(BadModel, match=r"model\.safetensors is missing"):
        open_folder(tmp_path)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(BadModel, match=r"model\.safetensors is not a valid safetensors file"):
        open_folder(tmp_path)


def mutated(rng: random.Random, content: bytes, header: int) -> bytes:
    """`content` with one to three random changes, mostly in its header: bits or bytes changed, inserted or removed."""
    raw = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(header if rng.random() < 0.7 else len(content)) % max(1, len(raw))
        kind = rng.random()
        if not raw:
            break
        if kind < 0.35:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind < 0.6:
            raw[at] = rng.choice(b'0123456789[]{}",:-.eFBU \x00\xff')
        elif kind < 0.7:
            del raw[at:]
        elif kind < 0.85:
            other = rng.randrange(len(raw))
            raw[at:at] = raw[other : other + rng.randrange(60)]
        else:
            del raw[at : at + rng.randrange(1, 20)]
    if rng.random() < 0.7 and len(raw) >= 8:  # a correct header length, so that the header is parsed
        raw[:8] = max(0, header - 8 + len(raw) - len(content)).to_bytes(8, "little")
    return bytes(raw)


def test_1500_damaged_files_are_refused_or_give_readable_tensors(tmp_path):
    """Seeded, so that a failure is reproducible. Damage to a number or a name leaves a readable file."""
    source, path = tmp_path / "source.safetensors", tmp_path / "damaged.safetensors"
    tensors = {"a.weight": np.arange(6.0).reshape(2, 3), "b": np.ones(5), "c": np.zeros((0, 4)), "d": np.array(3.0)}
    tiny.save({name: x.astype(np.float32) for name, x in tensors.items()}, source)
    content = source.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = random.Random(0)
    usable = 0
    for _ in range(1500):
        damaged = mutated(rng, content, header)
        path.write_bytes(damaged)
        try:
            found = open_file(path)
        except BadModel:
            continue
        usable += 1
        assert sum(np.array(x).nbytes for x in found.values()) <= len(damaged)
    assert 20 < usable < 1000


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", np.float32), ("float16", np.float16), ("bfloat16", np.uint16)]
)
def test_tensors_are_returned_as_they_are_stored(dtype, expected, tmp_path):
    """bfloat16 is returned as uint16 bits, and is not converted to float32."""
    x = np.array([[0.0, -0.0, 1.5], [-2.25, 2.0**-14, 384.0]], np.float32)
    tiny.save({"x": x, "empty": np.zeros((3, 0), np.float32)}, tmp_path / "f", dtype)
    found = open_file(tmp_path / "f")
    assert {name: y.shape for name, y in found.items()} == {"x": (2, 3), "empty": (3, 0)}
    assert {y.dtype for y in found.values()} == {np.dtype(expected)}
    stored = pack(x) if dtype == "bfloat16" else x.astype(expected)
    assert found["x"].tobytes() == stored.tobytes()  # even the sign of zero


def test_a_tensor_may_be_a_scalar_and_have_an_empty_name(tmp_path):
    (tmp_path / "f").write_bytes(file({"": entry([], 0, 4)}, struct.pack("<f", 0.5)))
    np.testing.assert_array_equal(open_file(tmp_path / "f")[""], np.array(0.5, np.float32), strict=True)


def test_metadata_is_not_a_tensor_and_padding_is_allowed(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "x": entry([1], 0, 4)}
    (tmp_path / "f").write_bytes(file(json.dumps(header).encode() + b"     ", struct.pack("<f", 2.5)))
    found = open_file(tmp_path / "f")
    assert found.keys() == {"x"}
    np.testing.assert_array_equal(found["x"], np.array([2.5], np.float32), strict=True)


@pytest.mark.parametrize("padding", range(4))
def test_a_tensor_may_begin_at_any_byte(padding, tmp_path):
    """The format does not align tensors: the length of the header can be any number."""
    header = json.dumps({"x": entry([2], 0, 8)}).encode() + b" " * padding
    (tmp_path / "f").write_bytes(file(header, struct.pack("<2f", 1.0, -3.0)))
    np.testing.assert_array_equal(open_file(tmp_path / "f")["x"], np.array([1.0, -3.0], np.float32), strict=True)


def test_tensors_are_views_of_a_memory_map_of_their_file(tmp_path):
    path = tiny.write_folder(tmp_path) / "model.safetensors"
    for x in open_folder(tmp_path).values():
        mapped = x
        while not isinstance(mapped, np.memmap):
            assert mapped.base is not None, "a copy, not a view of a memory map"
            mapped = mapped.base
        assert mapped.filename == path
        assert np.shares_memory(x, mapped)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_file_that_cannot_be_mapped_is_read_into_memory(shards, dtype, tmp_path, monkeypatch):
    """Some network drives and FUSE file systems do not support memory maps."""
    tiny.write_folder(tmp_path, dtype=dtype, shards=shards)
    mapped, attempts = open_folder(tmp_path), []

    def refuse(path, *_):
        attempts.append(path)
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(np, "memmap", refuse)
    read = open_folder(tmp_path)
    assert len(attempts) == shards
    assert read.keys() == mapped.keys()
    for name, x in mapped.items():
        np.testing.assert_array_equal(read[name], x, strict=True)
        assert not np.shares_memory(read[name], x)


def test_tensors_are_read_only(tmp_path):
    before = tiny.write_folder(tmp_path).joinpath("model.safetensors").read_bytes()
    for x in open_folder(tmp_path).values():
        assert not x.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            x[...] = 0
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_opening_a_file_does_not_read_the_weights(tmp_path):
    """A sparse file of 256 MB is opened in less than 1 MB of memory."""
    size = 1 << 28
    with (tmp_path / "f").open("wb") as opened:
        opened.write(file({"x": entry([size // 4], 0, size)}))
        opened.truncate(opened.tell() + size)
    tracemalloc.start()
    try:
        x = open_file(tmp_path / "f")["x"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert x.shape == (size // 4,)
    assert peak < 1_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot replace a mapped file")
def test_replacing_the_file_does_not_change_its_open_tensors(tmp_path):
    """Downloaders replace files by new ones; the memory map keeps the old file."""
    path = tmp_path / "model.safetensors"
    tiny.save({"x": np.full(1000, 2.0, np.float32)}, path)
    x = open_file(path)["x"]
    tiny.save({"x": np.full(10, 5.0, np.float32)}, tmp_path / "new")
    os.replace(tmp_path / "new", path)
    np.testing.assert_array_equal(x, np.full(1000, 2.0, np.float32), strict=True)
