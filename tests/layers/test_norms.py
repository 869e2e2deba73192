"""Layer norm, RMS norm and rows of length 1."""

import math

import numpy as np
import one_page
import pytest
from agreement import FLOAT64, f32, normal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from npgemma.layers.norms import LayerNorm, RMSNorm, layer_norm, rms_norm, unit

ROWS = arrays(np.float64, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-30, 30, width=32))


def test_layer_norm_of_a_literal() -> None:
    """Mean 3, deviations -2 and 2, variance 4 (over two, not over one); with eps 12 the root is 4."""
    p = LayerNorm(np.array([1.0, 10.0]), np.array([0.0, 1.0]), 12.0)
    np.testing.assert_array_equal(layer_norm(p, np.array([[1.0, 5.0]])), np.array([[-0.5, 6.0]]), strict=True)


def test_layer_norm_of_a_constant_row_is_the_bias() -> None:
    """The variance is 0, and eps keeps the division possible."""
    p = LayerNorm(normal(5), normal(5, seed=1), 1e-6)
    np.testing.assert_array_equal(layer_norm(p, np.full((2, 5), 7.0)), np.stack([p.bias, p.bias]), strict=True)


@given(ROWS, st.sampled_from([1e-6, 1e-2, 1.0]))
def test_layer_norm_agrees_with_the_second_spelling(x: np.ndarray, eps: float) -> None:
    p = LayerNorm(normal(x.shape[-1]), normal(x.shape[-1], seed=1), eps)
    # in a nearly constant row, the rounding of x minus the mean counts 1/sqrt(eps) times as much
    atol = 1e-14 * 30 / math.sqrt(eps)
    expected = one_page.layer_norm(x, p.weight, p.bias, eps)
    np.testing.assert_allclose(layer_norm(p, x), expected, rtol=1e-12, atol=atol, strict=True)


@given(st.integers(2, 9), st.floats(-100, 100, width=32), st.floats(0.5, 50, width=32))
def test_layer_norm_does_not_depend_on_shift_and_scale(width: int, shift: float, scale: float) -> None:
    """With almost no eps. The shift costs digits: a factor of 100 / scale."""
    p, x = LayerNorm(np.ones(width), np.zeros(width), 1e-30), normal(3, width)
    np.testing.assert_allclose(layer_norm(p, x * scale + shift), layer_norm(p, x), rtol=1e-10, atol=1e-10, strict=True)


def test_layer_norm_is_accurate_in_float32_when_the_mean_is_large() -> None:
    """mean(x^2) - mean(x)^2 has no digit left at a mean of 1000: float32 squares are off by 0.1, the variance is 1."""
    p = LayerNorm(*f32(np.ones(64), np.zeros(64)), 1e-6)
    x = (normal(4, 64) + 1000).astype(np.float32)
    expected = one_page.layer_norm(x.astype(np.float64), p.weight, p.bias, 1e-6).astype(np.float32)
    # numbers near 1000 are stored to 3e-5, and so is their mean
    np.testing.assert_allclose(layer_norm(p, x), expected, rtol=0, atol=1e-4, strict=True)


def test_rms_norm_of_a_literal() -> None:
    """Mean square (9 + 25) / 2 = 17; with eps 8 the root is 5. A stored weight of 0 multiplies by one."""
    p = RMSNorm(np.array([0.0, 1.0]), 8.0)
    np.testing.assert_array_equal(rms_norm(p, np.array([[3.0, 5.0]])), np.array([[0.6, 2.0]]), strict=True)


def test_rms_norm_of_zeros_is_zeros() -> None:
    np.testing.assert_array_equal(rms_norm(RMSNorm(normal(5), 1e-6), np.zeros((2, 5))), np.zeros((2, 5)), strict=True)


@given(ROWS, st.sampled_from([1e-6, 1e-2, 1.0]))
def test_rms_norm_agrees_with_the_second_spelling(x: np.ndarray, eps: float) -> None:
    p = RMSNorm(normal(x.shape[-1]), eps)
    np.testing.assert_allclose(rms_norm(p, x), one_page.rms_norm(x, p.weight, eps), **FLOAT64)


@given(st.integers(1, 9), st.floats(0.0625, 64, width=32))
def test_rms_norm_does_not_depend_on_scale_but_on_shift(width: int, scale: float) -> None:
    p, x = RMSNorm(np.zeros(width), 1e-30), normal(3, width)
    np.testing.assert_allclose(rms_norm(p, x * scale), rms_norm(p, x), **FLOAT64)
    np.testing.assert_allclose(np.square(rms_norm(p, x)).mean(-1), np.ones(3), **FLOAT64)
    assert np.abs(rms_norm(p, x + 3) - rms_norm(p, x)).max() > 0.1


def test_one_plus_weight_is_not_rounded_to_float32_in_a_float64_run() -> None:
    """1 + 2^-25 is 1 in float32."""
    p = RMSNorm(np.array([2.0**-25], np.float32), 0.0)
    np.testing.assert_array_equal(rms_norm(p, np.ones((1, 1))), np.array([[1 + 2.0**-25]]), strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_compute_in_the_dtype_of_their_rows(dtype: str) -> None:
    """The vectors of weights are always float32."""
    x, (weight, bias) = normal(2, 3, 4).astype(dtype), f32(normal(4), normal(4))
    assert layer_norm(LayerNorm(weight, bias, 1e-6), x).dtype == dtype
    assert rms_norm(RMSNorm(weight, 1e-6), x).dtype == dtype


def test_an_infinite_row_raises() -> None:
    with pytest.raises(FloatingPointError):
        layer_norm(LayerNorm(np.ones(2), np.zeros(2), 1e-6), np.array([[1.0, np.inf]]))
    with pytest.raises(FloatingPointError):
        rms_norm(RMSNorm(np.ones(2), 1e-6), np.array([[1.0, np.inf]]))


def test_rows_of_length_1_of_a_literal() -> None:
    """3, 4 and 0 have the length 5; each row is divided by its own length."""
    y = unit(np.array([[3.0, 4.0, 0.0], [0.0, -2.0, 0.0]]))
    np.testing.assert_allclose(y, np.array([[0.6, 0.8, 0], [0, -1, 0]]), **FLOAT64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_length_1_keep_direction_and_dtype(dtype: str) -> None:
    x = normal(4, 5).astype(dtype)
    y = unit(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.square(y).sum(-1), np.ones(4), rtol=8 * np.finfo(dtype).eps)
    np.testing.assert_allclose(unit(y * 10), y, rtol=8 * np.finfo(dtype).eps)
