"""Files that are written completely or not at all.

What is not finished yet lies in a hidden folder beside its target. The folder's name is random and its owner alone may
look into it, so that nobody else can put a file or a link there, and a library may write the file as it likes: that of
safetensors writes another one first. A lock on the folder, which ends with its process, tells that its writer lives;
the next writer of the same target removes the folders that nobody locks.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PREFIX = ".npgemma-"
KEY_DIGITS = 16  # of the hash that stands for a target, whose own name may be too long for another part


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file that replaces `path` if the block succeeds, and is removed if it fails.

    At every moment `path` has either its old content or all of the new. The file keeps its permissions. If `path` is a
    link, its target is replaced and the link stays. OSError if `path` is a device, a pipe, a folder or a link to
    itself, or is read-only.
    """
    path = Path(os.path.realpath(path))
    check_target(path)
    with temporary_folder(path.parent, path.name) as folder:
        temporary = folder / path.name
        temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)  # safetensors writes files that only their owner can read
        temporary.replace(path)


def check_target(path: Path) -> None:
    """OSError for what `replace_file` does not replace; `path` has no links in it but one that leads nowhere."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link to itself", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@contextmanager
def temporary_folder(parent: Path, target: str) -> Iterator[Path]:
    """Yield a new folder in `parent` for what is to become `target`, and remove it with all that is still in it.

    What killed writers of the same target have left in `parent` is removed first.
    """
    remove_leftovers(parent, target)
    with ExitStack() as held:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix_of(target), dir=parent))
            try:
                held.enter_context(locked(folder))
                break
            except (BlockingIOError, FileNotFoundError):
                continue  # another writer took it for a leftover, before the lock, and removes it
            except OSError:
                break  # some network drives do not support locks
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Return when a file, or which files are in a folder, is on the disk. OSError."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(parent: Path, target: str) -> None:
    """Remove the temporary folders for `target` in `parent` whose writers have been killed."""
    for path in parent.iterdir():
        if path.name.startswith(prefix_of(target)):
            with suppress(OSError), locked(path):
                shutil.rmtree(path, ignore_errors=True)


def prefix_of(target: str) -> str:
    """How the names of the temporary folders for `target` begin."""
    return f"{PREFIX}{hashlib.sha256(os.fsencode(target)).hexdigest()[:KEY_DIGITS]}-"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder. BlockingIOError if it is held already, FileNotFoundError if the folder is gone.

    OSError where such locks do not exist (Windows, some network drives).
    """
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP)) from None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
        yield
    finally:
        os.close(descriptor)
