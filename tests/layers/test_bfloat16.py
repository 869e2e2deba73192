"""bfloat16 to the bit: what is widened comes back, and what is rounded goes where exact arithmetic says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgemma.layers.bits import even_columns, odd_columns, pack, round_to_bfloat16, widen

PATTERNS = np.arange(1 << 16, dtype=np.uint16)
IS_NAN = (PATTERNS & 0x7FFF) > 0x7F80
QUIET = 0x0040


def as_float32(*bits: int) -> np.ndarray:
    return np.array(bits, np.uint32).view(np.float32)


def nearest_bits(x: np.ndarray) -> np.ndarray:
    """The bits of the bfloat16 nearest to each finite x, found by comparing distances, ties to the even pattern.

    Distances are exact in float64: both ends have 24 significant bits or fewer and are within one bfloat16 step. What
    would be the number after the largest, 2^128, stands for infinity, as IEEE 754 has it.
    """
    steps = np.append(widen(np.arange(0x7F80, dtype=np.uint16)).astype(np.float64), 2.0**128)
    magnitude = np.abs(x.astype(np.float64))
    above = np.clip(np.searchsorted(steps, magnitude), 1, 0x7F80)
    down, up = magnitude - steps[above - 1], steps[above] - magnitude
    chosen = np.where((down < up) | ((down == up) & (above % 2 == 1)), above - 1, above)
    return (chosen | np.signbit(x) << 15).astype(np.uint16)


def test_widen_reads_literal_patterns() -> None:
    bits = np.array([0x0000, 0x8000, 0x3F80, 0xC000, 0x3FC0, 0x7F80, 0x0001, 0x7F7F], np.uint16)
    numbers = [0.0, -0.0, 1.0, -2.0, 1.5, np.inf, 2.0**-133, (2 - 2.0**-7) * 2.0**127]
    expected = np.array(numbers, np.float32)
    np.testing.assert_array_equal(widen(bits), expected, strict=True)
    np.testing.assert_array_equal(np.signbit(widen(bits)), np.signbit(expected), strict=True)


def test_pack_rounds_literals() -> None:
    """1 has steps of 2^-7; a tie goes to the even neighbour, and anything beyond it up."""
    x = np.array([1.0, 1 + 2**-8, 1 + 2**-8 + 2**-23, 1 + 3 * 2**-8, -1 - 2**-8, np.inf, 3.4028235e38], np.float32)
    expected = np.array([0x3F80, 0x3F80, 0x3F81, 0x3F82, 0xBF80, 0x7F80, 0x7F80], np.uint16)
    np.testing.assert_array_equal(pack(x), expected, strict=True)


def test_every_pattern_that_is_a_number_survives_widening_and_packing() -> None:
    """All 65,536 of them, infinities and both zeros included."""
    np.testing.assert_array_equal(pack(widen(PATTERNS[~IS_NAN])), PATTERNS[~IS_NAN], strict=True)


def test_a_nan_stays_a_nan_with_its_sign_and_payload() -> None:
    """Rounding one up would carry it into infinity or zero. The one bit that changes makes it quiet."""
    np.testing.assert_array_equal(pack(widen(PATTERNS[IS_NAN])), PATTERNS[IS_NAN] | np.uint16(QUIET), strict=True)
    low_half_only = as_float32(0x7F800001, 0xFFFFFFFF, 0x7F80FFFF)
    np.testing.assert_array_equal(pack(low_half_only), np.array([0x7FC0, 0xFFFF, 0x7FC0], np.uint16), strict=True)


@pytest.mark.parametrize("lower", [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_packing_goes_to_the_nearest_and_ties_to_even(lower: int) -> None:
    """Every finite pattern with a lower half on, just off and far from the tie, against exact distances."""
    x = (PATTERNS.astype(np.uint32) << 16 | lower).view(np.float32)
    x = x[np.isfinite(x)]
    assert len(x) == 2 * 0x7F80
    np.testing.assert_array_equal(pack(x), nearest_bits(x), strict=True)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_packing_any_number_goes_to_the_nearest(numbers: list[float]) -> None:
    x = np.array(numbers, np.float32)
    np.testing.assert_array_equal(pack(x), nearest_bits(x), strict=True)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 5)])
def test_shapes_survive(shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    assert pack(x).shape == widen(pack(x)).shape == round_to_bfloat16(x).shape == shape


def test_a_transposed_array_is_packed_in_its_own_order() -> None:
    """Views of memory-mapped tensors are seldom contiguous."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(widen(pack(x.T)), x.T, strict=True)
    np.testing.assert_array_equal(widen(pack(x)[:, ::2]), x[:, ::2], strict=True)


def test_widening_leaves_the_bits_alone() -> None:
    """They may be a file."""
    bits = np.array([0x3F80, 0x4000], np.uint16)
    widen(bits)
    np.testing.assert_array_equal(bits, np.array([0x3F80, 0x4000], np.uint16), strict=True)


def test_rounding_is_done_after_once() -> None:
    x = np.linspace(-3, 3, 1001).astype(np.float32)
    once = round_to_bfloat16(x)
    np.testing.assert_array_equal(round_to_bfloat16(once), once, strict=True)
    assert once.dtype == x.dtype
    # half a step of a number below 4 is 2^-7
    assert 0 < np.abs(once - x).max() <= 2**-7


def test_rounding_a_float64_is_refused() -> None:
    """A number off a tie by less than float32 can tell: rounding to float32 first would make it a tie, and go wrong."""
    with pytest.raises(TypeError, match="not from float64"):
        round_to_bfloat16(np.array([1 + 2**-8 + 2**-40]))


@pytest.mark.parametrize("width", [2, 6, 256, 1 << 16])
def test_even_and_odd_columns_are_every_other_widened_one_to_the_bit(width: int) -> None:
    """All 65,536 patterns, NaNs with what they carry included; each pattern is in an even column and in an odd one."""
    bits = np.concatenate([PATTERNS, PATTERNS[1:], PATTERNS[:1]])
    bits = bits[: len(bits) // width * width].reshape(-1, width)
    for columns, first in ((even_columns, 0), (odd_columns, 1)):
        out = np.full((len(bits), width // 2), 0x12345678, np.uint32)
        expected = widen(bits)[:, first::2].copy()
        y = columns(bits, out)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y.view(np.uint32), expected.view(np.uint32), strict=True)
        assert np.shares_memory(y, out)


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_columns_of_a_file_may_begin_at_any_byte(offset: int) -> None:
    """Safetensors headers are of any length: two neighbours are then no aligned word. The file is only read."""
    bits = PATTERNS[: 12 * 6].reshape(12, 6) * np.uint16(911)
    stored = np.frombuffer(bytes(offset) + bits.tobytes(), np.uint8)[offset:].view(np.uint16).reshape(12, 6)
    assert stored.view(np.uint32).flags.aligned == (offset == 0)
    out = np.empty((12, 3), np.uint32)
    for columns, first in ((even_columns, 0), (odd_columns, 1)):
        expected = widen(bits)[:, first::2].copy()
        np.testing.assert_array_equal(columns(stored, out).view(np.uint32), expected.view(np.uint32), strict=True)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 2)])
def test_columns_of_next_to_nothing(shape: tuple[int, int]) -> None:
    out = np.empty((shape[0], shape[1] // 2), np.uint32)
    for columns in (even_columns, odd_columns):
        ones = np.full(shape, 0x3F80, np.uint16)
        np.testing.assert_array_equal(columns(ones, out), np.ones(out.shape, np.float32), strict=True)
