"""Lay a port's tensor out as its tap is: axes of size 1, folded heads, padding, rows and tokens that are not there.

What is left out of the comparison, of the tensor or of the tap, is said in a note. A change of shape alone, which loses
no number, is not noted.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from npgemma.golden.mapping import as_index
from npgemma.golden.names import row_axes
from npgemma.layers.shapes import Array

# A port may leave out at most this part of the vocabulary: rows of the table that pad it to a multiple of 64.
MOST_PADDING = 1 / 32
# More axes than a tensor of a port has; the ways to cut them grow as a power.
MOST_AXES = 8

LAST_ROW = "of its rows that of the last token alone is compared; harmless"
PADDED_AFTER = "its rows after those of the tap are taken for padding; harmless"
PADDED_BEFORE = "its rows before those of the tap are taken for padding; harmless"


@dataclass(frozen=True)
class Fitted:
    """A port's tensor in the shape of its tap. `missing` is True where the port has no number: `x` holds the truth."""

    x: Array
    missing: Array | None = None
    notes: tuple[str, ...] = ()

    def over(self, reference: Array) -> Array:
        """The tensor, with numbers of `reference` where the port has none."""
        return self.x if self.missing is None else np.where(self.missing, reference, self.x)


@dataclass(frozen=True)
class Place:
    """A tap of a golden file. `length` counts the rows that the run has had when it computes the tap, or is 0."""

    tap: str
    axes: str
    truth: Array
    length: int = 0
    padded_before: bool = False


def lay(place: Place, x: Array, rows: Any = None) -> Fitted | None:
    """`x` in the shape of the tap, of which it holds `rows` if they are given; None if it does not fit."""
    same = fit(x, place.truth.shape)
    if rows is not None:
        return some_rows(place, x, rows)
    if same is not None:
        return Fitted(same)
    return fewer_tokens(place, x) or without_padding(place, x) or text_alone(place, x)


def fit(x: Array, shape: tuple[int, ...]) -> Array | None:
    """`x` as `shape`, if they differ by axes of size 1 and by neighbouring axes folded together; else None."""
    return x.reshape(shape) if is_foldable(x.shape, shape) else None


def is_foldable(one: tuple[int, ...], two: tuple[int, ...]) -> bool:
    """Whether two shapes differ by axes of size 1 and by neighbouring axes folded together alone."""
    coarse, fine = sorted(([size for size in sizes if size != 1] for sizes in (one, two)), key=len)
    if 0 in coarse or 0 in fine:
        return False
    at = 0
    for size in coarse:
        folded = 1
        while at < len(fine) and folded < size:
            folded *= fine[at]
            at += 1
        if folded != size:
            return False
    return at == len(fine)


def some_rows(place: Place, x: Array, rows: Any) -> Fitted | None:
    """`x` where it holds some rows of the tap, as a mapping rule says."""
    axis = row_axes(place.axes)[-1:]
    if not axis:
        return None
    count = place.truth.shape[axis[0]]
    chosen = np.atleast_1d(np.arange(count)[as_index(rows)])
    note = f"the dump holds {len(chosen)} of its {count} rows, as a rule says; the others are not compared"
    return part_of(place, x, axis[0], chosen, note)


def part_of(place: Place, x: Array, axis: int, chosen: Array, note: str) -> Fitted | None:
    """`x` where it holds the numbers `chosen` along an axis of the tap."""
    truth = place.truth
    inner = lay(replace(place, truth=truth.take(chosen, axis)), x)
    if inner is None:
        return None
    where: tuple[Any, ...] = (*[slice(None)] * axis, chosen)
    whole, missing = truth.astype(np.result_type(truth, inner.x)), np.ones(truth.shape, bool)
    whole[where], missing[where] = inner.x, False if inner.missing is None else inner.missing
    return Fitted(whole, missing, (note, *inner.notes))


def fewer_tokens(place: Place, x: Array) -> Fitted | None:
    """Logits whose vocabulary lacks the rows that pad the table of embeddings, or has more of them."""
    sizes = [size for size in x.shape if size != 1]
    if place.axes.split()[-1:] != ["V"] or not sizes:
        return None
    found, wanted = sizes[-1], place.truth.shape[-1]
    if found > wanted and found - wanted <= wanted * MOST_PADDING:
        inner = lay(place, x[tuple(slice(wanted) if size == found else slice(None) for size in x.shape)])
        note = f"its vocabulary has {found - wanted} more tokens, which pad it; harmless"
        return inner and replace(inner, notes=(note, *inner.notes))
    if wanted * (1 - MOST_PADDING) <= found < wanted and place.truth.argmax(-1).max() < found:
        note = f"its vocabulary lacks the last {wanted - found} of {wanted} tokens, which pad the table; harmless"
        return part_of(place, x, place.truth.ndim - 1, np.arange(found), note)
    return None


def text_alone(place: Place, x: Array) -> Fitted | None:
    """The ids of a prompt without those of its image tokens, which come first."""
    if place.tap != "prompts.0.input_ids":
        return None
    ids = place.truth.reshape(-1)
    count = int((ids == ids[:1]).sum())
    if count < 2:
        return None
    note = f"it holds the {len(ids) - count} ids of the text without those of the picture; harmless"
    return part_of(place, x, 0, np.arange(count, len(ids)), note)


def without_padding(place: Place, x: Array) -> Fitted | None:
    """`x` without the rows that it has more than the tap: padding, or the rows before the last one."""
    cut = shape_of_part(place.axes, place.truth.shape, x.shape, place.length)
    if cut is None:
        return None
    window = []
    for size, count in zip(x.shape, cut, strict=True):
        start = place.length - 1 if count == 1 < size else 0
        start = size - count if place.padded_before else start
        window.append(slice(start, start + count))
    kept = x[tuple(window)].reshape(place.truth.shape)
    if place.tap.endswith("_ids") and not is_padded(x, kept, place.truth):
        return None
    is_row = all(count == 1 for size, count in zip(x.shape, cut, strict=True) if size != count)
    return Fitted(kept, notes=(LAST_ROW if is_row else PADDED_BEFORE if place.padded_before else PADDED_AFTER,))


@cache
def shape_of_part(axes: str, sizes: tuple[int, ...], shape: tuple[int, ...], length: int) -> tuple[int, ...] | None:
    """The shape of a tap in a tensor with more rows, at least `length` if the tap has one; None if it does not fit."""
    letters = axes.split()
    rows = {size for letter, size in zip(letters, sizes, strict=True) if letter in "TSP"}
    if letters == ["B", "V"] and sizes[0] == 1:
        rows = {1}
    if not rows or len(shape) > MOST_AXES or not math.prod(shape) > math.prod(sizes):
        return None
    choices = [[size, *(n for n in rows if n < size and (n > 1 or 0 < length <= size))] for size in shape]
    found = [each for each in product(*choices) if each != shape and is_foldable(each, sizes)]
    return min(found, key=lambda each: sum(a != b for a, b in zip(each, shape, strict=True)), default=None)


def is_padded(x: Array, kept: Array, truth: Array) -> bool:
    """Whether the ids of `x` that are not `kept` are all the same one, which the truth lacks."""
    others = [int(n) for n in np.unique(x) if np.sum(x == n) > np.sum(kept == n)]
    return len(others) == 1 and others[0] not in truth


def distance(x: Array, truth: Array) -> float:
    """The mean distance of the finite numbers of `x` from the truth."""
    apart = np.abs(x.astype(np.float64) - truth)
    return float(np.mean(apart, where=np.isfinite(apart))) if np.isfinite(apart).any() else np.inf
