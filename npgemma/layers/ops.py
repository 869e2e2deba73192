"""The operations without large weights: norms, gelu, softmax, rotary positions, attention.

Each computes in the dtype of its first argument. Constants are Python floats: a NumPy float64 scalar would silently
turn a float32 model into a float64 one.
"""

import math
from dataclasses import dataclass

import numpy as np

from npgemma.layers.shapes import Array, Bool, Float, Int
from npgemma.layers.taps import Tap, silent


@dataclass(frozen=True)
class LayerNorm:
    weight: Float[Array, "D"]
    bias: Float[Array, "D"]
    eps: float


def layer_norm(p: LayerNorm, x: Float[Array, "*R D"]) -> Float[Array, "*R D"]:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, mean and (biased) variance over the last axis.

    Source: Ba et al. 2016, section 3; torch.nn.LayerNorm. The variance is taken of the centred values: the shorter
    mean(x^2) - mean(x)^2 cancels where the mean is large.
    """
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + p.eps) * p.weight + p.bias


@dataclass(frozen=True)
class RMSNorm:
    weight: Float[Array, "D"]
    eps: float


def rms_norm(p: RMSNorm, x: Float[Array, "*R D"]) -> Float[Array, "*R D"]:
    """y = x / sqrt(mean(x^2) + eps) * (1 + weight), the mean over the last axis.

    Source: Zhang and Sennrich 2019, equation 4. The 1 + weight is Gemma's: its checkpoints store the distance from one.
    """
    scale = np.add(p.weight, 1, dtype=x.dtype)  # 1 + a float32 weight would be rounded to float32 in a float64 run
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + p.eps) * scale


def gelu(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the tanh form, which Gemma and SigLIP were trained with.

    Source: Hendrycks and Gimpel 2016, section 2.
    """
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def softmax(x: Float[Array, "*R S"]) -> Float[Array, "*R S"]:
    """y = exp(x) / sum(exp(x)) over the last axis; the maximum is taken off first, so nothing overflows.

    -inf becomes exactly 0. A row must hold one finite number: a row of nothing but -inf has no softmax.
    """
    y = np.exp(x - x.max(-1, keepdims=True))
    y /= y.sum(-1, keepdims=True)
    return y


def rope(x: Float[Array, "T N H"], positions: Int[Array, "T"], theta: float) -> Float[Array, "T N H"]:
    """Rotary position embedding: turns pair j of every head by the angle position * theta^(-2j/H).

        y[j]       = x[j] cos - x[j + H/2] sin
        y[j + H/2] = x[j + H/2] cos + x[j] sin          j = 0 .. H/2 - 1

    Source: RoFormer (Su et al. 2021), section 3.2.2, with the half-split pairs of the Gemma checkpoints: j goes with j
    + H/2, where the paper pairs 2j with 2j + 1. Angles are computed in float64, since in float32 position 4000 would be
    off by 1e-4 radians, which no later precision could mend.
    """
    half = x.shape[-1] // 2
    angle = positions[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = (f(angle)[:, None, :].astype(x.dtype) for f in (np.cos, np.sin))
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def attend(
    q: Float[Array, "T N H"],
    keys: Float[Array, "S K H"],
    values: Float[Array, "S K H"],
    mask: Bool[Array, "T S"],
    tap: Tap = silent,
) -> Float[Array, "T N H"]:
    """y[t n] = sum over s of softmax over s of (q[t n] . keys[s k] / sqrt(H)) values[s k], over the s that t may see.

    `mask` is True where row t may look at row s; every t must see some s. Query head n reads key head k = n // (N/K): K
    = N is multi-head, K = 1 multi-query attention, anything between is grouped. The N/K query heads of a key head are
    folded into the rows of one product, so keys and values are never repeated.

    Source: Vaswani et al. 2017, section 3.2.1; Ainslie et al. 2023 (grouped queries).
    """
    rows, heads, width = q.shape
    seen, groups, _ = keys.shape
    folded = q.reshape(rows, groups, -1, width).transpose(1, 2, 0, 3).reshape(groups, -1, width)  # K NT/K H
    scores = (folded @ keys.transpose(1, 2, 0) * width**-0.5).reshape(heads, rows, seen)
    probs = tap("probs", softmax(np.where(mask, tap("scores", scores), -np.inf)))
    mixed = probs.reshape(groups, -1, seen) @ values.transpose(1, 0, 2)  # K NT/K H
    return mixed.reshape(heads, rows, width).transpose(1, 0, 2)
