"""What a port of the embedded model would dump: npgemma's own runs, changed on their way if asked."""

from collections.abc import Callable

import numpy as np

from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden import Golden
from npgemma.golden.record import in_bfloat16, run
from npgemma.golden.replay import case_of
from npgemma.golden.rounding import HF_EAGER, rounding
from npgemma.layers.taps import Recorder, silent

Tensors = dict[str, np.ndarray]


def port(
    model: VisionLanguageModel,
    golden: Golden,
    dtype: str = "float32",
    change: Callable[[str, np.ndarray], np.ndarray] = silent,
) -> Tensors:
    """By the names of taps, on the case of `golden`; 'bfloat16' is emulated. `change` is a tap."""
    taps, weights = Recorder(), model.weights

    def tap(name: str, x: np.ndarray) -> np.ndarray:
        return taps(name, change(name, x))

    heard = tap
    if dtype == "bfloat16":
        weights, heard = in_bfloat16(weights), rounding(tap, HF_EAGER)
    run(model, weights, case_of(golden), np.dtype(np.float32), heard, golden.truth["generated_ids"].tolist())
    return {"pictures.0.resized": golden.truth["pictures.0.resized"], **taps}
