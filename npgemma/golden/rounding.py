"""Rounding schedules: which tensors a framework rounds, as data, and the tap that rounds them.

A framework in bfloat16 rounds the tensors that it writes to memory; what stays inside a kernel keeps more bits. So a
run in bfloat16 is emulated by a run in float32 in which every tensor that the framework writes is moved to the bfloat16
grid, and one in float16 likewise. A schedule maps the last word of a tap's name to the dtype that the tensor is rounded
to. Taps that it does not name pass unchanged, so that a new tap changes no numbers.

    >>> import npgemma
    >>> from npgemma.layers.taps import silent
    >>> model = npgemma.load()
    >>> inputs = model.processor([npgemma.sample_picture()], ["caption en"])
    >>> logits = model.forward(inputs.input_ids[0], inputs.pixel_values, tap=rounding(silent, HF_EAGER))
    >>> bool((logits == round_to_bfloat16(logits)).all())
    True

The two schedules for bfloat16 were checked against transformers in bfloat16 on a CPU, tap by tap, where each operation
received transformers' own inputs (tests/live/test_rounding.py). Its sdpa attention does not cap scores, and it runs the
decoder of a PaliGemma 2 with eager attention, whatever its tower has. Nor is quick_gelu one operation there, and
npgemma has no taps inside it: `rounding_activations` gives an emulated run an activation that rounds.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from npgemma.layers.activations import quick_gelu
from npgemma.layers.bits import round_to_bfloat16
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap

Schedule: TypeAlias = dict[str, str]
# A function that rounds each number to those of a dtype.
Grid: TypeAlias = Callable[[Array], Array]


def round_to_float32(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """`x` with each number rounded to the nearest float32 number, in the dtype of `x`."""
    return x.astype(np.float32).astype(x.dtype)


def round_to_float16(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """`x` with each number rounded to the nearest float16 number, in the dtype of `x`; beyond 65,504 to infinity."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(x.dtype)


def round_to_tf32(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """Float32 `x` with each number rounded to the 10 bits of fraction of NVIDIA's TF32, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + (0xFFF + (bits >> 13 & 1))) & np.uint32(0xFFFFE000)).view(np.float32)


def cut_to_tf32(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """Float32 `x` without the 13 bits that TF32 lacks."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def powers_of_2(x: Float[Array, "J"]) -> Float[Array, "J"]:
    """RoPE's frequencies theta^(-j/J) as 2^(-j/J log2(theta)), each operation in float32."""
    if len(x) < 2:
        return round_to_float32(x)
    exponents = (np.arange(len(x)) / len(x)).astype(np.float32) * np.float32(len(x) * np.log2(x[0] / x[1]))
    return (x[0] * np.exp2(-exponents)).astype(x.dtype)


def powers_of_e(x: Float[Array, "J"]) -> Float[Array, "J"]:
    """The same as e^(-j log(theta)/J), as in MLX."""
    if len(x) < 2:
        return round_to_float32(x)
    exponents = np.arange(len(x), dtype=np.float32) * np.float32(np.log(x[0] / x[1]))
    return (x[0] * np.exp(-exponents)).astype(x.dtype)


SIXTEEN_BITS: dict[str, Grid] = {"bfloat16": round_to_bfloat16, "float16": round_to_float16}
GRIDS: dict[str, Grid] = SIXTEEN_BITS | {
    "float32": round_to_float32,
    "powers of 2": powers_of_2,
    "powers of e": powers_of_e,
}

# A framework in float32 computes the rotary angles in float32 too, which npgemma computes in float64.
FLOAT32: Schedule = dict.fromkeys(("frequencies", "angle"), "float32")

# The tensors between the modules of transformers' PaliGemma: each module returns its result in the dtype of the run.
_MODULES = (
    *("pixel_values", "patches", "embedding", "attn_norm", "q", "k", "v", "heads", "out", "mid", "mlp_norm"),
    *("fc1", "hidden", "norm", "projector", "scale", "gate", "up", "act"),
    *("attn_post_norm", "mlp_post_norm", "uncapped", "over_cap", "tanh"),
    *("logits", "q_norm", "k_norm"),
    *("cos", "sin", "x_cos", "x_sin", "q_rope", "k_rope"),
)
# What encoders have besides.
ENCODERS = (
    *("pre_norm", "post_norm", "projection", "head", "length", "image_embeds", "text_embeds"),
    *("cosine", "scaled", "logits_per_image", "probabilities", "loss"),
)
# Attention as three operations, of which only the softmax computes in float32. A cap is three more.
HF_EAGER: Schedule = FLOAT32 | dict.fromkeys((*_MODULES, *ENCODERS, "dots", "scores", "capped", "probs"), "bfloat16")
# Attention as one kernel: the scores stay in float32. Of the softmax only the exponentials are rounded, before they
# multiply the values; their sum is taken of the unrounded ones.
HF_SDPA: Schedule = FLOAT32 | dict.fromkeys((*_MODULES, *ENCODERS, "exp"), "bfloat16")

# Of these, what the decoder of PaliGemma 1 does not have, and what only that of Gemma 3 has.
LATER = ("attn_post_norm", "mlp_post_norm", "uncapped", "over_cap", "tanh", "capped")
HEAD_NORMS = ("q_norm", "k_norm")

SCHEDULES: dict[str, Schedule] = {"hf_eager": HF_EAGER, "hf_sdpa": HF_SDPA}


def schedule_in(schedule: str, dtype: str) -> Schedule:
    """What a run in `dtype` rounds, if it rounds to 16 bits what the schedule of this name does."""
    if dtype not in SIXTEEN_BITS:
        return FLOAT32
    return {name: to if to == "float32" else dtype for name, to in SCHEDULES[schedule].items()}


def rounding(tap: Tap, schedule: Schedule) -> Tap:
    """A tap that rounds each tensor as `schedule` says and passes it to `tap`; the model continues with the result.

    It is for runs in float32: a float64 tensor that should be rounded to bfloat16 raises TypeError, since it would be
    rounded twice, first to float32.
    """

    def rounded(name: str, x: Array, axes: str) -> Array:
        to = schedule.get(name.rpartition(".")[2])
        return tap(name, x if to is None else GRIDS[to](x), axes)

    return rounded


@dataclass(frozen=True)
class RoundedQuickGelu:
    """quick_gelu as torch computes it in 16 bits, forwards and backwards: each operation is rounded."""

    grid: Grid

    def __call__(self, x: Float[Array, "*R"]) -> Float[Array, "*R"]:
        return rounded_quick_gelu(self.grid, x)

    def backward(self, x: Float[Array, "*R"], dy: Float[Array, "*R"]) -> Float[Array, "*R"]:
        """forward: y = x s, s = sigmoid(1.702 x).   dx = dy s + 1.702 (dy x s (1 - s))."""
        s = self.grid(1 / (1 + np.exp(np.clip(-self.grid(1.702 * x), -80, 80))))
        return self.grid(dy * s) + self.grid(1.702 * self.grid(self.grid(dy * x) * s * (1 - s)))


def rounding_activations(p: Any, dtype: str) -> Any:
    """Weights of a run in 16 bits: those of a model whose activations round what transformers rounds."""
    if not is_dataclass(p):
        return RoundedQuickGelu(GRIDS[dtype]) if getattr(p, "__name__", "") == quick_gelu.__name__ else p
    return replace(p, **{field.name: rounding_activations(getattr(p, field.name), dtype) for field in fields(p)})  # type: ignore[type-var]


def rounded_quick_gelu(grid: Grid, x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """y = x sigmoid(1.702 x), three operations; the tap of the result rounds the last."""
    x_scaled = grid(1.702 * x)
    return x * grid(1 / (1 + np.exp(np.clip(-x_scaled, -80, 80))))
