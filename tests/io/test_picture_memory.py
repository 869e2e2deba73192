"""What reading a picture takes is known before, and held against its file, the machine and the user's limit."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import npgemma
from npgemma import BadPicture
from npgemma.io.picture import Limits, open_image, planned_bytes, read_picture

SIDE = 1500
# Python's and Pillow's own allocations, and a strip of a million pixels in two modes of four bytes.
BESIDES = 20_000_000
TURNED = Image.Exif()
TURNED[0x0112] = 6  # EXIF's orientation: turned right
KINDS = {
    "RGB.png": {},
    "RGBA.png": {"exif": TURNED},
    "P.png": {"transparency": 0},
    "I;16.png": {},
    "1.png": {},
    "RGB.jpg": {"exif": TURNED},
    "CMYK.jpg": {"progressive": True, "subsampling": 0},
    "RGB.webp": {"method": 0},
    "RGBA.webp": {"method": 0, "exif": TURNED},
    "P.gif": {"transparency": 0},
    "RGB.bmp": {},
    "F.tif": {},
    "RGBA.tif": {"compression": "tiff_lzw"},
    "RGB.ppm": {},
}


@pytest.fixture(params=KINDS)
def file(request, tmp_path):
    ramp = np.add.outer(np.arange(SIDE), 2 * np.arange(SIDE)).astype(np.uint8)
    image, mode = Image.fromarray(ramp), request.param.partition(".")[0]
    image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / request.param, **KINDS[request.param])
    return tmp_path / request.param


def memory(name: str) -> int:
    """A number of bytes that the kernel knows of this process."""
    return int(Path("/proc/self/status").read_text().partition(name + ":")[2].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_reading_takes_no_more_than_planned(file):
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is that of now
    read_picture(file)
    grown = memory("VmHWM") - before
    with file.open("rb") as opened:
        assert grown < planned_bytes(open_image(opened, file), file) + BESIDES


def test_a_picture_is_held_against_the_memory_that_the_user_allows(file):
    with file.open("rb") as opened:
        needed = planned_bytes(open_image(opened, file), file)
    assert read_picture(file, Limits(memory=needed)).size in ((SIDE, SIDE),)
    with pytest.raises(
        BadPicture, match=r"1500 x 1500 pixels; reading them takes up to .* allow more \(max_memory, --"
    ):
        read_picture(file, Limits(memory=needed - 1))


def test_what_the_weights_leave_of_the_allowed_memory_is_for_pictures(tmp_path):
    """The embedded model may run in 170 MB, and a small picture may be read; one of 16 million pixels takes 128 MB."""
    Image.new("L", (4000, 4000)).save(tmp_path / "x.png")
    model = npgemma.load(max_memory=170_000_000)
    assert model.generate(npgemma.sample_picture(), "ocr").text == "FNY"
    for read in (lambda: model.generate(tmp_path / "x.png", "ocr"), lambda: model.image_features(tmp_path / "x.png")):
        with pytest.raises(BadPicture, match=r"x\.png has 4000 x 4000 pixels; reading them takes up to 0\.13 GB, more"):
            read()


@pytest.mark.parametrize(("kind", "side"), [("PNG", 6000), ("GIF", 6000), ("WEBP", 4000)])
def test_a_small_file_of_many_pixels_is_refused_though_it_holds_them(kind, side, tmp_path):
    """A sheet of one colour, which compresses well; padding does not help before it is as large as photos are."""
    path = tmp_path / "x"
    Image.new("1", (side, side), 1).save(path, kind, method=0)
    with path.open("ab") as file:
        file.truncate(max(path.stat().st_size, 50_000))
    with pytest.raises(BadPicture, match=rf"x has {side} x {side} pixels in a file of [0-9,]+ bytes: .* fill memory"):
        read_picture(path)
