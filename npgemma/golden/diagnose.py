"""Guess which well-known mistake made a wrong tensor.

A candidate is the truth as such a mistake would change it. It is reported when it is much nearer to the port's tensor
than the truth is: at less than a tenth of the distance.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import permutations

import numpy as np

from npgemma.golden.judge import rms
from npgemma.golden.names import row_axes
from npgemma.layers.shapes import Array, Float

# The distance of a candidate from the port's tensor, at most, over that of the truth.
LEFT = 0.1
# A factor within this relative distance of a known one, such as sqrt(D), is reported by its name.
NEAR = 0.01


def diagnose(axes: str, x: Array, truth: Array, others: Mapping[str, Array]) -> list[str]:
    """Sentences on what may have made `x` of the truth; `others` are the other taps of the same shape."""
    truth = truth.astype(np.float64)
    error = rms(x - truth)
    found = [
        sentence
        for sentence, candidate in candidates(axes, truth, others)
        if candidate.shape == x.shape and rms(x - candidate) < LEFT * error
    ]
    return [*found, *factor(axes, x, truth, error), *lengths(axes, x, truth, error), *heads(axes, x, truth)]


def diagnose_shape(axes: str, x: Array, truth: Array) -> list[str]:
    """Sentences on why the shape of `x` may differ from the truth's."""
    letters = axes.split()
    found = []
    mine, wanted = ([size for size in array.shape if size != 1] for array in (x, truth))
    if sorted(mine) == sorted(wanted):
        found.append("its axes are in a different order")
    if letters[1:2] == ["T"] and x.ndim == truth.ndim and x.shape[1] == truth.shape[1] - 1:
        found.append("it lacks a row of each picture or text: perhaps the class token")
    if "B" in letters and len(truth) > 1 and mine == wanted[1:]:
        found.append("it holds one of several pictures: the batch axis was squeezed or indexed")
    for letter in set(letters) & {"K", "N"}:
        heads = truth.shape[letters.index(letter)]
        if len(mine) == len(wanted) and x.size % truth.size == 0 and x.size > truth.size:
            found.append(
                f"it has {x.size // truth.size} times as many numbers: perhaps its {heads} key heads are repeated for "
                "the query heads"
            )
    return found


def candidates(axes: str, truth: Float[Array, "*R"], others: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """The truth as well-known mistakes change it, each with a sentence."""
    letters = axes.split()
    for order in permutations(range(truth.ndim)):
        if order != tuple(range(truth.ndim)):
            swapped = " ".join(letters[i] for i in order)
            yield f"its axes are {swapped}, not {axes}", truth.transpose(order).reshape(truth.shape)
    for axis in row_axes(axes):
        if truth.shape[axis] > 2:
            yield (
                f"it is shifted by one along {letters[axis]}, to later rows (off by one token)",
                np.roll(truth, 1, axis),
            )
            yield (
                f"it is shifted by one along {letters[axis]}, to earlier rows (off by one token)",
                np.roll(truth, -1, axis),
            )
    if letters and letters[-1] == "H" and truth.shape[-1] % 2 == 0:
        halves = np.stack(np.split(truth, 2, -1), -1).reshape(truth.shape)
        yield "its RoPE pairs are interleaved instead of in halves (mapping rule: interleaved)", halves
    if not letters and truth > 0:
        yield "it is the logarithm of the truth, which is an exponential", np.log(truth)
    for other, tensor in others.items():
        if tensor.shape == truth.shape:
            yield f"it equals the tap {other}", tensor


def factor(axes: str, x: Array, truth: Float[Array, "*R"], error: float) -> Iterator[str]:
    """A sentence if `x` is the truth times a number."""
    power = float(np.vdot(truth, truth))
    c = float(np.vdot(truth, x)) / power if power else 1.0
    if abs(c - 1) < NEAR or rms(x - c * truth) >= LEFT * error:
        return
    sizes = dict(zip(axes.split(), truth.shape, strict=True))
    known = {"-1": -1.0, "2": 2.0, "1/2": 0.5, "255": 255.0, "1/255": 1 / 255}
    for letter in {"D", "H"} & sizes.keys():
        known |= {f"sqrt({letter})": math.sqrt(sizes[letter]), f"1/sqrt({letter})": 1 / math.sqrt(sizes[letter])}
    names = [text for text, value in known.items() if abs(c / value - 1) < NEAR]
    yield f"it is the truth times {c:.4g}" + (f", which is {names[0]}" if names else "")


def lengths(axes: str, x: Array, truth: Float[Array, "*R"], error: float) -> Iterator[str]:
    """A sentence if each row of an embedding is the truth's times a number of its own."""
    if axes.split()[-1:] != ["E"]:
        return
    along = (x * truth).sum(-1, keepdims=True) / np.square(truth).sum(-1, keepdims=True)
    if along.min() > 0 and np.ptp(along) > NEAR * along.max() and rms(x - along * truth) < LEFT * error:
        yield "its rows are the truth's with lengths of their own: perhaps only one of the two is of length 1"


def heads(axes: str, x: Array, truth: Float[Array, "*R"]) -> Iterator[str]:
    """A sentence if the heads of `x` are those of the truth in a different order."""
    letters = axes.split()
    axis = next((i for i, letter in enumerate(letters) if letter in "NK"), None)
    if axis is None or truth.shape[axis] < 2:
        return
    mine, wanted = (np.moveaxis(array, axis, 0).reshape(truth.shape[axis], -1) for array in (x, truth))
    distance = np.square(mine[:, None] - wanted).mean(-1)
    order = distance.argmin(-1)
    moved = np.flatnonzero(order != np.arange(len(order)))
    own = np.diagonal(distance)
    if moved.size and sorted(order) == list(range(len(order))) and (distance.min(-1) < LEFT**2 * own)[moved].all():
        yield f"its heads are in the order {order.tolist()}"
