"""What a file is by its first bytes: pictures are read whatever they are called, other kinds are named."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import NOISE, encoded, noise, rgb
from PIL import Image

from npgemma.errors import BadPicture
from npgemma.io.picture import MAX_PIXELS, read_picture
from npgemma.io.picture_kinds import is_picture, kind_of


def box(brand: bytes, *compatible: bytes) -> bytes:
    """The beginning of a file of the ISO family."""
    body = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return (len(body) + 4).to_bytes(4, "big") + body + bytes(100)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
CONVERT = ", which npgemma does not read; convert it to PNG or JPEG"
# By what a file is: its first bytes, and the end of the message.
NAMED = {
    "AVIF": (box(b"avif", b"mif1"), f"is AVIF{CONVERT}"),
    "a sequence of AVIF": (box(b"avis"), f"is AVIF{CONVERT}"),
    "AVIF in the name of HEIF": (box(b"mif1", b"miaf", b"avif"), f"is AVIF{CONVERT}"),
    "HEIC": (box(b"heic", b"mif1"), f"is HEIC{CONVERT}"),
    "HEIC of 10 bits": (box(b"heix"), f"is HEIC{CONVERT}"),
    "a sequence of HEIC": (box(b"hevc"), f"is HEIC{CONVERT}"),
    "HEIF": (box(b"mif1", b"heic"), f"is HEIC{CONVERT}"),
    "SVG": (SVG, f"is SVG{CONVERT}"),
    "SVG with a declaration": (b'<?xml version="1.0"?>\n<!-- made by hand -->\n' + SVG, f"is SVG{CONVERT}"),
    "SVG with a type": (
        b'<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x">' + SVG,
        f"is SVG{CONVERT}",
    ),
    "SVG after a mark": (b"\xef\xbb\xbf" + SVG, f"is SVG{CONVERT}"),
    "JPEG XL": (b"\xff\x0a" + bytes(20), f"is JPEG XL{CONVERT}"),
    "JPEG XL in a container": (b"\0\0\0\x0cJXL \r\n\x87\n", f"is JPEG XL{CONVERT}"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", f"is JPEG 2000{CONVERT}"),
    "a JPEG 2000 stream": (b"\xff\x4f\xff\x51" + bytes(20), f"is JPEG 2000{CONVERT}"),
    "PDF": (b"%PDF-1.7\n", f"is PDF{CONVERT}"),
    "PostScript": (b"%!PS-Adobe-3.0\n", f"is PostScript{CONVERT}"),
    "Photoshop": (b"8BPS\0\1", f"is a Photoshop document{CONVERT}"),
    "GIMP": (b"gimp xcf v011", f"is a GIMP document{CONVERT}"),
    "an icon": (b"\0\0\1\0\1\0", f"is an icon{CONVERT}"),
    "Canon RAW": (b"II*\0\x10\0\0\0CR\2\0", f"is a RAW photo{CONVERT}"),
    "new Canon RAW": (box(b"crx "), f"is a RAW photo{CONVERT}"),
    "Fuji RAW": (b"FUJIFILMCCD-RAW 0201", f"is a RAW photo{CONVERT}"),
    "Olympus RAW": (b"IIRO\x08\0\0\0", f"is a RAW photo{CONVERT}"),
    "Panasonic RAW": (b"IIU\0\x18\0\0\0", f"is a RAW photo{CONVERT}"),
    "OpenEXR": (b"v/1\x01", f"is a high dynamic range picture (OpenEXR or HDR){CONVERT}"),
    "QOI": (b"qoif", f"is QOI{CONVERT}"),
    "DICOM": (bytes(128) + b"DICM", f"is DICOM{CONVERT}"),
    "MP4": (box(b"isom", b"mp41"), "is not a picture: it is a video"),
    "QuickTime": (box(b"qt  "), "is not a picture: it is a video"),
    "Matroska": (b"\x1aE\xdf\xa3" + bytes(9), "is not a picture: it is a video"),
    "AVI": (b"RIFF\0\0\0\0AVI LIST", "is not a picture: it is a video"),
    "a resource fork of macOS": (b"\0\x05\x16\x07\0\2\0\0Mac OS X", "is not a picture: it is a macOS resource fork"),
    "a pointer of Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
        "is not a picture: it is a Git LFS pointer (run: git lfs pull)",
    ),
    "zip": (b"PK\3\4", "is not a picture: it is an archive"),
    "gzip": (b"\x1f\x8b\x08", "is not a picture: it is an archive"),
    "a web page": (b"<!DOCTYPE html><html>", "is not a picture: it is a web page"),
    "JSON": (b'{"a": 1}', "is not a picture: it is JSON"),
    "text": (b"a list of things\n", "is not a picture: it is text"),
    "text that is not ASCII": ("größer\n".encode(), "is not a picture: it is text"),
    "text of UTF-16": ("größer\n".encode("utf-16"), "is not a picture: it is text"),
    "long text cut within a character": (b"a" + "é".encode() * 2000, "is not a picture: it is text"),
    "nothing": (b"", "is not a picture: it is an empty file"),
}


@pytest.mark.parametrize("name", ["picture.jpg", "picture"])
@pytest.mark.parametrize(("content", "says"), NAMED.values(), ids=NAMED)
def test_a_file_of_another_kind_is_named(content, says, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadPicture) as error:
        read_picture(tmp_path / name)
    assert str(error.value) == f"{tmp_path / name} {says}"


@pytest.mark.parametrize(
    "text",
    [
        "P1 is the first page",
        "P6 and P7",
        "Id3 tags",
        "flac files",
        "BMW and others",
        "worldwide",
        "orchid",
        "GIF or PNG?",
    ],
)
def test_text_that_begins_like_another_kind_is_text(text, tmp_path):
    (tmp_path / "notes.txt").write_text(text)
    with pytest.raises(BadPicture, match=r"notes\.txt is not a picture: it is text"):
        read_picture(tmp_path / "notes.txt")


@pytest.mark.parametrize("piece", [b"<!---->", b" ", b"<?xml>", b"<!--", b"#\n", b"P6 ", b"[", b"<!-- ", b"\n\t"])
def test_a_head_that_repeats_itself_is_classified_at_once(piece):
    """No pattern tries the same bytes in many ways."""
    before = time.process_time()
    for first in (b"", b"P6", b"\xef\xbb\xbf"):
        kind_of((first + piece * 1024)[:1024])
    assert time.process_time() - before < 0.5


@pytest.mark.parametrize("head", [b"P6\n# made by hand\n2 1\n255\n", b"P6 2 1 255 ", b"P6\n#\n\t2\n1\n255\n"])
def test_comments_and_spaces_in_the_header_of_ppm(head, tmp_path):
    (tmp_path / "picture").write_bytes(head + bytes(range(6)))
    assert rgb(read_picture(tmp_path / "picture")).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert is_picture(head)


@pytest.mark.parametrize("suffix", [".dng", ".NEF", ".arw", ".pef", ".srw"])
def test_a_raw_photo_is_not_mistaken_for_the_tiff_in_it(suffix, tmp_path):
    """Its first picture is a thumbnail."""
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(NOISE, "TIFF"))
    with pytest.raises(BadPicture, match=f"is a RAW photo{CONVERT}"):
        read_picture(path)


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1, 330: 8}], ids=["DNG", "others"])
def test_a_raw_photo_with_the_name_of_a_tiff_is_found_by_its_tags(tags, tmp_path):
    path = tmp_path / "picture.tif"
    NOISE.save(path, tiffinfo=tags)
    with pytest.raises(BadPicture, match=f"is a RAW photo{CONVERT}"):
        read_picture(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_every_picture_that_npgemma_reads_is_known_by_its_first_bytes(kind, mode, tmp_path):
    image = NOISE.convert(mode)
    try:
        content = encoded(image, kind)
    except OSError:
        pytest.skip(f"Pillow does not write {mode} as {kind}")
    assert kind_of(content[:1024]) is None
    assert is_picture(content[:1024])


@pytest.mark.parametrize("suffix", [".jpg", ".mpo", ""])
def test_the_first_picture_of_a_phones_jpeg_is_read(suffix, tmp_path):
    """Phones write several pictures into one JPEG, which Pillow calls MPO."""
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(NOISE, "MPO", save_all=True, append_images=[Image.new("RGB", (7, 5))]))
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(rgb(read_picture(path)), expected, strict=True)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".jif", ".apng", ".dib", ".pnm", ".jpg", ".heic", ".txt", ""])
def test_a_picture_is_read_whatever_it_is_called(suffix, tmp_path):
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(NOISE, "PNG"))
    np.testing.assert_array_equal(rgb(read_picture(path)), noise(5, 7, 3), strict=True)


DATA = "data:image/png;base64," + "iVBORw0KGgo" * 50_000
URLS = {
    "https://example.com/a.jpg": "https://example.com/a.jpg is a URL",
    "HTTP://example.com/a.jpg?b=c": "HTTP://example.com/a.jpg?b=c is a URL",
    "s3://bucket/a.png": "s3://bucket/a.png is a URL",
    "gs://bucket/a.png": "gs://bucket/a.png is a URL",
    "file:///tmp/a.png": "file:///tmp/a.png is a URL",
}


@pytest.mark.parametrize(("url", "says"), URLS.items(), ids=URLS)
def test_a_url_is_named(url, says):
    with pytest.raises(BadPicture) as error:
        read_picture(url)
    assert str(error.value) == f"{says}; npgemma does not download pictures: save it as a file"


def test_a_data_url_is_named_and_cut():
    for picture in (DATA, Path(DATA), Path("folder") / DATA):
        with pytest.raises(BadPicture, match=r"^data:image/png;base64,iVBOR.*\.\.\. .* save it as a file$") as error:
            read_picture(picture)
        assert len(str(error.value)) < 200


def test_a_long_path_is_cut():
    with pytest.raises(BadPicture, match=r"^a{200}\.\.\. \(5,000 characters\) cannot be read: File name too long$"):
        read_picture("a" * 5000)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadPicture, match=r"a\.png cannot be read: it is not a regular file"):
        read_picture(tmp_path / "a.png")


def test_the_limit_is_that_of_pillow():
    assert MAX_PIXELS <= Image.MAX_IMAGE_PIXELS
