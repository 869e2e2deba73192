"""Are a model's files what was published?

The blobs of a Hugging Face cache are named by a hash of what they hold: 64 hexadecimal digits are the sha256 of a large
file, 40 the sha1 that git gives a small one. So a damaged download shows without asking anybody.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from npgemma.io.model_folder import folder_of, member

CHUNK = 1 << 22  # bytes read at once


class Verified(NamedTuple):
    """A file, its sha256 ('' if it cannot be read), and whether it is what its blob is named after: None if no blob."""

    name: str
    sha256: str
    genuine: bool | None


def verify_files(model: Path) -> Iterator[Verified]:
    """Each file of a model, by name: all of a folder, or the one file. BadModel for a link that leads out of it."""
    folder = folder_of(model)
    for path in sorted(model.iterdir()) if model.is_dir() else [model]:
        if path.exists() and not path.is_file():
            continue  # a folder, or what would wait for ever, such as a pipe
        real = Path(os.path.realpath(member(folder, path.name)))
        try:
            sha256, git = digests(real)
        except OSError:  # a link to a blob that is gone, or to itself
            yield Verified(path.name, "", False)
            continue
        name = real.name if real.parent.name == "blobs" else ""
        expected = {64: sha256, 40: git}.get(len(name)) if re.fullmatch("[0-9a-f]+", name) else None
        yield Verified(path.name, sha256, None if expected is None else name == expected)


def digests(path: Path) -> tuple[str, str]:
    """The sha256 of a file, and git's sha1 of it as a blob."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            git.update(chunk)
    return sha256.hexdigest(), git.hexdigest()
