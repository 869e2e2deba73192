"""Embeddings that are being made: a line of JSON with facts, then a line for each row.

Rows are appended batch by batch, and each batch is on disk before the next begins. So if the process ends for any
reason, the file contains every finished batch and at most one incomplete line, which is removed when the work
continues.

    {"npgemma embeddings of": {"model": ..., "model_type": ..., "digest": ..., "width": ...}}
    {"image": "cat.jpg", "row": the float32 values, little-endian, in base64}
"""

import base64
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np

from npgemma.errors import BadEmbeddings
from npgemma.io.embeddings import ARRAYS, Facts, Key, have_length_1, read_facts
from npgemma.io.regular_files import open_to_continue
from npgemma.io.results import lock
from npgemma.io.strict_json import parse_json
from npgemma.layers.shapes import Array, Float

HEADER, ROW = "npgemma embeddings of", "row"
BEGIN = f'{{"{HEADER}": '.encode()
FLOAT = np.dtype("<f4")


class Rows:
    """An open file of rows, and all that it holds. Set `needed` to False to have it removed when it is closed."""

    def __init__(self, file: IO[bytes], done: dict[Key, Float[Array, "E"]]) -> None:
        self.file = file
        self.done = done
        self.needed = True

    def write(self, keys: Sequence[Key], rows: Float[Array, "B E"]) -> None:
        """Append a batch, and return when it is on disk. BadEmbeddings if it cannot be written."""
        stored = rows.astype(FLOAT)
        append(self.file, b"".join(map(as_line, keys, stored)))
        self.done |= zip(keys, stored.astype(np.float32, copy=False), strict=True)


@contextmanager
def open_rows(path: Path, facts: Facts) -> Iterator[Rows]:
    """Open a file of rows to continue it, or create it; in the end it is removed if it has none.

    BadEmbeddings if it contains anything else or rows of another model, which are left unchanged, if it cannot be
    written, or if another process is writing it.
    """
    try:
        file = open_to_continue(path)
    except OSError as error:
        raise BadEmbeddings(f"{path} cannot be written: {error.strerror or error}") from None
    with file:
        lock(file, path, BadEmbeddings)
        file.seek(0)
        header = file.readline()
        end, done = 0, dict[Key, Array]()
        if header.endswith(b"\n"):
            read_header(header, path).check(facts, path)
            end = len(header)
            for line, key, row in complete_rows(file, path, facts.width):
                end += len(line)
                done[key] = row
        elif header[: len(BEGIN)] != BEGIN[: len(header)]:
            raise other_content(path, 1)
        file.truncate(end)
        if not end:
            append(file, json.dumps({HEADER: asdict(facts)}).encode("ascii") + b"\n")
        rows = Rows(file, done)
        try:
            yield rows
        finally:
            if not rows.done or not rows.needed:
                if os.name == "nt":  # Windows cannot remove an open file; elsewhere it stays locked until it is gone
                    file.close()
                path.unlink()


def append(file: IO[bytes], content: bytes) -> None:
    """Write to the end of a file, and to the disk, without a buffer, which would retry a failed write on closing."""
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise BadEmbeddings(f"{file.name} cannot be written: {error.strerror or error}") from None


def as_line(key: Key, row: Float[Array, "E"]) -> bytes:
    """A row as a line of the file."""
    return json.dumps({key.kind: key.name, ROW: base64.b64encode(row.tobytes()).decode()}).encode("ascii") + b"\n"


def read_header(line: bytes, path: Path) -> Facts:
    """The facts in the first line. BadEmbeddings if it is something else."""
    if not line.startswith(BEGIN):
        raise other_content(path, 1)
    return read_facts(line[len(BEGIN) :].decode("utf-8", "replace").rstrip()[:-1], path)


def complete_rows(file: IO[bytes], path: Path, width: int) -> Iterator[tuple[bytes, Key, Float[Array, "E"]]]:
    """Each line, what it embeds and its row, without an incomplete last line. BadEmbeddings for a damaged line."""
    for number, line in enumerate(file, 2):
        if not line.endswith(b"\n"):
            return
        try:
            (kind, name), (last, text) = parse_json(line).items()
            row = np.frombuffer(base64.b64decode(text, validate=True), FLOAT).astype(np.float32, copy=False)
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise other_content(path, number) from None
        is_row = kind in ARRAYS and isinstance(name, str) and last == ROW and row.shape == (width,)
        if not is_row or not have_length_1(row[None]).all():
            raise other_content(path, number)
        yield line, Key(kind, name), row


def other_content(path: Path, number: int) -> BadEmbeddings:
    return BadEmbeddings(f"{path}: line {number} is not what npgemma embed writes; remove the file to begin again")
