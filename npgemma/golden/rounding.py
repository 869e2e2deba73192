"""Rounding schedules: which tensors a framework rounds, as data, and the tap that rounds them.

A tensor that an accelerator writes to memory is rounded to the dtype of the run; what stays inside a kernel is not. So
a run in bfloat16 is a float32 run whose named tensors are moved to the bfloat16 grid, those of them that the framework
writes. A schedule is an allow-list, from the last word of a tap's name to the dtype it is rounded to: a new tap
changes no numbers.

    >>> rounded = model.forward(ids, pixels, tap=rounding(silent, HF_EAGER))

The two schedules for bfloat16 were checked against transformers in bfloat16 on a CPU, tap by tap, each operation fed
with transformers' own inputs (tests/live/test_rounding.py).
"""

from typing import TypeAlias

import numpy as np

from npgemma.layers.bits import round_to_bfloat16
from npgemma.layers.shapes import Array
from npgemma.layers.taps import Tap

Schedule: TypeAlias = dict[str, str]

# What a framework that computes in float32 throughout makes of the rotary angles, which npgemma keeps in float64.
FLOAT32: Schedule = dict.fromkeys(("frequencies", "angle"), "float32")

# The tensors between the modules of transformers' PaliGemma: every module hands on what its dtype holds.
_MODULES = (
    *("pixel_values", "patches", "embedding", "attn_norm", "q", "k", "v", "heads", "out", "mid", "mlp_norm"),
    *("fc1", "hidden", "norm", "projector", "scale", "gate", "up", "act", "logits"),
    *("cos", "sin", "x_cos", "x_sin", "q_rope", "k_rope"),
)
# Attention as three operations: the softmax alone is taken in float32.
HF_EAGER: Schedule = FLOAT32 | dict.fromkeys((*_MODULES, "dots", "scores", "probs"), "bfloat16")
# Attention as one kernel: its scores stay in float32, and only what meets the values is rounded, before it is divided
# by the sum.
HF_SDPA: Schedule = FLOAT32 | dict.fromkeys((*_MODULES, "exp"), "bfloat16")

SCHEDULES: dict[str, Schedule] = {"float32": FLOAT32, "hf_eager": HF_EAGER, "hf_sdpa": HF_SDPA}


def rounding(tap: Tap, schedule: Schedule) -> Tap:
    """`tap`, hearing each tensor as `schedule` rounds it; the model goes on with the rounded one.

    For a run in float32: TypeError from one in float64 where it rounds to bfloat16, since that would round twice.
    """

    def rounded(name: str, x: Array, axes: str) -> Array:
        to = schedule.get(name.rpartition(".")[2])
        if to == "bfloat16":
            x = round_to_bfloat16(x)
        elif to == "float32":
            x = x.astype(np.float32).astype(x.dtype)
        return tap(name, x, axes)

    return rounded
