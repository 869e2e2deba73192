"""Pictures: upright, opaque and 8 bits deep whatever they were, and BadPicture for everything that is none."""

import io
import itertools
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from npgemma.errors import BadPicture
from npgemma.io import picture as module
from npgemma.io.picture import FORMATS, pixel_values, read_picture, write_picture

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


# ------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_lossless_file_gives_its_pixels(kind, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(NOISE, kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(rgb(read_picture(path)), noise(5, 7, 3), strict=True)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP"])
def test_a_lossy_file_gives_what_pillow_decodes(kind, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(NOISE, kind))
    with Image.open(path) as image:
        np.testing.assert_array_equal(rgb(read_picture(path)), np.asarray(image.convert("RGB")), strict=True)


def test_the_content_decides_and_not_the_ending(tmp_path):
    (tmp_path / "picture.jpg").write_bytes(encoded(NOISE, "PNG"))
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "picture.jpg")), noise(5, 7, 3), strict=True)


def test_a_path_may_be_text(tmp_path):
    NOISE.save(tmp_path / "picture.png")
    np.testing.assert_array_equal(rgb(read_picture(str(tmp_path / "picture.png"))), noise(5, 7, 3), strict=True)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_of_several_frames_the_first_is_taken(kind, tmp_path):
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "picture"
    path.write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    with Image.open(path) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(rgb(read_picture(path)), np.asarray(frames[0]), strict=True)


# ---------------------------------------------------------------------------------------------------------------- EXIF


# The EXIF standard says where the stored row 0 and column 0 belong; so, an upright picture as it would be stored.
STORED = {
    1: lambda upright: upright,  # row 0 at the top, column 0 at the left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda upright: upright[::-1].swapaxes(0, 1),  # left, bottom
}


def oriented(orientation: object, pixels: np.ndarray, kind: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(Image.fromarray(np.ascontiguousarray(pixels)), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_file_is_turned_upright(orientation, kind, tmp_path):
    """As every viewer shows it: a telephone stores what its sensor saw and says in EXIF how it was held."""
    upright = noise(5, 7, 3)
    path = tmp_path / "picture"
    path.write_bytes(oriented(orientation, STORED[orientation](upright), kind))
    np.testing.assert_array_equal(rgb(read_picture(path)), upright, strict=True)


@pytest.mark.parametrize("orientation", STORED)
def test_a_photograph_is_turned_upright(orientation, tmp_path):
    """JPEG is lossy, so its own decoding, which ignores the tag, says what is stored."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(oriented(orientation, STORED[orientation](noise(5, 7, 3)), "JPEG"))
    with Image.open(path) as image:
        stored = np.asarray(image)
    found = rgb(read_picture(path))
    assert found.shape == (5, 7, 3)
    np.testing.assert_array_equal(STORED[orientation](found), stored, strict=True)


@pytest.mark.parametrize("orientation", STORED)
def test_an_image_that_is_handed_over_is_not_turned(orientation):
    """Whoever opened it may have turned it already; turning twice would be silent."""
    stored = STORED[orientation](noise(5, 7, 3))
    with Image.open(io.BytesIO(oriented(orientation, stored, "PNG"))) as image:
        np.testing.assert_array_equal(rgb(read_picture(image)), stored, strict=True)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_changes_nothing(orientation, tmp_path):
    (tmp_path / "picture.png").write_bytes(oriented(orientation, noise(5, 7, 3), "PNG"))
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "picture.png")), noise(5, 7, 3), strict=True)


def test_transparency_and_orientation_together(tmp_path):
    upright = noise(5, 7, 4)
    (tmp_path / "picture.png").write_bytes(oriented(6, STORED[6](upright), "PNG"))
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "picture.png")), rgb(read_picture(upright)), strict=True)


def test_odd_metadata_beside_the_orientation_does_no_harm(tmp_path):
    """The tag ImageWidth holding a word: every viewer shows this picture."""
    tags = [(0x0100, 2, 6, 38), (ORIENTATION, 3, 1, 6 << 16)]  # tag, type, how many, value or where
    exif = b"MM\0*" + struct.pack(">LH", 8, len(tags))
    exif += b"".join(struct.pack(">HHLL", *tag) for tag in tags) + bytes(4) + b"hello\0"
    stored = STORED[6](noise(5, 7, 3))
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", exif=b"Exif\0\0" + exif))
    assert read_picture(path).size == (7, 5)


# -------------------------------------------------------------------------------------------------------- transparency

# round((alpha colour + (255 - alpha) 255) / 255), by hand
COLORS = [(200, 100, 0, 255), (200, 100, 0, 128), (200, 100, 0, 0), (0, 0, 0, 51)]
OVER_WHITE = [[200, 100, 0], [227, 177, 127], [255, 255, 255], [204, 204, 204]]


def test_transparency_is_composited_over_white():
    """Dropping alpha would show what the picture's author had erased."""
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
    image = Image.merge("LA", [Image.new("L", (2, 1), 100), Image.fromarray(grays([128, 0], np.uint8))])
    image.save(tmp_path / "picture.png")
    assert gray(image) == [177, 255]
    assert gray(tmp_path / "picture.png") == [177, 255]


def palette() -> Image.Image:
    """Four pixels of a palette of red, lime, blue, black."""
    image = Image.fromarray(grays([0, 1, 2, 3], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0])
    return image


def test_a_palette_is_looked_up():
    expected = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]], np.uint8)
    np.testing.assert_array_equal(rgb(read_picture(palette())), expected, strict=True)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(palette(), kind, transparency=3))
    expected = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    np.testing.assert_array_equal(rgb(read_picture(path)), expected, strict=True)


def test_palette_entries_may_each_have_an_alpha(tmp_path):
    (tmp_path / "picture.png").write_bytes(encoded(palette(), "PNG", transparency=bytes([255, 0, 51, 128])))
    expected = np.array([[[255, 0, 0], [255, 255, 255], [204, 204, 255], [127, 127, 127]]], np.uint8)
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "picture.png")), expected, strict=True)


def test_one_transparent_colour_is_white(tmp_path):
    """PNG's tRNS chunk names a colour, of gray and of RGB pictures."""
    two = Image.fromarray(np.array([[[10, 20, 30], [10, 20, 31]]], np.uint8))
    (tmp_path / "rgb.png").write_bytes(encoded(two, "PNG", transparency=(10, 20, 30)))
    expected = np.array([[[255, 255, 255], [10, 20, 31]]], np.uint8)
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "rgb.png")), expected, strict=True)
    (tmp_path / "gray.png").write_bytes(encoded(Image.fromarray(grays([7, 8], np.uint8)), "PNG", transparency=7))
    assert gray(tmp_path / "gray.png") == [255, 8]


def test_one_transparent_colour_of_16_bits_is_white_too(tmp_path):
    deep = Image.fromarray(grays([0, 25700], np.uint16))
    (tmp_path / "picture.png").write_bytes(encoded(deep, "PNG", transparency=0))
    assert gray(tmp_path / "picture.png") == [255, 100]


# ----------------------------------------------------------------------------------------------------------- deep grays

DEEP = [0, 128, 129, 256, 25700, 32768, 65535]
SHALLOW = [0, 0, 1, 1, 100, 128, 255]  # DEEP / 257, to the nearest


def test_16_bit_grays_are_scaled_and_not_clipped(tmp_path):
    """Pillow's own conversion clips at 255: of a 16-bit picture that leaves a white page."""
    image = Image.fromarray(grays(DEEP, np.uint16))
    assert image.mode == "I;16"
    assert gray(image) == SHALLOW
    for name in ("picture.png", "picture.tif"):
        image.save(tmp_path / name)
        assert gray(tmp_path / name) == SHALLOW


def test_a_16_bit_pgm_is_scaled(tmp_path):
    data = np.array(DEEP, ">u2").tobytes()
    (tmp_path / "picture.pgm").write_bytes(b"P5 %d 1 65535\n" % len(DEEP) + data)
    assert gray(tmp_path / "picture.pgm") == SHALLOW


@pytest.mark.parametrize(("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I", "i4")])
def test_every_mode_of_16_bits_is_scaled(mode, dtype):
    image = Image.frombytes(mode, (len(DEEP), 1), np.array(DEEP, dtype).tobytes())
    assert gray(image) == SHALLOW


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("I;16", "<u2"),
        ("I;16B", ">u2"),
    ],
)
def test_a_dark_16_bit_picture_stays_dark_in_either_byte_order(mode, dtype):
    """It says that it has 16 bits, so 200 of 65535 is black, however dark the rest is."""
    image = Image.frombytes(mode, (3, 1), np.array([0, 100, 200], dtype).tobytes())
    assert gray(image) == [0, 0, 1]


def test_wide_integers_that_fit_in_8_bits_are_8_bits():
    image = Image.frombytes("I", (4, 1), np.array([0, 1, 254, 255], "i4").tobytes())
    assert gray(image) == [0, 1, 254, 255]


def test_float_grays_are_8_or_16_bits_by_their_largest(tmp_path):
    image = Image.fromarray(grays([0, 1.4, 1.6, 255], np.float32))
    image.save(tmp_path / "picture.tif")
    assert gray(image) == gray(tmp_path / "picture.tif") == [0, 1, 2, 255]
    assert gray(Image.fromarray(grays(DEEP, np.float32))) == SHALLOW


def test_float_grays_of_0_to_1_are_no_black_picture(tmp_path):
    """As science and medicine save them; 1.4 in the test above says that it is none of them."""
    image = Image.fromarray(grays([0, 0.25, 0.5, 1], np.float32))
    image.save(tmp_path / "picture.tif")
    assert gray(image) == gray(tmp_path / "picture.tif") == [0, 64, 128, 255]


@pytest.mark.parametrize(
    "values", [[0.0, np.nan], [np.inf, 0.0], [-np.inf, 1.0], [-1.0, 4.0], [0.0, 65536.0]], ids=repr
)
def test_float_grays_outside_both_are_refused(values, tmp_path):
    image = Image.fromarray(grays(values, np.float32))
    image.save(tmp_path / "picture.tif")
    for picture in (image, tmp_path / "picture.tif"):
        with pytest.raises(BadPicture, match="gray values run from"):
            read_picture(picture)


@pytest.mark.parametrize("values", [[-1, 4], [0, 65536], [0, 2**31 - 1]], ids=repr)
def test_integer_grays_outside_16_bits_are_refused(values):
    image = Image.frombytes("I", (2, 1), np.array(values, "i4").tobytes())
    with pytest.raises(BadPicture, match=f"gray values run from {values[0]} to {values[1]}"):
        read_picture(image)


# --------------------------------------------------------------------------------------------------------- other modes


def test_ink_is_the_complement_of_light(tmp_path):
    """CMYK: no ink is white, black ink black, yellow and magenta together red."""
    ink = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [0, 255, 255, 0], [255, 0, 0, 0]]], np.uint8)
    expected = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 255]]], np.uint8)
    image = Image.frombytes("CMYK", (4, 1), ink.tobytes())
    image.save(tmp_path / "picture.tif")
    for picture in (image, tmp_path / "picture.tif"):
        np.testing.assert_array_equal(rgb(read_picture(picture)), expected, strict=True)


def test_a_cmyk_photograph_is_read(tmp_path):
    path = tmp_path / "picture.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=100, subsampling=0)
    assert np.abs(rgb(read_picture(path)).astype(int) - [255, 0, 0]).max() <= 3  # JPEG's own rounding of a flat colour


def test_one_bit_is_black_and_white():
    assert gray(Image.fromarray(np.array([[True, False]]))) == [255, 0]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"]
)
def test_every_mode_becomes_rgb(mode):
    image = read_picture(Image.new(mode, (3, 2)))
    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_an_rgb_image_is_not_shared_with_the_caller():
    """What is drawn on the copy must not show on the original."""
    image = Image.new("RGB", (2, 2), "white")
    read = read_picture(image)
    read.putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (255, 255, 255)


# -------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1)])
def test_a_gray_array_is_a_picture(shape):
    pixels = rgb(read_picture(noise(*shape)))
    np.testing.assert_array_equal(pixels, np.repeat(noise(*shape).reshape(3, 5, 1), 3, 2), strict=True)


def test_a_colour_array_is_a_picture():
    np.testing.assert_array_equal(rgb(read_picture(noise(3, 5, 3))), noise(3, 5, 3), strict=True)


def test_an_array_may_lie_in_memory_as_it_likes():
    for view in (noise(6, 10, 3)[::2, ::-2], noise(5, 3, 3).swapaxes(0, 1), np.asfortranarray(noise(3, 5, 3))):
        np.testing.assert_array_equal(rgb(read_picture(view)), np.ascontiguousarray(view), strict=True)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.uint16, ">u2", np.float32, np.float64, object, "U1"])
def test_an_array_of_another_dtype_is_refused(dtype):
    """Floats in 0 .. 1 or in 0 .. 255? Guessing would be silently wrong."""
    with pytest.raises(BadPicture, match=r"a picture array is uint8 .* not .* \[2, 2, 3\]"):
        read_picture(np.zeros((2, 2, 3), dtype))


@pytest.mark.parametrize(
    "shape", [(), (5,), (0, 0), (0, 5, 3), (5, 0, 3), (5, 5, 0), (5, 5, 2), (3, 5, 5), (1, 5, 5, 3)]
)
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(BadPicture, match="a picture array is uint8"):
        read_picture(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("thing", [None, 7, b"picture.png", ["picture.png"], object(), io.BytesIO(), Image], ids=repr)
def test_what_is_no_picture_at_all_is_refused_by_its_type(thing):
    with pytest.raises(BadPicture, match=f"not a {type(thing).__name__}"):
        read_picture(thing)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused_as_an_array_is(size):
    with pytest.raises(BadPicture):
        read_picture(Image.new("RGB", size))


# ------------------------------------------------------------------------------------------------------ what is damaged


def test_a_missing_picture_is_said_to_be_missing(tmp_path):
    with pytest.raises(BadPicture, match=r"nowhere\.png is missing"):
        read_picture(tmp_path / "nowhere.png")


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(BadPicture, match="cannot be read"):
        read_picture(tmp_path)


def test_a_path_that_cannot_be_one_is_refused():
    for path in ("", "a\0b.png"):
        with pytest.raises(BadPicture):
            read_picture(path)


NO_PICTURES = {
    "empty": b"",
    "text": b"hello world\n",
    "a web page": b"<!DOCTYPE html><html><body>Not Found</body></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF": b"%PDF-1.7\n%%EOF\n",
    "zeros": bytes(1000),
    "a PNG signature": b"\x89PNG\r\n\x1a\n",
    "a JPEG signature": b"\xff\xd8\xff\xe0",
}


@pytest.mark.parametrize("content", NO_PICTURES.values(), ids=NO_PICTURES)
def test_a_file_that_is_no_picture_is_refused_and_named(content, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(BadPicture) as error:
        read_picture(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "ICNS", "DDS"])
def test_a_format_off_the_list_is_refused_even_where_pillow_has_it(kind, tmp_path):
    """EPS would start Ghostscript; of the rest each has been a door into a program before."""
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(Image.fromarray(noise(16, 16, 3)), kind))
    with pytest.raises(BadPicture, match=r"picture\.png is not a picture that npgemma reads \(PNG, JPEG"):
        read_picture(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_picture_cut_off_is_refused_in_every_format(kind, tmp_path):
    """Never a picture whose lower half is gray."""
    assert kind in FORMATS
    whole = encoded(Image.fromarray(noise(40, 30, 3)), kind)
    path = tmp_path / "picture"
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BadPicture) as error:
            read_picture(path)
        assert str(path) in str(error.value)


def test_an_image_that_is_handed_over_and_turns_out_to_be_cut_off_is_refused():
    """Pillow opens a file without reading its pixels; the damage shows when they are asked for."""
    whole = encoded(Image.fromarray(noise(40, 30, 3)), "PNG")
    with Image.open(io.BytesIO(whole[: len(whole) // 2])) as image, pytest.raises(BadPicture):
        read_picture(image)


def claiming(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and holds none."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (89_000_001, 1), (1, 2**31 - 1), (9_434, 9_434)])
def test_a_picture_too_large_is_refused_before_it_is_unpacked(size, tmp_path):
    """60,000 x 60,000 pixels are 10 GB from a file of 70 bytes."""
    path = tmp_path / "bomb.png"
    path.write_bytes(claiming(*size))
    with pytest.raises(BadPicture, match=r"bomb\.png") as error:
        read_picture(path)
    assert "truncated" not in str(error.value)


def test_the_limit_is_on_pixels_and_reached_ones_are_read(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "MAX_PIXELS", 35)
    path = tmp_path / "picture.png"
    NOISE.save(path)
    assert read_picture(path).size == (7, 5)
    monkeypatch.setattr(module, "MAX_PIXELS", 34)
    with pytest.raises(BadPicture, match=r"picture\.png has 7 x 5 pixels"):
        read_picture(path)


def test_a_tiff_whose_data_begins_at_a_fraction_is_refused(tmp_path):
    """One bit of damage turns the type of StripOffsets, 4, into 5, a rational number."""
    raw = bytearray(encoded(Image.fromarray(noise(9, 11)), "TIFF"))
    tag = raw.index(struct.pack("<HH", 273, 4))
    raw[tag + 2] = 5
    (tmp_path / "picture.tif").write_bytes(raw)
    with pytest.raises(BadPicture):
        read_picture(tmp_path / "picture.tif")


def samples() -> list[bytes]:
    """A small picture in every format and several of their inner forms."""
    image, exif = Image.fromarray(noise(9, 11, 3)), Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010E] = "hello"
    deep = Image.fromarray(noise(9, 11).astype(np.uint16) * 257)
    return [
        encoded(image, "PNG", exif=exif),
        encoded(deep, "PNG"),
        encoded(image.quantize(16), "PNG", transparency=0),
        encoded(image, "JPEG", exif=exif),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
        encoded(image, "BMP"),
        encoded(image.quantize(16), "BMP"),
        encoded(image, "WEBP", exif=exif),
        encoded(image, "WEBP", lossless=True),
        encoded(image, "TIFF", exif=exif),
        encoded(image, "TIFF", compression="tiff_lzw"),
        encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        encoded(image, "PPM"),
    ]


def damaged(rng: random.Random, content: bytes) -> bytes:
    raw = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, kind = rng.randrange(len(raw)), rng.random()
        if kind < 0.5:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind < 0.7:
            raw[at] = rng.choice((0, 1, 127, 128, 255))
        elif kind < 0.8:
            del raw[max(at, 1) :]
        elif kind < 0.9:
            other = rng.randrange(len(raw))
            raw[at:at] = raw[other : other + rng.randrange(20)]
        else:
            del raw[max(at, 1) : at + rng.randrange(1, 9)]
    return bytes(raw)


def test_400_damaged_pictures_are_refused_or_read(tmp_path):
    """Seeded, so a failure comes again. Damage to a pixel leaves a picture, so both outcomes occur."""
    rng = random.Random(0)
    path = tmp_path / "picture"
    read = 0
    for content in itertools.islice(itertools.cycle(samples()), 400):
        path.write_bytes(damaged(rng, content))
        try:
            image = read_picture(path)
        except BadPicture:
            continue
        read += 1
        assert image.mode == "RGB"
        assert np.asarray(image).shape == (image.height, image.width, 3)
    assert 40 < read < 360


# -------------------------------------------------------------------------------------------------------- pixel values

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


# ------------------------------------------------------------------------------------------------------------- writing


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_is_written_is_read_back(tmp_path):
    write_picture(NOISE, tmp_path / "picture.png")
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "picture.png")), noise(5, 7, 3), strict=True)
    assert files(tmp_path).keys() == {"picture.png"}


@pytest.mark.parametrize(("ending", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")])
def test_the_ending_names_the_format(ending, kind, tmp_path):
    write_picture(NOISE, tmp_path / f"picture{ending}")
    with Image.open(tmp_path / f"picture{ending}") as image:
        assert (image.format, image.size) == (kind, (7, 5))


def test_a_picture_that_is_there_is_replaced(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"old")
    write_picture(NOISE, tmp_path / "picture.png")
    assert read_picture(tmp_path / "picture.png").size == (7, 5)
    assert files(tmp_path).keys() == {"picture.png"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_save_that_fails_leaves_the_old_picture_and_no_litter(error, monkeypatch, tmp_path):
    def save(self, path, *rest):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", save)
    (tmp_path / "picture.png").write_bytes(b"old")
    with pytest.raises(BadPicture if isinstance(error, OSError) else KeyboardInterrupt):
        write_picture(NOISE, tmp_path / "picture.png")
    assert files(tmp_path) == {"picture.png": b"old"}


@pytest.mark.parametrize("name", ["picture", "picture.xyz", "picture.", ".png", "picture.txt", ".."])
def test_an_ending_that_names_no_format_is_refused(name, tmp_path):
    with pytest.raises(BadPicture, match=r"cannot be written: end its name in \.png or \.jpg"):
        write_picture(NOISE, tmp_path / name)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("ending", [".psd", ".fli", ".mpg"])
def test_an_ending_of_a_format_that_is_only_read_is_refused(ending, tmp_path):
    with pytest.raises(BadPicture, match=r"cannot be written: end its name in \.png or \.jpg"):
        write_picture(NOISE, tmp_path / f"picture{ending}")


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name_is_refused(path):
    with pytest.raises(BadPicture):
        write_picture(NOISE, Path(path))


def test_a_name_too_long_is_refused(tmp_path):
    with pytest.raises(BadPicture):
        write_picture(NOISE, tmp_path / ("a" * 300 + ".png"))


def test_a_name_that_is_just_short_enough_is_written(tmp_path):
    name = "a" * 251 + ".png"
    write_picture(NOISE, tmp_path / name)
    assert files(tmp_path).keys() == {name}


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(BadPicture, match=r"cannot be written: No such file or directory"):
        write_picture(NOISE, tmp_path / "nowhere" / "picture.png")


def test_a_folder_in_the_pictures_place_is_refused(tmp_path):
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(BadPicture, match="cannot be written"):
        write_picture(NOISE, tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
