"""Reading picture files: formats, EXIF orientation, and BadPicture for damaged files."""

import io
import itertools
import random
import struct
import zlib

import numpy as np
import pytest
from pictures import NOISE, encoded, noise, rgb
from PIL import Image

from npgemma.errors import BadPicture
from npgemma.io.picture import FORMATS, Limits, read_picture

ORIENTATION = 0x0112  # the EXIF tag


# -------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_lossless_file_is_read_exactly(kind, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(NOISE, kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(rgb(read_picture(path)), noise(5, 7, 3), strict=True)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP"])
def test_a_lossy_file_is_read_as_pillow_decodes_it(kind, tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(encoded(NOISE, kind))
    with Image.open(path) as image:
        np.testing.assert_array_equal(rgb(read_picture(path)), np.asarray(image.convert("RGB")), strict=True)


def test_the_content_determines_the_format_and_not_the_suffix(tmp_path):
    (tmp_path / "picture.jpg").write_bytes(encoded(NOISE, "PNG"))
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "picture.jpg")), noise(5, 7, 3), strict=True)


def test_a_path_may_be_a_string(tmp_path):
    NOISE.save(tmp_path / "picture.png")
    np.testing.assert_array_equal(rgb(read_picture(str(tmp_path / "picture.png"))), noise(5, 7, 3), strict=True)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_read(kind, tmp_path):
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / "picture"
    path.write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    with Image.open(path) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(rgb(read_picture(path)), np.asarray(frames[0]), strict=True)


# ----------------------------------------------------------------------------------------------------------------- EXIF


# By orientation: the stored form of an upright picture. The EXIF standard defines each orientation by the sides of the
# upright picture where row 0 and column 0 of the stored one are.
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
    """A phone stores the picture as its sensor sees it, and in EXIF how the phone was held."""
    upright = noise(5, 7, 3)
    path = tmp_path / "picture"
    path.write_bytes(oriented(orientation, STORED[orientation](upright), kind))
    np.testing.assert_array_equal(rgb(read_picture(path)), upright, strict=True)


@pytest.mark.parametrize("orientation", STORED)
def test_a_jpeg_is_turned_upright(orientation, tmp_path):
    """JPEG is lossy, so the expected pixels are Pillow's, which ignores the tag."""
    path = tmp_path / "picture.jpg"
    path.write_bytes(oriented(orientation, STORED[orientation](noise(5, 7, 3)), "JPEG"))
    with Image.open(path) as image:
        stored = np.asarray(image)
    found = rgb(read_picture(path))
    assert found.shape == (5, 7, 3)
    np.testing.assert_array_equal(STORED[orientation](found), stored, strict=True)


@pytest.mark.parametrize("orientation", STORED)
def test_a_pil_image_is_not_turned(orientation):
    """The caller may have turned it already."""
    stored = STORED[orientation](noise(5, 7, 3))
    with Image.open(io.BytesIO(oriented(orientation, stored, "PNG"))) as image:
        np.testing.assert_array_equal(rgb(read_picture(image)), stored, strict=True)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(orientation, tmp_path):
    (tmp_path / "picture.png").write_bytes(oriented(orientation, noise(5, 7, 3), "PNG"))
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "picture.png")), noise(5, 7, 3), strict=True)


def test_a_transparent_picture_is_turned_upright(tmp_path):
    upright = noise(5, 7, 4)
    (tmp_path / "picture.png").write_bytes(oriented(6, STORED[6](upright), "PNG"))
    np.testing.assert_array_equal(rgb(read_picture(tmp_path / "picture.png")), rgb(read_picture(upright)), strict=True)


def test_invalid_metadata_is_ignored(tmp_path):
    """The tag ImageWidth contains text. Viewers turn this picture upright."""
    tags = [(0x0100, 2, 6, 38), (ORIENTATION, 3, 1, 6 << 16)]  # tag, type, count, value or offset
    exif = b"MM\0*" + struct.pack(">LH", 8, len(tags))
    exif += b"".join(struct.pack(">HHLL", *tag) for tag in tags) + bytes(4) + b"hello\0"
    stored = STORED[6](noise(5, 7, 3))
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded(Image.fromarray(np.ascontiguousarray(stored)), "JPEG", exif=b"Exif\0\0" + exif))
    assert read_picture(path).size == (7, 5)


# ---------------------------------------------------------------------------------------------------- unreadable files


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(BadPicture, match=r"nowhere\.png was not found"):
        read_picture(tmp_path / "nowhere.png")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(BadPicture, match="cannot be read"):
        read_picture(tmp_path)


def test_an_invalid_path_is_refused():
    for path in ("", "a\0b.png"):
        with pytest.raises(BadPicture):
            read_picture(path)


NOT_PICTURES = {
    "empty": b"",
    "text": b"hello world\n",
    "a web page": b"<!DOCTYPE html><html><body>Not Found</body></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF": b"%PDF-1.7\n%%EOF\n",
    "zeros": bytes(1000),
    "a PNG signature": b"\x89PNG\r\n\x1a\n",
    "a JPEG signature": b"\xff\xd8\xff\xe0",
}


@pytest.mark.parametrize("content", NOT_PICTURES.values(), ids=NOT_PICTURES)
def test_a_file_that_is_not_a_picture_is_named_in_the_error(content, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(BadPicture) as error:
        read_picture(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("EPS", "is PostScript, which npgemma does not read; convert it to PNG or JPEG"),
        ("PDF", "is PDF, which npgemma does not read; convert it to PNG or JPEG"),
        ("ICO", "is an icon, which npgemma does not read; convert it to PNG or JPEG"),
        ("PCX", "is PCX, which npgemma does not read; convert it to PNG or JPEG"),
        ("SGI", "is SGI, which npgemma does not read; convert it to PNG or JPEG"),
        ("ICNS", "is an icon, which npgemma does not read; convert it to PNG or JPEG"),
        ("DDS", "is a texture (DDS, KTX or ASTC), which npgemma does not read; convert it to PNG or JPEG"),
        ("TGA", "is not a picture in a format that npgemma reads (PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM)"),
    ],
)
def test_other_formats_of_pillow_are_refused_by_name(kind, says, tmp_path):
    """The decoder of EPS starts Ghostscript, and those of rare formats have had security holes."""
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(Image.fromarray(noise(16, 16, 3)), kind))
    with pytest.raises(BadPicture) as error:
        read_picture(path)
    assert str(error.value) == f"{path} {says}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_truncated_file_is_refused_in_every_format(kind, tmp_path):
    """Pillow can be set to fill the missing rows with gray; npgemma must not."""
    assert kind in FORMATS
    whole = encoded(Image.fromarray(noise(40, 30, 3)), kind)
    path = tmp_path / "picture"
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BadPicture) as error:
            read_picture(path)
        assert str(path) in str(error.value)


def test_a_pil_image_of_a_truncated_file_is_refused():
    """Pillow opens a file without reading its pixels, and fails when they are used."""
    whole = encoded(Image.fromarray(noise(40, 30, 3)), "PNG")
    with Image.open(io.BytesIO(whole[: len(whole) // 2])) as image, pytest.raises(BadPicture):
        read_picture(image)


def png_without_pixels(width: int, height: int) -> bytes:
    """A PNG with this size in its header, and without pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (89_000_001, 1), (1, 2**31 - 1), (9_434, 9_434)])
def test_a_picture_that_is_too_large_is_refused_before_it_is_decompressed(size, tmp_path):
    """A file of 70 bytes could otherwise allocate 10 GB, for 60,000 x 60,000 pixels."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png_without_pixels(*size))
    with pytest.raises(BadPicture, match=r"bomb\.png") as error:
        read_picture(path)
    assert "truncated" not in str(error.value)


def test_a_picture_may_have_exactly_max_pixels(tmp_path):
    path = tmp_path / "picture.png"
    NOISE.save(path)
    assert read_picture(path, Limits(35)).size == (7, 5)
    with pytest.raises(BadPicture, match=r"picture\.png has 7 x 5 pixels; the limit is 34: raise .* --max-pixels"):
        read_picture(path, Limits(34))


def test_max_pixels_replaces_the_limit_of_pillow(tmp_path, monkeypatch):
    """Pillow refuses twice its own limit, which stays as it was."""
    path = tmp_path / "picture.png"
    NOISE.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BadPicture, match=r"picture\.png has too many pixels: raise the limit with --max-pixels"):
        read_picture(path, Limits(9))
    assert read_picture(path, Limits(35)).size == (7, 5)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_tiff_with_a_fractional_data_offset_is_refused(tmp_path):
    """One inverted bit changes the type of StripOffsets from 4, an integer, to 5, a fraction."""
    raw = bytearray(encoded(Image.fromarray(noise(9, 11)), "TIFF"))
    tag = raw.index(struct.pack("<HH", 273, 4))
    raw[tag + 2] = 5
    (tmp_path / "picture.tif").write_bytes(raw)
    with pytest.raises(BadPicture):
        read_picture(tmp_path / "picture.tif")


def samples() -> list[bytes]:
    """A small picture in every format, and in several variants of some formats."""
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
    """`content` with one to eight random changes: bits or bytes changed, inserted or removed."""
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
    """Seeded, so that a failure is reproducible. Damage to a pixel leaves a readable picture."""
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
