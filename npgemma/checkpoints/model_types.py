"""Which module describes a model folder: by the model_type in its config.json."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from npgemma.checkpoints import clip, language_model, paligemma, siglip, vit
from npgemma.checkpoints.gemma_config import LANGUAGE_MODELS
from npgemma.errors import BadModel
from npgemma.io.model_folder import member
from npgemma.io.strict_json import read_json

MODEL_TYPES: Mapping[str, ModuleType] = {
    paligemma.MODEL_TYPE: paligemma,
    **dict.fromkeys((*LANGUAGE_MODELS, language_model.WITH_VISION), language_model),
    siglip.MODEL_TYPE: siglip,
    clip.MODEL_TYPE: clip,
    vit.MODEL_TYPE: vit,
}
# Their modules say in one sentence what is wrong with these.
HALVES: Mapping[str, ModuleType] = {
    "siglip_text_model": siglip,
    "siglip_vision_model": siglip,
    "clip_text_model": clip,
    "clip_vision_model": clip,
    vit.HAS_DISTILLATION: vit,
}
NAFLEX = ("siglip2", "siglip2_text_model", "siglip2_vision_model")


def module_of(folder: Path) -> ModuleType:
    """The module that reads this folder. BadModel for a model_type that npgemma does not support."""
    path = member(folder, "config.json")
    kind = read_json(path).get("model_type")
    known = {**MODEL_TYPES, **HALVES}
    if isinstance(kind, str) and kind in known:
        return known[kind]
    if kind in NAFLEX:
        what = "a SigLIP 2 for pictures of any shape (NaFlex), which npgemma does not support"
        take = "use one of a fixed resolution, such as google/siglip2-base-patch16-224"
        raise BadModel(f"{path}: model_type is {kind!r}: this is {what}; {take}")
    found = "missing" if kind is None else repr(kind)
    raise BadModel(f"{path}: model_type is {found}; npgemma reads {', '.join(MODEL_TYPES)}")
