"""The arrays of a large .npz file, one at a time: a stored member is mapped, a compressed one is unpacked first.

Source: PKWARE's APPNOTE.TXT, section 4.3.7 (the local header); numpy.lib.format (the header of an .npy file). NumPy
itself reads every member into memory, whatever its mmap_mode.
"""

import math
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from npgemma.errors import BadModel
from npgemma.io.foreign import Damaged, parsing
from npgemma.io.npz import read_header
from npgemma.io.regular_files import open_regular
from npgemma.layers.shapes import Array

# What the dtypes of the files become: NumPy writes bfloat16 as two bytes without a type.
DTYPES: dict[str, np.dtype[Any]] = {"<f4": np.dtype("<f4"), "<f2": np.dtype("<f2"), "|V2": np.dtype("<u2")}
LOCAL_HEADER = 30  # bytes before the member's name
PIECE = 1 << 20  # bytes that are read at once


@dataclass(frozen=True)
class Member:
    """One array of an .npz file; only its header has been read."""

    path: Path
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @contextmanager
    def open(self, folder: Path) -> Iterator[Array]:
        """The array, mapped: from the archive, or from a temporary file in `folder` if it is compressed.

        BadModel if its bytes do not match the checksum in the archive.
        """
        if self.info.compress_type == zipfile.ZIP_STORED:
            start = stored_at(self.path, self.info)
            if checksum(self.path, start, self.info.file_size) != self.info.CRC:
                raise self.damaged("its checksum is wrong")
            yield self.mapped(self.path, start)
            return
        with tempfile.NamedTemporaryFile(dir=folder) as unpacked:
            with open_regular(self.path) as file, zipfile.ZipFile(file) as archive, archive.open(self.info) as packed:
                while piece := self.unpack(packed):
                    unpacked.write(piece)
            unpacked.flush()
            yield self.mapped(Path(unpacked.name), 0)

    def unpack(self, packed: IO[bytes]) -> bytes:
        """The next bytes of a compressed member; the last of them are followed by a check of them all."""
        try:
            with parsing():
                return packed.read(PIECE)
        except Damaged as error:
            raise self.damaged(str(error)) from None

    def damaged(self, why: str) -> BadModel:
        hint = "the download may be incomplete; download it again"
        return BadModel(f"{self.path}: {self.info.filename} is damaged ({why}); {hint}")

    def mapped(self, path: Path, start: int) -> Array:
        """The array of an .npy file that begins at byte `start`; bfloat16 as uint16 (see layers.shapes)."""
        with open_regular(path) as file:
            file.seek(start)
            shape, fortran, _ = read_header(file)
            begin = file.tell()
        order: Any = "F" if fortran else "C"
        if 0 in shape:
            return np.empty(shape, self.dtype)
        return np.asarray(np.memmap(path, self.dtype, "r", begin, shape, order))


def read_members(path: Path) -> dict[str, Member]:
    """The arrays of an .npz file, by name. BadModel if it is missing, damaged, or contains anything but floats."""
    try:
        with parsing(), open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return dict(described(path, archive))
    except FileNotFoundError:
        raise BadModel(f"{path} is missing; give the .npz file of a model") from None
    except Damaged as error:
        raise BadModel(f"{path} is not a usable .npz file of weights: {error}") from None


def described(path: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, Member]]:
    """The name and the description of every array. Raises anything if the file is damaged."""
    seen = set()
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in seen:
            raise ValueError(f"it contains {name!r} twice")
        seen.add(name)
        with archive.open(info) as file:
            shape, _, dtype = read_header(file)
            begin = file.tell()
        if dtype.str not in DTYPES:
            raise ValueError(f"{name!r} is {dtype}; weights are float32, float16, or bfloat16 (|V2)")
        if min(shape, default=0) < 0 or info.file_size != begin + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name!r} has {info.file_size - begin:,} bytes, which do not fit its shape {list(shape)}")
        yield name, Member(path, info, shape, DTYPES[dtype.str])


def stored_at(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin: after its local header, whose extra field may have any length."""
    with open_regular(path) as file:
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER)
    name, extra = struct.unpack("<HH", header[26:30])
    return info.header_offset + LOCAL_HEADER + int(name) + int(extra)


def checksum(path: Path, start: int, size: int) -> int:
    """The CRC-32 of `size` bytes from `start`, or of those that the file has."""
    found = 0
    with open_regular(path) as file:
        file.seek(start)
        while size and (piece := file.read(min(PIECE, size))):
            found, size = zlib.crc32(piece, found), size - len(piece)
    return found
