"""npgemma's pixel values against those of transformers' PIL backend, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npgemma.io.picture import read_picture
from npgemma.io.pixels import pixel_values

pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from transformers.image_utils import load_image  # noqa: E402
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

SHARED = Path(__file__).parents[3] / "shared" / "data" / "pictures"
PICTURES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "text.png")
SIDES = (84, 224, 448, 896)

# Pillow's modes that transformers brings to RGB correctly. In LAB it takes the band A for transparency, and it drops
# the premultiplied alpha of RGBa; npgemma does neither.
MODES = ("1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "PA", "CMYK", "YCbCr", "HSV")
# What `info["transparency"]` may say about a mode without an alpha band: a gray, an index, alphas by index, a colour.
SEE_THROUGH = {"1": 0, "L": 2, "P": 3, "P by index": bytes(range(0, 255, 15)), "RGB": (1, 0, 1)}
SIZES = ((1, 1), (2, 3), (84, 84), (97, 31), (13, 200), (301, 299))


def theirs(picture: Image.Image | np.ndarray, side: int) -> np.ndarray:
    processor = SiglipImageProcessorPil(size={"height": side, "width": side})
    return processor(picture, return_tensors="np").pixel_values


def ours(picture: str | Path | Image.Image | np.ndarray, side: int) -> np.ndarray:
    return pixel_values([read_picture(picture)], side)


def random_picture(mode: str, height: int, width: int, levels: int = 256) -> Image.Image:
    """Noise in `mode`, each band of so many levels."""
    rng = np.random.default_rng([height, width])
    if mode == "P":
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).quantize(17)
    if mode in ("1", "PA"):
        bands = (height, width, 4) if mode == "PA" else (height, width)
        return Image.fromarray(rng.integers(0, 256, bands, np.uint8)).convert(mode)
    count = len(Image.new(mode, (1, 1)).getbands())
    bands = [Image.fromarray(rng.integers(0, levels, (height, width), np.uint8)) for _ in range(count)]
    return Image.merge(mode, bands)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", PICTURES)
def test_photographs(name: str, side: int) -> None:
    """From the file and from the open picture."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{path} is not at hand")
    expected = theirs(load_image(str(path)), side)
    assert expected.shape == (1, 3, side, side)
    np.testing.assert_array_equal(ours(path, side), expected, strict=True)
    with Image.open(path) as image:
        np.testing.assert_array_equal(ours(image, side), theirs(image, side), strict=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_odd_sizes(mode: str, size: tuple[int, int]) -> None:
    picture = random_picture(mode, *size)
    assert picture.mode == mode
    np.testing.assert_array_equal(ours(picture, 84), theirs(picture, 84), strict=True)


@pytest.mark.parametrize("what", SEE_THROUGH)
def test_transparency_that_is_no_band(what: str) -> None:
    """It is laid over white: the result is not that of the same picture without."""
    mode = what.split()[0]
    picture = random_picture(mode, 40, 50, levels=4)
    opaque = ours(picture, 84)
    picture.info["transparency"] = SEE_THROUGH[what]
    np.testing.assert_array_equal(ours(picture, 84), theirs(picture, 84), strict=True)
    assert not np.array_equal(ours(picture, 84), opaque)


@pytest.mark.parametrize("channels", [3, 4])
def test_arrays(channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (37, 53, channels), np.uint8)
    np.testing.assert_array_equal(ours(array, 84), theirs(array, 84), strict=True)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_is_turned_upright_and_an_open_picture_is_not(orientation: int, tmp_path: Path) -> None:
    """As load_image does with a path, and as the processor does with a picture."""
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    random_picture("RGB", 20, 30).save(path, exif=exif)
    upright = theirs(load_image(str(path)), 84)
    np.testing.assert_array_equal(ours(path, 84), upright, strict=True)
    with Image.open(path) as image:
        np.testing.assert_array_equal(ours(image, 84), theirs(image, 84), strict=True)
        assert np.array_equal(ours(image, 84), upright) == (orientation == 1)
