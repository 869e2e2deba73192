""".npz files from strangers: nothing in them is run, and nothing is unpacked that would not fit."""

import lzma
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from npgemma.layers.shapes import Array

# What zipfile and NumPy raise on a damaged file, and the complaints below.
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tokenize.TokenError,  # NumPy reads old headers with Python's tokenizer
)


def read_npz(path: Path, at_most: int | None) -> dict[str, Array]:
    """The arrays of an .npz file, pickles refused. One of DAMAGE if it is damaged, holds a name twice, or unpacks to
    more than `at_most` bytes.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename.removesuffix(".npy") for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("it holds a name twice; write every array under a name of its own")
    unpacked = sum(entry.file_size for entry in entries)
    if at_most is not None and unpacked > at_most:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, more than the {at_most:,} it may")
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    for name, x in found.items():
        if not isinstance(x, np.ndarray):
            raise ValueError(f"{name!r} in it is no array")
    return found
