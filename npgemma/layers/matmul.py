"""`linear` and `embed`: the one seam where a large stored weight meets an activation.

A weight keeps the dtype it was stored in and is usually memory-mapped (see `shapes`). What an activation needs of it is
widened here, a block of rows at a time, so that a 6 GB bfloat16 checkpoint never becomes 12 GB of float32: a block is
used while it is in the cache and then forgotten. Widening is exact, so blocks change no number that is stored.
"""

import math
import threading

import numpy as np

from npgemma.layers.bfloat16 import even_columns, odd_columns, widen
from npgemma.layers.float16 import widen_float16
from npgemma.layers.shapes import Array, Bits, Float, Int, Weight
from npgemma.layers.threads import in_parallel

# Elements of W in a block that few rows of x meet: read from memory as 1 MB of bfloat16, it is still in the
# second-level cache when its second half is widened. With half or twice as many a step takes 1.2 times as long: threads
# wait for the interpreter, or the cache overflows.
BLOCK = 1 << 19
# The same for many rows, or where nothing is widened. There are fewer, since for each block BLAS copies x into tiles:
# with half as many elements, the product that ends an MLP takes 1.3 times as long.
LARGE_BLOCK = 1 << 20
# A matrix of no more elements is one block: to share it would take longer than to multiply it.
SMALL = 1 << 18
# Up to this many rows of x, reading and widening W takes longer than multiplying.
FEW_ROWS = 32
# Multiply-adds in one product of few rows: up to 1e6, OpenBLAS multiplies W where it stands; beyond, it first copies W
# into tiles, which takes five times as long.
PIECE = 1 << 19


def widened(w: Weight[Array, "*R"], dtype: np.dtype) -> Float[Array, "*R"]:
    """The numbers of `w` as `dtype`; `w` itself where it has that dtype already."""
    if w.dtype == np.uint16:
        w = widen(w)
    elif w.dtype == np.float16:
        w = widen_float16(w)
    return w.astype(dtype, copy=False)


def linear(
    x: Float[Array, "*R I"], w: Weight[Array, "O I"], bias: Float[Array, "O"] | None = None
) -> Float[Array, "*R O"]:
    """y = x W^T + b, in the dtype of `x`. W is stored [out, in], as torch.nn.Linear stores it."""
    rows = x.reshape(-1, w.shape[1])
    in_pairs = w.dtype == np.uint16 and w.shape[1] % 2 == 0 and w.flags.c_contiguous
    if in_pairs and len(rows) <= FEW_ROWS:
        y = linear_in_pairs(rows, w)
    else:
        y = np.empty((len(rows), len(w)), x.dtype)
        size = BLOCK if w.dtype != x.dtype and len(rows) <= FEW_ROWS else LARGE_BLOCK
        in_parallel(lambda block: multiply(rows, widened(w[block], x.dtype), y[:, block]), row_blocks(w, size))
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], len(w))


def linear_in_pairs(x: Float[Array, "T I"], w: Bits[Array, "O I"]) -> Float[Array, "T O"]:
    """x W^T for few rows of x: the even columns of W apart from the odd ones, since they are widened faster so."""
    halves = (x[:, 0::2].copy(), even_columns), (x[:, 1::2].copy(), odd_columns)
    y = np.empty((2, len(x), len(w)), x.dtype)

    def multiply_block(block: slice) -> None:
        words = scratch.words(w[block].size // 2).reshape(-1, w.shape[1] // 2)
        for (columns, widen_half), out in zip(halves, y, strict=True):
            multiply(columns, widen_half(w[block], words).astype(x.dtype, copy=False), out[:, block])

    in_parallel(multiply_block, row_blocks(w, BLOCK))
    return y[0] + y[1]


def multiply(x: Float[Array, "T I"], w: Float[Array, "O I"], out: Float[Array, "T O"]) -> None:
    """out = x W^T."""
    pieces = 1 << (w.size * len(x) // PIECE).bit_length()
    if len(x) == 1:
        np.dot(w, x[0], out=out[0])  # np.matmul keeps the interpreter to itself in a product as small as this
    elif pieces > 1 and len(x) <= FEW_ROWS and len(w) % pieces == 0:
        stacked = w.reshape(pieces, -1, w.shape[1]).transpose(0, 2, 1)
        np.matmul(x, stacked, out=out.reshape(len(x), pieces, -1).transpose(1, 0, 2))
    else:
        np.matmul(x, w.T, out=out)


def row_blocks(w: Weight[Array, "O I"], size: int) -> list[slice]:
    """The rows of W in blocks of about `size` elements or less: one, or a multiple of four, so that cores share."""
    height = len(w)
    if w.size > SMALL:
        height = math.ceil(len(w) / math.ceil(w.size / size / 4) / 64) * 16
    return [slice(start, start + height) for start in range(0, len(w), max(1, height))]


class Scratch(threading.local):
    """Memory that each thread widens into again and again, so that it stays in the thread's cache."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint32)

    def words(self, count: int) -> Int[Array, "O"]:
        if self.memory.size < count:
            self.memory = np.empty(count, np.uint32)
        return self.memory[:count]


scratch = Scratch()


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
