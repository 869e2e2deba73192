"""Two sums of a matrix that tell its mistakes as surely as all its numbers: G s and s' G, where s are random signs.

A mistake in one row, column or number of G moves both sums by as much as it moves G, and a mistake in all of them by
its length. So the gradients of a model of 3 billion weights become 2 million numbers.

A `probe` computes both sums without G. It is a low-rank addition to a weight W, so small that W keeps its bits:

    W + t b a, where a = s', b = s, t = 2^-60       dL/da = t s' G,  dL/db = t G s

    >>> import numpy as np
    >>> from npgemma.layers.linear import linear_backward
    >>> rng = np.random.default_rng(0)
    >>> w, x, dy = rng.standard_normal((4, 3)), rng.standard_normal((5, 3)), rng.standard_normal((5, 4))
    >>> s = signs(4)
    >>> of_probe(linear_backward(x, probe(w, s, s), dy)[1])[0].round(6) == sketches(dy.T @ x, s)[0].round(6)
    array([ True,  True,  True,  True])
"""

import math

import numpy as np

from npgemma.golden.gradient_taps import sides
from npgemma.layers.bits import widened
from npgemma.layers.linear import AdaptedWeight
from npgemma.layers.shapes import Array, Weight

SEED = 0
# The part of a weight that a probe changes: less than half a unit in the last place of float64.
TINY = 2.0**-60
# Numbers of a matrix that are float64 at a time: they stay in the cache.
BLOCK = 1 << 17


def signs(count: int) -> Array:
    """The signs +1 and -1 in a random order, the same for every release of NumPy."""
    bits = np.random.PCG64(SEED).random_raw(count) >> np.uint64(63)
    return (2 * bits.astype(np.int8) - 1).astype(np.int8)


def sketches(g: Array, s: Array) -> tuple[Array, Array]:
    """G s and s' G of a weight as a matrix, in float64 whatever the dtype of G is."""
    g, s = g.reshape(sides(g.shape)), s.astype(np.float64)
    rows, columns = np.empty(len(g)), np.zeros(g.shape[1])
    height = max(1, BLOCK // g.shape[1])
    for top in range(0, len(g), height):
        wide = g[top : top + height].astype(np.float64)
        rows[top : top + height] = wide @ s[: wide.shape[1]]
        columns += s[top : top + len(wide)] @ wide
    return rows, columns


def probe(w: Weight[Array, "*R"], of_columns: Array, of_rows: Array) -> AdaptedWeight:
    """A weight that computes as W does, and whose gradient has the sketches of that of W.

    W is a matrix with a sign for each of its rows; of the signs of columns it takes as many as it has.
    """
    base = w.view()
    base.flags.writeable = False
    columns = math.prod(w.shape) // len(of_rows)
    kind = np.result_type(w.dtype, np.float32) if w.dtype.kind == "f" else np.float32
    a, b = (widened(s.astype(kind), np.dtype(kind)) for s in (of_columns[:columns], of_rows))
    return AdaptedWeight(base, a[None, :].copy(), b[:, None].copy(), TINY)


def of_probe(gradient: AdaptedWeight) -> tuple[Array, Array]:
    """G s and s' G from the gradient of a probe."""
    return gradient.b[:, 0] / TINY, gradient.a[0] / TINY
