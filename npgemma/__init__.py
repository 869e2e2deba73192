"""PaliGemma in plain NumPy: a picture and a prompt in, the answer out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npgemma.api.batch import JobResult as JobResult
    from npgemma.api.batch import answer_jobs as answer_jobs
    from npgemma.api.classifier import Classifier as Classifier
    from npgemma.api.classifier import Label as Label
    from npgemma.api.dual_encoder import DualEncoder as DualEncoder
    from npgemma.api.language import LanguageModel as LanguageModel
    from npgemma.api.load import load as load
    from npgemma.api.load import sample_picture as sample_picture
    from npgemma.api.vision_language import VisionLanguageModel as VisionLanguageModel
    from npgemma.checkpoints.mask_vqvae import read_mask_codec as read_mask_codec
    from npgemma.decoding.scoring import Score as Score
    from npgemma.decoding.text import Generation as Generation
    from npgemma.errors import BadData as BadData
    from npgemma.errors import BadEmbeddings as BadEmbeddings
    from npgemma.errors import BadGolden as BadGolden
    from npgemma.errors import BadJobs as BadJobs
    from npgemma.errors import BadModel as BadModel
    from npgemma.errors import BadPicture as BadPicture
    from npgemma.errors import BadPrompt as BadPrompt
    from npgemma.errors import NpgemmaError as NpgemmaError
    from npgemma.errors import TooLittleMemory as TooLittleMemory
    from npgemma.io.jobs import Job as Job
    from npgemma.layers.taps import Recorder as Recorder
    from npgemma.tasks.drawing import draw_boxes as draw_boxes
    from npgemma.tasks.drawing import draw_masks as draw_masks
    from npgemma.tasks.masks import encode_object as encode_object
    from npgemma.tasks.masks import object_masks as object_masks
    from npgemma.tasks.masks import soft_object_masks as soft_object_masks
    from npgemma.tasks.objects import Box as Box
    from npgemma.tasks.objects import DetectedObject as DetectedObject
    from npgemma.tasks.objects import encode_box as encode_box
    from npgemma.tasks.objects import parse_boxes as parse_boxes
    from npgemma.tasks.objects import parse_objects as parse_objects
    from npgemma.tasks.objects import write_objects as write_objects

# Where each public name is. A name is imported when it is first used, so that importing a module of npgemma.layers
# needs NumPy and nothing else.
HOMES = {
    "api.batch": ("JobResult", "answer_jobs"),
    "api.classifier": ("Classifier", "Label"),
    "api.dual_encoder": ("DualEncoder",),
    "api.language": ("LanguageModel",),
    "api.load": ("load", "sample_picture"),
    "api.vision_language": ("VisionLanguageModel",),
    "checkpoints.mask_vqvae": ("read_mask_codec",),
    "decoding.scoring": ("Score",),
    "decoding.text": ("Generation",),
    "errors": (
        *("BadData", "BadEmbeddings", "BadGolden", "BadJobs", "BadModel", "BadPicture", "BadPrompt"),
        *("NpgemmaError", "TooLittleMemory"),
    ),
    "io.jobs": ("Job",),
    "layers.taps": ("Recorder",),
    "tasks.drawing": ("draw_boxes", "draw_masks"),
    "tasks.masks": ("encode_object", "object_masks", "soft_object_masks"),
    "tasks.objects": ("Box", "DetectedObject", "encode_box", "parse_boxes", "parse_objects", "write_objects"),
}

__all__ = sorted(name for names in HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name. AttributeError for any other name."""
    for home, names in HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"npgemma.{home}"), name)
            return value
    raise AttributeError(f"module 'npgemma' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
