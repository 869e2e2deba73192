"""RGB pictures as pixel values: the range, the last bit and the resizing."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from npgemma.io.picture import pixel_values, read_picture

ORIENTATION = 0x0112  # the EXIF tag


def grays(values: list, dtype: type) -> np.ndarray:
    return np.array([values], dtype)


def rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an image that must be RGB already."""
    assert image.mode == "RGB"
    return np.asarray(image)


def gray(picture: object) -> list[int]:
    """The first row of a picture that comes out gray: its three channels must be one."""
    pixels = rgb(read_picture(picture))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


NOISE = Image.fromarray(noise(5, 7, 3))

# Of a value v = 2 g/255 - 1: the quotient, below 1, is rounded to float32 once, off by up to 2^-25; taking off a half
# rounds a result below 1/2, by up to 2^-26; dividing by a half doubles both and rounds nothing.
PIXEL_TOLERANCE = 2 * (2.0**-25 + 2.0**-26)


def test_black_is_minus_one_and_white_is_one():
    values = pixel_values([Image.new("RGB", (4, 4), "black"), Image.new("RGB", (4, 4), "white")], 2)
    expected = np.stack([np.full((3, 2, 2), -1, np.float32), np.full((3, 2, 2), 1, np.float32)])
    np.testing.assert_array_equal(values, expected, strict=True)


def test_every_gray_is_as_near_to_its_value_as_float32_lets_it_be():
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    values = pixel_values([image], 16)[0, 0].ravel().astype(np.float64)
    np.testing.assert_allclose(values, 2 * np.arange(256) / 255 - 1, rtol=0, atol=PIXEL_TOLERANCE, strict=True)


def test_the_last_bit_is_that_of_a_float64_product_rounded_once():
    """Multiplying by a float32 1/255, as one might, gives other last bits: 111 of the 256 grays tell."""
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


def test_a_picture_is_squashed_to_the_square_and_nothing_cropped():
    """A wide picture, its left third red: a third of the square's columns are red, and every row is alike."""
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
    """The rows of a picture brought to `side` of them, in 8 bits; the kernel is widened where the picture shrinks."""
    scale = len(rows) / side
    out = np.empty((side, *rows.shape[1:]))
    for i in range(side):
        weights = np.array([cubic((j + 0.5 - (i + 0.5) * scale) / max(scale, 1)) for j in range(len(rows))])
        out[i] = np.tensordot(weights / weights.sum(), rows, 1)
    return np.floor(out.clip(0, 255) + 0.5)


@pytest.mark.parametrize(("size", "side"), [(23, 14), (90, 7), (4, 16), (15, 14), (100, 3)])
def test_pictures_are_resized_by_the_antialiased_cubic_kernel(size, side):
    """Along one axis at a time: which comes first differs between releases of Pillow, and shows in a few pixels.

    Pillow's weights are whole numbers of 2^-22, so a sum that lies next to a half may be rounded the other way.
    """
    tall = noise(size, side, 3)
    expected = resized(tall, side)
    for pixels, turned in ((tall, expected), (tall.swapaxes(0, 1), expected.swapaxes(0, 1))):
        values = pixel_values([Image.fromarray(np.ascontiguousarray(pixels))], side)
        found = np.rint((values[0].astype(np.float64) + 1) / 2 * 255).transpose(1, 2, 0)
        assert np.abs(found - turned).max() <= 1
        assert (found == turned).mean() > 0.99


def test_a_picture_of_the_right_size_is_not_touched():
    values = pixel_values([Image.fromarray(noise(7, 7, 3))], 7)
    back = np.rint((values[0].astype(np.float64) + 1) / 2 * 255).astype(np.uint8).transpose(1, 2, 0)
    np.testing.assert_array_equal(back, noise(7, 7, 3), strict=True)


def test_no_pictures_are_an_empty_stack():
    assert pixel_values([], 6).shape == (0, 3, 6, 6)
    assert pixel_values([], 6).dtype == np.float32


@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))), side=st.integers(1, 12)
)
@settings(max_examples=100)
def test_pixel_values_lie_in_their_range_and_a_picture_does_not_depend_on_its_neighbours(pixels, side):
    """Bicubic interpolation overshoots; in 8 bits it is clipped, so nothing leaves -1 .. 1."""
    image = Image.fromarray(pixels)
    values = pixel_values([image], side)
    assert values.shape == (1, 3, side, side)
    assert values.dtype == np.float32
    assert -1 <= values.min() <= values.max() <= 1
    both = pixel_values([Image.new("RGB", (3, 3), "white"), image], side)
    np.testing.assert_array_equal(both[1:], values, strict=True)
