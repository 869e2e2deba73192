"""Sums and products in the order of a plain loop, so that a golden file knows how much an honest loop may lose.

NumPy adds in pairs and BLAS in blocks: at width 2048 a norm whose sum is a loop has 5.6 times their error, and is as
right. An array of the classes below computes each sum with running sums in float32, whatever function it meets, and so
does each array that is computed from it. The model itself does not know:

    >>> import numpy as np
    >>> x = np.full(1 << 17, 0.1, np.float32)
    >>> print(x.sum(), x.view(InOneSum).sum(), x.view(InEightSums).sum())
    13107.201 13106.844 13107.203

`summing` is the tap that makes a run compute so.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap

# Rows and columns of a tile of a product, which stays in the cache while it is added to.
TILE = (64, 512)


class Looped(np.ndarray):
    """A float array whose sums, and whose products of matrices, are loops in float32. Other dtypes compute as usual."""

    running_sums: ClassVar[int]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = tuple(map(plain, inputs))
        out = tuple(map(plain, options.pop("out", None) or ()))
        single = all(np.asarray(x).dtype == np.float32 for x in arrays)
        if single and ufunc is np.matmul and method == "__call__":
            y = stored(product(arrays[0], arrays[1], self.running_sums), out)
        elif single and ufunc is np.add and method == "reduce":
            y = total(arrays[0], options.get("axis", 0), options.get("keepdims", False), self.running_sums)
            y = stored(y, out)
        else:
            y = getattr(ufunc, method)(*arrays, **options, **({"out": out} if out else {}))
        return self.likewise(y)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        if function is np.dot:
            w, x = map(plain, arguments)
            out = options.get("out")
            return self.likewise(stored(product(w, x[:, None], self.running_sums)[:, 0], () if out is None else (out,)))
        return self.likewise(super().__array_function__(function, types, arguments, options))

    def likewise(self, y: Any) -> Any:
        """`y` as an array of this class, if it is an array of numbers."""
        return y.view(type(self)) if isinstance(y, np.ndarray) and y.dtype.kind == "f" else y


class InOneSum(Looped):
    """One running sum over all terms, as in a loop without vector instructions."""

    running_sums = 1


class InEightSums(Looped):
    """Eight running sums over an eighth of the terms each, added up at the end."""

    running_sums = 8


def summing(tap: Tap, order: type[Looped]) -> Tap:
    """`tap`, after which the model continues with arrays of the class `order`."""

    def looped(name: str, x: Array, axes: str) -> Array:
        y = tap(name, plain(x), axes)
        return y.view(order) if y.dtype == np.float32 else y

    return looped


def plain(x: Any) -> Any:
    """`x` as an ordinary array, if it is a looped one."""
    return x.view(np.ndarray) if isinstance(x, Looped) else x


def stored(y: Array, out: Sequence[Array]) -> Array:
    """`y`, written to the array in `out` if there is one."""
    if not out:
        return y
    out[0][...] = y
    return out[0]


def total(x: Float[Array, "*R"], axis: int | None, keepdims: bool, running_sums: int) -> Array:
    """The sum over one axis, or over all of them: a running sum over each of so many equal parts, then over these."""
    terms = x.reshape(-1) if axis is None else np.moveaxis(x, axis, -1)
    y = np.zeros(terms.shape[:-1], x.dtype)
    for part in np.array_split(terms, running_sums, -1):
        if part.size:
            y = y + np.add.accumulate(part, -1)[..., -1]
    return np.expand_dims(y, axis) if keepdims and axis is not None else y


def product(a: Array, b: Array, running_sums: int) -> Array:
    """[... T I] times [... I O], matrices or stacks of them: a loop over I for each running sum."""
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, stack + a.shape[-2:]), np.broadcast_to(b, stack + b.shape[-2:])
    y = np.zeros((*stack, a.shape[-2], b.shape[-1]), a.dtype)
    rows, columns = TILE
    for i in np.ndindex(stack):
        for left in range(0, y.shape[-1], columns):
            right = np.ascontiguousarray(b[i][:, left : left + columns])
            for top in range(0, y.shape[-2], rows):
                add_tile(a[i][top : top + rows], right, y[i][top : top + rows, left : left + columns], running_sums)
    return y


def add_tile(a: Float[Array, "T I"], b: Float[Array, "I O"], out: Float[Array, "T O"], running_sums: int) -> None:
    """out += a b."""
    columns = np.ascontiguousarray(a.T)[..., None]  # I T 1
    term = np.empty_like(out, order="C")
    for part in np.array_split(np.arange(len(b)), running_sums):
        running = np.zeros_like(term)
        for i in part:
            running += np.multiply(columns[i], b[i], out=term)
        out += running
