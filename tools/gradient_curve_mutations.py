"""Optimizers as people get them wrong, and right ones, over the first steps of a training: for gradient_study.py."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from random_encoders import VIT, write_encoder

from npgemma.api import steps
from npgemma.api.load import AnyModel
from npgemma.golden import Dump, Golden, Report, read_golden
from npgemma.golden.gradient_case import case_of
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_curve import run_curve
from npgemma.golden.gradient_options import GradientOptions
from npgemma.golden.gradient_record import record_gradients
from npgemma.golden.record import computing
from npgemma.layers.taps import Recorder, silent
from npgemma.training.optimizers import AdamW, clip

Array = np.ndarray
UPDATE = AdamW.update
Update = Callable[..., None]
STEPS = 10


class Mistake(NamedTuple):
    """The step whose loss, or whose length of the gradient, is the first that differs; what is planted."""

    step: str
    update: Update = UPDATE
    clip: Callable[..., None] = clip


def with_constants(**constants: float) -> Update:
    return lambda self, *arguments: UPDATE(AdamW(**constants), *arguments)


def without_correction(self: AdamW, w: Array, g: Array, moments: Any, step: int, rate: float, decay: float) -> None:
    UPDATE(self, w, g, moments, 10**9, rate, decay)


def counted_from_0(self: AdamW, w: Array, g: Array, moments: Any, step: int, rate: float, decay: float) -> None:
    UPDATE(self, w, g, moments, step + 1, rate, decay)


def of_adam(self: AdamW, w: Array, g: Array, moments: Any, step: int, rate: float, decay: float) -> None:
    """The decay is part of the gradient."""
    UPDATE(self, w, g + decay * w, moments, step, rate, 0.0)


def decaying(decay: float) -> Update:
    """All arrays decay by as much."""

    def update(self: AdamW, w: Array, g: Array, moments: Any, step: int, rate: float, _: float) -> None:
        UPDATE(self, w, g, moments, step, rate, decay)

    return update


def decayed_last(self: AdamW, w: Array, g: Array, moments: Any, step: int, rate: float, decay: float) -> None:
    """The decay is that of the weights before the step, subtracted after it, as in the paper: rounded otherwise."""
    before = w * w.dtype.type(rate * decay)
    UPDATE(self, w, g, moments, step, rate, 0.0)
    w -= before


def once_more(self: AdamW, w: Array, g: Array, moments: Any, step: int, rate: float, decay: float) -> None:
    """Gradients are not set to zero, and add up."""
    total = moments.setdefault("sum", np.zeros_like(g))
    total += g
    UPDATE(self, w, total, moments, step, rate, decay)


CURVE_BUGS: dict[str, Mistake] = {
    "moments not corrected": Mistake("step 2", without_correction),
    "steps counted from 0": Mistake("step 2", counted_from_0),
    "decay in the gradient, as Adam has it": Mistake("step 2", of_adam),
    "norms and biases decay": Mistake("step 2", decaying(0.1)),
    "nothing decays": Mistake("step 2", decaying(0.0)),
    "eps 1e-6": Mistake("step 2", with_constants(eps=1e-6)),
    "beta2 0.95": Mistake("step 3", with_constants(beta2=0.95)),
    "beta1 0.95": Mistake("step 3", with_constants(beta1=0.95)),
    "gradients not clipped": Mistake("step 3", clip=lambda *arguments: None),
    "gradients add up over the steps": Mistake("step 3", once_more),
}
CURVE_BENIGN: dict[str, Mistake] = {
    "npgemma itself": Mistake("-"),
    "weights decay after the step": Mistake("-", decayed_last),
}


class CurveStudy(NamedTuple):
    """A model, and a golden file of some steps of its training."""

    model: AnyModel
    golden: Golden

    def judge(self, mistake: Mistake, dtype: str = "float32") -> Report:
        """The report on steps with a mistake."""
        facts, taps = self.golden.metadata["gradients"], Recorder()
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(AdamW, "update", mistake.update))
            stack.enter_context(mock.patch.object(steps, "clip", mistake.clip))
            case = case_of(self.model, self.golden.truth, facts)
            run_curve(case, computing(self.model, dtype), facts, dtype, silent, taps)
        return compare_gradients(self.golden, Dump(dict(taps)), dtype=dtype, allow_missing=["*"])


def curve_study(folder: Path, count: int = STEPS, shown: int = 3) -> CurveStudy:
    """So many steps of a random ViT, on so many pictures."""
    model, pictures, _ = write_encoder(folder / "model", VIT)
    path, options = folder / "curve.safetensors", GradientOptions(steps=count)
    record_gradients(model, pictures[:shown], [], ["3", "b", "a"][:shown], path, "io", options)
    return CurveStudy(model, read_golden(path))
