"""Reading picture files: formats, EXIF orientation, and BadPicture for anything damaged."""

import io
import itertools
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from npgemma.errors import BadPicture
from npgemma.io.picture import FORMATS, read_picture

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


# -------------------------------------------------------------------------------------------------------------- formats


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


# ----------------------------------------------------------------------------------------------------------------- EXIF


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


# ------------------------------------------------------------------------------------------------------ what is damaged


def test_a_missing_picture_is_said_to_be_missing(tmp_path):
    with pytest.raises(BadPicture, match=r"nowhere\.png was not found"):
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
    with pytest.raises(BadPicture, match=r"picture\.png is not a picture in a format that npgemma reads \(PNG, JPEG"):
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


def test_a_picture_of_exactly_the_most_pixels_is_read(tmp_path):
    path = tmp_path / "picture.png"
    NOISE.save(path)
    assert read_picture(path, max_pixels=35).size == (7, 5)
    with pytest.raises(BadPicture, match=r"picture\.png has 7 x 5 pixels"):
        read_picture(path, max_pixels=34)


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
