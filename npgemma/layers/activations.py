"""gelu in three forms, erf, GeGLU, soft caps and softmax. They compute in the dtype of their first argument.

Constants are Python floats: a NumPy float64 scalar would silently turn a float32 model into a float64 one.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, silent
from npgemma.layers.threads import by_rows

# A function of each number of an array.
Activation: TypeAlias = Callable[[Array], Array]


@by_rows
def gelu(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the tanh form, which Gemma and SigLIP were trained with.

    Source: Hendrycks and Gimpel 2016, section 2.
    """
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


@by_rows
def gelu_backward(x: Float[Array, "*R"], dy: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """dx = dy gelu'(x)."""
    return dy * gelu_and_slope(x)[1]


def gelu_and_slope(x: Float[Array, "*R"]) -> tuple[Float[Array, "*R"], Float[Array, "*R"]]:
    """forward: y = x s, where s = (1 + tanh u) / 2 and u = c (x + 0.044715 x^3), c = sqrt(2/pi).

    gelu'(x) = s + x s', and s' = 2 s (1 - s) u'. Both results share the one tanh.
    """
    c = math.sqrt(2 / math.pi)
    square = x * x
    s = 0.5 * (1 + np.tanh(x * (c + c * 0.044715 * square)))
    y = x * s
    return y, s + y * (1 - s) * (2 * c + 6 * c * 0.044715 * square)


@by_rows
def gelu_erf(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """y = x/2 (1 + erf(x / sqrt(2))): x times the probability that a standard normal variable is at most x.

    Source: Hendrycks and Gimpel 2016, section 2; torch.nn.GELU.
    """
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


@by_rows
def gelu_erf_backward(x: Float[Array, "*R"], dy: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """forward: y = x Phi(x), where Phi'(x) = e^(-x^2 / 2) / sqrt(2 pi).   dx = dy (Phi(x) + x Phi'(x))."""
    phi = 0.5 * (1 + erf(x * math.sqrt(0.5)))
    return dy * (phi + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


@by_rows
def quick_gelu(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """y = x / (1 + exp(-1.702 x)), which OpenAI's CLIP was trained with. Beyond +-80 the exponential does not matter.

    Source: Hendrycks and Gimpel 2016, section 2; CLIP's clip/model.py.
    """
    return x / (1 + np.exp(np.clip(-1.702 * x, -80, 80)))


@by_rows
def quick_gelu_backward(x: Float[Array, "*R"], dy: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """forward: y = x s, where s = 1 / (1 + exp(-1.702 x)).   dx = dy (s + 1.702 x s (1 - s))."""
    s = 1 / (1 + np.exp(np.clip(-1.702 * x, -80, 80)))
    return dy * (s + 1.702 * x * s * (1 - s))


def relu(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """y = max(x, 0)."""
    return np.maximum(x, 0)


def relu_backward(y: Float[Array, "*R"], dy: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """dx = dy where x > 0, else 0. x > 0 is where y > 0, so the result serves in place of x."""
    return dy * (y > 0)


def activation_backward(act: Activation, x: Float[Array, "*R"], dy: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """dx of any of the activations above, or of one that is an object with a `backward` of its own."""
    known = {"gelu": gelu_backward, "gelu_erf": gelu_erf_backward, "quick_gelu": quick_gelu_backward}
    backward = getattr(act, "backward", None) or known[act.__name__]
    dx: Array = backward(x, dy)
    return dx


def erf(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """y = 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x, to the precision of x."""
    return erf_single(x) if x.dtype == np.float32 else erf_double(x)


def numbers(text: str) -> tuple[float, ...]:
    """The numbers of a text: the coefficients of a polynomial, the highest power first."""
    return tuple(map(float, text.split()))


# erf(x) = x P(x^2) / Q(x^2) for |x| <= 4, beyond which erf is 1 in float32.
# Source: XLA's xla/hlo/builder/lib/math.cc, ErfImpl32; Eigen's generic_fast_erf.
SINGLE_P = numbers("""
    -2.72614225801306e-10 2.77068142495902e-08 -2.10102402082508e-06 -5.69250639462346e-05
    -7.34990630326855e-04 -2.95459980854025e-03 -1.60960333262415e-02
""")
SINGLE_Q = numbers("""
    -1.45660718464996e-05 -2.13374055278905e-04 -1.68282697438203e-03 -7.37332916720468e-03 -1.42647390514189e-02
""")


def erf_single(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """erf with an error below 5e-7, of which the approximation itself is 7e-8."""
    x = np.clip(x, -4, 4)
    square = x * x
    return x * polynomial(SINGLE_P, square) / polynomial(SINGLE_Q, square)


# erf(x) = x A(x^2) / B(x^2) for |x| <= 0.46875, and 1 - exp(-x^2) C(x) / D(x) for larger x.
# Source: Cody 1969, "Rational Chebyshev approximations for the error function"; SPECFUN's CALERF.
CODY_A = numbers("""
    1.85777706184603153e-1 3.16112374387056560e0 1.13864154151050156e2 3.77485237685302021e2 3.20937758913846947e3
""")
CODY_B = numbers("""
    1 2.36012909523441209e1 2.44024637934444173e2 1.28261652607737228e3 2.84423683343917062e3
""")
CODY_C = numbers("""
    2.15311535474403846e-8 5.64188496988670089e-1 8.88314979438837594e0 6.61191906371416295e1 2.98635138197400131e2
    8.81952221241769090e2 1.71204761263407058e3 2.05107837782607147e3 1.23033935479799725e3
""")
CODY_D = numbers("""
    1 1.57449261107098347e1 1.17693950891312499e2 5.37181101862009858e2 1.62138957456669019e3 3.29079923573345963e3
    4.36261909014324716e3 3.43936767414372164e3 1.23033935480374942e3
""")


def erf_double(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """erf with an error below 4e-16. Cody's third range, above 4, is not needed: C(x) / D(x) serves up to 6, and from
    there on erf is 1 in float64.
    """
    size = np.minimum(np.abs(x), 6)
    square = size * size
    small = x * polynomial(CODY_A, square) / polynomial(CODY_B, square)
    large = 1 - np.exp(-square) * polynomial(CODY_C, size) / polynomial(CODY_D, size)
    return np.where(size <= 0.46875, small, np.copysign(large, x))


def polynomial(coefficients: Sequence[float], x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """The polynomial with these coefficients, two or more, the highest power first, by Horner's rule."""
    first, second, *rest = coefficients
    y = first * x + second
    for coefficient in rest:
        y *= x
        y += coefficient
    return y


def geglu(gate: Float[Array, "T F"], up: Float[Array, "T F"], tap: Tap = silent) -> Float[Array, "T F"]:
    """y = gelu(gate) * up. Source: Shazeer 2020, equation 6."""
    return tap("act", gelu(gate), "T F") * up


def geglu_backward(
    gate: Float[Array, "T F"], up: Float[Array, "T F"], dy: Float[Array, "T F"], tap: Tap = silent
) -> tuple[Float[Array, "T F"], Float[Array, "T F"]]:
    """forward: y = gelu(gate) up.   dgate = dy up gelu'(gate),  dup = dy gelu(gate)."""
    return through_gelu(gate, dy, tap("act", dy * up, "T F"))


@partial(by_rows, results=2)
def through_gelu(
    gate: Float[Array, "T F"], dy: Float[Array, "T F"], dact: Float[Array, "T F"]
) -> tuple[Float[Array, "T F"], Float[Array, "T F"]]:
    """dact gelu'(gate) and dy gelu(gate)."""
    act, slope = gelu_and_slope(gate)
    return dact * slope, dy * act


def soft_cap(x: Float[Array, "T V"], cap: float, tap: Tap = silent) -> Float[Array, "T V"]:
    """y = cap tanh(x / cap): near x where x is small, never beyond -cap .. cap. Source: Gemma 2 (2024), section 2."""
    x = tap("over_cap", x / cap, "T V")
    return tap("tanh", np.tanh(x), "T V") * cap


def soft_cap_backward(x: Float[Array, "T V"], cap: float, dy: Float[Array, "T V"]) -> Float[Array, "T V"]:
    """forward: y = cap tanh(x / cap).   dx = dy (1 - tanh(x / cap)^2)."""
    return dy * (1 - np.square(np.tanh(x / cap)))


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


def sigmoid(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """y = 1 / (1 + e^-x) = e^-log(1 + e^-x), which overflows nowhere."""
    return np.exp(-np.logaddexp(0, -x))


def exponentials(x: Float[Array, "*R S"], out: Float[Array, "*R S"] | None = None) -> Float[Array, "*R S"]:
    """y = exp(x - max x), the maximum over the last axis: a softmax before the division by its sum; into `out`."""
    y = np.subtract(x, x.max(-1, keepdims=True), out=out)
    return np.exp(y, out=y)
