"""What the name of a tap says: its entry in a table of taps, its level, the block that computes it, and its rows."""

import re
from functools import cache

from npgemma.golden.encoder_taps import CLIP, SIGLIP, VIT
from npgemma.golden.gradient_taps import GRADIENTS
from npgemma.golden.tap_table import TABLE, Entry

LEVELS = ("io", "blocks", "ops")
STEP = r"(steps\.\d+\.)?"
# The taps of each kind of model. Several kinds have a name in common, whose level is the same in all of them.
TABLES: dict[str, tuple[Entry, ...]] = {"PaliGemma and Gemma": TABLE, "SigLIP": SIGLIP, "CLIP": CLIP, "ViT": VIT}
TABLES |= {f"gradients of {kind}": table for kind, table in GRADIENTS.items()}


@cache
def row_axes(axes: str) -> tuple[int, ...]:
    """Which axes count rows, the units that are judged one by one: pictures, texts, patches and tokens.

    In "S K H", a cache, S counts tokens, and in "U E" U counts texts; in "N T S" and "B U", scores, the rows are those
    of T and of B. The rows of the gradient of a matrix, "O I", are those of its outputs.
    """
    return tuple(i for i, letter in enumerate(axes.split()) if letter in "BPQTO" or (letter in "SU" and i == 0))


def _regex(entry: Entry) -> re.Pattern[str]:
    pattern = re.sub(r"\\{[ibn]\\}", r"\\d+", re.escape(entry.pattern)).replace(r"\{name\}", r"\S+")
    return re.compile(STEP + pattern if entry in TABLE and not entry.pattern.startswith("steps") else pattern)


_COMPILED = [(_regex(entry), entry) for table in TABLES.values() for entry in table]


@cache
def _find(name: str) -> tuple[Entry, ...]:
    return tuple(entry for regex, entry in _COMPILED if regex.fullmatch(name))


def entry_of(name: str) -> Entry:
    """The entry that describes the tap `name`, the first of several. KeyError for an unknown name."""
    if not _find(name):
        raise KeyError(name)
    return _find(name)[0]


def is_tap(name: str) -> bool:
    """Whether one of the tables has an entry for `name`."""
    return bool(_find(name))


def axes_of(name: str) -> frozenset[str]:
    """The axes that the tables give a tap."""
    return frozenset(entry.axes for entry in _find(name))


def is_in_level(name: str, level: str) -> bool:
    """Whether a golden file of `level` ('io', 'blocks' or 'ops') holds `name`. Each level includes those before it."""
    return LEVELS.index(entry_of(name).level) <= LEVELS.index(level)


def block_of(name: str) -> str:
    """The block that computes a tap: 'text.layers.3', 'projector', 'steps.2.text.layers.0', 'vision.head' ...

    The layers of a step are blocks of their own. They have the same weights as those of the prefill, so a mistake that
    shows only there is in the cache, the positions or the mask of the step.
    """
    several = re.match(STEP + r"((vision\.|text\.)?layers\.\d+|vision\.head)", name)
    if several:
        return several[0]
    return re.sub(r"\.(patches|uncapped|over_cap|tanh|length)$", "", name).replace("text.scale", "text.embedding")
