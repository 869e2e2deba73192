"""`linear` and `embed`: the one seam where a stored weight meets an activation.

A weight keeps the dtype of its file and is usually memory-mapped (see `shapes`). `packed` widens it a block of rows at
a time, so that a 6 GB bfloat16 checkpoint never becomes 12 GB of float32.
"""

from dataclasses import dataclass, replace

import numpy as np

from npgemma.layers.bits import widened
from npgemma.layers.packed import multiply_back, multiply_packed, outer_products
from npgemma.layers.shapes import Array, Bool, Float, Int, Weight
from npgemma.layers.tree import Gradient, is_frozen


def linear(
    x: Float[Array, "*R I"], w: Weight[Array, "O I"], bias: Float[Array, "O"] | None = None
) -> Float[Array, "*R O"]:
    """y = x W^T + b, in the dtype of `x`. W is stored [out, in], as torch.nn.Linear stores it."""
    rows = x.reshape(-1, w.shape[1])
    if isinstance(w, AdaptedWeight):
        y = adapted(rows, w)
    else:
        y = scores_of_rows(rows, w) if isinstance(w, AdaptedRows) else multiply_packed(rows, w)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], len(w))


def linear_backward(
    x: Float[Array, "*R I"], w: Weight[Array, "O I"], dy: Float[Array, "*R O"]
) -> tuple[Float[Array, "*R I"], Gradient]:
    """forward: y = x W^T.   dx = dy W,  dW = dy^T x, a sum over all rows; None if W is frozen. See `total` for b."""
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if isinstance(w, AdaptedWeight):
        dx, dw = adapted_backward(rows, w, drows)
    elif isinstance(w, AdaptedRows):
        dx, dw = scores_of_rows_backward(rows, w, drows)
    else:
        dx, dw = multiply_back(drows, w), None if is_frozen(w) else outer_products(drows, rows)
    return dx.reshape(x.shape), dw


@dataclass(frozen=True)
class AdaptedWeight:
    """W + scale B A, where W has any number of axes: it stands in a model where W stood, while LoRA trains A and B.

    Source: LoRA (Hu et al. 2021), section 4.1.
    """

    base: Weight[Array, "*R"]
    a: Float[Array, "Z I"]
    b: Float[Array, "O Z"]
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def __len__(self) -> int:
        return len(self.base)

    def reshape(self, *shape: int) -> "AdaptedWeight":
        return replace(self, base=reshaped(self.base, shape))


def adapted(x: Float[Array, "T I"], w: AdaptedWeight) -> Float[Array, "T O"]:
    """y = x W^T + scale (x A^T) B^T."""
    return linear(x, w.base) + linear(linear(x, w.a), w.b) * w.scale


def adapted_backward(
    x: Float[Array, "T I"], w: AdaptedWeight, dy: Float[Array, "T O"]
) -> tuple[Float[Array, "T I"], AdaptedWeight]:
    """forward: y = x W^T + scale h B^T, where h = x A^T."""
    dx_base, base = linear_backward(x, w.base, dy)
    dh, b = linear_backward(linear(x, w.a), w.b, dy * w.scale)
    dx_a, a = linear_backward(x, w.a, dh)
    return dx_base + dx_a, AdaptedWeight(base, a, b, w.scale)


@dataclass(frozen=True)
class AdaptedRows:
    """A table some of whose rows are replaced, in the order of `ids`, which ascend: it stands in a model where the
    table stood, while these rows alone are trained, such as those of words that the model has not learned.
    """

    base: Weight[Array, "V D"]
    ids: Int[Array, "Z"]
    rows: Float[Array, "Z D"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def __len__(self) -> int:
        return len(self.base)

    def __add__(self, other: "AdaptedRows") -> "AdaptedRows":
        """The sum of two gradients."""
        base = None if self.base is None else self.base + other.base
        return AdaptedRows(base, self.ids, self.rows + other.rows)

    def find(self, ids: Int[Array, "T"]) -> tuple[Bool[Array, "T"], Int[Array, "S"]]:
        """Which of the ids are replaced, and where their rows are."""
        places = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        replaced = self.ids[places] == ids
        return replaced, places[replaced]


def scores_of_rows(x: Float[Array, "T D"], w: AdaptedRows) -> Float[Array, "T V"]:
    """y = x W^T, where W is the table with its replaced rows."""
    y = linear(x, w.base)
    y[:, w.ids] = linear(x, w.rows)
    return y


def scores_of_rows_backward(
    x: Float[Array, "T D"], w: AdaptedRows, dy: Float[Array, "T V"]
) -> tuple[Float[Array, "T D"], AdaptedRows]:
    """forward: y = x W^T. A replaced row of the table has no part in y."""
    dx_rows, rows = linear_backward(x, w.rows, dy[:, w.ids])
    dy = dy.copy()
    dy[:, w.ids] = 0
    dx_base, base = linear_backward(x, w.base, dy)
    return dx_base + dx_rows, AdaptedRows(base, no_ids(), rows)


def no_ids() -> Gradient:
    """The gradient of ids, which has none."""
    return None


def reshaped(w: Gradient, shape: tuple[int, ...]) -> Gradient:
    """A weight or its gradient in another shape; frozen if it was, even where its numbers had to be copied."""
    if w is None:
        return None
    y = w.reshape(*shape)
    if isinstance(y, np.ndarray) and is_frozen(w):
        y.flags.writeable = False
    return y


def total(w: Array, dy: Float[Array, "*R"]) -> Gradient:
    """The gradient of a weight that is the same for all rows: the sum of `dy` over its leading axes; None if frozen."""
    return None if is_frozen(w) else np.asarray(dy.sum(tuple(range(dy.ndim - w.ndim))))


def project(
    x: Float[Array, "*R D"], w: Weight[Array, "N H D"], bias: Float[Array, "N H"] | None = None
) -> Float[Array, "*R N H"]:
    """A linear layer onto N heads of width H: y[n h] = sum over d of x[d] W[n h d], + b[n h]."""
    heads, width, _ = w.shape
    y = linear(x, w.reshape(heads * width, -1), None if bias is None else bias.reshape(-1))
    return y.reshape(*y.shape[:-1], heads, width)


def project_backward(
    x: Float[Array, "*R D"], w: Weight[Array, "N H D"], dy: Float[Array, "*R N H"]
) -> tuple[Float[Array, "*R D"], Gradient]:
    """forward: y = x W^T, W and y with their heads flattened."""
    heads, width, _ = w.shape
    dx, dw = linear_backward(x, reshaped(w, (heads * width, -1)), dy.reshape(*dy.shape[:-2], -1))
    return dx, reshaped(dw, w.shape)


def unproject(
    x: Float[Array, "*R N H"], w: Weight[Array, "D N H"], bias: Float[Array, "D"] | None = None
) -> Float[Array, "*R D"]:
    """A linear layer from N heads of width H: y[d] = sum over n and h of x[n h] W[d n h], + b[d]."""
    w = w.reshape(len(w), -1)
    return linear(x.reshape(*x.shape[:-2], w.shape[1]), w, bias)


def unproject_backward(
    x: Float[Array, "*R N H"], w: Weight[Array, "D N H"], dy: Float[Array, "*R D"]
) -> tuple[Float[Array, "*R N H"], Gradient]:
    """forward: y = x W^T, W and x with their heads flattened."""
    dx, dw = linear_backward(x.reshape(*x.shape[:-2], -1), reshaped(w, (len(w), -1)), dy)
    return dx.reshape(x.shape), reshaped(dw, w.shape)


def embed(ids: Int[Array, "T"], table: Weight[Array, "V D"], dtype: np.dtype) -> Float[Array, "T D"]:
    """Row `ids[t]` of the table for each t, as `dtype`, which becomes the dtype of a whole run.

    Raises IndexError for an id that is not in 0 .. V-1 (a negative id would count from the end).
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < len(table):
        raise IndexError(
            f"token ids run from {ids.min()} to {ids.max()}, the embedding table has rows 0 to {len(table) - 1}"
        )
    if isinstance(table, AdaptedRows):
        y = embed(ids, table.base, dtype)
        replaced, places = table.find(ids)
        y[replaced] = table.rows[places]
        return y
    return widened(table[ids], dtype)


def embed_backward(ids: Int[Array, "T"], table: Weight[Array, "V D"], dy: Float[Array, "T D"]) -> Gradient:
    """forward: y[t] = table[ids[t]].   dtable[v] is the sum of dy[t] over every t with id v: ids repeat."""
    if isinstance(table, AdaptedRows):
        replaced, places = table.find(ids)
        base = embed_backward(ids[~replaced], table.base, dy[~replaced])
        return AdaptedRows(base, no_ids(), embed_backward(places, table.rows, dy[replaced]))
    if is_frozen(table):
        return None
    dtable = np.zeros(table.shape, dy.dtype)
    np.add.at(dtable, ids, dy)
    return dtable
