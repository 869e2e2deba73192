"""Files written at once or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """An empty file in the same folder, renamed to `path` when the block ends well and removed when it does not.

    So at every moment `path` is what it was or all of what was written, never a part; the new file may be read by whom
    the old one might. What a link leads to is written, the link stays. OSError where there is no file but a device, a
    pipe or a folder, or one that may not be written.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file", str(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    temporary = path.parent / f".npgemma-{os.getpid()}{path.suffix}"
    try:
        temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors writes files that nobody but their owner can read
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
