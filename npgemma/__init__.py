"""PaliGemma in plain NumPy: a picture and a prompt in, the answer out."""

from npgemma.answers import Generation
from npgemma.errors import BadGolden, BadJobs, BadModel, BadPicture, BadPrompt, NpgemmaError, TooLittleMemory
from npgemma.layers.taps import Recorder
from npgemma.loading import load
from npgemma.model import Model
from npgemma.scoring import Score
from npgemma.tasks import Box, DetectedObject, draw_boxes, parse_boxes, parse_objects, write_objects

__all__ = [
    "BadGolden",
    "BadJobs",
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
    "TooLittleMemory",
    "draw_boxes",
    "load",
    "parse_boxes",
    "parse_objects",
    "write_objects",
]
