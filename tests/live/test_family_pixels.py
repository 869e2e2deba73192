"""Pixel values of the families against transformers' image processors on the PIL backend, bit for bit."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from npgemma.checkpoints.image_processor import (
    CLIP_KINDS,
    DEIT_KINDS,
    SIGLIP_KINDS,
    VIT_KINDS,
    read_image_processor,
)
from npgemma.checkpoints.towers import VisionConfig
from npgemma.io.picture import read_picture
from npgemma.io.pixels import pixel_values

pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")

from transformers.image_utils import load_image

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

SHARED = Path(__file__).parents[3] / "shared" / "data" / "pictures"
PICTURES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "text.png")

# Preprocessor files as the hub has them, by the class of transformers that reads them.
CLIP = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3}
SIGLIP_2 = {"image_processor_type": "SiglipImageProcessor", "resample": 2, "size": {"height": 224, "width": 224}}
FAMILIES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "CLIP": ("clip", CLIP_KINDS, CLIP),
    "CLIP, defaults": ("clip", CLIP_KINDS, {}),
    "CLIP, short side 256": ("clip", CLIP_KINDS, {"size": {"shortest_edge": 256}}),
    "CLIP, short side 100": ("clip", CLIP_KINDS, {"size": {"shortest_edge": 100}}),
    "CLIP, squashed to 240": ("clip", CLIP_KINDS, {"size": {"height": 240, "width": 240}}),
    "CLIP, cropped alone": ("clip", CLIP_KINDS, {"do_resize": False}),
    "SigLIP": ("siglip", SIGLIP_KINDS, {}),
    "SigLIP 2": ("siglip", SIGLIP_KINDS, SIGLIP_2),
    "ViT": ("vit", VIT_KINDS, {"do_convert_rgb": True}),
    "ViT, old": (
        "vit",
        VIT_KINDS,
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "do_convert_rgb": True},
    ),
    "DeiT": ("deit", DEIT_KINDS, {"do_convert_rgb": True}),
    "DINOv2": ("bit", VIT_KINDS, {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}}),
}
# Columns and rows: margins of 3, 7 and 11 pixels after the short side is 224, thin ones, tiny ones, the model's own.
SIZES = ((224, 227), (231, 224), (235, 224), (97, 31), (5, 300), (1, 1), (224, 224), (301, 299), (226, 640))
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK")


def drawn(columns: int, rows: int, mode: str) -> Image.Image:
    """Noise with a circle and a line on it; a palette has a transparent colour."""
    noise = np.random.default_rng([columns, rows]).integers(0, 256, (rows, columns, 4), np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    draw.ellipse((columns // 4, rows // 5, columns // 2, rows // 2), fill=(200, 30, 90, 120))
    draw.line((0, 0, columns, rows), fill=(10, 240, 30, 255), width=3)
    if mode == "P":
        image = image.convert("RGB").quantize(40)
        image.info["transparency"] = 3
        return image
    return image if mode == "RGBA" else image.convert("RGB" if mode == "CMYK" else mode).convert(mode)


class Family:
    """Both image processors of a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        module, kinds, content = FAMILIES[name]
        (folder / "preprocessor_config.json").write_text(json.dumps(content))
        self.settings, _ = read_image_processor(folder, VisionConfig(image_size=224), kinds)
        package = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
        found = next(each for each in vars(package) if each.endswith("ImageProcessorPil"))
        self.theirs = getattr(package, found).from_pretrained(folder)

    def compare(self, picture: Path | Image.Image) -> None:
        image = load_image(str(picture)) if isinstance(picture, Path) else picture
        expected = self.theirs(image, return_tensors="np").pixel_values
        found = pixel_values([read_picture(picture)], 224, self.settings)
        np.testing.assert_array_equal(found, expected.astype(np.float32), strict=True)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Family:
    return Family(request.param, tmp_path)


def test_drawn_pictures_of_odd_sizes(family: Family) -> None:
    for i, (columns, rows) in enumerate(SIZES):
        family.compare(drawn(columns, rows, MODES[i % len(MODES)]))
        family.compare(drawn(rows, columns, "RGB"))


def test_every_mode(family: Family) -> None:
    for mode in MODES:
        family.compare(drawn(97, 131, mode))


def test_photographs(family: Family) -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not at hand")
    for name in PICTURES:
        family.compare(SHARED / name)
