"""PaliGemma in plain NumPy: a picture and a prompt in, the answer out."""

from npgemma.answers import Generation
from npgemma.batch import Answer, answer_jobs
from npgemma.errors import BadGolden, BadJobs, BadModel, BadPicture, BadPrompt, NpgemmaError, TooLittleMemory
from npgemma.io.jobs import Job
from npgemma.io.mask_codec import read_mask_codec
from npgemma.layers.taps import Recorder
from npgemma.loading import load
from npgemma.masks import draw_masks, encode_object, object_masks, soft_object_masks
from npgemma.model import Model
from npgemma.scoring import Score
from npgemma.tasks import Box, DetectedObject, draw_boxes, parse_boxes, parse_objects, write_objects

__all__ = [
    "Answer",
    "BadGolden",
    "BadJobs",
    "BadModel",
    "BadPicture",
    "BadPrompt",
    "Box",
    "DetectedObject",
    "Generation",
    "Job",
    "Model",
    "NpgemmaError",
    "Recorder",
    "Score",
    "TooLittleMemory",
    "answer_jobs",
    "draw_boxes",
    "draw_masks",
    "encode_object",
    "load",
    "object_masks",
    "parse_boxes",
    "parse_objects",
    "read_mask_codec",
    "soft_object_masks",
    "write_objects",
]
