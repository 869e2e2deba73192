"""What a port of the embedded model would dump: npgemma's own runs, changed by a tap if asked."""

import numpy as np

from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden import Golden
from npgemma.golden.record import in_bfloat16, run
from npgemma.golden.replay import case_of
from npgemma.golden.rounding import FLOAT32, HF_EAGER, rounding
from npgemma.layers.taps import Recorder, Tap, silent

Tensors = dict[str, np.ndarray]


def port(model: VisionLanguageModel, golden: Golden, dtype: str = "float32", change: Tap = silent) -> Tensors:
    """Every tensor of a run on the case of `golden`, by the name of its tap; 'bfloat16' is emulated."""
    taps = Recorder()
    weights, schedule = {
        "float32": (model.weights, FLOAT32),
        "bfloat16": (in_bfloat16(model.weights), HF_EAGER),
    }[dtype]
    tap = rounding(lambda name, x, axes: taps(name, change(name, x, axes), axes), schedule)
    run(model, weights, case_of(golden), np.dtype(np.float32), tap, golden.truth["generated_ids"].tolist())
    return {"pictures.0.resized": golden.truth["pictures.0.resized"], **taps}
