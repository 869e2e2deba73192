"""The catalogue of the mutation study: mistakes that ports make, and correct runs that round differently.

A mistake is a tap that changes tensors, other weights, or another case: none needs a change in npgemma's code. A
correct variant of a function that runs everywhere, such as a product of matrices, replaces the function.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from npgemma.api.processor import Inputs
from npgemma.golden.cases import GenerativeCase
from npgemma.golden.rounding import FLOAT32, HF_EAGER, HF_SDPA, rounding
from npgemma.layers import activations, packed
from npgemma.layers.activations import gelu
from npgemma.layers.norms import LayerNorm, RMSNorm
from npgemma.layers.rope import rope
from npgemma.layers.taps import Tap, silent
from npgemma.models import gemma, siglip, vit
from npgemma.models.paligemma import PaliGemma

Array = np.ndarray
MakeTap = Callable[[], Tap]


@dataclass(frozen=True)
class Variant:
    """A run that differs from npgemma's own.

    `block` is where a mistake first shows; a correct variant has none. `tap` makes the tap that changes tensors,
    `weights` and `case` change the model and what the run starts from. `replacements` are (module, name, function):
    functions that stand in for npgemma's own.
    """

    block: str = ""
    tap: MakeTap = lambda: silent
    weights: Callable[[Any], Any] = lambda p: p
    case: Callable[[Any], Any] = lambda case: case
    replacements: tuple[tuple[object, str, object], ...] = ()


def changing(glob: str, change: Callable[[Array], Array]) -> MakeTap:
    """Makes a tap that changes every tensor whose name matches `glob`."""
    return computing(glob, lambda name, seen: change(seen[name]))


def computing(glob: str, compute: Callable[[str, Mapping[str, Array]], Array]) -> MakeTap:
    """Makes a tap that replaces tensors by `compute(name, seen)`, a function of earlier ones.

    `seen` holds every earlier tensor by its name, and the latest by the last word of its name.
    """

    def make() -> Tap:
        seen: dict[str, Array] = {}

        def tap(name: str, x: Array, axes: str) -> Array:
            seen[name] = x
            if fnmatchcase(name, glob):
                seen[name] = compute(name, seen).astype(x.dtype)
            seen[name.rpartition(".")[2]] = seen[name]
            return seen[name]

        return tap

    return make


def instead(name: str, other: str) -> MakeTap:
    """Makes a tap that puts the earlier tensor `other` in the place of `name`."""
    return computing(name, lambda _, seen: seen[other])


def in_layer(part: str, layer: int, **changes: Callable[[object], object]) -> Callable[[PaliGemma], PaliGemma]:
    """The model with fields of one layer of 'text' or 'vision' changed, of all layers if `layer` is -1.

    `attn__theta` is the field attn.theta.
    """

    def changed(block: object, path: list[str], change: Callable[[object], object]) -> object:
        inner = getattr(block, path[0])
        new = change(inner) if len(path) == 1 else changed(inner, path[1:], change)
        return dataclasses.replace(block, **{path[0]: new})

    def weights(p: PaliGemma) -> PaliGemma:
        tower = getattr(p, part)
        blocks = list(tower.blocks)
        for i in range(len(blocks)):
            if layer in (i, -1):
                for name, change in changes.items():
                    blocks[i] = changed(blocks[i], name.split("__"), change)
        return dataclasses.replace(p, **{part: dataclasses.replace(tower, blocks=tuple(blocks))})

    return weights


def erf_gelu(x: Array) -> Array:
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return (0.5 * x * (1 + erf(x / math.sqrt(2)))).astype(x.dtype)


def quick_gelu(x: Array) -> Array:
    return x / (1 + np.exp(-1.702 * x))


def interleaved_rope(name: str, seen: Mapping[str, Array]) -> Array:
    """Pairs 2j and 2j + 1, as in the paper, on weights whose pairs are halves."""
    x = seen[name.removesuffix("_rope")]
    order = np.arange(x.shape[-1]).reshape(-1, 2).T.reshape(-1)
    return rope(x[..., order], seen["positions"], 10000.0)[..., np.argsort(order)]


def one_late(x: Array) -> Array:
    return rope(x, np.ones(len(x), int), 10000.0)


def without_one(norm: RMSNorm) -> RMSNorm:
    return dataclasses.replace(norm, weight=norm.weight - 1)


def swapped(x: Array) -> Array:
    return x[..., [1, 0, *range(2, x.shape[-2])], :]


def louder_row(x: Array) -> Array:
    return x * np.where(np.arange(len(x)) == 5, 1.01, 1)[:, None]


def by_columns(x: Array) -> Array:
    return x.reshape(1, 6, 6, -1).transpose(0, 2, 1, 3).reshape(x.shape)


def ids_without(position: int) -> Callable[[GenerativeCase], GenerativeCase]:
    def case(case: GenerativeCase) -> GenerativeCase:
        (ids,), (types,), *pictures = case.prompt
        kept = Inputs([np.delete(ids, position)], [np.delete(types, position)], *pictures)
        return dataclasses.replace(case, prompt=kept)

    return case


def blind_image_rows(mask: Array) -> Array:
    """Image rows see image rows alone."""
    rows = np.arange(len(mask))
    return mask & ~((rows[:, None] < 36) & (rows >= 36))


def another_head(p: PaliGemma) -> PaliGemma:
    return dataclasses.replace(p, text=dataclasses.replace(p.text, head=np.roll(p.text.embedding, 1, 0)))


BUGS: dict[str, Variant] = {
    "pixels in 0 .. 1": Variant("pixel_values", changing("pixel_values", lambda x: (x + 1) / 2)),
    "channels are blue, green, red": Variant("pixel_values", changing("pixel_values", lambda x: x[:, ::-1])),
    "pixels one eighth of a gray off": Variant("pixel_values", changing("pixel_values", lambda x: x + 1 / 1020)),
    "position table by columns": Variant("vision.embedding", changing("vision.embedding", by_columns)),
    "erf gelu in the tower": Variant(
        "vision.layers.0", computing("vision.*.mlp.hidden", lambda _, seen: erf_gelu(seen["fc1"]))
    ),
    "quick gelu in the tower": Variant(
        "vision.layers.0", computing("vision.*.mlp.hidden", lambda _, seen: quick_gelu(seen["fc1"]))
    ),
    "layer norm eps 1e-3": Variant("vision.layers.0", weights=in_layer("vision", -1, attn_norm__eps=lambda _: 1e-3)),
    "bias of a linear layer missing": Variant(
        "vision.layers.1", weights=in_layer("vision", 1, mlp__fc2_bias=np.zeros_like)
    ),
    "heads of the tower rolled": Variant(
        "vision.layers.2", changing("vision.layers.2.attn.heads", lambda x: np.roll(x, 1, -2))
    ),
    "last layer of the tower left out": Variant(
        "vision.layers.3", instead("vision.layers.3.out", "vision.layers.2.out")
    ),
    "last norm of the tower missing": Variant("vision.norm", instead("vision.norm", "vision.layers.3.out")),
    "image features over sqrt(D)": Variant("projector", changing("projector", lambda x: x / math.sqrt(x.shape[-1]))),
    "begin-of-sequence missing": Variant("prompts.0.input_ids", case=ids_without(36)),
    "newline missing": Variant("prompts.0.input_ids", case=ids_without(-1)),
    "causal mask": Variant("prompts.0.mask", changing("prompts.0.mask", np.tril)),
    "mask one short": Variant(
        "prompts.0.mask", changing("prompts.0.mask", lambda x: x & (np.arange(x.shape[1]) < x.shape[1] - 1))
    ),
    "image rows blind to the text": Variant("prompts.0.mask", changing("prompts.0.mask", blind_image_rows)),
    "text embeddings unscaled": Variant("text.embedding", changing("*text.scale", np.ones_like)),
    "sqrt(D) rounded to bfloat16": Variant(
        "text.embedding", changing("*text.scale", lambda x: np.full_like(x, 11.3125))
    ),
    "positions of the text one early": Variant(
        "positions", changing("positions", lambda x: x - (np.arange(len(x)) >= 36))
    ),
    "norm without 1 + w": Variant("text.layers.0", weights=in_layer("text", -1, attn_norm=without_one)),
    "norm without 1 + w in one layer": Variant("text.layers.2", weights=in_layer("text", 2, mlp_norm=without_one)),
    "rms norm eps 1e-5": Variant("text.layers.0", weights=in_layer("text", -1, attn_norm__eps=lambda _: 1e-5)),
    "RoPE theta 10001": Variant("text.layers.0", weights=in_layer("text", -1, attn__theta=lambda _: 10001.0)),
    "RoPE pairs interleaved": Variant("text.layers.0", computing("*.attn.[qk]_rope", interleaved_rope)),
    "RoPE one late in one layer": Variant("text.layers.2", changing("*text.layers.2.attn.q_rope", one_late)),
    "scores over H": Variant("text.layers.0", changing("*.attn.segments.0.scores", lambda x: x / math.sqrt(32))),
    "two heads swapped in one layer": Variant("text.layers.2", changing("*text.layers.2.attn.heads", swapped)),
    "head axis last": Variant(
        "text.layers.0", changing("*text.layers.0.attn.heads", lambda x: x.transpose(0, 2, 1).reshape(x.shape))
    ),
    "erf gelu in the decoder": Variant("text.layers.0", computing("*.mlp.act", lambda _, seen: erf_gelu(seen["gate"]))),
    "gate and up exchanged": Variant(
        "text.layers.3", computing("text.layers.3.mlp.hidden", lambda _, seen: gelu(seen["up"]) * seen["gate"])
    ),
    "residual of the normed row": Variant(
        "text.layers.1", computing("text.layers.1.mid", lambda _, seen: seen["attn_norm"] + seen["out"])
    ),
    "one row of one layer 1% louder": Variant("text.layers.1", changing("*text.layers.1.out", louder_row)),
    "last norm missing": Variant("text.norm", instead("text.norm", "text.layers.3.out")),
    "head is not the embedding": Variant("logits", weights=another_head),
    "one logit off by 1e-4": Variant("logits", changing("*logits", lambda x: x + 1e-4 * (np.arange(x.shape[1]) == 9))),
    "step one position late": Variant("steps.1.positions", changing("steps.1.positions", lambda x: x + 1)),
    "cache rows one off in a step": Variant(
        "steps.1.text.layers.1",
        changing("steps.1.text.layers.1.attn.segments.0.keys", lambda x: np.roll(x, 1, 0)),
    ),
    "step forgets its first row": Variant(
        "steps.2.text.layers.0",
        changing(
            "steps.2.text.layers.0.attn.segments.0.scores", lambda x: np.where(np.arange(x.shape[-1]) > 0, x, -99)
        ),
    ),
}


# --------------------------------------------------------------------------------------------------- correct variants


def chunked(x: Array, w: Array, out: Array) -> None:
    """Products of 16 columns at a time, summed from the last to the first."""
    out[:] = 0
    for start in reversed(range(0, w.shape[1], 16)):
        out += x[:, start : start + 16] @ w[:, start : start + 16].T


def in_double(x: Array, w: Array, out: Array) -> None:
    out[:] = x.astype(np.float64) @ w.T.astype(np.float64)


def row_by_row(x: Array, w: Array, out: Array) -> None:
    for row, y in zip(x, out, strict=True):
        y[:] = w @ row


def inverse_root(p: RMSNorm, x: Array) -> Array:
    """x * (1 / sqrt(mean + eps)) * (1 + w), in another order."""
    scale = np.float32(1) / np.sqrt(np.square(x).mean(-1, keepdims=True, dtype=x.dtype) + np.float32(p.eps))
    return (x * (scale * (1 + p.weight))).astype(x.dtype)


def two_moments(p: LayerNorm, x: Array) -> Array:
    """The variance as mean(x^2) - mean(x)^2."""
    mean = x.mean(-1, keepdims=True)
    variance = np.square(x).mean(-1, keepdims=True) - np.square(mean)
    return (x - mean) / np.sqrt(variance + np.float32(p.eps)) * p.weight + p.bias


def cubic_gelu(x: Array) -> Array:
    """The polynomial in Horner's form, the tanh as 1 - 2 / (exp(2 y) + 1)."""
    y = np.float32(math.sqrt(2 / math.pi)) * x * (1 + np.float32(0.044715) * x * x)
    return 0.5 * x * (2 - 2 / (np.exp(np.minimum(2 * y, 80)) + 1))


BENIGN: dict[str, Variant] = {
    "npgemma itself": Variant(),
    "sums in chunks, backwards": Variant(replacements=((packed, "multiply", chunked),)),
    "sums in float64": Variant(replacements=((packed, "multiply", in_double),)),
    "products row by row": Variant(replacements=((packed, "multiply", row_by_row),)),
    "rms norm by an inverse root": Variant(replacements=((gemma, "rms_norm", inverse_root),)),
    "variance of two moments": Variant(
        replacements=((vit, "layer_norm", two_moments), (siglip, "layer_norm", two_moments))
    ),
    "gelu by exponentials": Variant(replacements=((activations, "gelu", cubic_gelu), (siglip, "gelu", cubic_gelu))),
    "angles in float32": Variant(tap=lambda: rounding(silent, FLOAT32)),
    "positions from 0": Variant(tap=changing("*positions", lambda x: x - 1)),
}
# The same in emulated bfloat16: the schedules differ in what they round.
ROUNDED = {
    "transformers' eager attention": HF_EAGER,
    "transformers' sdpa attention": HF_SDPA,
    "residual stream and heads alone": dict.fromkeys(("out", "mid", "heads", "embedding", "logits"), "bfloat16"),
    "nothing": {},
}
