"""Untrusted files of arrays, .npz and .npy: nothing in them is executed, and nothing is unpacked beyond a limit.

NumPy's `load` guesses what a file is. Here an .npz file is a ZIP archive of .npy files, and an .npy file is an array.
"""

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from npgemma.io.foreign import parsing
from npgemma.io.regular_files import open_regular, regular
from npgemma.layers.shapes import Array

MAGIC = b"\x93NUMPY"


def read_npz(path: Path, at_most: int | None) -> dict[str, Array]:
    """The arrays of an .npz file; pickles are refused.

    Damaged if it cannot be parsed, contains a name twice, or unpacks to more than `at_most` bytes.
    """
    with parsing(), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        if len(set(names)) < len(names):
            raise ValueError("two arrays have the same name; give each array its own name")
        unpacked = sum(entry.file_size for entry in entries)
        if at_most is not None and unpacked > at_most:
            raise ValueError(f"it unpacks to {unpacked:,} bytes; the limit is {at_most:,}")
        return {name: read_member(archive, entry, name) for name, entry in zip(names, entries, strict=True)}


def read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Array:
    """One array of an .npz file. Raises anything if it is damaged."""
    with archive.open(entry) as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{name!r} is not an array")
        file.seek(0)
        with quiet_headers():
            found: Array = np.lib.format.read_array(file, allow_pickle=False)
        return found


def read_npy(path: Path) -> Array:
    """The array in an .npy file, mapped read-only. Damaged if it is anything else."""
    with parsing(), quiet_headers():
        found: Array = np.lib.format.open_memmap(regular(path), mode="r")
        return found


def read_header(file: IO[bytes]) -> tuple[Any, Any, Any]:
    """Shape, order and dtype of an .npy file, which is left at the first byte of its data. Raises anything."""
    version = np.lib.format.read_magic(file)
    with quiet_headers():
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        return np.lib.format.read_array_header_2_0(file)


@contextmanager
def quiet_headers() -> Iterator[None]:
    """NumPy reads a header as Python, which may warn about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
