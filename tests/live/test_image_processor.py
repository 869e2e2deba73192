"""Pixel values by the settings of a model folder, against those of transformers' PIL backend, bit for bit."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from npgemma.checkpoints.image_processor import read_image_processor
from npgemma.checkpoints.towers import VisionConfig
from npgemma.errors import BadModel, BadPicture
from npgemma.io.pixels import pixel_values

pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")

from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

SIDE = 28
SIZE = {"size": {"height": SIDE, "width": SIDE}}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SETTINGS = (
    {},
    *({key: None} for key in ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_pad")),
    *({"resample": kernel} for kernel in range(6)),
    {"size": [SIDE, SIDE]},
    {"size": SIDE},
    {"size": {"shortest_edge": SIDE}},
    {"size": SIDE, "default_to_square": True},
    {"do_resize": False},
    {"do_resize": False, "size": {"longest_edge": 3}},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
    {"do_rescale": False, "image_mean": 127.5, "image_std": 127.5},
    {"rescale_factor": 1 / 127.5, "image_mean": 1, "image_std": [1, 1, 1]},
    {"rescale_factor": 1},
    {"image_mean": MEAN, "image_std": STD},
    {"image_mean": MEAN, "image_std": STD, "resample": 2, "rescale_factor": 1 / 256},
    {"image_mean": 0.1, "image_std": 0.3},
    {"do_convert_rgb": False},
    {"do_convert_rgb": None},
    {"crop_size": {"height": 3, "width": 3}},
    {"crop_size": 9, "do_center_crop": None, "do_pad": False},
)
PICTURES = ((SIDE, SIDE), (97, 31), (5, 300), (1, 1), (2 * SIDE, 2 * SIDE), (57, 56))


def ours(folder: Path, image: Image.Image) -> np.ndarray:
    settings, _ = read_image_processor(folder, VisionConfig(image_size=SIDE))
    return pixel_values([image], SIDE, settings)


def check(folder: Path) -> None:
    """Equal values for pictures of several shapes; BadPicture where those of transformers do not fit the model."""
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    for height, width in PICTURES:
        image = Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8))
        expected = processor(image, return_tensors="np").pixel_values
        if expected.shape == (1, 3, SIDE, SIDE):
            np.testing.assert_array_equal(ours(folder, image), expected.astype(np.float32), strict=True)
        else:
            with pytest.raises(BadPicture):
                ours(folder, image)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("nested", [False, True])
def test_every_setting(settings: dict, nested: bool, tmp_path: Path) -> None:
    content = {"image_processor_type": "SiglipImageProcessor"} | SIZE | settings
    name = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"image_processor": content} if nested else content))
    check(tmp_path)


@pytest.mark.parametrize("processor", [{}, {"image_processor": None}, {"image_processor": SIZE | {"resample": 0}}])
def test_the_same_file_of_two_counts(processor: dict, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SIZE | {"resample": 2}))
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    check(tmp_path)


def test_padding_changes_what_transformers_computes(tmp_path: Path) -> None:
    """So it is refused."""
    content = SIZE | {"do_pad": True, "pad_size": {"height": 40, "width": 40}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    made = SiglipImageProcessorPil.from_pretrained(tmp_path)(Image.new("RGB", (5, 7)), return_tensors="np").pixel_values
    assert made.shape != (1, 3, SIDE, SIDE)
    with pytest.raises(BadModel, match=r"preprocessor_config\.json: do_pad is True"):
        ours(tmp_path, Image.new("RGB", (5, 7)))
