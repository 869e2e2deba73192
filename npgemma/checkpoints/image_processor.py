"""How pictures become pixel values: processor_config.json, or else preprocessor_config.json."""

import math
from pathlib import Path

from PIL import Image

from npgemma.checkpoints.towers import VisionConfig
from npgemma.io.model_folder import member
from npgemma.io.pixels import PALIGEMMA, PixelSettings
from npgemma.io.strict_json import Section, find_section, words

PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"

# Keys that do not matter: npgemma converts every picture to RGB, which changes none that is, and transformers cannot
# use the others; a size is used only by the step that it belongs to.
HARMLESS = words("""
    processor_class auto_map _processor_class _auto_class backend
    transformers_version _valid_processor_keys _valid_kwargs_names model_input_names
    do_convert_rgb crop_size pad_size default_to_square
    data_format input_data_format return_tensors device disable_grouping use_fast
""")
PROCESSOR_HARMLESS = words("""
    processor_class auto_map image_seq_length tokenizer chat_template transformers_version _commit_hash
""")
IMAGE_SIZE = f"image_size in config.json; {VisionConfig.image_size} if it is missing there"
# Its other backends resize almost equally. The key feature_extractor_type is older.
KINDS = ("SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil")


def read_image_processor(folder: Path, vision: VisionConfig) -> tuple[PixelSettings, dict[str, Section]]:
    """The settings of a model folder, and the files they were read from: PaliGemma's if it has none.

    As in transformers, the section image_processor of processor_config.json goes before preprocessor_config.json.
    BadModel, with file and key, for a step that npgemma does not do, and for sizes that do not fit the model.
    """
    files = {name: s for name in (PROCESSOR, PREPROCESSOR) if (s := find_section(member(folder, name)))}
    if processor := files.get(PROCESSOR):
        processor.ignore(PROCESSOR_HARMLESS)
        nested = processor.section("image_processor")
        if processor.get("image_processor") is not None:
            return parse(nested, vision), {PROCESSOR: processor}
    s = files.get(PREPROCESSOR)
    return PALIGEMMA if s is None else parse(s, vision), files


def parse(s: Section, vision: VisionConfig) -> PixelSettings:
    """The settings in one section. BadModel as for `read_image_processor`."""
    s.ignore(HARMLESS)
    for key in ("image_processor_type", "feature_extractor_type"):
        s.require(key, *KINDS)
    for key in ("do_center_crop", "do_pad"):
        s.require(key, False)
    tokens = s.get("image_seq_length", vision.num_patches)
    if tokens != vision.num_patches:
        raise s.fault("image_seq_length", tokens, f"not {vision.num_patches}, the patches of a picture ({IMAGE_SIZE})")
    resizes = takes_step(s, "do_resize")
    resample, keeps_shape = read_resample(s), read_size(s, vision.image_size) if resizes else False
    factor = s.positive("rescale_factor", 1 / 255)
    mean, std = read_channels(s, "image_mean"), read_channels(s, "image_std")
    if min(std) <= 0:
        raise s.fault("image_std", s.get("image_std"), "not above zero")
    s.ignore(["size"])
    return PixelSettings(
        resample=resample if resizes else None,
        keeps_shape=keeps_shape,
        rescale_factor=factor if takes_step(s, "do_rescale") else None,
        mean_and_std=(mean, std) if takes_step(s, "do_normalize") else None,
    )


def takes_step(s: Section, key: str) -> bool:
    """Whether a picture goes through a step: yes if the key is missing, but no if it is null, as in transformers."""
    return s.flag(key, key not in s.values)


def read_resample(s: Section) -> Image.Resampling:
    """The kernel, by Pillow's number."""
    value = s.get("resample", int(Image.Resampling.BICUBIC))
    if type(value) is not int or not 0 <= value <= 5:
        raise s.fault("resample", value, "not the number of a kernel of Pillow, from 0 to 5")
    return Image.Resampling(value)


def read_size(s: Section, side: int) -> bool:
    """Whether pictures keep their shape when they are resized. BadModel if `size` is not that of the model.

    A number is the length of the shorter edge, unless default_to_square is true.
    """
    square = {"height": side, "width": side}
    value = s.get("size", square)
    if type(value) is int:
        given = {"height": value, "width": value} if s.flag("default_to_square", False) else {"shortest_edge": value}
    elif isinstance(value, list) and len(value) == 2:
        given = dict(zip(("height", "width"), value, strict=True))
    else:
        given = {key: each for key, each in value.items() if each is not None} if isinstance(value, dict) else value
    if given not in (square, {"shortest_edge": side}):
        raise s.fault("size", value, f"not {side} x {side} pixels, which the model reads ({IMAGE_SIZE})")
    return given != square


def read_channels(s: Section, key: str) -> tuple[float, ...]:
    """A number for each of the three channels, or one for all."""
    value = s.get(key, 0.5)
    each = value if isinstance(value, list) else [value] * 3
    if len(each) != 3 or any(type(x) not in (int, float) or not math.isfinite(x) or abs(x) > 1e30 for x in each):
        raise s.fault(key, value, "not a number, or a list of three")
    return tuple(map(float, each))
