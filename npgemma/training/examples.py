"""People's own data: lines of {"image", "prefix", "suffix"}, as big_vision reads them and Roboflow exports them.

Every line is checked before the first step, pictures and tokens included, so that a run does not end at its last line.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from npgemma.errors import BadData, BadPicture, BadPrompt, listed, one_line, shortened
from npgemma.io.jobs import BOM, MAX_LINE, MOST_BYTES, OTHER_KEYS, lines, other_file
from npgemma.io.picture import Picture
from npgemma.io.picture_kinds import url_problem
from npgemma.io.regular_files import open_argument, open_regular
from npgemma.io.strict_json import parse_json, reason
from npgemma.training.checks import text_problem
from npgemma.training.encoding import Encoder

LINE = '{"image": "a.png", "prefix": "caption en", "suffix": "a cat"}'
# Where a folder has the lines of a split: maestro's layout, and Roboflow's exports.
LAYOUTS = (
    *("{split}/annotations.jsonl", "{split}/_annotations.{split}.jsonl"),
    *("_annotations.{split}.jsonl", "dataset/_annotations.{split}.jsonl"),
)


@dataclass(frozen=True)
class Example:
    """What a model is to answer: pictures and a prefix, and the suffix that it learns.

    `where` is the file and the line; `digest` is equal where pictures and texts are.
    """

    images: tuple[Picture, ...]
    prefix: str
    suffix: str
    where: str = ""
    digest: str = ""


class Problem(NamedTuple):
    """A line that cannot be learned, and why."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Data(NamedTuple):
    """The examples of a file in its order, and its other lines."""

    examples: tuple[Example, ...]
    problems: tuple[Problem, ...]


def data_file(path: Path, split: str = "train") -> Path:
    """The file of lines that `path` is, or that it holds for a split: "train", "valid" or "test".

    A folder has the layout of Roboflow or of maestro, or a single file of lines. BadData if there is none.
    """
    if not path.exists():
        raise BadData(f"{path} was not found")
    if not path.is_dir():
        return path
    if found := split_file(path, split):
        return found
    names = sorted(each.name for each in path.glob("*.jsonl"))
    if len(names) == 1:
        return path / names[0]
    if names:
        raise BadData(f"{path} holds {len(names)} files of lines ({listed(names)}); name one of them")
    raise BadData(
        f"{path} holds neither {split}/annotations.jsonl nor _annotations.{split}.jsonl; name a file of lines"
    )


def split_file(folder: Path, split: str) -> Path | None:
    """The lines of a split in a folder of Roboflow's or maestro's layout; None if it has none."""
    paths = (folder / layout.format(split=split) for layout in LAYOUTS)
    return next((path for path in paths if path.is_file()), None)


def read_examples(path: Path, encoder: Encoder, split: str = "train", pictures: Path | None = None) -> Data:
    """Read and check all lines of a file, or of a split of a folder.

    Paths of pictures are relative to the folder `pictures`, by default that of the file. Keys that are not read are
    ignored, and so are empty lines. BadData if the file cannot be read, or is of another kind.
    """
    path = data_file(path, split)
    folder = path.parent if pictures is None else pictures
    picture_of = cache(lambda picture: checked_picture(picture, encoder))
    examples, problems = [], []
    for number, line in numbered_lines(path):
        where = f"{path}: line {number}"
        try:
            examples.append(read_example(line, where, folder, encoder, picture_of))
        except (ValueError, RecursionError, BadPicture, BadPrompt) as error:
            problems.append(Problem(where, one_line(str(error))))
    return Data(tuple(examples), tuple(problems))


def required(data: Data, skip_bad: bool = False) -> tuple[Example, ...]:
    """The examples. BadData if there are none, and for problems unless what has them may be skipped."""
    if data.problems and not (skip_bad and data.examples):
        first, *others = data.problems
        more = f" (and {len(others):,} more problem{'s' if others[1:] else ''})" if others else ""
        advice = "; correct it, or leave it out with --skip-bad" if data.examples else ""
        raise BadData(f"{first}{more}{advice}")
    if not data.examples:
        raise BadData(f"the data hold no example; one is a line such as {LINE}")
    return data.examples


def digest_of(examples: Sequence[Example]) -> str:
    """The sha256 of examples in their order: of the bytes of their pictures and of their texts."""
    return hashlib.sha256("\n".join(each.digest for each in examples).encode()).hexdigest()


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, from 1 on. BadData if it cannot be read, or is not lines of JSON."""
    try:
        with open_argument(path, MOST_BYTES) as file:
            if problem := other_file(file.peek(1), LINE):
                raise BadData(f"{path} {problem}")
            for number, line in enumerate(lines(file), 1):
                line = line.removeprefix(BOM) if number == 1 else line
                if line.strip():
                    yield number, line
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from None


def read_example(line: bytes, where: str, folder: Path, encoder: Encoder, picture_of: Callable[[Path], str]) -> Example:
    """The example of one line. ValueError, BadPicture or BadPrompt say what is wrong with it.

    `picture_of` gives the digest of a picture.
    """
    values = json_object(line)
    prefix, suffix = text_of(values, "prefix"), text_of(values, "suffix")
    images = images_of(values, encoder.reads_pictures)
    if problem := text_problem(prefix, suffix, encoder.forbidden):
        raise ValueError(problem)
    paths = tuple(folder / image for image in images)
    digests = [picture_of(path) for path in paths]
    tokens = len(encoder.encode(prefix, suffix, len(paths)).input_ids)
    if tokens > encoder.most_tokens:
        most = f"the model has positions for {encoder.most_tokens:,}"
        raise ValueError(f"it has {tokens:,} tokens, and {most}; shorten its suffix or its prefix")
    digest = hashlib.sha256(json.dumps([digests, prefix, suffix]).encode()).hexdigest()
    return Example(paths, prefix, suffix, where, digest)


def json_object(line: bytes) -> Mapping[str, Any]:
    """The object of a line. ValueError if it is not one, or has a key twice."""
    if len(line) > MAX_LINE:
        raise ValueError(f"it is longer than {MAX_LINE:,} bytes")
    try:
        values = parse_json(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not valid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it cannot be read as JSON: {reason(error)}") from None
    if not isinstance(values, dict):
        raise ValueError(f"it is a JSON {type(values).__name__}, not an object such as {LINE}")
    return values


def text_of(values: Mapping[str, Any], key: str) -> str:
    """The text under a key. ValueError if it is missing or of another kind."""
    if key not in values:
        other = next((each for each in OTHER_KEYS["prompt"] if each in values and key == "prefix"), None)
        hint = f", and {other!r} is not read; rename it to {key!r}" if other else f"; a line is such as {LINE}"
        raise ValueError(f"{key} is missing{hint}")
    if not isinstance(values[key], str):
        raise ValueError(f"{key} is {shortened(repr(values[key]), 60)}, not text")
    return str(values[key])


def images_of(values: Mapping[str, Any], reads_pictures: bool) -> tuple[str, ...]:
    """The paths of a line's pictures, under "image" or "images": one, or a list. ValueError for anything else."""
    keys = [key for key in ("image", "images") if key in values]
    if len(keys) == 2:
        raise ValueError("image and images are both there, and mean the same; keep one of them")
    if not keys:
        if not reads_pictures:
            return ()
        other = next((each for each in OTHER_KEYS["image"] if each in values), None)
        hint = f", and {other!r} is not read; rename it to 'image'" if other else f"; a line is such as {LINE}"
        raise ValueError(f"image is missing{hint}")
    (key,) = keys
    if not reads_pictures:
        raise ValueError(f"{key} is there, and a language model reads no pictures; leave it out, or train a PaliGemma")
    given = values[key] if isinstance(values[key], list) else [values[key]]
    if not given or not all(isinstance(each, str) and each for each in given):
        raise ValueError(f"{key} is {shortened(repr(values[key]), 60)}, not a path or a list of paths")
    if problem := next(filter(None, map(url_problem, given)), None):
        raise ValueError(f"{key} {problem}")
    return tuple(given)


def checked_picture(path: Path, encoder: Encoder) -> str:
    """The sha256 of a picture's file. BadPicture if it cannot be read."""
    encoder.read(path)
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
