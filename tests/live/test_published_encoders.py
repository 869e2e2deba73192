"""transformers reads the configs of the encoders on the hub alike, and makes as many weights of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_encoders import HUB

from npgemma.checkpoints.model_types import module_of
from npgemma.io.pixels import pixel_values

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

MODELS = {
    "clip": transformers.CLIPModel,
    "siglip": transformers.SiglipModel,
    "vit": transformers.ViTForImageClassification,
}
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 91, 3), np.uint8))


# One of each kind and size of preprocessor_config.json.
PIXELS = """
    siglip-base-patch16-224 siglip-so400m-patch14-384 siglip2-base-patch32-256 clip-vit-base-patch16
    clip-vit-large-patch14-336 vit-base-patch16-384 deit-base-patch16-224 deit-base-patch16-384
"""


def write(name: str, path: Path) -> None:
    (path / "config.json").write_text(json.dumps(HUB[name].config))
    (path / "preprocessor_config.json").write_text(json.dumps(HUB[name].preprocessor))


@pytest.mark.parametrize("name", HUB)
def test_every_key_and_the_number_of_elements(name, tmp_path):
    write(name, tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    ours = module_of(tmp_path).read_config(tmp_path)
    towers = [(ours.vision, getattr(theirs, "vision_config", theirs))]
    if hasattr(ours, "text"):
        towers.append((ours.text, theirs.text_config))
    for tower, config in towers:
        assert {key: getattr(config, key) for key in vars(tower)} == vars(tower)
    with torch.device("meta"):
        model = MODELS[theirs.model_type](theirs)
    assert sum(p.numel() for p in model.parameters()) == HUB[name].elements


@pytest.mark.parametrize("name", PIXELS.split())
def test_pixel_values(name, tmp_path):
    write(name, tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    ours = module_of(tmp_path).read_config(tmp_path)
    expected = theirs(IMAGE, return_tensors="np").pixel_values
    np.testing.assert_array_equal(pixel_values([IMAGE], ours.vision.image_size, ours.pixels), expected, strict=True)
