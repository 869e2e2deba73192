"""Files written at once or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """An empty file in the same folder, renamed to `path` when the block ends well and removed when it does not.

    So at every moment `path` is what it was or all of what was written, never a part; the new file may be read by whom
    the old one might.
    """
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
