"""What a port of a model would dump: npgemma's own runs, changed by a tap if asked."""

import numpy as np

from npgemma.api.generation import Model
from npgemma.golden import Golden
from npgemma.golden.record import computing, run
from npgemma.golden.replay import case_of
from npgemma.golden.rounding import FLOAT32, HF_EAGER, rounding
from npgemma.layers.taps import Recorder, Tap, silent

Tensors = dict[str, np.ndarray]


def port(model: Model, golden: Golden, dtype: str = "float32", change: Tap = silent) -> Tensors:
    """Every tensor of a run on the case of `golden`, by the name of its tap; 'bfloat16' is emulated."""
    taps = Recorder()
    schedule = {"float32": FLOAT32, "bfloat16": HF_EAGER}[dtype]
    tap = rounding(lambda name, x, axes: taps(name, change(name, x, axes), axes), schedule)
    run(computing(model, dtype), case_of(golden), tap, golden.truth["generated_ids"].tolist())
    return {**{name: golden.truth[name] for name in golden.taps if name.startswith("pictures")}, **taps}
