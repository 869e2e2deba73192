"""The smallest part of a broken case of tools/fuzz.py that is still broken in the same way.

Files, words of a command line and bytes are left out, halves first, then quarters, and so on down to single ones, as
long as the case stays broken (delta debugging, Zeller and Hildebrandt 2002).
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from fuzz_changes import Files

Part = TypeVar("Part", bound=Sequence)  # type: ignore[type-arg]
COMMAND_LINE = "argv.json"


def minimal(case: Files, is_broken: Callable[[Files], bool], seconds: float) -> Files:
    """As many files, words and bytes of a case as it takes to be broken, or as were left after so many seconds."""
    end = time.monotonic() + seconds
    names = shortened(tuple(case), lambda left: is_broken({name: case[name] for name in left}), end)
    case = {name: case[name] for name in names}
    for name in names:
        case = case | {name: minimal_file(case, name, is_broken, end)}
    return case


def minimal_file(case: Files, name: str, is_broken: Callable[[Files], bool], end: float) -> bytes:
    """As many bytes of a file of a case, or words of its command line, as it takes to be broken."""
    if name == COMMAND_LINE:
        words = json.loads(case[name])
        return as_json(shortened(words, lambda left: is_broken(case | {name: as_json(left)}), end))
    return shortened(case[name], lambda left: is_broken(case | {name: left}), end)


def as_json(words: Sequence[str]) -> bytes:
    return json.dumps(list(words)).encode()


def shortened(whole: Part, is_broken: Callable[[Part], bool], end: float) -> Part:
    """A sequence without the parts that it can be broken without; as far as it got by the time `end`."""
    size = len(whole)
    while size := (size + 1) // 2 if size > 1 else 0:
        start = 0
        while start < len(whole):
            if time.monotonic() > end:
                return whole
            left: Part = whole[:start] + whole[start + size :]  # type: ignore[assignment, operator]
            if is_broken(left):
                whole = left
            else:
                start += size
    return whole
