"""Layer norm, RMS norm and rows of length 1, over the last axis. They compute in the dtype of `x`."""

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from npgemma.layers.linear import total
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, silent
from npgemma.layers.threads import by_rows


@dataclass(frozen=True)
class LayerNorm:
    weight: Float[Array, "D"]
    bias: Float[Array, "D"]
    eps: float


@by_rows
def layer_norm(p: LayerNorm, x: Float[Array, "*R D"]) -> Float[Array, "*R D"]:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, with the biased variance.

    Source: Ba et al. 2016, section 3; torch.nn.LayerNorm. The variance is computed from the centred values: the shorter
    mean(x^2) - mean(x)^2 loses its digits if the mean is large.
    """
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + p.eps) * p.weight + p.bias


def layer_norm_backward(
    p: LayerNorm, x: Float[Array, "*R D"], dy: Float[Array, "*R D"]
) -> tuple[Float[Array, "*R D"], LayerNorm]:
    """forward: y = n weight + bias, where n = (x - mean) / s and s = sqrt(variance + eps).

    With h = dy weight:  dx = (h - mean(h) - n mean(h n)) / s.
    """
    centred = x - x.mean(-1, keepdims=True)
    s = np.sqrt(np.square(centred).mean(-1, keepdims=True) + p.eps)
    n = centred / s
    h = dy * p.weight
    dx = (h - h.mean(-1, keepdims=True) - n * (h * n).mean(-1, keepdims=True)) / s
    return dx, LayerNorm(total(p.weight, dy * n), total(p.bias, dy), p.eps)


@dataclass(frozen=True)
class RMSNorm:
    weight: Float[Array, "D"]
    eps: float


# An RMS norm of whole rows, or of heads.
Norm = TypeVar("Norm", bound=RMSNorm)


@by_rows
def rms_norm(p: RMSNorm, x: Float[Array, "*R D"]) -> Float[Array, "*R D"]:
    """y = x / sqrt(mean(x^2) + eps) * (1 + weight).

    Source: Zhang and Sennrich 2019, equation 4. The 1 + weight is Gemma's: its checkpoints store the distance from one.
    """
    scale = np.add(p.weight, 1, dtype=x.dtype)  # 1 + a float32 weight would be rounded to float32 in a float64 run
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + p.eps) * scale


def rms_norm_backward(p: Norm, x: Float[Array, "*R D"], dy: Float[Array, "*R D"]) -> tuple[Float[Array, "*R D"], Norm]:
    """forward: y = n (1 + weight), where n = x / s and s = sqrt(mean(x^2) + eps).

    With h = dy (1 + weight):  dx = (h - n mean(h n)) / s.
    """
    s = np.sqrt(np.square(x).mean(-1, keepdims=True) + p.eps)
    n = x / s
    h = dy * np.add(p.weight, 1, dtype=x.dtype)
    dx = (h - n * (h * n).mean(-1, keepdims=True)) / s
    return dx, replace(p, weight=total(p.weight, dy * n))


def unit(x: Float[Array, "B E"], tap: Tap = silent) -> Float[Array, "B E"]:
    """y = x / sqrt(sum x^2): rows of length 1, whose product is the cosine of the angle between them."""
    length = tap("length", np.sqrt(np.square(x).sum(-1)), "B")
    return x / length[:, None]


def unit_backward(x: Float[Array, "B E"], dy: Float[Array, "B E"]) -> Float[Array, "B E"]:
    """forward: y = x / length.   dx = (dy - y (dy . y)) / length: what is along y does not change y."""
    length = np.sqrt(np.square(x).sum(-1, keepdims=True))
    y = x / length
    return (dy - y * (dy * y).sum(-1, keepdims=True)) / length
