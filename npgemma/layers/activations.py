"""gelu, GeGLU, soft caps and softmax. They compute in the dtype of their first argument.

Constants are Python floats: a NumPy float64 scalar would silently turn a float32 model into a float64 one.
"""

import math

import numpy as np

from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, silent
from npgemma.layers.threads import by_rows


@by_rows
def gelu(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the tanh form, which Gemma and SigLIP were trained with.

    Source: Hendrycks and Gimpel 2016, section 2.
    """
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def geglu(gate: Float[Array, "T F"], up: Float[Array, "T F"], tap: Tap = silent) -> Float[Array, "T F"]:
    """y = gelu(gate) * up. Source: Shazeer 2020, equation 6."""
    return tap("act", gelu(gate), "T F") * up


def soft_cap(x: Float[Array, "T V"], cap: float, tap: Tap = silent) -> Float[Array, "T V"]:
    """y = cap tanh(x / cap): near x where x is small, never beyond -cap .. cap. Source: Gemma 2 (2024), section 2."""
    x = tap("over_cap", x / cap, "T V")
    return tap("tanh", np.tanh(x), "T V") * cap


def softmax(x: Float[Array, "*R S"]) -> Float[Array, "*R S"]:
    """y = exp(x) / sum(exp(x)) over the last axis; the maximum is subtracted first, so nothing overflows.

    -inf becomes exactly 0. Each row needs a finite number: a row of -inf alone has no softmax and becomes NaN.
    """
    y = exponentials(x)
    y /= y.sum(-1, keepdims=True)
    return y


def log_softmax(x: Float[Array, "*R S"]) -> Float[Array, "*R S"]:
    """y = x - log(sum(exp(x))) over the last axis, the maximum subtracted first: the logarithm of `softmax`."""
    y = x - x.max(-1, keepdims=True)
    return y - np.log(np.exp(y).sum(-1, keepdims=True))


def exponentials(x: Float[Array, "*R S"]) -> Float[Array, "*R S"]:
    """y = exp(x - max x), the maximum over the last axis: a softmax before it is divided by its sum."""
    return np.exp(x - x.max(-1, keepdims=True))
