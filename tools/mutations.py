"""The catalogue of the mutation study: mistakes that ports make.

A mistake is a tap that changes tensors, other weights, or another case: none needs a change in npgemma's code.
correct_variants.py has runs that are right and round differently.
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
from npgemma.golden.rounding import HF_EAGER, HF_SDPA
from npgemma.layers.activations import gelu
from npgemma.layers.norms import RMSNorm
from npgemma.layers.rope import rope
from npgemma.layers.taps import Tap, silent
from npgemma.models.paligemma import PaliGemma

Array = np.ndarray
MakeTap = Callable[[], Tap]


@dataclass(frozen=True)
class Variant:
    """A run that differs from npgemma's own.

    `block` is where a mistake first shows; a correct variant has none. `tap` makes the tap that changes tensors,
    `weights` and `case` change the model and what the run starts from. `replacements` are (module, name, function):
    functions that stand in for npgemma's own. `absent` are globs of the taps that such a run does not have.
    """

    block: str = ""
    tap: MakeTap = lambda: silent
    weights: Callable[[Any], Any] = lambda p: p
    case: Callable[[Any], Any] = lambda case: case
    replacements: tuple[tuple[object, str, object], ...] = ()
    absent: tuple[str, ...] = ()


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


# Correct runs in emulated bfloat16: the schedules differ in what they round.
ROUNDED = {
    "transformers' eager attention": HF_EAGER,
    "transformers' sdpa attention": HF_SDPA,
    "residual stream and heads alone": dict.fromkeys(("out", "mid", "heads", "embedding", "logits"), "bfloat16"),
    "nothing": {},
}
