"""Bicubic tables of positions: literals, and what holds for every size."""

import numpy as np
import pytest
from agreement import FLOAT64, normal
from hypothesis import given
from hypothesis import strategies as st

from npgemma.layers.resize import bicubic, resize_positions

SIZES = st.integers(1, 9)


def test_two_samples_become_four() -> None:
    """By hand, in 256ths: k(1/4) = 225, k(3/4) = 67, k(5/4) = -27 and k(7/4) = -9.

    The first new sample lies at -1/4. Three of its four neighbours are the first sample: -9 + 67 + 225. The second new
    sample lies at 1/4, between the two: -27 + 225 and 67 - 9.
    """
    expected = np.array([[283.0, -27], [198, 58], [58, 198], [-27, 283]]) / 256
    np.testing.assert_allclose(bicubic(2, 4), expected, **FLOAT64)


@given(SIZES, SIZES)
def test_a_constant_stays_constant(size: int, wanted: int) -> None:
    np.testing.assert_allclose(bicubic(size, wanted).sum(1), np.ones(wanted), **FLOAT64)


@given(SIZES)
def test_the_same_size_changes_nothing(size: int) -> None:
    np.testing.assert_array_equal(bicubic(size, size), np.eye(size), strict=True)


def test_rows_and_columns_are_not_mixed_up() -> None:
    """Positions that depend on their row alone do so on a larger grid."""
    grid = np.repeat(np.arange(3.0), 3)[:, None]
    y = resize_positions(grid, 5, 2).reshape(5, 2)
    np.testing.assert_allclose(y[:, 0], bicubic(3, 5) @ np.arange(3.0), **FLOAT64)
    np.testing.assert_allclose(y[:, 1], y[:, 0], **FLOAT64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_positions_keep_their_dtype(dtype: str) -> None:
    assert resize_positions(normal(9, 4).astype(dtype), 2, 7).dtype == dtype
