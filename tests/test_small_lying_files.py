"""Small files that promise much: refused before memory or time is spent, with the file and the reason."""

import io
import json
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npgemma import BadGolden, BadJobs, BadModel, BadPicture
from npgemma.golden import read_dump, read_golden, read_mapping
from npgemma.io.picture import read_picture
from npgemma.io.results import open_results
from npgemma.io.safetensors import LARGEST_HEADER, MOST_TENSORS, open_file, open_with_metadata
from npgemma.io.sentencepiece_model import serialised
from npgemma.io.strict_json import read_json
from npgemma.io.tokenizers import PALIGEMMA, read_tokenizer

SPARSE = 1_500_000_000
MOST_MEGABYTES, MOST_SECONDS = 100, 5.0


def encoded(kind: str, image: Image.Image, **options: object) -> bytearray:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return bytearray(file.getvalue())


def gif() -> bytes:
    """A canvas of 85 million pixels, whose one frame has one."""
    content = encoded("GIF", Image.new("P", (1, 1)), transparency=0)
    content[6:10] = struct.pack("<HH", 65535, 1300)
    return bytes(content)


def jpeg() -> bytes:
    """64 pixels a side, and 65500 x 1358 in the header; the decoder fills the rest with gray."""
    content = encoded("JPEG", Image.new("RGB", (64, 64)))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", 1358, 65500)
    return bytes(content)


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def without_palette() -> bytes:
    """A PNG whose header says that its pixels are numbers of colours, and that has no colours."""
    content = encoded("PNG", Image.new("P", (9, 9), 3))
    at = content.index(b"PLTE") - 4
    del content[at : at + 12 + int.from_bytes(content[at : at + 4])]
    return bytes(content)


def empties(count: int) -> bytes:
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return safetensors(b"{" + b",".join(entry % i for i in range(count)) + b"}")


def axes(count: int) -> bytes:
    shape = b"1," * (count - 1) + b"1"
    return safetensors(b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % shape) + bytes(4)


def results(path: Path) -> None:
    with open_results(path):
        raise AssertionError("it is refused")


def tokenizer(path: Path) -> None:
    read_tokenizer(path.parent, PALIGEMMA)


LYING = {
    "a GIF": ("x.gif", gif, read_picture, BadPicture, "65535 x 1300 pixels in a file of [0-9]+ bytes"),
    "a JPEG": ("x.jpg", jpeg, read_picture, BadPicture, "65500 x 1358 pixels in a file of [0-9]+ bytes"),
    "a PPM": ("x.ppm", lambda: b"P6 9400 9400 255\n" + b"x" * 33, read_picture, BadPicture, "in a file of 50 bytes"),
    "a plain PGM": ("x.pgm", lambda: b"P2 9400 9400 255\n1 1", read_picture, BadPicture, "in a file of 20 bytes"),
    "no palette": ("x.png", without_palette, read_picture, BadPicture, "cannot be read"),
    "many tensors": ("x.safetensors", lambda: empties(MOST_TENSORS + 1), open_file, BadModel, "more than 100,000"),
    "a header of 40 MB": ("x.safetensors", lambda: axes(20_000_000), open_file, BadModel, "reads up to 16 MB"),
    "many axes": ("x.safetensors", lambda: axes(65), open_file, BadModel, "at most 64 axes"),
    "very many axes": (
        "x.safetensors",
        lambda: axes(LARGEST_HEADER // 2 - 50),
        open_file,
        BadModel,
        "more than 100,000",
    ),
    "JSON of lists": ("config.json", lambda: b'{"a":[%s[]]}' % (b"[]," * 3_000_000), read_json, BadModel, "more than"),
    "a whole number": ("config.json", lambda: b'{"a":%s}' % (b"9" * 5000), read_json, BadModel, "5,000 digits"),
    "deep JSON": ("config.json", lambda: b'{"a":' + b"[" * 900_000, read_json, BadModel, "nested too deeply"),
    "pieces": ("tokenizer.model", lambda: b"\x0a\x00" * 2_000_000, tokenizer, BadModel, "600,000 pieces"),
    "a deep name": (
        "dump/M_debug_tree_FULL_TENSORS.json",
        lambda: json.dumps({"module_path": "M", "outputs": {"a" * 2000: [1]}}).encode(),
        lambda path: read_dump(path.parent),
        BadGolden,
        "nested too deeply",
    ),
}
EMPTY = {
    "a tokenizer": ("tokenizer.model", b"\x0a\x05", tokenizer, BadModel, "larger than 100 MB"),
    "results": ("r.jsonl", b'{"id": "', results, BadJobs, "line 1 is not the result"),
    "a mapping": ("map.json", b"{", read_mapping, BadGolden, "larger than 10 MB"),
    "a config": ("config.json", b"{", read_json, BadModel, "larger than 10 MB"),
    "a tree": (
        "dump/M_debug_tree_FULL_TENSORS.json",
        b"{",
        lambda path: read_dump(path.parent),
        BadGolden,
        "larger than 10 MB",
    ),
    "a PNG": ("x.png", bytes(encoded("PNG", Image.new("L", (9, 9))))[:50], read_picture, BadPicture, "cannot be read"),
}


def peak() -> float:
    status = Path("/proc/self/status").read_text() if sys.platform == "linux" else "VmHWM: 0"
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def is_refused_soon(path: Path, read: object, error: type[Exception], says: str) -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is that of now
    before, start = peak(), time.process_time()
    with pytest.raises(error, match=says):
        read(path)
    assert time.process_time() - start < MOST_SECONDS
    assert peak() - before < MOST_MEGABYTES


@pytest.mark.parametrize(("name", "content", "read", "error", "says"), LYING.values(), ids=LYING)
def test_files_that_promise_much_are_refused(name, content, read, error, says, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content())
    is_refused_soon(tmp_path / name, read, error, says)


@pytest.mark.parametrize(("name", "begin", "read", "error", "says"), EMPTY.values(), ids=EMPTY)
def test_files_that_are_long_and_empty_are_refused(name, begin, read, error, says, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    with (tmp_path / name).open("wb") as file:
        file.write(begin)
        file.truncate(SPARSE)
    is_refused_soon(tmp_path / name, read, error, says)


OTHERS = {
    "a ZIP archive called .npy": b"PK\x03\x04" + bytes(40),
    "a pickle": b"\x80\x04N.",
    "a shape that is too large": b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}" % 10**30,
    "half a token": b"\x93NUMPY\1\0v\0{'descr': '<f4', (((",
    "an indented header": b"\x93NUMPY\1\0v\0  {'descr':\n '<f4'",
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_an_npy_file_is_read_as_one_alone(content, tmp_path):
    (tmp_path / "x.npy").write_bytes(content.ljust(128))
    with pytest.raises(BadGolden, match=r"x\.npy is not a usable file of arrays"):
        read_dump(tmp_path)


def test_a_metadata_of_null_is_none(tmp_path):
    path = tmp_path / "x.safetensors"
    header = b'{"__metadata__":null,"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(safetensors(header) + bytes(4))
    assert open_with_metadata(path)[1] == {}
    with pytest.raises(BadGolden, match="it lacks the metadata"):
        read_golden(path)


def test_a_large_picture_that_its_file_can_hold_is_read(tmp_path):
    """A white sheet of 24 million pixels in one bit is the densest picture there is."""
    Image.new("1", (6000, 4000), 1).save(tmp_path / "x.png")
    assert read_picture(tmp_path / "x.png").size == (6000, 4000)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_in_strips_is_that_of_the_whole(mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(256, size=(1100, 1000, 4), dtype=np.uint8)).convert(mode)
    image.info["transparency"] = 7 if mode == "P" else image.info.get("transparency")
    rgba = image.convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_picture(image)), np.asarray(whole))


def test_unused_numbers_of_serialised_pieces_are_few():
    """The bound on pieces counts bytes that are the tag of one: a real tokenizer has between two and three for each."""
    pieces = [(f"piece {i}", -float(i), 1) for i in range(20_000)]
    assert serialised(pieces).count(b"\x0a") < 2.6 * len(pieces)
