"""Are a model's files what was published, and its weights numbers?

The blobs of a Hugging Face cache are named by a hash of what they hold: 64 hexadecimal digits are the sha256 of a large
file, 40 the sha1 that git gives a small one. So a damaged download shows without asking anybody.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgemma.io.model_folder import folder_of, member
from npgemma.layers.matmul import BLOCK, row_blocks
from npgemma.layers.shapes import Array

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


def not_finite(tensors: Mapping[str, Array]) -> list[str]:
    """The names of tensors that hold an infinity or no number at all; weights are read a block at a time."""

    def all_finite(w: Array) -> bool:
        return all(finite(w[block]) for block in row_blocks(w.reshape(len(w), -1), BLOCK))

    return [name for name, w in tensors.items() if not all_finite(w)]


def finite(w: Array) -> bool:
    """bfloat16 is stored as bits (see layers.shapes): of an infinity or a NaN, all bits of the exponent are 1."""
    return bool(((w & 0x7F80) != 0x7F80).all() if w.dtype == np.uint16 else np.isfinite(w).all())
