"""The arithmetic of other frameworks: the order in which they add up, and what they round.

NumPy adds in pairs and BLAS in blocks: at width 2048 a norm whose sum is a plain loop has 5.6 times their error, and is
as right. So a golden file also holds the errors of runs whose sums and products of matrices are computed in another
way. An array of a class below computes them so, whatever function it meets, and so does each array that is made from
it. The model itself does not know:

    >>> import numpy as np
    >>> x = np.full(1 << 17, 0.1, np.float32)
    >>> print(x.sum(), x.view(InOneSum).sum(), x.view(InEightSums).sum())
    13107.202 13093.619 13105.178

`computing_as` is the tap that makes a run compute so.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np

from npgemma.golden.rounding import GRIDS, Schedule, cut_to_tf32, round_to_tf32, rounding
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap

# Rows and columns of a tile of a product, which stays in the cache while it is added to.
TILE = (64, 512)
# The loops of a product with more multiply-adds are modelled, from so many samples of their running sums.
LARGE, SAMPLES = 1 << 26, 16
# The variance of the rounding error of s = 2^e m, by s^2: a unit in the last place is 2^(e - 23), the error is uniform
# within half of one, so its variance is a twelfth, and the mean of 1 / m^2 is 3/8 / log 2 if log m is uniform.
ROUNDED = 2.0**-46 / 12 * 3 / 8 / math.log(2)

# Which axes a sum is over: one, several, or all of them.
Axes: TypeAlias = int | tuple[int, ...] | None


class Arithmetic(np.ndarray):
    """An array whose float32 sums and products of matrices are those of the class. Other dtypes compute as usual.

    `rounds` is what such a run rounds besides, as a schedule.
    """

    rounds: ClassVar[Schedule] = {}

    @classmethod
    def product(cls, a: Array, b: Array) -> Array:
        """a b."""
        return a @ b

    @classmethod
    def total(cls, x: Array, axis: Axes, keepdims: bool) -> Array:
        """The sum over some axes, or over all of them."""
        y: Array = x.sum(axis, keepdims=keepdims)
        return y

    @classmethod
    def scaled(cls, x: Array, w: Array) -> Array:
        """Each column of x times a number of its own, as in a norm."""
        return np.multiply(x, w)

    @classmethod
    def tanh(cls, x: Array) -> Array:
        """The hyperbolic tangent."""
        return np.tanh(x)

    @classmethod
    def add_at(cls, y: Array, rows: Array, x: Array) -> None:
        """Add each row of x to a row of y, of which some may be named several times."""
        np.add.at(y, rows, x)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = tuple(map(plain, inputs))
        out = tuple(map(plain, options.pop("out", None) or ()))
        if ufunc is np.add and method == "at":
            return self.add_at(*arrays)
        single = all(np.asarray(x).dtype == np.float32 for x in arrays)
        if single and ufunc is np.matmul and method == "__call__":
            y = stored(self.product(arrays[0], arrays[1]), out)
        elif single and ufunc is np.multiply and method == "__call__" and np.ndim(arrays[0]) > np.ndim(arrays[1]) == 1:
            y = stored(self.scaled(arrays[0], arrays[1]), out)
        elif single and ufunc is np.tanh and method == "__call__":
            y = stored(self.tanh(arrays[0]), out)
        elif single and ufunc is np.add and method == "reduce":
            y = stored(self.total(arrays[0], options.get("axis", 0), options.get("keepdims", False)), out)
        else:
            y = getattr(ufunc, method)(*arrays, **options, **({"out": out} if out else {}))
        return self.likewise(y)

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        if function is np.dot:
            w, x = map(plain, arguments)
            out = options.get("out")
            return self.likewise(stored(self.product(w, x[:, None])[:, 0], () if out is None else (out,)))
        return self.likewise(super().__array_function__(function, types, arguments, options))

    def likewise(self, y: Any) -> Any:
        """`y` as an array of this class, if it is an array of numbers."""
        return y.view(type(self)) if isinstance(y, np.ndarray) and y.dtype.kind == "f" else y


class Looped(Arithmetic):
    """Sums and products are loops: each has some running sums over equal parts of the terms, added up at the end."""

    running_sums: ClassVar[int]

    @classmethod
    def product(cls, a: Array, b: Array) -> Array:
        return product(a, b, cls.running_sums)

    @classmethod
    def total(cls, x: Array, axis: Axes, keepdims: bool) -> Array:
        return total(x, axis, keepdims, cls.running_sums)


class InOneSum(Looped):
    """A loop without vector instructions. RoPE's frequencies are powers of 2 in float32."""

    running_sums = 1
    rounds: ClassVar[Schedule] = {"frequencies": "powers of 2"}

    @classmethod
    def tanh(cls, x: Array) -> Array:
        """By exponentials, as kernels compute it that have no other function."""
        below = -2 * np.abs(x)
        return np.copysign(np.expm1(below) / (1 + np.exp(below)), x)


class InEightSums(Looped):
    """A loop with vectors of eight numbers, each a running sum. RoPE's frequencies are powers of e in float32."""

    running_sums = 8
    rounds: ClassVar[Schedule] = {"frequencies": "powers of e"}


class Tf32Rounded(Arithmetic):
    """Tensor cores multiply in TF32, which keeps 10 bits of the mantissa of each factor, and add up in float32."""

    @classmethod
    def product(cls, a: Array, b: Array) -> Array:
        return round_to_tf32(a) @ round_to_tf32(b)


class Tf32Cut(Arithmetic):
    """The same where the other bits are cut off instead of rounded."""

    @classmethod
    def product(cls, a: Array, b: Array) -> Array:
        return cut_to_tf32(a) @ cut_to_tf32(b)


class RoundedOperations(Arithmetic):
    """A linear layer and a norm are operations of their own, each of which rounds.

    A product is rounded before a bias is added, as in Keras; the rows of a norm before they are scaled and afterwards,
    as in MLX on a CPU, whose layer norm this is to the bit; a sum over rows after each of them.
    """

    rounded_to: ClassVar[str]

    @classmethod
    def product(cls, a: Array, b: Array) -> Array:
        return GRIDS[cls.rounded_to](a @ b)

    @classmethod
    def scaled(cls, x: Array, w: Array) -> Array:
        grid = GRIDS[cls.rounded_to]
        return grid(grid(x) * w)

    @classmethod
    def total(cls, x: Array, axis: Axes, keepdims: bool) -> Array:
        """Over rows, the sum so far is rounded after each, as in the gradient of torch's layer norm."""
        count = len(axis) if isinstance(axis, tuple) else 0
        if keepdims or not 0 < count < x.ndim or axis != tuple(range(count)):
            return super().total(x, axis, keepdims)
        rows = x.reshape(-1, *x.shape[count:])
        y = np.zeros_like(rows[0])
        for row in rows:
            y = GRIDS[cls.rounded_to](y + row)
        return y

    @classmethod
    def add_at(cls, y: Array, rows: Array, x: Array) -> None:
        """The same of rows of a table."""
        rows, left = np.asarray(rows), np.ones(len(rows), bool)
        while left.any():
            places = np.flatnonzero(left)
            once, first = np.unique(rows[places], return_index=True)
            y[once] = GRIDS[cls.rounded_to](y[once] + x[places[first]])
            left[places[first]] = False


class Bfloat16Operations(RoundedOperations):
    """Each operation is rounded to bfloat16."""

    rounded_to = "bfloat16"


class Float16Operations(RoundedOperations):
    """Each operation is rounded to float16."""

    rounded_to = "float16"


# The runs whose largest errors are the envelope of a dtype; golden files hold these names. None is NumPy's arithmetic.
USUAL: dict[str, type[Arithmetic] | None] = {"NumPy's sums in pairs, BLAS's products": None}
OPERATIONS = "linear layers and norms are several operations, which round"
ARITHMETICS: dict[str, dict[str, type[Arithmetic] | None]] = {
    "float32": USUAL | {"one running sum, powers of 2 in RoPE": InOneSum, "eight, powers of e": InEightSums},
    "tf32": {"factors rounded to TF32": Tf32Rounded, "factors cut off to TF32": Tf32Cut},
    "bfloat16": USUAL | {OPERATIONS: Bfloat16Operations},
    "float16": USUAL | {OPERATIONS: Float16Operations},
}


def precisions_of(dtype: str) -> tuple[str, ...]:
    """The precisions whose runs a port is judged by, its own last. Runs in float32 have more orders of sums."""
    return ("float32", dtype) if dtype == "tf32" else (dtype,)


def computing_as(tap: Tap, kind: type[Arithmetic] | None) -> Tap:
    """`tap`, after which the model continues with arrays of the class `kind`, if there is one."""
    if kind is None:
        return tap
    rounded = rounding(tap, kind.rounds)

    def converted(name: str, x: Array, axes: str) -> Array:
        y = rounded(name, plain(x), axes)
        return y.view(kind) if y.dtype == np.float32 else y

    return converted


def plain(x: Any) -> Any:
    """`x` as an ordinary array, if it has another arithmetic."""
    return x.view(np.ndarray) if isinstance(x, Arithmetic) else x


def stored(y: Array, out: Sequence[Array]) -> Array:
    """`y`, written to the array in `out` if there is one."""
    if not out:
        return y
    out[0][...] = y
    return out[0]


def total(x: Float[Array, "*R"], axis: Axes, keepdims: bool, running_sums: int) -> Array:
    """The sum over some axes, or over all of them: a running sum over each of so many equal parts, then over these."""
    axes = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    last = np.moveaxis(x, axes, range(-len(axes), 0))
    terms = last.reshape(*last.shape[: x.ndim - len(axes)], -1)
    y = np.zeros(terms.shape[:-1], x.dtype)
    for part in np.array_split(terms, running_sums, -1):
        if part.size:
            y = y + np.add.accumulate(part, -1)[..., -1]
    return np.expand_dims(y, axis) if keepdims and axis is not None else y


def product(a: Array, b: Array, running_sums: int) -> Array:
    """[... T I] times [... I O], matrices or stacks of them: a loop over I for each running sum, or a model of it."""
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, stack + a.shape[-2:]), np.broadcast_to(b, stack + b.shape[-2:])
    y = np.empty((*stack, a.shape[-2], b.shape[-1]), a.dtype)
    multiply = looped if a.size * b.shape[-1] <= LARGE else modelled
    for i in np.ndindex(stack):
        y[i] = multiply(a[i], b[i], running_sums)
    return y


def looped(a: Float[Array, "T I"], b: Float[Array, "I O"], running_sums: int) -> Float[Array, "T O"]:
    """a b by loops, in tiles that stay in the cache while they are added to, and that are wide rather than high."""
    if len(a) > b.shape[1]:
        return looped(b.T, a.T, running_sums).T
    y = np.zeros((len(a), b.shape[1]), a.dtype)
    rows, columns = TILE
    for left in range(0, y.shape[1], columns):
        right = np.ascontiguousarray(b[:, left : left + columns])
        for top in range(0, len(y), rows):
            tile, terms = y[top : top + rows, left : left + columns], np.ascontiguousarray(a[top : top + rows].T)
            term = np.empty_like(tile, order="C")
            for part in np.array_split(np.arange(len(b)), running_sums):
                running = np.zeros_like(term)
                for i in part:
                    running += np.multiply(terms[i, :, None], right[i], out=term)
                tile += running
    return y


def modelled(a: Float[Array, "T I"], b: Float[Array, "I O"], running_sums: int) -> Float[Array, "T O"]:
    """The exact a b with a random error as large as that of loops, which would take minutes in a real model.

    Adding a term to a running sum s has an error of variance ROUNDED s^2, and the errors of the terms add up as
    independent ones do (Higham and Mary 2019). Each running sum is looked at in SAMPLES / `running_sums` places.
    """
    y = a.astype(np.float64) @ b.astype(np.float64)
    squares = np.zeros(y.shape, a.dtype)
    for part in np.array_split(np.arange(len(b)), running_sums):
        running = np.zeros_like(squares)
        for terms in np.array_split(part, SAMPLES // running_sums):
            running += a[:, terms[0] : terms[-1] + 1] @ b[terms[0] : terms[-1] + 1]
            squares += np.square(running) * np.float32(len(terms))
    seed = zlib.crc32(a[0].tobytes() + b[:, 0].tobytes())
    y += np.sqrt(squares * np.float32(ROUNDED)) * np.random.default_rng(seed).standard_normal(y.shape, a.dtype)
    return y.astype(a.dtype)
