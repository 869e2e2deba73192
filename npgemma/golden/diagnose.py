"""What a wrong tensor looks like: is it the truth in disguise?

Each suspect is the truth as a well-known mistake would change it. A suspect is named when it is much nearer to the
port's tensor than the truth is: what it leaves is less than a tenth of the error.
"""

import math
from collections.abc import Iterator, Mapping
from itertools import permutations

import numpy as np

from npgemma.golden.names import row_axes
from npgemma.layers.shapes import Array, Float

# How much of the error a suspect may leave.
LEFT = 0.1
# A factor is named if it is this near; otherwise it is told as a number.
NEAR = 0.01


def diagnose(axes: str, x: Array, truth: Array, others: Mapping[str, Array]) -> list[str]:
    """Sentences on what `x`, a wrong tap of the truth's shape, may be; `others` are the other taps of that shape."""
    truth = truth.astype(np.float64)
    error = rms(x - truth)
    found = [
        sentence
        for sentence, suspect in suspects(axes, truth, others)
        if suspect.shape == x.shape and rms(x - suspect) < LEFT * error
    ]
    return [*found, *factor(axes, x, truth, error), *heads(axes, x, truth)]


def diagnose_shape(axes: str, x: Array, truth: Array) -> list[str]:
    """What `x` may be, whose shape does not fit the truth's."""
    letters = axes.split()
    found = []
    mine, wanted = ([size for size in array.shape if size != 1] for array in (x, truth))
    if sorted(mine) == sorted(wanted):
        found.append("its axes are in another order")
    if "B" in letters and len(truth) > 1 and mine == wanted[1:]:
        found.append("it has one picture of several: a batch axis was squeezed or indexed away")
    for letter in set(letters) & {"K", "N"}:
        heads = truth.shape[letters.index(letter)]
        if len(mine) == len(wanted) and x.size % truth.size == 0 and x.size > truth.size:
            found.append(
                f"it has {x.size // truth.size} times the numbers: {heads} key heads repeated for the queries?"
            )
    return found


def suspects(axes: str, truth: Float[Array, "*R"], others: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """What well-known mistakes make of the truth."""
    letters = axes.split()
    for order in permutations(range(truth.ndim)):
        if order != tuple(range(truth.ndim)):
            swapped = " ".join(letters[i] for i in order)
            yield f"its axes are {swapped}, not {axes}", truth.transpose(order).reshape(truth.shape)
    for axis in row_axes(axes):
        if truth.shape[axis] > 2:
            yield f"it is one {letters[axis]} row late (off by one token)", np.roll(truth, 1, axis)
            yield f"it is one {letters[axis]} row early (off by one token)", np.roll(truth, -1, axis)
    if letters and letters[-1] == "H" and truth.shape[-1] % 2 == 0:
        halves = np.stack(np.split(truth, 2, -1), -1).reshape(truth.shape)
        yield "its RoPE pairs stand side by side, not in halves (rule: interleaved)", halves
    for other, tensor in others.items():
        if tensor.shape == truth.shape:
            yield f"it is {other}", tensor


def factor(axes: str, x: Array, truth: Float[Array, "*R"], error: float) -> Iterator[str]:
    """Is it the truth times a number?"""
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


def heads(axes: str, x: Array, truth: Float[Array, "*R"]) -> Iterator[str]:
    """Are the heads in another order?"""
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


def rms(x: Array) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))
