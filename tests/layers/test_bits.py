"""bfloat16 and float16 to the bit: widening is exact, and rounding agrees with exact arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from npgemma.layers.bits import even_columns, odd_columns, pack, round_to_bfloat16, widen, widen_float16, widened

PATTERNS = np.arange(1 << 16, dtype=np.uint16)
IS_NAN = (PATTERNS & 0x7FFF) > 0x7F80
QUIET = 0x0040
HALVES = PATTERNS.view(np.float16)
FINITE_HALVES = HALVES[np.isfinite(HALVES)]


def as_float32(*bits: int) -> np.ndarray:
    return np.array(bits, np.uint32).view(np.float32)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Distinguishes the two zeros, which comparing numbers does not."""
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32), strict=True)


def nearest_bits(x: np.ndarray) -> np.ndarray:
    """The bits of the bfloat16 nearest to each finite x, found by comparing distances, ties to the even pattern.

    Distances are exact in float64: both ends have 24 significant bits or fewer and are within one bfloat16 step. 2^128,
    which would be the number after the largest, stands for infinity, as in IEEE 754.
    """
    steps = np.append(widen(np.arange(0x7F80, dtype=np.uint16)).astype(np.float64), 2.0**128)
    magnitude = np.abs(x.astype(np.float64))
    above = np.clip(np.searchsorted(steps, magnitude), 1, 0x7F80)
    down, up = magnitude - steps[above - 1], steps[above] - magnitude
    chosen = np.where((down < up) | ((down == up) & (above % 2 == 1)), above - 1, above)
    return (chosen | np.signbit(x) << 15).astype(np.uint16)


# bfloat16


def test_widen_of_literal_patterns() -> None:
    bits = np.array([0x0000, 0x8000, 0x3F80, 0xC000, 0x3FC0, 0x7F80, 0x0001, 0x7F7F], np.uint16)
    numbers = [0.0, -0.0, 1.0, -2.0, 1.5, np.inf, 2.0**-133, (2 - 2.0**-7) * 2.0**127]
    assert_same_bits(widen(bits), np.array(numbers, np.float32))


def test_pack_of_literals_rounds_ties_to_even() -> None:
    """Near 1 the steps are 2^-7; a tie goes to the even neighbour, and anything above it up."""
    x = np.array([1.0, 1 + 2**-8, 1 + 2**-8 + 2**-23, 1 + 3 * 2**-8, -1 - 2**-8, np.inf, 3.4028235e38], np.float32)
    expected = np.array([0x3F80, 0x3F80, 0x3F81, 0x3F82, 0xBF80, 0x7F80, 0x7F80], np.uint16)
    np.testing.assert_array_equal(pack(x), expected, strict=True)


def test_packing_inverts_widening() -> None:
    """For all 65,536 patterns except NaNs, infinities and both zeros included."""
    np.testing.assert_array_equal(pack(widen(PATTERNS[~IS_NAN])), PATTERNS[~IS_NAN], strict=True)


def test_a_nan_keeps_its_sign_and_payload() -> None:
    """Rounding one up would carry it into infinity or zero. The one bit that changes makes it quiet."""
    np.testing.assert_array_equal(pack(widen(PATTERNS[IS_NAN])), PATTERNS[IS_NAN] | np.uint16(QUIET), strict=True)
    payload_in_lower_half = as_float32(0x7F800001, 0xFFFFFFFF, 0x7F80FFFF)
    np.testing.assert_array_equal(pack(payload_in_lower_half), np.array([0x7FC0, 0xFFFF, 0x7FC0], np.uint16))


@pytest.mark.parametrize("lower", [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_packing_rounds_to_the_nearest_and_ties_to_even(lower: int) -> None:
    """Every finite pattern, with a lower half on, just off and far from the tie, against exact distances."""
    x = (PATTERNS.astype(np.uint32) << 16 | lower).view(np.float32)
    x = x[np.isfinite(x)]
    assert len(x) == 2 * 0x7F80
    np.testing.assert_array_equal(pack(x), nearest_bits(x), strict=True)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_packing_any_number_rounds_to_the_nearest(numbers: list[float]) -> None:
    x = np.array(numbers, np.float32)
    np.testing.assert_array_equal(pack(x), nearest_bits(x), strict=True)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 5)])
def test_packing_and_widening_keep_the_shape(shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    assert pack(x).shape == widen(pack(x)).shape == round_to_bfloat16(x).shape == shape


def test_views_that_are_not_contiguous_are_packed_and_widened() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(widen(pack(x.T)), x.T, strict=True)
    np.testing.assert_array_equal(widen(pack(x)[:, ::2]), x[:, ::2], strict=True)


def test_widening_does_not_change_its_argument() -> None:
    """It may be a mapped file."""
    bits = np.array([0x3F80, 0x4000], np.uint16)
    widen(bits)
    np.testing.assert_array_equal(bits, np.array([0x3F80, 0x4000], np.uint16), strict=True)


def test_rounding_twice_is_rounding_once() -> None:
    x = np.linspace(-3, 3, 1001).astype(np.float32)
    once = round_to_bfloat16(x)
    np.testing.assert_array_equal(round_to_bfloat16(once), once, strict=True)
    # half a step of a number below 4 is 2^-7
    assert 0 < np.abs(once - x).max() <= 2**-7


def test_packing_float64_is_refused() -> None:
    """A number closer to a tie than float32 can represent: rounding it to float32 first would make it a tie."""
    with pytest.raises(TypeError, match="not from float64"):
        round_to_bfloat16(np.array([1 + 2**-8 + 2**-40]))


@pytest.mark.parametrize("width", [2, 6, 256, 1 << 16])
def test_even_and_odd_columns_are_the_widened_columns_to_the_bit(width: int) -> None:
    """For all 65,536 patterns, NaNs with their payload included, each in an even column and in an odd one."""
    bits = np.concatenate([PATTERNS, PATTERNS[1:], PATTERNS[:1]])
    bits = bits[: len(bits) // width * width].reshape(-1, width)
    for columns, first in ((even_columns, 0), (odd_columns, 1)):
        out = np.full((len(bits), width // 2), 0x12345678, np.uint32)
        y = columns(bits.view(np.uint32), out)
        assert_same_bits(y, widen(bits)[:, first::2].copy())
        assert np.shares_memory(y, out)


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_columns_may_start_at_any_byte_of_a_file(offset: int) -> None:
    """Safetensors headers have any length, so two neighbours need not be an aligned word. The file is read-only."""
    bits = PATTERNS[: 12 * 6].reshape(12, 6) * np.uint16(911)
    stored = np.frombuffer(bytes(offset) + bits.tobytes(), np.uint8)[offset:].view(np.uint16).reshape(12, 6)
    assert stored.view(np.uint32).flags.aligned == (offset == 0)
    for columns, first in ((even_columns, 0), (odd_columns, 1)):
        assert_same_bits(columns(stored.view(np.uint32), np.empty((12, 3), np.uint32)), widen(bits)[:, first::2].copy())


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 2)])
def test_columns_of_an_empty_or_tiny_matrix(shape: tuple[int, int]) -> None:
    for columns in (even_columns, odd_columns):
        out = np.empty((shape[0], shape[1] // 2), np.uint32)
        ones = np.full(shape, 0x3F80, np.uint16)
        np.testing.assert_array_equal(columns(ones.view(np.uint32), out), np.ones(out.shape, np.float32), strict=True)


# float16: NumPy's own cast, which is slow and right, is the second spelling


def test_widen_float16_of_literal_patterns() -> None:
    """One, a negative, the largest, the smallest normal, the smallest of all, and both zeros."""
    bits = np.array([0x3C00, 0xC100, 0x7BFF, 0x0400, 0x0001, 0x8001, 0x0000, 0x8000], np.uint16)
    numbers = [1, -2.5, 65504, 2.0**-14, 2.0**-24, -(2.0**-24), 0.0, -0.0]
    assert_same_bits(widen_float16(bits.view(np.float16)), np.array(numbers, np.float32))


def test_every_finite_half_is_widened_as_numpy_does() -> None:
    """63,488 finite numbers, subnormal ones included, none of which needs NumPy's cast."""
    assert len(FINITE_HALVES) == 2 * 0x7C00
    assert_same_bits(widen_float16(FINITE_HALVES), FINITE_HALVES.astype(np.float32))


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
def test_an_infinity_does_not_change_the_finite_numbers_beside_it(infinite: float) -> None:
    x = np.append(FINITE_HALVES, np.float16(infinite))
    assert_same_bits(widen_float16(x), x.astype(np.float32))


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFFFF], ids=hex)
def test_infinities_and_nans_keep_being_so(bits: int) -> None:
    """Alone, first and last of a block: moved and multiplied, infinity would become the number 65536."""
    x = np.array([bits], np.uint16).view(np.float16)
    for block in (x, np.append(x, FINITE_HALVES[:3]), np.append(FINITE_HALVES[:3], x)):
        np.testing.assert_array_equal(widen_float16(block), block.astype(np.float32), strict=True)


@given(arrays(np.uint16, (5, 3)))
def test_any_block_of_halves_is_widened_as_numpy_does(bits: np.ndarray) -> None:
    x = bits.view(np.float16)
    np.testing.assert_array_equal(widen_float16(x), x.astype(np.float32), strict=True)


@pytest.mark.parametrize("value", [1.5, np.inf])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 5)])
def test_widen_float16_keeps_the_shape(shape: tuple[int, ...], value: float) -> None:
    y = widen_float16(np.full(shape, value, np.float16))
    np.testing.assert_array_equal(y, np.full(shape, value, np.float32), strict=True)


def test_read_only_and_unaligned_views_of_halves_are_widened() -> None:
    """Views of a mapped file: not contiguous, not writable, and at an odd offset not aligned."""
    x = np.arange(12, dtype=np.float16).reshape(3, 4)
    x.setflags(write=False)
    for view in (x.T, x[:, ::2], x[::-1], x[:, 1:]):
        np.testing.assert_array_equal(widen_float16(view), view.astype(np.float32), strict=True)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float16)
    np.testing.assert_array_equal(widen_float16(unaligned), np.arange(12, dtype=np.float32), strict=True)


# any dtype


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["float16", "float32", "float64", "uint16"])
def test_widened_gives_the_numbers_in_the_dtype_asked_for(stored: str, dtype: str) -> None:
    numbers = np.array([[1.0, -2.5, 0.125]])
    w = pack(numbers.astype(np.float32)) if stored == "uint16" else numbers.astype(stored)
    np.testing.assert_array_equal(widened(w, np.dtype(dtype)), numbers.astype(dtype), strict=True)


def test_weights_of_the_right_dtype_are_not_copied() -> None:
    w = np.ones((2, 3), np.float32)
    assert widened(w, np.dtype(np.float32)) is w
