"""How results are told: text for people, JSON for programs, and nothing that could steer a terminal."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from npgemma.decoding.text import Generation
from npgemma.tasks.objects import Box, DetectedObject

INTERRUPTED = 130  # the exit status of what Ctrl-C has ended
WIPE = "\r\x1b[K"  # takes the line that a terminal's cursor is on away


def print_json(
    prompt: str, generation: Generation, boxes: Sequence[Box] | None = None, things: Sequence[DetectedObject] = ()
) -> None:
    """One object on one line; of an answer with boxes, these in pixels, and the objects in bins and codes."""
    result = {"prompt": prompt, **asdict(generation)}
    if boxes is not None:
        result |= {"boxes": [asdict(box) for box in boxes], "objects": [asdict(thing) for thing in things]}
    print(as_json(result))


def as_json(result: object) -> str:
    """ASCII throughout, so that no encoding and no terminal can trip over it; DEL alone is left to be escaped."""
    return json.dumps(result).replace("\x7f", "\\u007f")


def box_fields(box: Box) -> tuple[object, ...]:
    """A box as fields of a line: its label, and its edges in whole pixels."""
    return printable(" ".join(box.label.split())), *(round(side) for side in (box.x0, box.y0, box.x1, box.y1))


def printable(text: str) -> str:
    """`text` with control characters written out: what comes from files must not steer a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


@contextmanager
def working(what: str) -> Iterator[Callable[[], None]]:
    """Says on a terminal's stderr that `what` is going on; wiped when `done` is first called, or at the end."""
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
