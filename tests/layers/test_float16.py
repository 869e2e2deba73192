"""float16 to the bit: NumPy's own cast, which is slow and right, is the second spelling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from npgemma.layers.bits import widen_float16

PATTERNS = np.arange(1 << 16, dtype=np.uint16)
NUMBERS = PATTERNS.view(np.float16)
FINITE = NUMBERS[np.isfinite(NUMBERS)]


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Both zeros are told apart, which comparing numbers would not do."""
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32), strict=True)


def test_literals() -> None:
    """One, a negative, the largest, the smallest normal and the smallest of all, and both zeros."""
    bits = np.array([0x3C00, 0xC100, 0x7BFF, 0x0400, 0x0001, 0x8001, 0x0000, 0x8000], np.uint16)
    numbers = [1, -2.5, 65504, 2.0**-14, 2.0**-24, -(2.0**-24), 0.0, -0.0]
    assert_same_bits(widen_float16(bits.view(np.float16)), np.array(numbers, np.float32))


def test_every_finite_pattern_is_what_numpy_makes_of_it() -> None:
    """A block of nothing but finite numbers, 63,488 of them, subnormal ones included: not one goes NumPy's way."""
    assert len(FINITE) == 2 * 0x7C00
    assert_same_bits(widen_float16(FINITE), FINITE.astype(np.float32))


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_finite_numbers_beside_an_infinity_are_what_they_are_without(infinite: float) -> None:
    x = np.append(FINITE, np.float16(infinite))
    assert_same_bits(widen_float16(x), x.astype(np.float32))


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF], ids=hex)
def test_a_pattern_of_no_number_is_none_afterwards(bits: int) -> None:
    """Alone, first and last of its block: moved and multiplied, infinity would become the number 65536."""
    x = np.array([bits], np.uint16).view(np.float16)
    for block in (x, np.append(x, FINITE[:3]), np.append(FINITE[:3], x)):
        np.testing.assert_array_equal(widen_float16(block), block.astype(np.float32), strict=True)


def test_all_patterns_at_once_are_what_numpy_makes_of_them() -> None:
    """NaNs, whatever they carry, are NaNs; everything else is the same number."""
    y = widen_float16(NUMBERS)
    np.testing.assert_array_equal(y, NUMBERS.astype(np.float32), strict=True)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(NUMBERS), strict=True)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(NUMBERS), strict=True)


@given(arrays(np.uint16, (5, 3)))
def test_any_block_is_what_numpy_makes_of_it(bits: np.ndarray) -> None:
    x = bits.view(np.float16)
    np.testing.assert_array_equal(widen_float16(x), x.astype(np.float32), strict=True)


@pytest.mark.parametrize("value", [1.5, np.inf])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 5)])
def test_shape_and_dtype_are_right_for_any_number_of_axes(shape: tuple[int, ...], value: float) -> None:
    y = widen_float16(np.full(shape, value, np.float16))
    np.testing.assert_array_equal(y, np.full(shape, value, np.float32), strict=True)


def test_views_are_widened_in_their_own_order_and_left_alone() -> None:
    """They are of a file, seldom contiguous and never to be written to; of one with odd offsets, not even aligned."""
    x = np.arange(12, dtype=np.float16).reshape(3, 4)
    x.setflags(write=False)
    for view in (x.T, x[:, ::2], x[::-1], x[:, 1:]):
        np.testing.assert_array_equal(widen_float16(view), view.astype(np.float32), strict=True)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float16)
    np.testing.assert_array_equal(widen_float16(unaligned), np.arange(12, dtype=np.float32), strict=True)
    np.testing.assert_array_equal(x, np.arange(12, dtype=np.float16).reshape(3, 4), strict=True)
