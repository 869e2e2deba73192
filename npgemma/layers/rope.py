"""Rotary position embedding."""

import numpy as np

from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, silent


def rope(
    x: Float[Array, "T N H"], positions: Int[Array, "T"], theta: float, tap: Tap = silent, factor: float = 1.0
) -> Float[Array, "T N H"]:
    """Rotate pair j of every head by the angle position * theta^(-2j/H) / factor.

        y[j]       = x[j] cos - x[j + H/2] sin
        y[j + H/2] = x[j + H/2] cos + x[j] sin          j = 0 .. H/2 - 1

    Source: RoFormer (Su et al. 2021), section 3.2.2, with the half-split pairs of the Gemma checkpoints: j is paired
    with j + H/2, where the paper pairs 2j with 2j + 1. Angles are computed in float64: in float32 the angle of position
    4000 would be off by 1e-4 radians, whatever the precision of everything after it.

    A factor above 1 stretches the positions that a model was trained with over longer texts (Chen et al. 2023).
    """
    half = x.shape[-1] // 2
    frequencies = tap("frequencies", theta ** (-np.arange(half) / half) / factor, "J")
    angle = tap("angle", positions[:, None] * frequencies, "T J")
    cos = tap("cos", np.cos(angle).astype(x.dtype), "T J")[:, None, :]
    sin = tap("sin", np.sin(angle).astype(x.dtype), "T J")[:, None, :]
    first, second = x[..., :half], x[..., half:]
    x_cos = tap("x_cos", np.concatenate([first * cos, second * cos], -1), "T N H")
    x_sin = tap("x_sin", np.concatenate([-second * sin, first * sin], -1), "T N H")
    return x_cos + x_sin


def rope_backward(
    dy: Float[Array, "T N H"], positions: Int[Array, "T"], theta: float, factor: float = 1.0
) -> Float[Array, "T N H"]:
    """forward: y = rotation x.   dx = rotation^T dy, and the transpose of a rotation turns back."""
    return rope(dy, -positions, theta, factor=factor)
