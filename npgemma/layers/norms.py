"""Layer norm, RMS norm and rows of length 1, over the last axis. They compute in the dtype of `x`."""

from dataclasses import dataclass

import numpy as np

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


@dataclass(frozen=True)
class RMSNorm:
    weight: Float[Array, "D"]
    eps: float


@by_rows
def rms_norm(p: RMSNorm, x: Float[Array, "*R D"]) -> Float[Array, "*R D"]:
    """y = x / sqrt(mean(x^2) + eps) * (1 + weight).

    Source: Zhang and Sennrich 2019, equation 4. The 1 + weight is Gemma's: its checkpoints store the distance from one.
    """
    scale = np.add(p.weight, 1, dtype=x.dtype)  # 1 + a float32 weight would be rounded to float32 in a float64 run
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + p.eps) * scale


def unit(x: Float[Array, "B E"], tap: Tap = silent) -> Float[Array, "B E"]:
    """y = x / sqrt(sum x^2): rows of length 1, whose product is the cosine of the angle between them."""
    length = tap("length", np.sqrt(np.square(x).sum(-1)), "B")
    return x / length[:, None]
