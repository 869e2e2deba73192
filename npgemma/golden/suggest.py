"""Draft a mapping file for a port, from shapes and numbers. A person corrects it before it is used.

A tensor matches a tap if it can be laid out as the tap is (see layout), perhaps with its axes moved or its rotary pairs
interleaved, and the cosine between them is large, in a sample of their numbers. So a tensor of a large model costs no
more than one of a small model. A tensor that matches nothing as a whole is taken apart: layers stacked along an axis, k
and v in one tensor, fused projections. What matches is written as rules by rule_drafts.py.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from glob import escape
from itertools import permutations, product
from typing import Any

import numpy as np

from npgemma.api.finite import quiet
from npgemma.errors import listed
from npgemma.golden.conventions import ROTATED, frequencies
from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden
from npgemma.golden.layout import Place, is_foldable, lay
from npgemma.golden.names import row_axes
from npgemma.golden.port import rows_so_far
from npgemma.golden.rule_drafts import Match, draft
from npgemma.layers.shapes import Array, Float

# How many numbers of a tensor are looked at. The cosine of unrelated tensors is then within 0.2 of 0.
SAMPLE = 512
# The cosine above which a tensor and a tap match: a tensor with a mistake in it should still match its tap.
ALIKE = 0.9
# A tensor of fewer numbers may be like a tap by chance.
FEWEST = 16
# At most so many axes longer than 1 are moved: 120 orders.
MOST_MOVED = 5
# A scale within this relative distance of 1 or of a known factor is taken for it.
NEAR = 1e-3
# A tensor whose length is within this part of the tap's may have a mistake instead of a factor.
MISTAKEN = 0.2
# An unknown factor is believed if the cosine exceeds this.
EXACT = 0.9999
# Axes of these sizes may hold k and v, or q, k and v.
SEVERAL = (2, 3)


@dataclass(frozen=True)
class Suggestion:
    """The content of a mapping file, the names of the dump that it maps, those that are their copies, and the rest."""

    mapping: dict[str, Any]
    mapped: Sequence[str]
    copies: Sequence[str]
    left: Sequence[str]

    @property
    def summary(self) -> str:
        """A sentence with the counts."""
        count = len(self.mapped) + len(self.copies) + len(self.left)
        text = f"{len(self.mapped)} of {count} names are mapped, by {len(self.mapping['rules'])} rules"
        if self.copies:
            text += f"; {len(self.copies)} copies of them are ignored"
        return text + (f"; {len(self.left)} are left: {listed(list(self.left), 4)}" if self.left else "")


@dataclass(frozen=True)
class Group:
    """Taps of one shape and meaning of axes, and a sample of their numbers, each tap's scaled to the length 1.

    `at` are the places of the sample, in the order of the axes. `turns` are the frequencies of RoPE, if it applies.
    """

    place: Place
    taps: Sequence[str]
    at: Array
    samples: Float[Array, "N M"]
    lengths: Float[Array, "N"]
    turns: Float[Array, "J"] | None = None


@quiet()  # a port's numbers may be so large that their squares overflow
def suggest_map(golden: Golden, dump: Dump) -> Suggestion:
    """A mapping with rules for the names that match a tap. Copies of mapped tensors are ignored, the rest is left."""
    groups = grouped(golden)
    matches: list[Match] = []
    for name in dump:
        x = np.asarray(dump[name])
        matches += matching(groups, name, x, {}) or [
            match for part, change in apart(golden, x) for match in matching(groups, name, part, change)
        ]
    rules, mapped = draft(matches, list(dump), list(golden.taps))
    copies = [name for name in dump if name not in mapped and is_copy(dump, name, mapped)]
    left = [name for name in dump if name not in mapped and name not in copies]
    return Suggestion(
        {"rules": rules, "ignore": [escape(name) for name in copies], "absent": []}, sorted(mapped), copies, left
    )


def grouped(golden: Golden) -> list[Group]:
    """The taps that can be told by their numbers, by axes, shape and place in the run."""
    alike = defaultdict(list)
    for tap, axes in golden.taps.items():
        truth = golden.truth[tap]
        if axes and truth.size:
            kind = "" if truth.dtype.kind == "f" else tap  # ids and masks are laid out one by one
            alike[axes, truth.shape, kind, rows_so_far(golden, tap), bool(ROTATED.fullmatch(tap))].append(tap)
    found = []
    for (axes, shape, _, length, is_rotated), taps in alike.items():
        size = math.prod(shape)
        at = np.arange(size) if size <= SAMPLE else np.random.default_rng(0).integers(size, size=SAMPLE)
        rows = np.stack([golden.truth[tap].reshape(-1)[at] for tap in taps]).astype(np.float64)
        lengths = np.linalg.norm(rows, axis=-1)
        rows /= np.where(lengths > 0, lengths, 1.0)[:, None]
        turns = frequencies(golden, taps[0]) if is_rotated else None
        found.append(Group(Place(taps[0], axes, golden.truth[taps[0]], length), taps, at, rows, lengths, turns))
    return found


def matching(groups: Sequence[Group], name: str, x: Array, change: dict[str, Any]) -> list[Match]:
    """The taps that `x` is most like, as it is and changed."""
    found: dict[str, Match] = {}
    for group in groups:
        if not x.size or (x.dtype.kind == "f") != (group.place.truth.dtype.kind == "f"):
            continue
        for sample, more in samples(group, x):
            length = float(np.linalg.norm(sample))
            if not np.isfinite(length) or not length:
                continue
            cosines = group.samples @ sample / length
            for i in np.flatnonzero(cosines > ALIKE).tolist():
                score = round(float(cosines[i]), 6)
                scale = factor(group, group.lengths[i] / length, score)
                if is_told(group, i, sample) and scale is not None:
                    match = Match(score, name, group.taps[i], {**change, **more, **scale}, group.place.truth.size)
                    found[match.tap] = max(found.get(match.tap, match), match, key=Match.rank)
    best = max(found.values(), key=lambda match: (match.score, match.size), default=None)
    return [match for match in found.values() if best and (match.score, match.size) == (best.score, best.size)]


def is_told(group: Group, i: int, sample: Array) -> bool:
    """Whether the sample is enough to tell the tap: ids and masks must be equal, and floats be several."""
    if group.place.truth.dtype.kind == "f":
        return len(sample) >= FEWEST
    same = np.allclose(sample, group.samples[i] * group.lengths[i], rtol=1e-9, atol=0)
    return same and (len(sample) > 1 or group.taps[i].endswith("input_ids"))


def samples(group: Group, x: Array) -> Iterator[tuple[Array, dict[str, Any]]]:
    """The numbers of `x` at the places of the sample, for each way to lay it out, with the keys of its rule."""
    place, shape = group.place, group.place.truth.shape
    laid = lay(place, x)
    views: list[tuple[Array, dict[str, Any]]] = [] if laid is None else [(laid.x, {})]
    views += [(x.transpose(order), {"transpose": list(order)}) for order in moves(x.shape, shape)]
    for view, change in views:
        yield numbers(view, group.at), change
        if len(shape) == 3 and place.axes.endswith("H") and view.shape[-1:] == shape[-1:] and shape[-1] % 2 == 0:
            yield from ((sample, {**change, **more}) for sample, more in rotated(group, view))


def rotated(group: Group, view: Array) -> Iterator[tuple[Array, dict[str, Any]]]:
    """The same where its rotary pairs are interleaved, or its positions count from another number."""
    half = view.shape[-1] // 2
    row, within = np.divmod(group.at, 2 * half)
    pair, is_second = within % half, within // half
    for interleaved in (False, True):
        change = {"interleaved": True} if interleaved else {}
        places = [2 * half * row + (2 * pair + i if interleaved else pair + half * i) for i in (0, 1)]
        first, second = (numbers(view, at) for at in places)
        if interleaved:
            yield np.where(is_second, second, first), change
        if group.turns is not None:
            cos, sin = np.cos(group.turns[pair]), np.sin(group.turns[pair])
            other = np.where(is_second, -first, second) * sin
            own = np.where(is_second, second, first) * cos
            yield from ((own + other, change), (own - other, change))


def numbers(view: Array, at: Array) -> Array:
    """The numbers at places counted in the order of the axes; a view with moved axes is not copied."""
    return view[np.unravel_index(at, view.shape)].astype(np.float64)


@cache
def moves(found: tuple[int, ...], wanted: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The orders in which the axes of a shape give the wanted one, but for their own order."""
    long = [i for i, size in enumerate(found) if size != 1]
    if len(long) > MOST_MOVED or np.prod(found) != np.prod(wanted):
        return []
    ones = [i for i, size in enumerate(found) if size == 1]
    orders = [order for order in permutations(long) if list(order) != long]
    return [(*ones, *order) for order in orders if is_foldable(tuple(found[i] for i in order), wanted)]


def factor(group: Group, found: float, score: float) -> dict[str, float] | None:
    """The key `scale` if the tap is `found` times the tensor. None if it cannot be told from a tensor that is alike."""
    if group.place.truth.dtype.kind != "f" or abs(found - 1) < MISTAKEN:
        return {}
    root = math.sqrt(group.place.truth.shape[-1])
    known = (value for value in (root, 1 / root, 255.0, 1 / 255, 2.0, 0.5) if abs(found / value - 1) < NEAR)
    value = next(known, float(f"{found:.5g}") if score > EXACT else None)
    return None if value is None else {"scale": value}


def apart(golden: Golden, x: Array) -> Iterator[tuple[Array, dict[str, Any]]]:
    """The parts of `x` that may be taps, with the key `slice`: of stacked layers, of k and v, of fused projections."""
    for axes in stacks(x.shape, layer_counts(golden)):
        for where in np.ndindex(*(x.shape[axis] for axis in axes)):
            index: list[Any] = [[None, None]] * (max(axes) + 1)
            for axis, i in zip(axes, where, strict=True):
                index[axis] = int(i)
            yield x[tuple(slice(None) if isinstance(each, list) else each for each in index)], {"slice": index}
    for start, stop in fused(golden, x.shape[-1:]):
        yield x[..., start:stop], {"slice": ["...", [start, stop]]}


def layer_counts(golden: Golden) -> set[int]:
    """How many layers the tower and the decoder have."""
    numbers = [re.match(r"(vision|text)\.layers\.(\d+)\.", tap) for tap in golden.taps]
    counts: dict[str, int] = {}
    for match in filter(None, numbers):
        counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return set(counts.values())


def stacks(shape: tuple[int, ...], counts: set[int]) -> Iterator[tuple[int, ...]]:
    """The axes that may count layers, or k and v, or both: each choice of at most one of both kinds."""
    layers = [None, *(i for i, size in enumerate(shape[:-1]) if size in counts and size > 1)]
    several = [None, *(i for i, size in enumerate(shape[:-1]) if size in SEVERAL)]
    for choice in product(layers, several):
        axes = [axis for axis in choice if axis is not None]
        if axes and len(set(axes)) == len(axes):
            yield tuple(axes)


# Projections that a port may compute as one.
FUSED = (("attn.q", "attn.k", "attn.v"), ("mlp.gate", "mlp.up"))


def fused(golden: Golden, width: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where the parts of fused projections lie along the last axis, if they are as wide as that is."""
    for tower, names in product(("vision", "text"), FUSED):
        taps = [f"{tower}.layers.0.{name}" for name in names]
        if all(tap in golden.taps for tap in taps):
            rows = len(row_axes(golden.taps[taps[0]]))
            widths = [int(np.prod(golden.truth[tap].shape[rows:])) for tap in taps]
            if (sum(widths),) == width:
                stops = [int(stop) for stop in np.cumsum(widths)]
                yield from zip([0, *stops], stops, strict=False)


def is_copy(dump: Dump, name: str, mapped: Iterable[str]) -> bool:
    """Whether a mapped tensor has the same numbers in the same order."""
    x = dump.tensors[name]
    others = (dump.tensors[other] for other in mapped)
    return any(y.dtype == x.dtype and y.size == x.size and are_equal(x.reshape(-1), y.reshape(-1)) for y in others)


def are_equal(x: Array, y: Array) -> bool:
    """Whether two rows of numbers are the same; the first ones, which nearly always tell, are compared first."""
    return np.array_equal(x[:FEWEST], y[:FEWEST]) and np.array_equal(x, y)
