"""Pixel values of RGB pictures: range, rounding and resizing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import noise
from PIL import Image

from npgemma.errors import BadPicture
from npgemma.io.pixels import BICUBIC, BILINEAR, PixelSettings, pixel_values

# The largest error of 2 g/255 - 1: rounding g/255, below 1, to float32 errs by up to 2^-25; subtracting 1/2 gives a
# result below 1/2 and errs by up to 2^-26; dividing by 1/2 is exact and doubles both errors.
PIXEL_TOLERANCE = 2 * (2.0**-25 + 2.0**-26)


def test_black_is_minus_one_and_white_is_one():
    values = pixel_values([Image.new("RGB", (4, 4), "black"), Image.new("RGB", (4, 4), "white")], 2)
    expected = np.stack([np.full((3, 2, 2), -1, np.float32), np.full((3, 2, 2), 1, np.float32)])
    np.testing.assert_array_equal(values, expected, strict=True)


def test_the_value_of_every_gray_is_exact_to_float32():
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    values = pixel_values([image], 16)[0, 0].ravel().astype(np.float64)
    np.testing.assert_allclose(values, 2 * np.arange(256) / 255 - 1, rtol=0, atol=PIXEL_TOLERANCE, strict=True)


def test_grays_are_multiplied_in_float64_and_rounded_once():
    """Multiplying by 1/255 in float32 changes the last bit of 111 of the 256 grays."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    unit = np.array([np.float32(g * (1 / 255)) for g in range(256)])
    expected = (unit - np.float32(0.5)) / np.float32(0.5)
    np.testing.assert_array_equal(pixel_values([image], 16)[0, 0].ravel(), expected, strict=True)
    other = (np.arange(256, dtype=np.float32) * np.float32(1 / 255) - np.float32(0.5)) / np.float32(0.5)
    assert (other != expected).any()


def test_axes_are_picture_channel_row_column():
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 1] = (255, 0, 0)
    pixels[1, 0] = (0, 0, 255)
    values = pixel_values([Image.fromarray(pixels)], 2)
    expected = np.full((1, 3, 2, 2), -1, np.float32)
    expected[0, 0, 0, 1] = expected[0, 2, 1, 0] = 1
    np.testing.assert_array_equal(values, expected, strict=True)


def test_a_picture_is_resized_to_a_square_without_cropping():
    """The left third of a wide picture is red, and so is the left third of the square."""
    pixels = np.zeros((20, 90, 3), np.uint8)
    pixels[:, :30, 0] = 255
    red = pixel_values([Image.fromarray(pixels)], 30)[0, 0]
    assert (red[:, :8] == 1).all()
    assert (red[:, 12:] == -1).all()
    np.testing.assert_array_equal(red, np.repeat(red[:1], 30, 0), strict=True)


def cubic(x: float) -> float:
    """Keys' kernel with a = -1/2 (Keys 1981, equation 15)."""
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resized(rows: np.ndarray, side: int) -> np.ndarray:
    """A picture resized to `side` rows, in 8 bits; if it shrinks, the kernel is widened."""
    scale = len(rows) / side
    out = np.empty((side, *rows.shape[1:]))
    for i in range(side):
        weights = np.array([cubic((j + 0.5 - (i + 0.5) * scale) / max(scale, 1)) for j in range(len(rows))])
        out[i] = np.tensordot(weights / weights.sum(), rows, 1)
    return np.floor(out.clip(0, 255) + 0.5)


@pytest.mark.parametrize(("size", "side"), [(23, 14), (90, 7), (4, 16), (15, 14), (100, 3)])
def test_pictures_are_resized_by_the_antialiased_cubic_kernel(size, side):
    """One axis at a time: releases of Pillow differ in the axis that they resize first, which changes a few pixels.

    Pillow's weights are multiples of 2^-22, so a sum close to a half may be rounded the other way.
    """
    tall = noise(size, side, 3)
    expected = resized(tall, side)
    for pixels, turned in ((tall, expected), (tall.swapaxes(0, 1), expected.swapaxes(0, 1))):
        values = pixel_values([Image.fromarray(np.ascontiguousarray(pixels))], side)
        found = np.rint((values[0].astype(np.float64) + 1) / 2 * 255).transpose(1, 2, 0)
        assert np.abs(found - turned).max() <= 1
        assert (found == turned).mean() > 0.99


def test_a_picture_of_the_right_size_is_not_changed():
    values = pixel_values([Image.fromarray(noise(7, 7, 3))], 7)
    back = np.rint((values[0].astype(np.float64) + 1) / 2 * 255).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(back, noise(7, 7, 3), strict=True)


def test_no_pictures_give_an_empty_array():
    assert pixel_values([], 6).shape == (0, 3, 6, 6)
    assert pixel_values([], 6).dtype == np.float32


@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))), side=st.integers(1, 12)
)
@settings(max_examples=100)
def test_pixel_values_are_in_range_and_do_not_depend_on_other_pictures(pixels, side):
    """Bicubic interpolation overshoots, but 8-bit pixels are clipped, so that all values are in -1 .. 1."""
    image = Image.fromarray(pixels)
    values = pixel_values([image], side)
    assert values.shape == (1, 3, side, side)
    assert values.dtype == np.float32
    assert -1 <= values.min() <= values.max() <= 1
    both = pixel_values([Image.new("RGB", (3, 3), "white"), image], side)
    np.testing.assert_array_equal(both[1:], values, strict=True)


# ------------------------------------------------------------------------------------------------------ other settings


@pytest.mark.parametrize("kernel", range(6))
def test_every_kernel_is_pillows(kernel):
    image = Image.fromarray(noise(23, 9, 3))
    values = pixel_values([image], 8, PixelSettings(Image.Resampling(kernel)))
    found = np.rint((values[0].astype(np.float64) + 1) / 2 * 255).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(found, np.asarray(image.resize((8, 8), kernel)), strict=True)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mean_and_std": None}, [0.0, 0.2, 1.0]),
        ({"rescale_factor": None, "mean_and_std": None}, [0, 51, 255]),
        ({"rescale_factor": None, "mean_and_std": ((51.0,) * 3, (2.0,) * 3)}, [-25.5, 0, 102]),
        ({"rescale_factor": 1 / 51, "mean_and_std": ((1.0,) * 3, (4.0,) * 3)}, [-0.25, 0, 1]),
    ],
)
def test_steps_can_differ_or_be_left_out(changes, expected):
    """Of pixels of the grays 0, 51 and 255."""
    pixels = np.array([[0, 51, 255]] * 3, np.uint8)
    values = pixel_values([Image.fromarray(pixels).convert("RGB")], 3, PixelSettings(**changes))
    np.testing.assert_array_equal(values[0, 2, 1], np.array(expected, np.float32), strict=True)


def test_each_channel_has_its_mean_and_deviation():
    settings = PixelSettings(rescale_factor=None, mean_and_std=((1.0, 2.0, 3.0), (1.0, 2.0, 4.0)))
    values = pixel_values([Image.new("RGB", (1, 1), (7, 8, 11))], 1, settings)
    np.testing.assert_array_equal(values.ravel(), np.array([6, 3, 2], np.float32), strict=True)


@pytest.mark.parametrize("settings", [PixelSettings(resample=None), PixelSettings(keeps_shape=True)])
def test_a_shape_that_is_kept_must_be_the_models(settings):
    square = Image.fromarray(noise(7, 7, 3))
    np.testing.assert_array_equal(pixel_values([square], 7, settings), pixel_values([square], 7), strict=True)
    with pytest.raises(BadPicture, match=r"9 x 5 pixels, .*; give it pictures of 7 x 7 pixels"):
        pixel_values([square, Image.new("RGB", (9, 5))], 7, settings)


def test_a_picture_of_another_size_needs_resizing():
    picture = Image.fromarray(noise(14, 14, 3))
    kept = pixel_values([picture], 7, PixelSettings(keeps_shape=True))
    np.testing.assert_array_equal(kept, pixel_values([picture], 7), strict=True)
    with pytest.raises(BadPicture, match="do_resize"):
        pixel_values([picture], 7, PixelSettings(resample=None))


# ---------------------------------------------------------------------------------------------------- the middle alone

PLAIN = PixelSettings(None, rescale_factor=None, mean_and_std=None, crop=True)


@pytest.mark.parametrize(
    ("rows", "columns", "top", "left"), [(9, 6, 2, 1), (8, 7, 2, 1), (11, 4, 3, 0), (4, 15, 0, 5), (5, 4, 0, 0)]
)
def test_the_middle_of_a_picture_is_cropped(rows, columns, top, left):
    """Of an odd margin the smaller half is above and on the left."""
    pixels = noise(rows, columns, 3)
    found = pixel_values([Image.fromarray(pixels)], 4, PLAIN)[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(found, pixels[top : top + 4, left : left + 4].astype(np.float32), strict=True)


def test_a_crop_of_a_smaller_picture_has_black_margins():
    """Of an odd margin the larger half is above and on the left."""
    pixels = noise(3, 6, 3) | 1
    found = pixel_values([Image.fromarray(pixels)], 4, PLAIN)[0].transpose(1, 2, 0)
    expected = np.concatenate([np.zeros((1, 4, 3)), pixels[:, 1:5]]).astype(np.float32)
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize(
    ("size", "edge", "resized_to"), [((9, 30), None, (4, 13)), ((30, 9), 5, (16, 5)), ((7, 7), 6, (6, 6))]
)
def test_a_picture_keeps_its_shape_before_it_is_cropped(size, edge, resized_to):
    """Columns and rows; the longer edge is rounded down."""
    image = Image.fromarray(noise(size[1], size[0], 3))
    found = pixel_values([image], 4, replace(PLAIN, resample=BICUBIC, keeps_shape=True, edge=edge))
    expected = pixel_values([image.resize(resized_to, BICUBIC)], 4, PLAIN)
    np.testing.assert_array_equal(found, expected, strict=True)


def test_a_square_larger_than_what_is_read_is_cropped():
    image = Image.fromarray(noise(9, 12, 3))
    found = pixel_values([image], 4, replace(PLAIN, resample=BILINEAR, edge=7))
    expected = pixel_values([image.resize((7, 7), BILINEAR)], 4, PLAIN)
    np.testing.assert_array_equal(found, expected, strict=True)


def test_a_picture_too_narrow_to_be_resized_is_refused():
    settings = replace(PLAIN, resample=BICUBIC, keeps_shape=True)
    with pytest.raises(BadPicture, match=r"1 x 10000 pixels, .* would make 224 x 2240000 of them \(size\); crop it"):
        pixel_values([Image.new("RGB", (1, 10_000))], 224, settings)
