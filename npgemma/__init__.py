"""PaliGemma in plain NumPy: a picture and a prompt in, the answer out."""

from npgemma.errors import BadGolden, BadModel, BadPicture, BadPrompt, NpgemmaError
from npgemma.layers.taps import Recorder
from npgemma.model import Generation, Model, load
from npgemma.scoring import Score
from npgemma.tasks import Box, DetectedObject, draw_boxes, parse_boxes, parse_objects, write_objects

__all__ = [
    "BadGolden",
    "BadModel",
    "BadPicture",
    "BadPrompt",
    "Box",
    "DetectedObject",
    "Generation",
    "Model",
    "NpgemmaError",
    "Recorder",
    "Score",
    "draw_boxes",
    "load",
    "parse_boxes",
    "parse_objects",
    "write_objects",
]
