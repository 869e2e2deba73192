"""Products with packed weights: x W^T where W stays in the dtype of its file. This file holds no formula of a paper.

W is widened a block of rows at a time; a block is multiplied while it is in the cache, and its widened copy is dropped.
Widening is exact, so no stored number changes.
"""

import math
import threading
from pathlib import Path

import numpy as np

from npgemma.layers.bits import even_columns, odd_columns, widened
from npgemma.layers.retained import retained_copy
from npgemma.layers.shapes import Array, Bits, Float, Int, Weight
from npgemma.layers.threads import alone, in_parallel, multiplies_in_place


def second_level_cache(file: Path = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")) -> int:
    """The bytes of the second-level cache of a core; those of most processors where the system does not say."""
    try:
        return 1024 * int(file.read_text().removesuffix("K\n"))
    except (OSError, ValueError):
        return 1 << 20


# Elements of W in a block for few rows of x: after it is read from memory as 1 MB of bfloat16, it is still in the
# second-level cache when its odd columns are widened. Where that cache is smaller, blocks of any size that threads do
# not wait for too often are in the third: with twice as many elements, a step takes 0.92 of the time.
BLOCK = 1 << 19 if second_level_cache() >= 1 << 20 else 1 << 20
# The same for many rows, or if nothing is widened: BLAS copies x into tiles for each block, so a block has at least so
# many rows of W, if they have no more than so many elements. With a quarter as many rows, the last product of an MLP
# takes 1.2 to 1.4 times as long.
LARGE_BLOCK, TALL, LARGEST_BLOCK = 1 << 20, 256, 1 << 22
# A matrix of at most this many elements is one block: sharing it would take longer than multiplying it, with many rows
# of x and with few. A thread that waits for work starts 0.1 to 0.2 ms after there is some.
SMALL, SMALL_FOR_FEW = 1 << 18, 1 << 19
# Up to this many rows of x, reading and widening W takes longer than multiplying.
FEW_ROWS = 32
# Multiply-adds in one product of few rows, where OpenBLAS multiplies W in place up to 1e6 of them: above, it first
# copies W into tiles, which takes five times as long.
PIECE = 1 << 19
# Where it always copies: from so many rows on, that takes less time than a product with each row by itself, of two rows
# three times as long.
TILED_ROWS = 8


def multiply_packed(x: Float[Array, "T I"], w: Weight[Array, "O I"]) -> Float[Array, "T O"]:
    """x W^T in the dtype of `x`, whatever dtype W is stored in."""
    in_pairs = w.dtype == np.uint16 and w.shape[1] % 2 == 0 and w.flags.c_contiguous
    if in_pairs and len(x) <= FEW_ROWS:
        return multiply_in_pairs(x, w)
    w = np.asarray(w)  # a retained one, too
    y = np.empty((len(x), len(w)), x.dtype)
    in_parallel(lambda block: multiply(x, widened(w[block], x.dtype), y[:, block]), blocks_for(len(x), w, x.dtype))
    return y


def multiply_back(dy: Float[Array, "T O"], w: Weight[Array, "O I"]) -> Float[Array, "T I"]:
    """dy W in the dtype of `dy`: some columns of W at a time, or the sum over some rows at a time if W is tall."""
    if len(w) > w.shape[1] and w.size > SMALL:
        return sum_over_blocks(dy, w)
    dx = np.empty((len(dy), w.shape[1]), dy.dtype)
    in_parallel(lambda block: np.matmul(dy, widened(w[:, block], dy.dtype), out=dx[:, block]), large_blocks(w.T))
    return dx


# Partial sums of dy W: the cores take them in any order, and they are added in this one, so that the result does not
# depend on how many cores there are.
PARTS = 4


def sum_over_blocks(dy: Float[Array, "T O"], w: Weight[Array, "O I"]) -> Float[Array, "T I"]:
    """dy W, the sum over blocks of rows of W, in the order in which the file has them."""
    blocks = large_blocks(w)
    sums = np.zeros((min(PARTS, len(blocks)), len(dy), w.shape[1]), dy.dtype)

    def add(part: int) -> None:
        for block in blocks[part::PARTS]:
            sums[part] += dy[:, block] @ widened(w[block], dy.dtype)

    in_parallel(add, range(len(sums)))
    return sums.sum(0)


def outer_products(dy: Float[Array, "T O"], x: Float[Array, "T I"]) -> Float[Array, "O I"]:
    """dy^T x, the sum over rows of the outer products of dy and x: a block of rows of the result at a time."""
    dw = np.empty((dy.shape[1], x.shape[1]), dy.dtype)
    in_parallel(lambda block: np.matmul(dy[:, block].T, x, out=dw[block]), large_blocks(dw))
    return dw


def blocks_for(rows: int, w: Weight[Array, "O I"], dtype: np.dtype) -> list[slice]:
    """The blocks of W for so many rows of x: one if there is nothing to widen and nobody to share the work with."""
    if w.dtype == dtype and rows > FEW_ROWS and alone():
        return [slice(None)]
    return row_blocks(w, BLOCK) if w.dtype != dtype and rows <= FEW_ROWS else large_blocks(w)


def multiply_in_pairs(x: Float[Array, "T I"], w: Bits[Array, "O I"]) -> Float[Array, "T O"]:
    """x W^T for few rows of x: even and odd columns of W in separate products, since they widen faster that way.

    A retained W has the two halves in memory: the products are the same, and so are their bits.
    """
    even, odd = x[:, 0::2].copy(), x[:, 1::2].copy()
    y = y_even, y_odd = np.empty((2, len(x), len(w)), x.dtype)
    copy, words = retained_copy(w, x.dtype, widened_halves), np.asarray(w).view(np.uint32)

    def multiply_block(block: slice) -> None:
        if copy is not None:
            multiply(even, copy[0, block], y_even[:, block])
            multiply(odd, copy[1, block], y_odd[:, block])
            return
        part = words[block]
        memory = scratch.words(part.size).reshape(part.shape)
        multiply(even, even_columns(part, memory).astype(x.dtype, copy=False), y_even[:, block])
        multiply(odd, odd_columns(part, memory).astype(x.dtype, copy=False), y_odd[:, block])

    in_parallel(multiply_block, row_blocks(w, BLOCK, SMALL_FOR_FEW))
    return y[0] + y[1]


def widened_halves(w: Bits[Array, "O I"], dtype: np.dtype) -> Float[Array, "2 O J"]:
    """The even and the odd columns of W as `dtype`."""
    words = w.view(np.uint32)
    halves = np.empty((2, *words.shape), np.uint32)

    def widen_block(block: slice) -> None:
        even_columns(words[block], halves[0, block])
        odd_columns(words[block], halves[1, block])

    in_parallel(widen_block, row_blocks(w, BLOCK))
    return halves.view(np.float32).astype(dtype, copy=False)


def multiply(x: Float[Array, "T I"], w: Float[Array, "O I"], out: Float[Array, "T O"]) -> None:
    """out = x W^T."""
    if len(x) > FEW_ROWS:
        np.matmul(x, w.T, out=out)
    elif len(x) > 1 and multiplies_in_place():
        multiply_in_pieces(x, w, out)
    elif len(x) < TILED_ROWS:
        for row, y in zip(x, out, strict=True):
            np.dot(w, row, out=y)  # np.matmul holds the interpreter lock in a product as small as this
    else:
        out[...] = (w @ x.T).T  # the larger matrix first: 0.7 times the time of the other order


def multiply_in_pieces(
    x: Float[Array, "T I"], w: Float[Array, "O I"], out: Float[Array, "T O"], piece: int = PIECE
) -> None:
    """out = x W^T, in several products of fewer than `piece` multiply-adds each."""
    pieces = piece_count(w.size * len(x), piece)
    if pieces > 1 and len(w) % pieces == 0:
        stacked = w.reshape(pieces, -1, w.shape[1]).transpose(0, 2, 1)
        np.matmul(x, stacked, out=out.reshape(len(x), pieces, -1).transpose(1, 0, 2))
    else:
        np.matmul(x, w.T, out=out)


def piece_count(multiply_adds: int, piece: int = PIECE) -> int:
    """The smallest power of two of equal pieces that have fewer than `piece` multiply-adds each."""
    return 1 << (multiply_adds // piece).bit_length()


def large_blocks(w: Weight[Array, "O I"]) -> list[slice]:
    """The rows of W in blocks for products with many rows."""
    return row_blocks(w, max(LARGE_BLOCK, min(TALL * w.shape[1], LARGEST_BLOCK)))


def row_blocks(w: Weight[Array, "O I"], size: int, small: int = SMALL) -> list[slice]:
    """The rows of W in blocks of about `size` elements or less, four blocks or a multiple so that the cores share them.

    A matrix of at most `small` elements is one block.
    """
    height = len(w)
    if w.size > small:
        height = math.ceil(len(w) / math.ceil(w.size / size / 4) / 64) * 16
    return [slice(start, start + height) for start in range(0, len(w), max(1, height))]


class Scratch(threading.local):
    """Memory that each thread reuses for widened words, so that it stays in the cache of its core."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint32)

    def words(self, count: int) -> Int[Array, "O"]:
        if self.memory.size < count:
            self.memory = np.empty(count, np.uint32)
        return self.memory[:count]


scratch = Scratch()
