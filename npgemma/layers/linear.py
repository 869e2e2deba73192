"""`linear` and `embed`: the one seam where a stored weight meets an activation.

A weight keeps the dtype of its file and is usually memory-mapped (see `shapes`). `packed` widens it a block of rows at
a time, so that a 6 GB bfloat16 checkpoint never becomes 12 GB of float32.
"""

import numpy as np

from npgemma.layers.bits import widened
from npgemma.layers.packed import multiply_packed
from npgemma.layers.shapes import Array, Float, Int, Weight


def linear(
    x: Float[Array, "*R I"], w: Weight[Array, "O I"], bias: Float[Array, "O"] | None = None
) -> Float[Array, "*R O"]:
    """y = x W^T + b, in the dtype of `x`. W is stored [out, in], as torch.nn.Linear stores it."""
    y = multiply_packed(x.reshape(-1, w.shape[1]), w)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], len(w))


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
    """Row `ids[t]` of the table for each t, as `dtype`, which becomes the dtype of a whole run.

    Raises IndexError for an id that is not in 0 .. V-1 (a negative id would count from the end).
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < len(table):
        raise IndexError(
            f"token ids run from {ids.min()} to {ids.max()}, the embedding table has rows 0 to {len(table) - 1}"
        )
    return widened(table[ids], dtype)
