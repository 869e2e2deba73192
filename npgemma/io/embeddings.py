"""Files of embeddings: an .npz with a row of length 1 for each picture and each text, and what made them.

images       [B E]  float32
image_names  [B]    the paths of the pictures
texts        [T E]  float32
text_names   [T]    the texts
facts        JSON: the model, its kind, a hash that tells it from others, and the width E
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgemma.errors import BadEmbeddings, listed, shortened
from npgemma.io.atomic_write import replace_file
from npgemma.io.foreign import Damaged
from npgemma.io.npz import read_npz
from npgemma.io.regular_files import open_regular
from npgemma.io.strict_json import parse_json
from npgemma.layers.shapes import Array, Bool, Float

FACTS = "facts"
ARRAYS = {"image": ("images", "image_names"), "text": ("texts", "text_names")}
LENGTH = 1e-3  # how far the length of a row may be from 1: float32 rounds off less than 1e-6 times the root of E
ZIP = b"PK\x03\x04"
AGAIN = "remove it, and make it again with npgemma embed"
ANOTHER = "name a file that npgemma embed has written, or a new one for it to write"


@dataclass(frozen=True)
class Facts:
    """What made a file of embeddings: the model as the user called it, its model_type, its hash, the width of a row."""

    model: str
    model_type: str
    digest: str
    width: int

    def check(self, other: "Facts", path: Path) -> None:
        """BadEmbeddings if the rows in the file at `path`, whose facts these are, are not those of another's model."""
        if (self.model_type, self.digest, self.width) != (other.model_type, other.digest, other.width):
            mine = f"{path} was made with the model {shortened(self.model)} ({self.model_type}, {self.width} wide)"
            theirs = f"{shortened(other.model)} ({other.model_type}, {other.width} wide)"
            raise BadEmbeddings(f"{mine}, which differs from {theirs}; use the same model, or another file")


class Key(NamedTuple):
    """What a row embeds: a picture or a text (a key of ARRAYS), and the path or the text."""

    kind: str
    name: str


@dataclass(frozen=True)
class Embeddings:
    """The rows of a file of embeddings, in its order: pictures, then texts."""

    facts: Facts
    rows: dict[Key, Float[Array, "E"]]

    def named(self, kind: str) -> list[str]:
        """The names of all pictures, or all texts."""
        return [key.name for key in self.rows if key.kind == kind]

    def stacked(self, kind: str) -> Float[Array, "B E"]:
        """The rows of all pictures, or of all texts."""
        rows = [row for key, row in self.rows.items() if key.kind == kind]
        return np.stack(rows) if rows else np.empty((0, self.facts.width), np.float32)


def partial(path: Path) -> Path:
    """Where the rows of a file are until all are there; see io.embedding_rows."""
    return path.parent / f"{path.name}.partial"


def write_embeddings(path: Path, embeddings: Embeddings) -> None:
    """Write a file completely or not at all. BadEmbeddings if it cannot be written."""
    arrays: dict[str, Array] = {FACTS: np.array(json.dumps(asdict(embeddings.facts)))}
    for kind, (rows, names) in ARRAYS.items():
        arrays |= {rows: embeddings.stacked(kind), names: np.array(embeddings.named(kind), np.str_)}
    try:
        with replace_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise BadEmbeddings(f"{path} cannot be written: {error.strerror or error}") from None


def read_embeddings(path: Path) -> Embeddings:
    """Read and check a file. BadEmbeddings if it is missing or damaged, or holds something else."""
    try:
        with open_regular(path) as file:
            begin, size = file.read(len(ZIP)), path.stat().st_size
    except FileNotFoundError:
        raise BadEmbeddings(f"{path} {absence(path)}") from None
    except OSError as error:
        raise BadEmbeddings(f"{path} cannot be read: {error.strerror}") from None
    if begin != ZIP:
        raise BadEmbeddings(f"{path} is not a file of embeddings; {ANOTHER}")
    try:
        arrays = read_npz(path, size)  # nothing is compressed, so that less is unpacked than read
    except Damaged as error:
        raise BadEmbeddings(f"{path} is cut short or damaged ({error}); {AGAIN}") from None
    expected = {FACTS, *(name for pair in ARRAYS.values() for name in pair)}
    if arrays.keys() != expected:
        raise BadEmbeddings(f"{path} is not a file of embeddings: it holds {listed(sorted(arrays))}; {ANOTHER}")
    facts = read_facts(str(arrays[FACTS]), path)
    rows: dict[Key, Array] = {}
    for kind, pair in ARRAYS.items():
        stacked, names = (arrays[name] for name in pair)
        check_rows(f"{path}: {pair[0]}", stacked, names, facts.width)
        rows |= {Key(kind, name): row for name, row in zip(names.tolist(), stacked, strict=True)}
    return Embeddings(facts, rows)


def absence(path: Path) -> str:
    """Why there is no file: it is unfinished, or was never begun."""
    if partial(path).exists():
        return "is not finished; run the npgemma embed command again, which continues"
    return "was not found; npgemma embed makes such files"


def read_facts(text: str, path: Path) -> Facts:
    """The facts in a JSON text. BadEmbeddings if they are damaged."""
    try:
        values = parse_json(text.encode())
        facts = Facts(**values)
    except (ValueError, TypeError, RecursionError):
        raise BadEmbeddings(f"{path}: the facts about its model are damaged; {AGAIN}") from None
    kinds = {name: type(value) for name, value in asdict(facts).items()}
    if kinds != Facts.__annotations__ or facts.width < 1:
        raise BadEmbeddings(f"{path}: the facts about its model are damaged; {AGAIN}")
    return facts


def check_rows(where: str, rows: Array, names: Array, width: int) -> None:
    """BadEmbeddings unless there is a row of length 1 for each name, and no name twice."""
    fits = rows.dtype == np.float32 and rows.shape[1:] == (width,) and names.shape == rows.shape[:1]
    if not fits or names.dtype.kind != "U":
        found = f"{rows.dtype} {list(rows.shape)} for {names.dtype} {list(names.shape)}"
        raise BadEmbeddings(f"{where} are {found}, not float32 rows of {width} for a name each; {AGAIN}")
    if len(set(names.tolist())) < len(names):
        raise BadEmbeddings(f"{where} have a name twice; {AGAIN}")
    wrong = ~have_length_1(rows)
    if wrong.any():
        name = shortened(repr(names[wrong.argmax()].item()))
        raise BadEmbeddings(f"{where}: the row of {name} does not have length 1; {AGAIN}")


def have_length_1(rows: Float[Array, "B E"]) -> Bool[Array, "B"]:
    """Which rows are finite and have length 1."""
    with np.errstate(all="ignore"):  # NaN, infinity, and squares that overflow: all are wrong
        lengths = np.linalg.norm(rows, axis=-1)
        fit: Array = np.abs(lengths - 1) <= LENGTH
    return fit
