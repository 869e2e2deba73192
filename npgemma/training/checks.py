"""What is wrong with the texts of an example: locations, mask codes, and tokens that a text must not contain."""

import re
from collections.abc import Collection

from npgemma.errors import shortened
from npgemma.tasks.objects import LOCATION

SEGMENT = r"<seg(?:0\d\d|1[01]\d|12[0-7])>"
TOKEN = re.compile(rf"{LOCATION}|{SEGMENT}", re.ASCII)
LOOKS_LIKE_TOKEN = re.compile(r"<\s*(loc|seg)(?![a-z])[^<>]{0,12}>?", re.IGNORECASE)
FORMS = {"loc": "a location is <loc0000> to <loc1023>", "seg": "a mask code is <seg000> to <seg127>"}
LOCATIONS = re.compile(r"(?:<loc\d{4}>)+", re.ASCII)
SEGMENTS = re.compile(r"(?:<seg\d{3}>)+", re.ASCII)
FINDS = re.compile(r"\s*(?:detect|segment)\b", re.IGNORECASE)  # a prefix whose suffix consists of objects
EDGES, CODES = 4, 16  # of an object
BOX_LENGTH = EDGES * len("<loc0000>")


def text_problem(prefix: str, suffix: str, forbidden: Collection[str] = ()) -> str | None:
    """What is wrong with the texts of an example, which must not contain the `forbidden` tokens; None if nothing is."""
    if not suffix.strip():
        return "suffix is empty: there is nothing to learn"
    for name, text in (("prefix", prefix), ("suffix", suffix)):
        if problem := forbidden_token(text, forbidden) or malformed_token(text):
            return f"{name} {problem}"
    problem = wrong_objects(suffix, only_objects=bool(FINDS.match(prefix)))
    return None if problem is None else f"suffix {problem}"


def forbidden_token(text: str, forbidden: Collection[str]) -> str | None:
    """What a text says about a control token in it."""
    found = next((token for token in forbidden if token in text), None)
    return None if found is None else f"contains {found}; leave it out, training adds the control tokens itself"


def malformed_token(text: str) -> str | None:
    """What is wrong with the first location or mask code that the tokenizer does not know as one token."""
    for found in LOOKS_LIKE_TOKEN.finditer(text):
        if not TOKEN.fullmatch(found[0]):
            return f"contains {shortened(found[0], 20)!r}; {FORMS[found[1].lower()]}"
    return None


def wrong_objects(suffix: str, only_objects: bool) -> str | None:
    """What is wrong with the boxes and masks of a suffix, whose tokens are well-formed.

    Locations that do not come in fours may be points, unless the suffix is to have `only_objects`.
    """
    for run in LOCATIONS.findall(suffix):
        edges = [int(number) for number in re.findall(r"\d+", run)]
        if len(edges) != EDGES:
            if only_objects:
                return f"has {len(edges)} locations in a row; a box has {EDGES}: y0, x0, y1, x1"
            continue
        y0, x0, y1, x1 = edges
        if y1 <= y0 or x1 <= x0:
            (axis, low, high) = ("y", y0, y1) if y1 <= y0 else ("x", x0, x1)
            return f"has the box {run} with {axis}1 = {high}, which must be above {axis}0 = {low}"
    for found in SEGMENTS.finditer(suffix):
        count = len(found[0]) // len("<seg000>")
        if count != CODES:
            return f"has {count} mask codes in a row; a mask has {CODES}"
        if not LOCATIONS.fullmatch(suffix[max(0, found.start() - BOX_LENGTH) : found.start()]):
            return "has mask codes without a box before them"
    return None
