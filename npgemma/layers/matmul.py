"""`linear` and `embed`: the one seam where a large stored weight meets an activation.

A weight keeps the dtype it was stored in and is usually memory-mapped (see `shapes`). What an activation needs of it is
widened here, a block of rows at a time, so that a 6 GB bfloat16 checkpoint never becomes 12 GB of float32: a block is
used while it is in the cache and then forgotten. Widening is exact, so blocks change no number that is stored.
"""

import numpy as np

from npgemma.layers.bfloat16 import widen
from npgemma.layers.shapes import Array, Float, Int, Weight

# Elements widened at once: 2 MB of float32. It has to stay in the cache between being widened and being multiplied.
BLOCK = 1 << 19


def widened(w: Weight[Array, "*R"], dtype: np.dtype) -> Float[Array, "*R"]:
    """The numbers of `w` as `dtype`; `w` itself where it has that dtype already."""
    return (widen(w) if w.dtype == np.uint16 else w).astype(dtype, copy=False)


def linear(
    x: Float[Array, "*R I"], w: Weight[Array, "O I"], bias: Float[Array, "O"] | None = None
) -> Float[Array, "*R O"]:
    """y = x W^T + b, in the dtype of `x`. W is stored [out, in], as torch.nn.Linear stores it."""
    out_features, in_features = w.shape
    y = np.empty((*x.shape[:-1], out_features), x.dtype)
    rows = out_features if w.dtype == x.dtype else max(1, BLOCK // in_features)
    for start in range(0, out_features, rows):
        block = slice(start, start + rows)
        np.matmul(x, widened(w[block], x.dtype).T, out=y[..., block])
    if bias is not None:
        y += bias
    return y


def project(
    x: Float[Array, "*R D"], w: Weight[Array, "N H D"], bias: Float[Array, "N H"] | None = None
) -> Float[Array, "*R N H"]:
    """A linear layer onto N heads of width H: y[n h] = sum over d of x[d] W[n h d], + b[n h]."""
    heads, width, _ = w.shape
    y = linear(x, w.reshape(heads * width, -1), None if bias is None else bias.reshape(-1))
    return y.reshape(*y.shape[:-1], heads, width)


def unproject(
    x: Float[Array, "*R N H"], w: Weight[Array, "D N H"], bias: Float[Array, "D"] | None = None
) -> Float[Array, "*R D"]:
    """A linear layer from N heads of width H: y[d] = sum over n and h of x[n h] W[d n h], + b[d]."""
    w = w.reshape(len(w), -1)
    return linear(x.reshape(*x.shape[:-2], w.shape[1]), w, bias)


def embed(ids: Int[Array, "T"], table: Weight[Array, "V D"], dtype: np.dtype) -> Float[Array, "T D"]:
    """Row `ids[t]` of the table for each t, as `dtype`: the place where the dtype of a whole run is chosen.

    Raises IndexError for an id that is not in 0 .. V-1 (a negative id would count from the end).
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < len(table):
        raise IndexError(
            f"token ids run from {ids.min()} to {ids.max()}, the embedding table has rows 0 to {len(table) - 1}"
        )
    return widened(table[ids], dtype)
