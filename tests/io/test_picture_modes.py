"""Conversion to RGB: transparency, palettes, 16-bit grays, other modes and arrays."""

import io

import numpy as np
import pytest
from pictures import encoded, noise, rgb
from PIL import Image

from npgemma.errors import BadPicture
from npgemma.io.picture import read_picture


def row(values: list, dtype: type) -> np.ndarray:
    """The pixels of a gray picture with one row."""
    return np.array([values], dtype)


def grays(picture: object) -> list[int]:
    """The first row of a picture as it is read; its three channels must be equal."""
    pixels = rgb(read_picture(picture))
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


# --------------------------------------------------------------------------------------------------------- transparency

# round((alpha * colour + (255 - alpha) * 255) / 255), computed by hand
COLORS = [(200, 100, 0, 255), (200, 100, 0, 128), (200, 100, 0, 0), (0, 0, 0, 51)]
OVER_WHITE = [[200, 100, 0], [227, 177, 127], [255, 255, 255], [204, 204, 204]]


def test_transparency_is_composited_over_white():
    """Ignoring alpha would show pixels that the author erased."""
    pixels = np.array([COLORS], np.uint8)
    expected = np.array([OVER_WHITE], np.uint8)
    np.testing.assert_array_equal(rgb(read_picture(pixels)), expected, strict=True)
    np.testing.assert_array_equal(rgb(read_picture(Image.fromarray(pixels))), expected, strict=True)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_in_a_file_is_composited_over_white(kind, tmp_path):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    path = tmp_path / "picture"
    path.write_bytes(encoded(Image.fromarray(np.array([COLORS], np.uint8)), kind, **options))
    np.testing.assert_array_equal(rgb(read_picture(path)), np.array([OVER_WHITE], np.uint8), strict=True)


def test_gray_with_alpha_is_composited_over_white(tmp_path):
    image = Image.merge("LA", [Image.new("L", (2, 1), 100), Image.fromarray(row([128, 0], np.uint8))])
    image.save(tmp_path / "picture.png")
    assert grays(image) == [177, 255]
    assert grays(tmp_path / "picture.png") == [177, 255]


def palette() -> Image.Image:
    """Four pixels: red, lime, blue and black, by a palette."""
    image = Image.fromarray(row([0, 1, 2, 3], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0])
    return image


def test_palette_indices_become_colours():
    expected = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(rgb(read_picture(palette())), expected, strict=True)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(palette(), kind, transparency=3))
    expected = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    np.testing.assert_array_equal(rgb(read_picture(path)), expected, strict=True)


def test_every_palette_entry_may_have_its_own_alpha(tmp_path):
    (tmp_path / "picture.png").write_bytes(encoded(palette(), "PNG", transparency=bytes([255, 0, 51, 128])))
    expected = np.array([[[255, 0, 0], [255, 255, 255], [204, 204, 255], [127, 127, 127]]], np.uint8)
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "picture.png")), expected, strict=True)


def test_one_transparent_colour_is_white(tmp_path):
    """The tRNS chunk of a gray or RGB PNG names a transparent colour."""
    two = Image.fromarray(np.array([[[10, 20, 30], [10, 20, 31]]], np.uint8))
    (tmp_path / "rgb.png").write_bytes(encoded(two, "PNG", transparency=(10, 20, 30)))
    expected = np.array([[[255, 255, 255], [10, 20, 31]]], np.uint8)
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "rgb.png")), expected, strict=True)
    (tmp_path / "gray.png").write_bytes(encoded(Image.fromarray(row([7, 8], np.uint8)), "PNG", transparency=7))
    assert grays(tmp_path / "gray.png") == [255, 8]


def test_one_transparent_gray_of_16_bits_is_white(tmp_path):
    deep = Image.fromarray(row([0, 25700], np.uint16))
    (tmp_path / "picture.png").write_bytes(encoded(deep, "PNG", transparency=0))
    assert grays(tmp_path / "picture.png") == [255, 100]


# ------------------------------------------------------------------------------------------ grays with more than 8 bits

DEEP = [0, 128, 129, 256, 25700, 32768, 65535]
SHALLOW = [0, 0, 1, 1, 100, 128, 255]  # DEEP / 257, rounded


def test_16_bit_grays_are_scaled_and_not_clipped(tmp_path):
    """Pillow's own conversion clips at 255, which makes a 16-bit picture almost entirely white."""
    image = Image.fromarray(row(DEEP, np.uint16))
    assert image.mode == "I;16"
    assert grays(image) == SHALLOW
    for name in ("picture.png", "picture.tif"):
        image.save(tmp_path / name)
        assert grays(tmp_path / name) == SHALLOW


def test_a_16_bit_pgm_is_scaled(tmp_path):
    data = np.array(DEEP, ">u2").tobytes()
    (tmp_path / "picture.pgm").write_bytes(b"P5 %d 1 65535\n" % len(DEEP) + data)
    assert grays(tmp_path / "picture.pgm") == SHALLOW


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "i4")])
def test_every_mode_for_16_bits_is_scaled(mode, dtype):
    image = Image.frombytes(mode, (len(DEEP), 1), np.array(DEEP, dtype).tobytes())
    assert grays(image) == SHALLOW


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("I;16", "<u2"),
        ("I;16B", ">u2"),
    ],
)
def test_a_dark_16_bit_picture_stays_dark_in_either_byte_order(mode, dtype):
    """Its mode has 16 bits, so 200 of 65535 is nearly black, even if it is the brightest pixel."""
    image = Image.frombytes(mode, (3, 1), np.array([0, 100, 200], dtype).tobytes())
    assert grays(image) == [0, 0, 1]


def test_32_bit_integers_up_to_255_are_not_scaled():
    image = Image.frombytes("I", (4, 1), np.array([0, 1, 254, 255], "i4").tobytes())
    assert grays(image) == [0, 1, 254, 255]


def test_the_largest_float_gray_determines_8_or_16_bits(tmp_path):
    image = Image.fromarray(row([0, 1.4, 1.6, 255], np.float32))
    image.save(tmp_path / "picture.tif")
    assert grays(image) == grays(tmp_path / "picture.tif") == [0, 1, 2, 255]
    assert grays(Image.fromarray(row(DEEP, np.float32))) == SHALLOW


def test_float_grays_from_0_to_1_are_scaled_to_255(tmp_path):
    """Scientific and medical software writes such pictures."""
    image = Image.fromarray(row([0, 0.25, 0.5, 1], np.float32))
    image.save(tmp_path / "picture.tif")
    assert grays(image) == grays(tmp_path / "picture.tif") == [0, 64, 128, 255]


@pytest.mark.parametrize(
    "values", [[0.0, np.nan], [np.inf, 0.0], [-np.inf, 1.0], [-1.0, 4.0], [0.0, 65536.0]], ids=repr
)
def test_float_grays_outside_0_to_65535_are_refused(values, tmp_path):
    image = Image.fromarray(row(values, np.float32))
    image.save(tmp_path / "picture.tif")
    for picture in (image, tmp_path / "picture.tif"):
        with pytest.raises(BadPicture, match="gray values range from"):
            read_picture(picture)


@pytest.mark.parametrize("values", [[-1, 4], [0, 65536], [0, 2**31 - 1]], ids=repr)
def test_integer_grays_outside_16_bits_are_refused(values):
    image = Image.frombytes("I", (2, 1), np.array(values, "i4").tobytes())
    with pytest.raises(BadPicture, match=f"gray values range from {values[0]} to {values[1]}"):
        read_picture(image)


# ---------------------------------------------------------------------------------------------------------- other modes


def test_cmyk_becomes_rgb(tmp_path):
    """No ink is white, black ink is black, magenta and yellow ink together are red."""
    ink = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [0, 255, 255, 0], [255, 0, 0, 0]]], np.uint8)
    expected = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 255]]], np.uint8)
    image = Image.frombytes("CMYK", (4, 1), ink.tobytes())
    image.save(tmp_path / "picture.tif")
    for picture in (image, tmp_path / "picture.tif"):
        np.testing.assert_array_equal(rgb(read_picture(picture)), expected, strict=True)


def test_a_cmyk_jpeg_is_read(tmp_path):
    path = tmp_path / "picture.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=100, subsampling=0)
    assert np.abs(rgb(read_picture(path)).astype(int) - [255, 0, 0]).max() <= 3  # JPEG rounds even a uniform colour


def test_one_bit_pixels_are_black_and_white():
    assert grays(Image.fromarray(np.array([[True, False]]))) == [255, 0]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_every_mode_becomes_rgb(mode):
    image = read_picture(Image.new(mode, (3, 2)))
    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_an_rgb_image_is_copied():
    """Drawing on the result must not change the image of the caller."""
    image = Image.new("RGB", (2, 2), "white")
    read = read_picture(image)
    read.putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (255, 255, 255)


# --------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1)])
def test_a_gray_array_is_a_picture(shape):
    pixels = rgb(read_picture(noise(*shape)))
    np.testing.assert_array_equal(pixels, np.repeat(noise(*shape).reshape(3, 5, 1), 3, 2), strict=True)


def test_a_colour_array_is_a_picture():
    np.testing.assert_array_equal(rgb(read_picture(noise(3, 5, 3))), noise(3, 5, 3), strict=True)


def test_an_array_may_have_any_memory_layout():
    for view in (noise(6, 10, 3)[::2, ::-2], noise(5, 3, 3).swapaxes(0, 1), np.asfortranarray(noise(3, 5, 3))):
        np.testing.assert_array_equal(rgb(read_picture(view)), np.ascontiguousarray(view), strict=True)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.uint16, ">u2", np.float32, np.float64, object, "U1"])
def test_an_array_of_another_dtype_is_refused(dtype):
    """The range of floats, 0 .. 1 or 0 .. 255, would be a guess."""
    with pytest.raises(BadPicture, match=r"a picture array must be uint8 .* not .* \[2, 2, 3\]"):
        read_picture(np.zeros((2, 2, 3), dtype))


@pytest.mark.parametrize(
    "shape", [(), (5,), (0, 0), (0, 5, 3), (5, 0, 3), (5, 5, 0), (5, 5, 2), (3, 5, 5), (1, 5, 5, 3)]
)
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(BadPicture, match="a picture array must be uint8"):
        read_picture(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "argument", [None, 7, b"picture.png", ["picture.png"], object(), io.BytesIO(), Image], ids=repr
)
def test_an_argument_of_another_type_is_refused(argument):
    with pytest.raises(BadPicture, match=f"not a {type(argument).__name__}"):
        read_picture(argument)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(size):
    with pytest.raises(BadPicture):
        read_picture(Image.new("RGB", size))
