"""Map a port's names to the names of taps, one to one, by ordered rules; nothing is guessed.

A mapping file is JSON:

    {"rules": [{"theirs": "blk\\\\.(\\\\d+)\\\\.k", "ours": "text.layers.\\\\1.attn.k_rope", "interleaved": true}, ...],
     "ignore": ["debug.*"],
     "absent": ["*.attn.segments.0.*"]}

The first rule whose regular expression `theirs` matches a whole name gives it the name `ours`. A rule may change the
tensor, in this order: `slice` (an index or [start, stop] for each leading axis, null for an open end), `reshape` (a
shape, with -1 for one size), `transpose` (the new order of the axes), `scale` (a factor), `interleaved` (true if the
last axis holds interleaved RoPE pairs: it is reordered to halves). A batch axis of size 1 and heads folded into the
width need no rule. `ignore` holds globs of names without a rule that are skipped; `absent` holds globs of taps that the
port does not dump.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from npgemma.errors import BadGolden
from npgemma.golden.names import is_tap
from npgemma.layers.shapes import Array


@dataclass(frozen=True)
class Rule:
    """What a name becomes, and how its tensor changes."""

    theirs: str
    ours: str
    slice: tuple[Any, ...] = ()
    reshape: tuple[int, ...] = ()
    transpose: tuple[int, ...] = ()
    scale: float = 1.0
    interleaved: bool = False

    def apply(self, x: Array) -> Array:
        """The tensor as the rule changes it. ValueError or IndexError if its shape does not fit the rule."""
        x = x[tuple(slice(*each) if isinstance(each, tuple) else each for each in self.slice)]
        x = x.reshape(self.reshape or x.shape)
        x = x.transpose(self.transpose or range(x.ndim))
        if self.scale != 1:
            x = x * self.scale
        if self.interleaved:
            x = np.concatenate([x[..., 0::2], x[..., 1::2]], -1)
        return np.asarray(x)  # NumPy makes a scalar of an array without axes


@dataclass(frozen=True)
class NameMap:
    """Rules, globs of names to skip, and globs of taps that the port does not dump."""

    rules: tuple[Rule, ...]
    ignore: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


SAME_NAMES = NameMap((Rule("(.*)", r"\1"),))


@dataclass(frozen=True)
class Pairing:
    """`pairs` maps each tap to the port's name and its rule. The lists hold what is left over.

    `unmapped` are names of the port without a rule, or with a rule whose result is not the name of a tap; `unrecorded`
    are names of taps that this golden file does not hold. `missing` are taps of the file that the port lacks, `absent`
    those that it may lack.
    """

    pairs: Mapping[str, tuple[str, Rule]]
    unmapped: list[str]
    unrecorded: list[str]
    missing: list[str]
    absent: list[str]


def pair(mapping: NameMap, theirs: Iterable[str], taps: Iterable[str]) -> Pairing:
    """Pair the port's names with taps. BadGolden if two names claim the same tap."""
    taps = dict.fromkeys(taps)
    pairs: dict[str, tuple[str, Rule]] = {}
    unmapped, unrecorded = [], []
    for name in sorted(theirs):
        matches = ((rule, re.fullmatch(rule.theirs, name)) for rule in mapping.rules)
        rule, tap = next(((rule, match.expand(rule.ours)) for rule, match in matches if match), (None, ""))
        if rule is None and any(fnmatchcase(name, pattern) for pattern in mapping.ignore):
            continue
        if rule is None or not is_tap(tap):
            unmapped.append(name)
        elif tap not in taps:
            unrecorded.append(name)
        elif tap in pairs:
            raise BadGolden(f"the mapping gives the name {tap!r} to both {pairs[tap][0]!r} and {name!r}; change a rule")
        else:
            pairs[tap] = name, rule
    without = [tap for tap in taps if tap not in pairs]
    absent = [tap for tap in without if any(fnmatchcase(tap, pattern) for pattern in mapping.absent)]
    return Pairing(pairs, unmapped, unrecorded, [tap for tap in without if tap not in absent], absent)


def fit(x: Array, shape: tuple[int, ...]) -> Array | None:
    """`x` as `shape`, if they differ by axes of size 1 and by neighbouring axes folded together; else None."""
    one, two = ([size for size in sizes if size != 1] for sizes in (x.shape, shape))
    coarse, fine = sorted((one, two), key=len)
    at = 0
    for size in coarse:
        product = 1
        while at < len(fine) and product < size:
            product *= fine[at]
            at += 1
        if product != size:
            return None
    return x.reshape(shape) if at == len(fine) and x.size == int(np.prod(shape)) else None


def read_mapping(path: str | Path) -> NameMap:
    """Read a mapping file. BadGolden if it is missing or invalid."""
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadGolden(f"{path} is not a mapping file ({error}); --suggest-map writes one to start from") from None
    return mapping_of(found, str(path))


def mapping_of(found: Any, where: str) -> NameMap:
    """The mapping that JSON describes, as at the head of this file. BadGolden, with `where`, if it is invalid."""
    known = {"rules", "ignore", "absent"}
    if not isinstance(found, dict) or not isinstance(found.get("rules"), list) or found.keys() - known:
        raise BadGolden(f"{where}: a mapping is an object with the list 'rules', and optionally 'ignore' and 'absent'")
    globs = {}
    for key in ("ignore", "absent"):
        globs[key] = found.get(key, [])
        if not isinstance(globs[key], list) or not all(isinstance(each, str) for each in globs[key]):
            raise BadGolden(f"{where}: {key!r} must be a list of globs")
    rules = tuple(rule_of(each, f"{where}: rule {i}") for i, each in enumerate(found["rules"], 1))
    return NameMap(rules, tuple(globs["ignore"]), tuple(globs["absent"]))


KINDS: dict[str, Any] = {
    "theirs": str,
    "ours": str,
    "slice": list,
    "reshape": list,
    "transpose": list,
    "scale": (int, float),
    "interleaved": bool,
}


def rule_of(found: Any, where: str) -> Rule:
    """The rule that JSON describes. BadGolden, with `where`, if it is invalid."""
    if not isinstance(found, dict) or not {"theirs", "ours"} <= found.keys():
        raise BadGolden(f"{where} must be an object with the keys theirs and ours")
    wrong = [key for key, value in found.items() if key not in KINDS or not isinstance(value, KINDS[key])]
    if wrong:
        raise BadGolden(
            f"{where}: {wrong[0]!r} is unknown or its value has the wrong type; a rule may have {', '.join(KINDS)}"
        )
    rule = Rule(**{key: frozen(value) for key, value in found.items()})
    bounds = [n for each in rule.slice for n in (each if isinstance(each, tuple) else [each])]
    numbers = [*(n for n in bounds if n is not None), *rule.reshape, *rule.transpose]
    if not all(type(n) is int for n in numbers):
        raise BadGolden(f"{where}: slice, reshape and transpose must hold integers")
    try:
        re.compile(f"(?:{rule.theirs})|").fullmatch("").expand(rule.ours)  # type: ignore[union-attr]
    except (re.error, IndexError) as error:
        raise BadGolden(f"{where}: theirs must be a regular expression, and ours its replacement ({error})") from None
    return rule


def frozen(value: Any) -> Any:
    """`value` with tuples for lists, at any depth."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value
