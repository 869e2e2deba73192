"""Untrusted .npz files: nothing in them is executed, and nothing is unpacked beyond a limit."""

import lzma
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from npgemma.io.regular_files import open_regular, regular
from npgemma.layers.shapes import Array

# What zipfile and NumPy raise for a damaged file, and what `read_npz` raises.
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
    """The arrays of an .npz file; pickles are refused.

    Raises one of DAMAGE if the file is damaged, contains a name twice, or unpacks to more than `at_most` bytes.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    names = [entry.filename.removesuffix(".npy") for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("two arrays have the same name; give each array its own name")
    unpacked = sum(entry.file_size for entry in entries)
    if at_most is not None and unpacked > at_most:
        raise ValueError(f"it unpacks to {unpacked:,} bytes; the limit is {at_most:,}")
    with np.load(regular(path), allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    for name, x in found.items():
        if not isinstance(x, np.ndarray):
            raise ValueError(f"{name!r} is not an array")
    return found
