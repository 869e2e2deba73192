"""The one place where files are opened to be read: only regular files, of a bounded size where they are read whole.

A pipe, a terminal or a device may never end, or never begin. What is opened is checked, not what a name led to before.
"""

import errno
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import IO

CHUNK = 1 << 16  # bytes that are read at once of a file of unknown size
# A pipe that the user's shell has opened, as for `<(jq ...)`; no file that others name may be one.
FROM_SHELL = re.compile(r"/dev/fd/\d+|/proc/self/fd/\d+")


def open_regular(path: str | Path, at_most: int | None = None) -> BufferedReader:
    """The file, opened. OSError, at once, if it is not a regular one, or has more than `at_most` bytes."""
    file = open(path, "rb", opener=opened)  # noqa: SIM115 - the caller closes it
    if at_most is not None and os.fstat(file.fileno()).st_size > at_most:
        file.close()
        raise too_large(path, at_most)
    return file


def open_to_continue(path: Path) -> IO[bytes]:
    """The file, opened to be read, and to be written at its end; it is made if there is none. OSError."""
    return open(path, "a+b", opener=opened)


def open_argument(path: Path, at_most: int | None = None) -> BufferedReader:
    """The file that an argument of a command names: a regular one, or a pipe of the user's shell. OSError."""
    if FROM_SHELL.fullmatch(str(path)) and stat.S_ISFIFO(path.stat().st_mode):
        return path.open("rb")
    return open_regular(path, at_most)


def read_regular(path: str | Path, at_most: int) -> bytes:
    """The content of a file. OSError as for `open_regular`."""
    with open_regular(path, at_most) as file:
        return read_all(file, path, at_most)


def read_argument(path: Path, at_most: int) -> bytes:
    """The content of a file. OSError as for `open_argument`."""
    with open_argument(path, at_most) as file:
        return read_all(file, path, at_most)


def read_all(file: IO[bytes], path: str | Path, at_most: int) -> bytes:
    """What an open file holds. OSError if that is more than `at_most` bytes: pipes, and files of the kernel, may not
    tell their size.
    """
    left, pieces = at_most + 1, list[bytes]()
    size = os.fstat(file.fileno()).st_size + 1  # a read makes space for all that it is asked for
    while left and (piece := file.read(min(left, size))):  # None where a file of the kernel would have to be waited for
        pieces.append(piece)
        left, size = left - len(piece), CHUNK
    if not left:
        raise too_large(path, at_most)
    return b"".join(pieces)


def regular(path: Path) -> Path:
    """The path, for a library that opens the file itself. OSError if it is not a regular file."""
    with open_regular(path):
        return path


def opened(path: str, flags: int) -> int:
    """A descriptor of a regular file. OSError for anything else, which is not waited for."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0), 0o666)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def too_large(path: str | Path, at_most: int) -> OSError:
    """The error for a file that is larger than files of its kind are."""
    limit = f"{at_most // 1_000_000} MB" if at_most >= 1_000_000 else f"{at_most:,} bytes"
    return OSError(errno.EFBIG, f"it is larger than {limit}", str(path))
