"""Tables of positions on another grid than they were trained for."""

import numpy as np

from npgemma.layers.shapes import Array, Float

A = -0.75  # the slope of the kernel at 1


def resize_positions(x: Float[Array, "P D"], rows: int, columns: int) -> Float[Array, "O D"]:
    """The rows of a square grid of positions for a grid of rows x columns patches, bicubic along both sides.

    Source: transformers' interpolate_pos_encoding; torch.nn.functional.interpolate, bicubic, align_corners=False.
    """
    side = round(len(x) ** 0.5)
    grid = x.reshape(side, side, -1).astype(np.float64)
    y = np.einsum("os, ut, std -> oud", bicubic(side, rows), bicubic(side, columns), grid)
    return y.reshape(rows * columns, -1).astype(x.dtype)


def bicubic(size: int, wanted: int) -> Float[Array, "O I"]:
    """y[o] = sum over i of M[o i] x[i] resizes a line of `size` samples to `wanted` ones.

    Sample o lies at (o + 1/2) size / wanted - 1/2 and is mixed of the four nearest samples by a kernel k; a line goes
    on beyond its ends as its first and last sample. With a = A,

        k(d) = (a + 2) d^3 - (a + 3) d^2 + 1            for d <= 1
        k(d) = a d^3 - 5 a d^2 + 8 a d - 4 a            for 1 < d < 2

    Source: Keys 1981, equation 15.
    """
    place = (np.arange(wanted) + 0.5) * (size / wanted) - 0.5
    matrix = np.zeros((wanted, size))
    for step in (-1, 0, 1, 2):
        near = np.floor(place) + step
        d = np.abs(place - near)
        inner = ((A + 2) * d - (A + 3)) * d * d + 1
        outer = ((A * d - 5 * A) * d + 8 * A) * d - 4 * A
        np.add.at(matrix, (np.arange(wanted), near.astype(int).clip(0, size - 1)), np.where(d <= 1, inner, outer))
    return matrix
