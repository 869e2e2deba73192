"""gelu in three forms, erf, GeGLU and softmax."""

import math

import numpy as np
import one_page
import one_page_encoders
import pytest
from agreement import FLOAT64, normal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from npgemma.layers.activations import erf, geglu, gelu, gelu_erf, log_softmax, quick_gelu, sigmoid, softmax
from npgemma.layers.taps import Recorder

ROWS = arrays(np.float64, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-30, 30, width=32))
DTYPES = ["float32", "float64"]


def test_gelu_of_literals_is_the_tanh_form() -> None:
    """At 1 the tanh form gives 0.841192, the exact one 0.841345, the sigmoid one 0.845796."""
    expected = np.array([0.0, 0.841192, -0.158808, 1.954598])
    np.testing.assert_allclose(gelu(np.array([0.0, 1.0, -1.0, 2.0])), expected, rtol=0, atol=5e-7, strict=True)


@given(ROWS)
def test_gelu_agrees_with_the_second_spelling(x: np.ndarray) -> None:
    np.testing.assert_allclose(gelu(x), one_page.gelu(x), **FLOAT64)


@given(ROWS)
def test_gelu_of_x_and_of_minus_x_differ_by_x(x: np.ndarray) -> None:
    np.testing.assert_allclose(gelu(x) - gelu(-x), x, **FLOAT64)


def test_gelu_of_a_large_number_is_the_number_or_zero() -> None:
    x = np.array([-1000.0, 1000.0], np.float32)
    np.testing.assert_array_equal(gelu(x), np.array([0, 1000], np.float32), strict=True)


# Everywhere, at the borders of the approximations, and near 0.
POINTS = np.concatenate([np.linspace(-7, 7, 2801), np.logspace(-300, 1, 400), -np.logspace(-12, 1, 200)])
# The largest errors seen: two units in the last place of 1 in float64; seven in float32, of which the approximation
# itself is one and its evaluation the rest.
ERF_ERRORS = {"float64": 4e-16, "float32": 5e-7}


@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_is_that_of_the_standard_library(dtype: str) -> None:
    """The error is relative: erf(x) of a tiny x is 2 x / sqrt(pi) in all its digits."""
    x = np.concatenate([POINTS[np.abs(POINTS) > 1e-30], [0.46875, np.nextafter(0.46875, 1), 4, 6, 100]]).astype(dtype)
    expected = np.array([math.erf(each) for each in x.tolist()])
    y = erf(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=2 * ERF_ERRORS[dtype], atol=0)
    np.testing.assert_allclose(y, expected, rtol=0, atol=ERF_ERRORS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_is_odd_and_one_at_infinity(dtype: str) -> None:
    x = np.array([0.0, 0.3, 2.0, 7.0, np.inf], dtype)
    np.testing.assert_array_equal(erf(-x), -erf(x), strict=True)
    np.testing.assert_allclose(erf(x)[3:], np.ones(2, dtype), rtol=ERF_ERRORS[dtype])


def test_gelu_erf_of_literals_is_the_exact_form() -> None:
    expected = np.array([0.0, 0.841345, -0.158655, 1.954500])
    np.testing.assert_allclose(gelu_erf(np.array([0.0, 1.0, -1.0, 2.0])), expected, rtol=0, atol=5e-7, strict=True)


def test_quick_gelu_of_literals_is_the_sigmoid_form() -> None:
    expected = np.array([0.0, 0.845796, -0.154204, 1.935659])
    np.testing.assert_allclose(quick_gelu(np.array([0.0, 1.0, -1.0, 2.0])), expected, rtol=0, atol=5e-7, strict=True)


@given(ROWS)
def test_gelu_erf_and_quick_gelu_agree_with_the_second_spelling(x: np.ndarray) -> None:
    for name, f in (("gelu", gelu_erf), ("quick_gelu", quick_gelu)):
        expected = one_page_encoders.ACTIVATIONS[name](x.reshape(-1)).reshape(x.shape)
        np.testing.assert_allclose(f(x), expected, **FLOAT64)


@pytest.mark.parametrize("f", [gelu_erf, quick_gelu])
def test_a_gelu_of_a_large_number_is_the_number_or_zero(f) -> None:
    x = np.array([-1000.0, 1000.0], np.float32)
    np.testing.assert_allclose(f(x), np.array([0, 1000], np.float32), rtol=0, atol=1e-30, strict=True)


def test_geglu_of_a_literal_applies_gelu_to_the_gate_alone() -> None:
    """gelu(1) = 0.841192 and gelu(2) = 1.954598."""
    y = geglu(np.array([[1.0, 2.0, 0.0]]), np.array([[10.0, -1.0, 7.0]]))
    np.testing.assert_allclose(y, np.array([[8.41192, -1.954598, 0.0]]), rtol=0, atol=5e-6, strict=True)


def test_geglu_taps_the_activation() -> None:
    gate, up, taps = normal(3, 5), normal(3, 5, seed=1), Recorder()
    y = geglu(gate, up, taps)
    assert taps.axes == {"act": "T F"}
    np.testing.assert_array_equal(taps["act"], gelu(gate), strict=True)
    np.testing.assert_array_equal(y, taps["act"] * up, strict=True)
    np.testing.assert_array_equal(geglu(gate, up, lambda name, x, axes: x + 1), (taps["act"] + 1) * up, strict=True)


def test_softmax_of_a_literal() -> None:
    """exp of these is 1, 2 and 5, of eight."""
    x = np.log(np.array([[1.0, 2.0, 5.0]]))
    np.testing.assert_allclose(softmax(x), np.array([[0.125, 0.25, 0.625]]), **FLOAT64)


@given(ROWS)
def test_softmax_agrees_with_the_second_spelling_and_sums_to_one(x: np.ndarray) -> None:
    np.testing.assert_allclose(softmax(x), one_page.softmax(x), **FLOAT64)
    np.testing.assert_allclose(softmax(x).sum(-1), np.ones(x.shape[:-1]), rtol=1e-14, atol=0)


@given(ROWS)
def test_log_softmax_is_x_minus_the_logarithm_of_the_sum(x: np.ndarray) -> None:
    expected = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(log_softmax(x), expected, **FLOAT64)


def test_log_softmax_of_a_literal() -> None:
    """Of which the probabilities 1 / (1 + e^1000) and 1 cannot be told from 0 and 1."""
    np.testing.assert_array_equal(log_softmax(np.array([[0.0, 1000.0]])), np.array([[-1000.0, 0.0]]), strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_of_minus_infinity_is_exactly_zero(dtype: str) -> None:
    """And everything else is what it would be without."""
    x = np.array([[1.0, -np.inf, 3.0, -np.inf], [-np.inf, 1.0, -np.inf, 3.0]], dtype)
    expected = np.zeros((2, 4), dtype)
    expected[0, ::2] = expected[1, 1::2] = softmax(np.array([1.0, 3.0], dtype))
    np.testing.assert_array_equal(softmax(x), expected, strict=True)


def test_softmax_of_huge_scores_does_not_overflow() -> None:
    x = np.array([1e30, -1e30, 1e30], np.float32)
    np.testing.assert_array_equal(softmax(x), np.array([0.5, 0, 0.5], np.float32), strict=True)


def test_softmax_of_a_row_of_minus_infinities_raises() -> None:
    """Making NaN is a floating-point error, which the tests raise."""
    with pytest.raises(FloatingPointError):
        softmax(np.full(3, -np.inf))


def test_softmax_does_not_change_its_argument() -> None:
    x = np.array([1.0, 2.0])
    softmax(x)
    log_softmax(x)
    np.testing.assert_array_equal(x, np.array([1.0, 2.0]), strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_keep_the_dtype(dtype: str) -> None:
    x = normal(2, 4).astype(dtype)
    assert {y.dtype for y in (gelu(x), gelu_erf(x), quick_gelu(x), geglu(x, x), softmax(x), log_softmax(x))} == {
        x.dtype
    }


def test_sigmoid_of_literals() -> None:
    x = np.array([-1000.0, 0.0, 1.0, 1000.0])
    np.testing.assert_allclose(sigmoid(x), [0, 0.5, 1 / (1 + np.exp(-1.0)), 1], rtol=1e-15)
