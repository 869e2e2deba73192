"""float16 to float32, exactly, and faster than NumPy's cast, which goes number by number.

    float16   s eeeee mmmmmmmmmm                         value  (-1)^s 2^(e - 15)  1.m
    float32   s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm                (-1)^s 2^(e - 127) 1.m

With exponent and mantissa moved to the same end of float32's, the number is 2^112 times too small, and that is all:
multiplying it back is exact, and makes normal numbers of the subnormal ones too.
"""

import numpy as np

from npgemma.layers.shapes import Array, Float

INFINITE = 0x7C00  # an exponent of ones: infinity or NaN, to which the above does not apply


def widen_float16(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """The same numbers as float32, exactly."""
    bits = x.view(np.uint16)
    if (bits & 0x7FFF).max(initial=0) >= INFINITE:
        return x.astype(np.float32)
    moved = bits.view(np.int16).astype(np.int32)  # the sign is in every bit of the upper half
    moved <<= 13
    moved &= np.int32(-0x70002000)  # sign, and the 15 bits that were moved
    y = moved.view(np.float32)
    y *= 2.0**112
    return y
