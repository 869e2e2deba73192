"""Check whether the files of a model are the published ones.

The Hugging Face cache names each blob by a hash of its content: 64 hexadecimal digits are the sha256 of a large file,
40 are git's sha1 of a small file. So a damaged download can be detected offline.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from npgemma.io.model_folder import folder_of, member
from npgemma.io.regular_files import open_regular

CHUNK = 1 << 22  # bytes read at once


class Verified(NamedTuple):
    """A file, its sha256 ('' if it is unreadable), and whether it matches the name of its blob (None: not a blob)."""

    name: str
    sha256: str
    genuine: bool | None


def verify_files(model: Path) -> Iterator[Verified]:
    """Check the files of a model, sorted by name: all files of its folder, for a file those beside it, too.

    BadModel for a link that leads out of the folder.
    """
    folder = folder_of(model)
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_file():
            continue  # a folder, or a pipe, which would block
        real = Path(os.path.realpath(member(folder, path.name)))
        try:
            sha256, git = digests(real)
        except OSError:  # a link to a missing blob, or a link to itself
            yield Verified(path.name, "", False)
            continue
        name = real.name if real.parent.name == "blobs" else ""
        expected = {64: sha256, 40: git}.get(len(name)) if re.fullmatch("[0-9a-f]+", name) else None
        yield Verified(path.name, sha256, None if expected is None else name == expected)


def digests(path: Path, chunk: int = CHUNK) -> tuple[str, str]:
    """The sha256 of a file, and git's sha1 of it as a blob. `chunk` bytes are read at once."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open_regular(path) as file:
        while read := file.read(chunk):
            sha256.update(read)
            git.update(read)
    return sha256.hexdigest(), git.hexdigest()
