"""What every command checks before it loads a model: no output takes the place of an input or of another output.

A parser says what a command reads and writes: `set_defaults(reads={"image": "the picture"}, stdout={"draw": ".png"})`.
The model, its adapter and its tokenizer are inputs of every command that has their flags.
"""

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from npgemma.commands.streams import shown
from npgemma.errors import BadModel, NpgemmaError, why
from npgemma.io.atomic_write import check_target
from npgemma.io.model_folder import ASSETS, find_adapter, find_model, folder_of
from npgemma.io.picture_kinds import SUFFIXES
from npgemma.io.safetensors import weight_files


class Input(NamedTuple):
    """A file that a command reads, and how a message calls it."""

    path: Path
    name: str


def check_outputs(a: argparse.Namespace) -> None:
    """NpgemmaError unless all outputs of a command can be written, and none is an input or another output.

    A file of results or of embeddings is continued, wherever it stands: such as in the folder of its pictures or of the
    model. It may only not be an input that is named, since a file of another kind is refused for what it holds.
    """
    if continued := getattr(a, "continued", None):
        output: Path = getattr(a, continued)
        check_writable(output, in_place=True)
        check_apart([output], named_inputs(a))
    outputs = [path for name in getattr(a, "stdout", ()) if (path := getattr(a, name))]
    for path in outputs:
        check_writable(path, in_place=False)
    check_apart(outputs, chain(named_inputs(a), contents(a)))


def check_apart(outputs: Iterable[Path], inputs: Iterable[Input]) -> None:
    """NpgemmaError if an output is the same file as an input or as another output, whatever both are called."""
    written: dict[object, Path] = {}
    for path in outputs:
        key = identity(path) or os.path.realpath(path)
        if key in written:
            raise NpgemmaError(f"{shown(path)} is both outputs; give each output a file of its own")
        written[key] = path
    if not any(map(identity, written.values())):
        return  # nothing is there to be lost
    for path, name in inputs:
        if output := written.get(identity(path)):
            raise NpgemmaError(f"{shown(output)} is {name} and an output; give each output a file of its own")


def identity(path: Path) -> tuple[int, int] | None:
    """What all names of a file have in common, as for os.path.samestat; None if there is no file."""
    with suppress(OSError, ValueError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


def check_writable(path: Path, in_place: bool) -> None:
    """NpgemmaError, before any work, for an output that cannot be written: `in_place`, or by replacing it."""
    try:
        real = Path(os.path.realpath(path))
        check_target(real)
        if not (in_place and real.exists()) and not os.access(real.parent, os.W_OK):
            raise OSError("Permission denied" if real.parent.is_dir() else "No such file or directory")
    except (OSError, ValueError) as error:
        raise NpgemmaError(f"{path} cannot be written: {why(error)}") from None


def named_inputs(a: argparse.Namespace) -> Iterator[Input]:
    """The files that the arguments of a command name. An argument that is not a file, such as a text, is left out."""
    reads: Mapping[str, str] = getattr(a, "reads", {}) | {"tokenizer": "the tokenizer"}
    for argument, name in reads.items():
        value = getattr(a, argument, None)
        yield from (Input(Path(each), name) for each in (value if isinstance(value, list) else [value]) if each)


def contents(a: argparse.Namespace) -> Iterator[Input]:
    """The files in the folders that a command reads: of a dump, of the model, and of its adapter."""
    for path, name in named_inputs(a):
        if os.path.isdir(path):
            yield from (Input(each, f"a part of {name}") for each in not_pictures(path.rglob("*")))
    yield from model_files(getattr(a, "model", None))
    if getattr(a, "adapter", None):
        with suppress(BadModel, OSError):
            yield from (Input(each, "a file of the adapter") for each in find_adapter(a.adapter).iterdir())


def model_files(name: str | None) -> Iterator[Input]:
    """The files of a model; without a name, those of all embedded ones. None if there is no such model."""
    if name is None:
        yield from (Input(each, "a file of npgemma's own") for each in ASSETS.rglob("*"))
        return
    with suppress(BadModel, OSError):  # loading says what is wrong
        model = find_model(name)
        yield from (Input(each, "a file of the model") for each in not_pictures(folder_of(model).iterdir()))
        yield from (Input(each, "a file of the model") for each in weight_files(model))


def not_pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Those that are not called like pictures: what a command has drawn into a folder, it may draw again."""
    return (path for path in paths if path.suffix.lower() not in SUFFIXES)
