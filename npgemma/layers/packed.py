"""Products with packed weights: x W^T where W stays in the dtype of its file. No formula of a paper stands here.

W is widened a block of rows at a time; a block is used while it is in the cache, and its widened copy is dropped.
Widening is exact, so blocks change no number that is stored.
"""

import math
import threading

import numpy as np

from npgemma.layers.bits import even_columns, odd_columns, widened
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
# Multiply-adds in one product of few rows: up to 1e6, OpenBLAS multiplies W in place; beyond, it first copies W into
# tiles, which takes five times as long.
PIECE = 1 << 19


def multiply_packed(x: Float[Array, "T I"], w: Weight[Array, "O I"]) -> Float[Array, "T O"]:
    """x W^T in the dtype of `x`, whatever dtype W is stored in."""
    in_pairs = w.dtype == np.uint16 and w.shape[1] % 2 == 0 and w.flags.c_contiguous
    if in_pairs and len(x) <= FEW_ROWS:
        return multiply_in_pairs(x, w)
    y = np.empty((len(x), len(w)), x.dtype)
    size = BLOCK if w.dtype != x.dtype and len(x) <= FEW_ROWS else LARGE_BLOCK
    in_parallel(lambda block: multiply(x, widened(w[block], x.dtype), y[:, block]), row_blocks(w, size))
    return y


def multiply_in_pairs(x: Float[Array, "T I"], w: Bits[Array, "O I"]) -> Float[Array, "T O"]:
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
        np.dot(w, x[0], out=out[0])  # np.matmul holds the interpreter lock in a product as small as this
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
