"""preprocessor_config.json and processor_config.json: the settings of pictures, and what npgemma does not do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from config_files import read
from PIL import Image

from npgemma.checkpoints.image_processor import (
    CLIP_KINDS,
    DEIT_KINDS,
    SIGLIP_KINDS,
    VIT_KINDS,
    read_image_processor,
)
from npgemma.checkpoints.towers import VisionConfig
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.pixels import PALIGEMMA, PixelSettings

SIDE, PATCHES = tiny.CONFIG.vision.image_size, tiny.CONFIG.vision.num_patches
SQUARE = {"height": SIDE, "width": SIDE}
FULL = json.loads((EMBEDDED / "preprocessor_config.json").read_text()) | {"size": SQUARE, "image_seq_length": PATCHES}
HALF, ONES = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)


def read_with(folder: Path, preprocessor: object = None, processor: object = None) -> PixelSettings:
    """The settings of a folder with one of the files, or both."""
    for name, content in (("preprocessor_config.json", preprocessor), ("processor_config.json", processor)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return read(tiny.config_json(), folder).pixels


@pytest.mark.parametrize("content", [None, {}, FULL])
def test_paligemmas_settings_are_the_default(content, tmp_path):
    assert read_with(tmp_path, content) == PALIGEMMA


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("resample", 0, PixelSettings(resample=Image.Resampling.NEAREST)),
        ("resample", 1, PixelSettings(resample=Image.Resampling.LANCZOS)),
        ("resample", 2, PixelSettings(resample=Image.Resampling.BILINEAR)),
        ("resample", 3, PALIGEMMA),
        ("resample", None, PALIGEMMA),
        ("resample", 4, PixelSettings(resample=Image.Resampling.BOX)),
        ("resample", 5, PixelSettings(resample=Image.Resampling.HAMMING)),
        ("do_resize", False, PixelSettings(resample=None)),
        ("do_resize", None, PixelSettings(resample=None)),
        ("do_rescale", False, PixelSettings(rescale_factor=None)),
        ("do_rescale", None, PixelSettings(rescale_factor=None)),
        ("rescale_factor", 1 / 127.5, PixelSettings(rescale_factor=1 / 127.5)),
        ("do_normalize", False, PixelSettings(mean_and_std=None)),
        ("do_normalize", None, PixelSettings(mean_and_std=None)),
        ("image_mean", [0.25, 0.5, 1], PixelSettings(mean_and_std=((0.25, 0.5, 1.0), HALF))),
        ("image_mean", 0, PixelSettings(mean_and_std=((0.0,) * 3, HALF))),
        ("image_std", [1, 1, 1], PixelSettings(mean_and_std=(HALF, ONES))),
        ("image_std", 1.0, PixelSettings(mean_and_std=(HALF, ONES))),
        ("size", [SIDE, SIDE], PALIGEMMA),
        ("size", SQUARE | {"shortest_edge": None}, PALIGEMMA),
        ("size", SIDE, PixelSettings(keeps_shape=True)),
        ("size", {"shortest_edge": SIDE}, PixelSettings(keeps_shape=True)),
        ("do_convert_rgb", False, PALIGEMMA),
        ("do_convert_rgb", None, PALIGEMMA),
        ("do_convert_rgb", True, PALIGEMMA),
        ("do_center_crop", False, PALIGEMMA),
        ("do_pad", False, PALIGEMMA),
        ("crop_size", {"height": 3, "width": 3}, PALIGEMMA),
        ("image_processor_type", "SiglipImageProcessorFast", PALIGEMMA),
        ("feature_extractor_type", "SiglipImageProcessor", PALIGEMMA),
    ],
)
def test_each_setting_is_read(key, value, expected, tmp_path):
    assert read_with(tmp_path, {key: value}) == expected


def test_a_number_is_a_square_if_the_file_says_so(tmp_path):
    assert read_with(tmp_path, {"size": SIDE, "default_to_square": True}) == PALIGEMMA


def test_sizes_do_not_matter_without_resizing(tmp_path):
    assert read_with(tmp_path, {"size": {"longest_edge": 3}, "do_resize": False}) == PixelSettings(resample=None)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("size", [SIDE + 1, {"height": SIDE, "width": SIDE + 1}, {"shortest_edge": 224}, {"longest_edge": SIDE}]),
        ("size", [{"height": SIDE}, {"max_height": SIDE, "max_width": SIDE}, "35", True, [], [SIDE], {}, 35.5]),
        ("size", [{"shortest_edge": SIDE, "longest_edge": 2 * SIDE}, [SIDE, SIDE, SIDE]]),
        ("resample", [6, -1, True, 3.0, "bicubic", [3]]),
        ("rescale_factor", [0, -1, "1/255", True, [1]]),
        ("image_mean", [[0.5], [0.5, 0.5], [0.5] * 4, "0.5", [0.5, None, 0.5], [True] * 3, 1e40, 10**400, {}]),
        ("image_std", [0, [0.5, 0, 0.5], [0.5, -0.5, 0.5], [0.5] * 4, "0.5"]),
        ("do_center_crop", ["yes", 1.5]),
        ("do_pad", [True]),
        ("do_resize", [0, 1, "true", []]),
        ("do_rescale", [1]),
        ("do_normalize", [1]),
        ("image_seq_length", [PATCHES + 1, 0, str(PATCHES), [PATCHES]]),
        ("image_processor_type", ["CLIPImageProcessor", "", 3, ["SiglipImageProcessor"], "Siglip2ImageProcessor"]),
    ],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_other_values_are_refused_with_file_and_key(key, values, file, tmp_path):
    where = tmp_path / file
    for value in values:
        content = {key: value}
        where.write_text(json.dumps(content if file.startswith("pre") else {"image_processor": content}))
        with pytest.raises(BadModel) as error:
            read(tiny.config_json(), tmp_path)
        place = f"{where}: " if file.startswith("pre") else f"{where}: image_processor: "
        assert f"{place}{key} is {value!r}" in str(error.value)


def test_the_nested_settings_go_before_the_older_file(tmp_path):
    assert read_with(tmp_path, {"resample": 0}, {"image_processor": {"resample": 2}}).resample == 2


@pytest.mark.parametrize("processor", [{"processor_class": "PaliGemmaProcessor"}, {"image_processor": None}])
def test_without_nested_settings_the_older_file_counts(processor, tmp_path):
    assert read_with(tmp_path, {"resample": 0}, processor).resample == 0


def test_empty_nested_settings_are_settings(tmp_path):
    assert read_with(tmp_path, {"resample": 0}, {"image_processor": {}}) == PALIGEMMA


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_a_damaged_file_is_refused_by_name(name, tmp_path):
    (tmp_path / name).write_text("[]")
    with pytest.raises(BadModel, match=name):
        read(tiny.config_json(), tmp_path)


# ---------------------------------------------------------------------------------------------------- other families

CLIP_CHANNELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
CLIP = PixelSettings(BICUBIC, keeps_shape=True, mean_and_std=CLIP_CHANNELS, crop=True)
VIT = PixelSettings(BILINEAR)
DEIT = PixelSettings(BICUBIC, edge=256, crop=True)
VISION = VisionConfig(image_size=224)
OPENAI = {  # openai/clip-vit-base-patch16
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": list(CLIP_CHANNELS[0]),
    "image_std": list(CLIP_CHANNELS[1]),
    "resample": 3,
    "size": 224,
}
SIGLIP_2 = {  # google/siglip2-base-patch16-224
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": None,
    "resample": 2,
    "size": {"height": 224, "width": 224},
}
DINO = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "image_mean": 0.4, "resample": 3}


def read_family(folder: Path, content: object, kinds: tuple[str, ...]) -> PixelSettings:
    """The settings of a model that reads 224 x 224 pixels, with this preprocessor_config.json if it is not None."""
    if content is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return read_image_processor(folder, VISION, kinds)[0]


@pytest.mark.parametrize(
    ("kinds", "content", "expected"),
    [
        (CLIP_KINDS, None, CLIP),
        (CLIP_KINDS, {}, CLIP),
        (CLIP_KINDS, OPENAI, CLIP),
        (CLIP_KINDS, OPENAI | {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}, CLIP),
        (CLIP_KINDS, {"size": 256}, replace(CLIP, edge=256)),
        (CLIP_KINDS, {"size": 256, "default_to_square": True}, replace(CLIP, edge=256, keeps_shape=False)),
        (CLIP_KINDS, {"size": [64, 64]}, replace(CLIP, edge=64, keeps_shape=False)),
        (CLIP_KINDS, {"do_center_crop": None}, replace(CLIP, crop=False)),
        (CLIP_KINDS, {"do_resize": False}, replace(CLIP, resample=None, keeps_shape=False)),
        (SIGLIP_KINDS, None, PALIGEMMA),
        (SIGLIP_KINDS, SIGLIP_2, VIT),
        (SIGLIP_KINDS, {"image_processor_type": "CLIPImageProcessorFast"}, CLIP),
        (VIT_KINDS, None, VIT),
        (VIT_KINDS, {"feature_extractor_type": "ViTFeatureExtractor", "size": 224}, VIT),
        (VIT_KINDS, {"do_center_crop": True, "crop_size": 224, "size": 256}, replace(VIT, edge=256, crop=True)),
        (VIT_KINDS, DINO, replace(CLIP, edge=256, mean_and_std=((0.4,) * 3, CLIP_CHANNELS[1]))),
        (DEIT_KINDS, None, DEIT),
        (DEIT_KINDS, {"size": 224}, replace(DEIT, edge=None)),
    ],
)
def test_each_family_has_its_defaults(kinds, content, expected, tmp_path):
    assert read_family(tmp_path, content, kinds) == expected


@pytest.mark.parametrize(
    ("kinds", "content", "says"),
    [
        (CLIP_KINDS, {"crop_size": 225}, "crop_size is 225, not 224 x 224 pixels"),
        (CLIP_KINDS, {"crop_size": {"shortest_edge": 224}}, "crop_size is {'shortest_edge': 224}, not 224 x 224"),
        (CLIP_KINDS, {"size": {"longest_edge": 224}}, "size is {'longest_edge': 224}, not a square or a shortest_edge"),
        (CLIP_KINDS, {"size": {"height": 224, "width": 256}}, "not a square or a shortest_edge"),
        (CLIP_KINDS, {"size": 1 << 20}, "size is 1048576, not a square or a shortest_edge of 1 to 4096 pixels"),
        (CLIP_KINDS, {"size": 0}, "size is 0, not a square"),
        (
            CLIP_KINDS,
            {"size": 256, "do_center_crop": False},
            "size is 256, not 224 x 224 pixels, which the model reads",
        ),
        (SIGLIP_KINDS, {"do_center_crop": True}, "crop_size is missing, and its default None is not 224 x 224"),
        (
            SIGLIP_KINDS,
            {"image_processor_type": "Siglip2ImageProcessor"},
            "'Siglip2ImageProcessor', which npgemma does",
        ),
        (VIT_KINDS, {"size": {"shortest_edge": 256}}, "size is {'shortest_edge': 256}, not 224 x 224"),
        (VIT_KINDS, {"do_pad": True}, "do_pad is True"),
    ],
)
def test_what_no_family_reads_is_refused_with_file_and_key(kinds, content, says, tmp_path):
    with pytest.raises(BadModel) as error:
        read_family(tmp_path, content, kinds)
    assert f"{tmp_path / 'preprocessor_config.json'}: " in str(error.value)
    assert says in str(error.value)
