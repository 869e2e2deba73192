"""Rotary positions."""

import math

import numpy as np
import one_page
import pytest
from agreement import FLOAT32, FLOAT64, normal
from hypothesis import given
from hypothesis import strategies as st

from npgemma.layers.rope import rope
from npgemma.layers.taps import Recorder


def test_rope_of_a_literal() -> None:
    """Theta 16, H = 4: pair 0 (numbers 0 and 2) turns by the position, pair 1 (numbers 1 and 3) by a quarter of it."""
    x = np.array([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    expected = np.array([[[math.cos(2), 0, math.sin(2), 0], [0, -math.sin(0.5), 0, math.cos(0.5)]]])
    np.testing.assert_allclose(rope(x, np.array([2]), 16.0), expected, **FLOAT64)


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.sampled_from([1.0, 100.0, 10000.0]), st.integers(0, 99)
)
def test_rope_agrees_with_the_second_spelling(rows: int, heads: int, half: int, theta: float, seed: int) -> None:
    """Complex numbers; positions need be neither in order nor distinct."""
    x, positions = normal(rows, heads, 2 * half, seed=seed), np.random.default_rng(seed).integers(0, 200, rows)
    np.testing.assert_allclose(rope(x, positions, theta), one_page.rope(x, positions, theta), **FLOAT64)


def test_rope_at_position_zero_changes_no_bit() -> None:
    x = normal(2, 3, 10).astype(np.float32)
    np.testing.assert_array_equal(rope(x, np.array([0, 0]), 10000.0), x, strict=True)


def test_rope_keeps_the_length_of_every_pair() -> None:
    x = normal(4, 3, 10)
    y = rope(x, np.array([1, 7, 100, 4000]), 10000.0)
    np.testing.assert_allclose(np.hypot(y[..., :5], y[..., 5:]), np.hypot(x[..., :5], x[..., 5:]), **FLOAT64)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 500))
def test_products_of_rotated_rows_depend_on_the_distance_alone(one: int, other: int, shift: int) -> None:
    q, k = normal(1, 1, 10), normal(1, 1, 10, seed=1)

    def product(shift: int) -> float:
        return np.vdot(rope(q, np.array([one + shift]), 10000.0), rope(k, np.array([other + shift]), 10000.0))

    np.testing.assert_allclose(product(shift), product(0), rtol=0, atol=1e-11)


def test_rope_in_float32_is_as_accurate_at_position_4000_as_at_4() -> None:
    """Angles of float32 would be off by 1e-4 there. What remains is the rounding of cos, sin and three operations."""
    x, positions = normal(2, 1, 10).astype(np.float32), np.array([4, 4000])
    y, expected = rope(x, positions, 10000.0), one_page.rope(x, positions, 10000.0).astype(np.float32)
    np.testing.assert_allclose(y, expected, **FLOAT32)
    assert np.abs(y - expected).max() < 1e-6


def test_rope_taps_every_step_with_its_axes() -> None:
    x, positions, taps = normal(3, 2, 10).astype(np.float32), np.array([3, 4, 9]), Recorder()
    y = rope(x, positions, 100.0, taps)
    assert list(taps.axes.items()) == [
        ("frequencies", "J"),
        ("angle", "T J"),
        ("cos", "T J"),
        ("sin", "T J"),
        ("x_cos", "T N H"),
        ("x_sin", "T N H"),
    ]
    assert taps["angle"].dtype == np.float64
    np.testing.assert_array_equal(taps["cos"], np.cos(taps["angle"]).astype(np.float32), strict=True)
    np.testing.assert_array_equal(taps["x_cos"] + taps["x_sin"], y, strict=True)


@pytest.mark.parametrize("name", ["frequencies", "angle", "cos", "sin", "x_cos", "x_sin"])
def test_rope_continues_with_what_a_tap_returns(name: str) -> None:
    x, positions = normal(3, 2, 10), np.array([3, 4, 9])
    y = rope(x, positions, 100.0, lambda tapped, x, axes: x / 2 if tapped == name else x)
    assert np.abs(y - rope(x, positions, 100.0)).max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rope_keeps_the_dtype(dtype: str) -> None:
    assert rope(normal(2, 3, 4).astype(dtype), np.arange(2), 10000.0).dtype == dtype


def test_rope_of_an_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        rope(normal(2, 3, 5), np.arange(2), 10000.0)
