"""How results are printed: text for people, JSON for programs, and no control characters for the terminal."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO

from npgemma.decoding.scoring import Score
from npgemma.decoding.text import Generation
from npgemma.tasks.objects import Box, DetectedObject

INTERRUPTED = 130  # the exit status after Ctrl-C
WIPE = "\r\x1b[K"  # clears the terminal's current line


def model_name(a: argparse.Namespace) -> str:
    """The model as the user named it, or 'embedded'."""
    return a.model or "embedded"


def print_json(
    model: str,
    prompt: str,
    generation: Generation,
    boxes: Sequence[Box] | None = None,
    objects: Sequence[DetectedObject] = (),
) -> None:
    """One JSON object on one line; for an answer with boxes, these in pixels, and the objects in bins and codes."""
    result = {"model": model, "prompt": prompt, **asdict(generation)}
    if boxes is not None:
        result |= {"boxes": [asdict(box) for box in boxes], "objects": [asdict(each) for each in objects]}
    say(as_json(result))


def as_json(result: object) -> str:
    """JSON in ASCII, which every encoding and terminal can show; json escapes everything but DEL."""
    return json.dumps(result).replace("\x7f", "\\u007f")


def score_fields(score: Score) -> dict[str, object]:
    """A score as JSON has it."""
    return {**asdict(score), "total": score.total, "loss": score.loss, "perplexity": score.perplexity}


def box_fields(box: Box) -> tuple[object, ...]:
    """A box as fields of a line: its label, and its edges in whole pixels."""
    return " ".join(box.label.split()), *(round(side) for side in (box.x0, box.y0, box.x1, box.y1))


def say(*parts: object, sep: str = " ", end: str = "\n", file: IO[str] | None = None, flush: bool = False) -> None:
    """Print as `print` does, without control characters. Everything that commands print goes through here."""
    print(printable(sep.join(map(str, parts))), end=end, file=file, flush=flush)


def tell(sentence: str) -> None:
    """Say something about the run on stderr, on one line: a name in it may hold a newline.

    Only a list of files, which is indented, has lines of its own.
    """
    say("npgemma:", re.sub(r"\n(?!  )", r"\\n", sentence), file=sys.stderr)


def printable(text: str) -> str:
    """`text` with control characters escaped: text from files must not control the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


@contextmanager
def working(what: str) -> Iterator[Callable[[], None]]:
    """Shows `what` on a terminal's stderr, until `done` is first called, or to the end."""
    shown = sys.stderr.isatty()

    def done() -> None:
        nonlocal shown
        if shown:
            print(WIPE, end="", file=sys.stderr, flush=True)
        shown = False

    if shown:
        print(f"{what} ...", end="", file=sys.stderr, flush=True)
    try:
        yield done
    finally:
        done()
