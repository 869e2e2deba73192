"""What a port of a model would dump: npgemma's own runs, changed by a tap if asked."""

import numpy as np

from npgemma.api.load import AnyModel
from npgemma.golden import Golden
from npgemma.golden.cases import case_of
from npgemma.golden.record import computing
from npgemma.golden.rounding import FLOAT32, HF_EAGER, rounding
from npgemma.layers.taps import Recorder, Tap, silent

Tensors = dict[str, np.ndarray]


def port(model: AnyModel, golden: Golden, dtype: str = "float32", change: Tap = silent) -> Tensors:
    """Every tensor of a run on the case of `golden`, by the name of its tap; 'bfloat16' is emulated."""
    taps = Recorder()
    schedule = {"float32": FLOAT32, "bfloat16": HF_EAGER}[dtype]
    tap = rounding(lambda name, x, axes: taps(name, change(name, x, axes), axes), schedule)
    case_of(model, golden).run(computing(model, dtype), tap)
    return {**{name: golden.truth[name] for name in golden.taps if name.startswith("pictures")}, **taps}
