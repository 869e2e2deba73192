"""Pair a port's names with the names of taps by rules; nothing is guessed. mapping_file.py reads rules from JSON.

A rule gives a name the name of a tap and may change the tensor. What needs no rule is in layout.py and conventions.py.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from npgemma.errors import BadGolden
from npgemma.golden.names import is_tap
from npgemma.io.expressions import check_steps, compiled
from npgemma.layers.shapes import Array

# Stands for the number of a layer in `ours` and in `slice`.
EACH = "{i}"
# A number of an additive mask at or below this hides a row: exp(-1000) is 0 in float64.
HIDDEN = -1000.0


@dataclass(frozen=True)
class Rule:
    """What a name becomes, and how its tensor changes. Rules with the same `theirs` give one tensor several taps."""

    theirs: str
    ours: str
    slice: tuple[Any, ...] = ()
    reshape: tuple[int, ...] = ()
    transpose: tuple[int, ...] = ()
    scale: float = 1.0
    interleaved: bool = False
    mask: str = ""
    rows: Any = None

    def apply(self, x: Array) -> Array:
        """The tensor as the rule changes it. ValueError or IndexError if it does not fit the rule."""
        x = x[tuple(Ellipsis if each == "..." else as_index(each) for each in self.slice)]
        x = x.reshape(self.reshape or x.shape)
        x = x.transpose(self.transpose or range(x.ndim))
        if self.scale != 1:
            x = x * self.scale
        if self.interleaved:
            x = halves(x)
        if self.mask:
            x = may_look(x)
        return np.asarray(x)  # NumPy makes a scalar of an array without axes

    def of_layer(self, ours: str, i: int) -> "Rule":
        """The rule for layer `i` of stacked layers, whose tap is `ours`."""
        return replace(self, ours=ours, slice=tuple(i if each == EACH else each for each in self.slice))


def as_index(found: Any) -> Any:
    """What indexes an array for an index or a (start, stop) of a rule."""
    return slice(*found) if isinstance(found, tuple) else found


def halves(x: Array) -> Array:
    """The interleaved pairs of the last axis in halves: 0 4 1 5 2 6 3 7 becomes 0 to 7."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], -1)


def may_look(x: Array) -> Array:
    """True where an additive mask is 0. ValueError if it holds anything but 0 and large negative numbers."""
    other = x[(x != 0) & ~(x <= HIDDEN)]
    if other.size:
        raise ValueError(f"an additive mask holds 0 and large negative numbers, not {other.flat[0]}")
    return x == 0


@dataclass(frozen=True)
class NameMap:
    """Rules, globs of names to skip, globs of taps that the port does not dump, and what errors call the mapping."""

    rules: tuple[Rule, ...]
    ignore: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    where: str = "the mapping"


# The rule that keeps the names that no other rule gives a tap.
KEEP = Rule("(.*)", r"\1")
SAME_NAMES = NameMap((KEEP,))


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
    """Pair the port's names with taps. BadGolden if two names claim the same tap, or two rules the same name."""
    taps, theirs = dict.fromkeys(taps), sorted(theirs)
    try:
        check_steps([rule.theirs for rule in mapping.rules], len(theirs), max(map(len, theirs), default=0))
    except ValueError as error:
        raise BadGolden(f"{mapping.where}: {error}") from None
    pairs: dict[str, tuple[str, Rule]] = {}
    unmapped: list[str] = []
    unrecorded: list[str] = []
    for name in theirs:
        matched = matching(mapping, name)
        if not matched and any(fnmatchcase(name, pattern) for pattern in mapping.ignore):
            continue
        named = [(ours, rule) for ours, rule in matched if is_tap(ours.replace(EACH, "0"))]
        named = [each for each in named if each[1] != KEEP] or named
        check_single(mapping, name, [rule for _, rule in named])
        claims = [claim for ours, rule in named for claim in recorded(ours, rule, taps)]
        if not claims:
            (unrecorded if named else unmapped).append(name)
        for tap, rule in claims:
            if tap in pairs:
                raise BadGolden(
                    f"{mapping.where}: the rules give the name {tap!r} to both {pairs[tap][0]!r} and {name!r}; "
                    "change one of them"
                )
            pairs[tap] = name, rule
    without = [tap for tap in taps if tap not in pairs]
    absent = [tap for tap in without if any(fnmatchcase(tap, pattern) for pattern in mapping.absent)]
    return Pairing(pairs, unmapped, unrecorded, [tap for tap in without if tap not in absent], absent)


def matching(mapping: NameMap, name: str) -> list[tuple[str, Rule]]:
    """The rules that match `name`, each with what it makes of it."""
    found = ((rule, compiled(rule.theirs).fullmatch(name)) for rule in mapping.rules)
    return [(match.expand(rule.ours), rule) for rule, match in found if match]


def check_single(mapping: NameMap, name: str, rules: Iterable[Rule]) -> None:
    """BadGolden if rules with different expressions give `name` a tap."""
    different = list(dict.fromkeys(rule.theirs for rule in rules))
    if len(different) > 1:
        raise BadGolden(
            f"{mapping.where}: the rules with the 'theirs' {different[0]!r} and {different[1]!r} both match the name "
            f"{name!r}; keep one of them, or list several taps in the 'ours' of one"
        )


def recorded(ours: str, rule: Rule, taps: Mapping[str, None]) -> Iterator[tuple[str, Rule]]:
    """The tap `ours` if it is in `taps`; of stacked layers, that of each layer."""
    if EACH not in ours:
        if ours in taps:
            yield ours, rule
        return
    pattern = re.compile(re.escape(ours).replace(re.escape(EACH), r"(\d+)", 1).replace(re.escape(EACH), r"\1"))
    for tap in taps:
        match = pattern.fullmatch(tap)
        if match:
            yield tap, rule.of_layer(tap, int(match[1]))
