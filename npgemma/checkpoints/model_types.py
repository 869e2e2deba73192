"""Which module describes a model folder: by the model_type in its config.json."""

from pathlib import Path
from types import ModuleType

from npgemma.checkpoints import language_model, paligemma
from npgemma.checkpoints.gemma_config import LANGUAGE_MODELS
from npgemma.errors import BadModel
from npgemma.io.model_folder import member
from npgemma.io.strict_json import read_json

MODEL_TYPES: dict[str, ModuleType] = {
    paligemma.MODEL_TYPE: paligemma,
    **dict.fromkeys((*LANGUAGE_MODELS, language_model.WITH_VISION), language_model),
}


def module_of(folder: Path) -> ModuleType:
    """The module that reads this folder. BadModel for a model_type that npgemma does not support."""
    path = member(folder, "config.json")
    kind = read_json(path).get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        found = "missing" if kind is None else repr(kind)
        raise BadModel(f"{path}: model_type is {found}; npgemma reads {', '.join(MODEL_TYPES)}")
    return MODEL_TYPES[kind]
