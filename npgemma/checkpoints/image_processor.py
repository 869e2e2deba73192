"""How pictures become pixel values: processor_config.json, or else preprocessor_config.json."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from npgemma.checkpoints.towers import VisionConfig
from npgemma.io.model_folder import member
from npgemma.io.pixels import BICUBIC, BILINEAR, PALIGEMMA, PixelSettings
from npgemma.io.strict_json import Section, find_section, read_section, words

Config = TypeVar("Config", bound=Any)  # of an encoder, with `vision` and `pixels`
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

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_PIXELS = PixelSettings(BICUBIC, keeps_shape=True, mean_and_std=(CLIP_MEAN, CLIP_STD), crop=True)
VIT_PIXELS = PixelSettings(BILINEAR)
# The defaults of transformers' classes, for the size of the picture that the model reads. The other backends of a class
# resize almost equally.
DEFAULTS: Mapping[str, PixelSettings] = {
    "SiglipImageProcessor": PALIGEMMA,
    "CLIPImageProcessor": CLIP_PIXELS,
    "BitImageProcessor": CLIP_PIXELS,
    "ViTImageProcessor": VIT_PIXELS,
    "DeiTImageProcessor": PixelSettings(BICUBIC, edge=256, crop=True),
}
BACKENDS = ("", "Fast", "Pil")
# Those in which a `size` that is a number is the length of the shorter edge.
BY_SHORTER_EDGE = words("SiglipImageProcessor CLIPImageProcessor BitImageProcessor")
# The classes that a family of models may name; the first is that of a file that names none.
PALIGEMMA_KINDS = ("SiglipImageProcessor",)
SIGLIP_KINDS = tuple(DEFAULTS)
CLIP_KINDS = ("CLIPImageProcessor", *DEFAULTS)
VIT_KINDS = ("ViTImageProcessor", *DEFAULTS)
DEIT_KINDS = ("DeiTImageProcessor", *DEFAULTS)
MAX_EDGE = 4096


def read_image_processor(
    folder: Path, vision: VisionConfig, kinds: Sequence[str] = PALIGEMMA_KINDS
) -> tuple[PixelSettings, dict[str, Section]]:
    """The settings of a model folder, and the files they were read from: the defaults of `kinds[0]` if it has none.

    As in transformers, the section image_processor of processor_config.json goes before preprocessor_config.json.
    BadModel, with file and key, for a step that npgemma does not do, and for sizes that do not fit the model.
    """
    files = {name: s for name in (PROCESSOR, PREPROCESSOR) if (s := find_section(member(folder, name)))}
    if processor := files.get(PROCESSOR):
        processor.ignore(PROCESSOR_HARMLESS)
        nested = processor.section("image_processor")
        if processor.get("image_processor") is not None:
            return parse(nested, vision, kinds), {PROCESSOR: processor}
    s = files.get(PREPROCESSOR)
    return DEFAULTS[kinds[0]] if s is None else parse(s, vision, kinds), files


def read_files(
    folder: Path, parse_config: Callable[[Section], Config], kinds: Sequence[str]
) -> tuple[Config, dict[str, Section]]:
    """The config of an encoder's folder with the settings for its pictures, and the files that both were read from.

    BadModel as for `read_image_processor` and `parse_config`.
    """
    s = read_section(member(folder, "config.json"))
    config = parse_config(s)
    pixels, files = read_image_processor(folder, config.vision, kinds)
    return replace(config, pixels=pixels), {"config.json": s} | files


def parse(s: Section, vision: VisionConfig, kinds: Sequence[str]) -> PixelSettings:
    """The settings in one section. BadModel as for `read_image_processor`."""
    s.ignore(HARMLESS)
    kind = read_kind(s, kinds)
    default, side = DEFAULTS[kind], vision.image_size
    s.require("do_pad", False)
    tokens = s.get("image_seq_length", vision.num_patches)
    if tokens != vision.num_patches:
        raise s.fault("image_seq_length", tokens, f"not {vision.num_patches}, the patches of a picture ({IMAGE_SIZE})")
    resizes, crops = takes_step(s, "do_resize"), takes_step(s, "do_center_crop", default.crop)
    if crops:
        check_crop(s, side, default)
    resample = read_resample(s, default.resample or BICUBIC)
    keeps_shape, edge = read_size(s, side, crops, default, kind) if resizes else (False, side)
    factor = s.positive("rescale_factor", 1 / 255)
    mean, std = (
        read_channels(s, key, each)
        for key, each in zip(("image_mean", "image_std"), default.mean_and_std or (HALF, HALF), strict=True)
    )
    if min(std) <= 0:
        raise s.fault("image_std", s.get("image_std"), "not above zero")
    s.ignore(["size"])
    return PixelSettings(
        resample=resample if resizes else None,
        keeps_shape=keeps_shape,
        rescale_factor=factor if takes_step(s, "do_rescale") else None,
        mean_and_std=(mean, std) if takes_step(s, "do_normalize") else None,
        edge=None if edge == side else edge,
        crop=crops,
    )


def preprocessor_json(kind: str, pixels: PixelSettings, vision: VisionConfig) -> dict[str, object]:
    """The content of preprocessor_config.json for settings that resize to a square; `kind` is one of DEFAULTS."""
    mean, std = pixels.mean_and_std or (HALF, HALF)
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square(vision.image_size),
        "resample": int(pixels.resample or BICUBIC),
        "do_rescale": True,
        "rescale_factor": pixels.rescale_factor,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def read_kind(s: Section, kinds: Sequence[str]) -> str:
    """The name of a class in DEFAULTS. The key feature_extractor_type is older, and so are names that end with it."""
    s.require("image_processor_type", *(kind + backend for kind in kinds for backend in BACKENDS))
    old = [kind.replace("ImageProcessor", "FeatureExtractor") for kind in kinds]
    s.require("feature_extractor_type", *(kind + backend for kind in kinds for backend in BACKENDS), *old)
    name = s.get("image_processor_type") or s.get("feature_extractor_type") or kinds[0]
    name = name.replace("FeatureExtractor", "ImageProcessor")
    return next(kind for kind in kinds if name.startswith(kind))


def takes_step(s: Section, key: str, default: bool = True) -> bool:
    """Whether a picture goes through a step: the default if the key is missing, but no if it is null."""
    return s.flag(key, default and key not in s.values)


def read_resample(s: Section, default: Image.Resampling) -> Image.Resampling:
    """The kernel, by Pillow's number."""
    value = s.get("resample", int(default))
    if type(value) is not int or not 0 <= value <= 5:
        raise s.fault("resample", value, "not the number of a kernel of Pillow, from 0 to 5")
    return Image.Resampling(value)


def square(side: int) -> dict[str, int]:
    """A size with two equal edges, as transformers writes it."""
    return {"height": side, "width": side}


def not_read(side: int) -> str:
    """What is wrong with a size that is not the model's."""
    return f"not {side} x {side} pixels, which the model reads ({IMAGE_SIZE})"


def check_crop(s: Section, side: int, default: PixelSettings) -> None:
    """BadModel unless what is cropped has the model's size. A class that does not crop has no default for it."""
    by_default = square(side) if default.crop else None
    if read_edges(s, "crop_size", by_default, True) != square(side):
        raise s.fault("crop_size", s.get("crop_size", by_default), not_read(side))


def read_size(s: Section, side: int, crops: bool, default: PixelSettings, kind: str) -> tuple[bool, int]:
    """Whether pictures keep their shape when they are resized, and the length of the edge that tells their size.

    BadModel if that is not the model's, unless pictures are cropped after.
    """
    edge = default.edge or side
    by_default = {"shortest_edge": edge} if default.keeps_shape else square(edge)
    given = read_edges(s, "size", by_default, s.flag("default_to_square", kind not in BY_SHORTER_EDGE))
    for length in range(1, MAX_EDGE + 1) if crops else [side]:
        if given in (square(length), {"shortest_edge": length}):
            return given != square(length), length
    wrong = f"not a square or a shortest_edge of 1 to {MAX_EDGE} pixels" if crops else not_read(side)
    raise s.fault("size", s.get("size", by_default), wrong)


def read_edges(s: Section, key: str, default: Any, number_is_square: bool) -> Any:
    """A size as transformers writes it, from the forms that it reads: a number is a square or the shortest edge."""
    value = s.get(key, default)
    if type(value) is int:
        return square(value) if number_is_square else {"shortest_edge": value}
    if isinstance(value, list) and len(value) == 2:
        return dict(zip(("height", "width"), value, strict=True))
    return {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value


def read_channels(s: Section, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """A number for each of the three channels, or one for all."""
    value = s.get(key, list(default))
    each = value if isinstance(value, list) else [value] * 3
    if len(each) != 3 or any(type(x) not in (int, float) or not abs(x) <= 1e30 for x in each):
        raise s.fault(key, value, "not a number, or a list of three")
    return tuple(map(float, each))
