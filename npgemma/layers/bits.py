"""bfloat16 and float16 <-> float32, to the bit.

    float32   s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm      value  (-1)^s 2^(e - 127) 1.m
    bfloat16  s eeeeeeee mmmmmmm                             (-1)^s 2^(e - 127) 1.m
    float16   s eeeee mmmmmmmmmm                             (-1)^s 2^(e - 15)  1.m

bfloat16 is a float32 without its lower 16 bits: widening it is a shift, narrowing to it is rounding at bit 16. NumPy
has no bfloat16, so its bits are stored as uint16. NumPy has float16, but casts it number by number, which is slow:
moving exponent and mantissa to their places in float32 gives a number that is 2^112 times too small, and multiplying by
2^112 is exact.
"""

import numpy as np

from npgemma.layers.shapes import Array, Bits, Float, Int, Weight

FLOAT16_INFINITE = 0x7C00  # an exponent of ones: infinity or NaN, for which multiplying does not work


def widened(w: Weight[Array, "*R"], dtype: np.dtype) -> Float[Array, "*R"]:
    """The numbers of `w` as `dtype`; `w` itself if it has that dtype."""
    w = np.asarray(w)  # not a subclass, whose results would be of that class too
    if w.dtype == np.uint16:
        w = widen(w)
    elif w.dtype == np.float16:
        w = widen_float16(w)
    return w.astype(dtype, copy=False)


def widen(bits: Bits[Array, "*R"]) -> Float[Array, "*R"]:
    """The float32 numbers that bfloat16 `bits` stand for, exactly: the bits become the upper half of a float32."""
    upper = bits.astype(np.uint32)
    upper <<= 16
    return upper.view(np.float32)


def even_columns(words: Int[Array, "O J"], out: Int[Array, "O J"]) -> Float[Array, "O J"]:
    """Columns 0, 2, 4 ... of a matrix of bfloat16 bits, widened into `out`: one from each word of two neighbours.

    The left neighbour is in the lower half of a 32-bit word (bfloat16 files are little-endian): a shift moves it to the
    upper half, and the other one out. This is several times as fast as `widen`.
    """
    return np.left_shift(words, 16, out).view(np.float32)


def odd_columns(words: Int[Array, "O J"], out: Int[Array, "O J"]) -> Float[Array, "O J"]:
    """Columns 1, 3, 5 ..., likewise: they are in the upper half already, and a mask removes their neighbours."""
    return np.bitwise_and(words, 0xFFFF0000, out).view(np.float32)


def widen_float16(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """The same numbers as float32, exactly."""
    bits = x.view(np.uint16)
    if (bits & 0x7FFF).max(initial=0) >= FLOAT16_INFINITE:
        return x.astype(np.float32)
    moved = bits.view(np.int16).astype(np.int32)  # the sign fills the upper half
    moved <<= 13
    moved &= np.int32(-0x70002000)  # the sign, and the 15 bits that were moved
    y = moved.view(np.float32)
    y *= 2.0**112
    return y


def pack(x: Float[Array, "*R"]) -> Bits[Array, "*R"]:
    """The bits of the bfloat16 numbers nearest to float32 `x`, ties to even (IEEE 754 round-to-nearest).

    Adding 0x7fff, and one more where the last kept bit is set, carries into the kept half exactly when rounding goes
    up. The carry may run into the exponent, which is right: the largest numbers become infinity. A NaN stays a (quiet)
    NaN. Raises TypeError for another dtype: a float64 made float32 first would be rounded twice, and sometimes wrongly.
    """
    if x.dtype != np.float32:
        raise TypeError(f"bfloat16 is rounded from float32, not from {x.dtype}")
    bits = np.ascontiguousarray(x).view(np.uint32)
    nearest = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    quiet = bits >> 16 | 0x0040
    return np.where(bits & 0x7FFFFFFF > 0x7F800000, quiet, nearest).astype(np.uint16).reshape(x.shape)


def round_to_bfloat16(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """`x` with each number rounded to the nearest bfloat16 number, as float32."""
    return widen(pack(x))
