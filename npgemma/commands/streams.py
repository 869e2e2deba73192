"""`-` for stdin and stdout: while a command runs, a file takes the place of the stream.

A parser says where `-` may stand: `set_defaults(stdin={"image": (PICTURE,)}, stdout={"draw": ".png"})`, or, if that
depends on the arguments, with a function of them in place of a dictionary. The command itself knows files and texts
alone. If its output goes to stdout, what it prints goes to stderr instead.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple

from npgemma.commands.flags import WrongUsage
from npgemma.commands.output import tell
from npgemma.errors import BadGolden, BadPicture, BadPrompt, NpgemmaError

FOLDER = "npgemma-streams-"  # how the names of the temporary folders begin
CHUNK = 1 << 20


class Kind(NamedTuple):
    """What is read from stdin: how messages call it, its error, the most bytes, and whether it is text."""

    name: str
    error: type[NpgemmaError]
    most: int
    is_text: bool


PICTURE = Kind("picture", BadPicture, 1 << 30, is_text=False)
DUMP = Kind("dump", BadGolden, 1 << 40, is_text=False)
PROMPT = Kind("prompt", BadPrompt, 1 << 20, is_text=True)
ANSWERS = Kind("answers, one a line", BadPrompt, 10 << 20, is_text=True)


class Place(NamedTuple):
    """Where `-` stands for stdin among the arguments: the name, which of its values, and what it stands for."""

    name: str
    at: int
    kind: Kind


@contextmanager
def standard_streams(a: argparse.Namespace) -> Iterator[None]:
    """`a` with files and texts in place of `-`. WrongUsage if a stream is needed twice, or is a terminal."""
    places, outputs = places_of_stdin(a), [name for name in getattr(a, "stdout", {}) if str(getattr(a, name)) == "-"]
    if len(places) > 1:
        raise WrongUsage("'-' stands for stdin, which can be read only once; name files for the other arguments")
    if len(outputs) > 1:
        raise WrongUsage(f"--{outputs[0]} and --{outputs[1]} cannot both go to stdout; name a file for one of them")
    if not places and not outputs:
        yield
        return
    with TemporaryDirectory(prefix=FOLDER) as folder, ExitStack() as stack:
        for place in places:
            stack.enter_context(from_stdin(a, place, Path(folder)))
        for name in outputs:
            stack.enter_context(to_stdout(a, name, Path(folder)))
        yield


def places_of_stdin(a: argparse.Namespace) -> list[Place]:
    """Every `-` that stands for stdin. If an argument has two kinds, the second is that of its last value."""
    allowed = getattr(a, "stdin", {})
    return [
        Place(name, i, kinds[-1 if i == len(values) - 1 else 0])
        for name, kinds in (allowed(a) if callable(allowed) else allowed).items()
        for values in [listed(getattr(a, name))]
        for i, value in enumerate(values)
        if value == "-"
    ]


@contextmanager
def from_stdin(a: argparse.Namespace, place: Place, folder: Path) -> Iterator[None]:
    """Put what stdin holds in a place of `a`. Errors about the file that it is in call it stdin."""
    name, i, kind = place
    values = listed(getattr(a, name))
    values[i : i + 1] = read_text(kind) if kind.is_text else [str(read_file(kind, folder / "stdin"))]
    setattr(a, name, values if isinstance(getattr(a, name), list) else values[0])
    try:
        yield
    except NpgemmaError as error:
        if kind.is_text:
            raise
        raise type(error)(str(error).replace(str(values[i]), f"the {kind.name} on stdin")) from None


@contextmanager
def to_stdout(a: argparse.Namespace, name: str, folder: Path) -> Iterator[None]:
    """Give `a` a file for an output, and copy it to stdout in the end; what is printed goes to stderr."""
    if sys.stdout.isatty():
        flag = name.replace("_", "-")
        raise WrongUsage(f"--{flag} - writes to stdout, which is a terminal; put '> FILE' behind the command")
    path = folder / f"stdout{a.stdout[name]}"
    setattr(a, name, path)
    with redirect_stdout(sys.stderr):
        yield
    if path.exists():
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def listed(value: object) -> list[object]:
    """A copy of a list of arguments, or the one argument as a list."""
    return list(value) if isinstance(value, list) else [value]


def read_text(kind: Kind) -> list[str]:
    """A prompt, without the newline that ends it, or the lines of a list of answers that are not empty."""
    stdin = opened(kind)
    if sys.stdin.isatty():
        tell(f"type the {kind.name}; Ctrl-D on a line of its own ends it")
    content = stdin.read(kind.most + 1)
    if len(content) > kind.most:
        raise kind.error(f"the {kind.name} on stdin has more than {kind.most:,} bytes; pass a shorter text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind.error(f"the {kind.name} on stdin is not UTF-8 text ({error}); convert it to UTF-8") from None
    texts = [line.rstrip() for line in text.splitlines()] if kind is ANSWERS else [text.rstrip("\r\n")]
    texts = [each for each in texts if each]
    if not texts:
        raise kind.error(f"stdin is empty; '-' expects the {kind.name} there")
    return texts


def read_file(kind: Kind, path: Path) -> Path:
    """Write what stdin holds to `path`, for a dump with the suffix of its format; returns the file's name."""
    stdin = opened(kind)
    if sys.stdin.isatty():
        raise WrongUsage(f"'-' reads the {kind.name} from stdin, which is a terminal; put '< FILE' behind the command")
    begin = stdin.read(CHUNK)
    if not begin:
        raise kind.error(f"stdin is empty; '-' expects the {kind.name} there")
    if kind is DUMP:
        path = path.with_suffix(".npz" if begin.startswith(b"PK") else ".safetensors")
    size = 0
    with path.open("wb") as file:
        while begin:
            size += file.write(begin)
            if size > kind.most:
                raise kind.error(f"the {kind.name} on stdin has more than {kind.most:,} bytes; name a file instead")
            begin = stdin.read(CHUNK)
    return path


def opened(kind: Kind) -> BinaryIO:
    """The bytes of stdin; an error of this kind if it is closed."""
    if sys.stdin is None or sys.stdin.closed:
        raise kind.error(f"stdin is closed; '-' expects the {kind.name} there")
    return sys.stdin.buffer


def given(argument: str) -> str:
    """An argument as the user gave it: `-` for a file in place of stdin."""
    return "-" if Path(argument).parent.name.startswith(FOLDER) else argument


def shown(path: Path) -> str:
    """What messages call an output."""
    return "stdout" if path.parent.name.startswith(FOLDER) else str(path)
