"""Mistakes in what Gemma 2 and 3 add to Gemma 1: the second part of the catalogue in mutations.py."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from mutations import Variant, changing, computing, in_layer
from random_models import WINDOW

from npgemma.layers.activations import softmax
from npgemma.models.gemma import Attention, Block, Decoder
from npgemma.models.paligemma import PaliGemma

Array = np.ndarray


def in_text(**changes: object) -> Callable[[PaliGemma], PaliGemma]:
    """The model with fields of its decoder changed."""
    return lambda p: dataclasses.replace(p, text=dataclasses.replace(p.text, **changes))


def windows_on_odd_layers(p: PaliGemma) -> PaliGemma:
    def moved(i: int, block: Block) -> Block:
        attn = dataclasses.replace(block.attn, window=WINDOW if i % 2 else None)
        return dataclasses.replace(block, attn=attn)

    return in_text(blocks=tuple(moved(i, block) for i, block in enumerate(p.text.blocks)))(p)


def names_of_gemma_1(p: PaliGemma) -> PaliGemma:
    """post_attention_layernorm as the norm before the MLP, pre_feedforward_layernorm as the one after attention."""
    blocks = [dataclasses.replace(b, attn_post_norm=b.mlp_norm, mlp_norm=b.attn_post_norm) for b in p.text.blocks]
    return in_text(blocks=tuple(blocks))(p)


def capped_after_mask(cap: float, name: str, seen: Mapping[str, Array]) -> Array:
    """What the mask hides becomes -cap instead of -inf. Layers 0, 2, 4 ... have a window."""
    has_window = int(name.split(".")[2]) % 2 == 0
    mask = seen["prompts.0.near" if has_window else "prompts.0.mask"]
    return softmax(np.where(mask, seen["capped"], -cap))


def without(norm: str, written: str) -> Callable[[str, Mapping[str, Array]], Array]:
    """What attention or MLP writes instead of its norm."""
    return lambda name, seen: seen[name.replace(norm, written)]


def within_window(mask: Array) -> Array:
    rows = np.arange(len(mask))
    return (rows[:, None] >= rows) & (rows[:, None] < rows + WINDOW)


def without_oldest(scores: Array) -> Array:
    return np.where(np.arange(scores.shape[-1]) > 0, scores, -99)


PALIGEMMA_2_BUGS: dict[str, Variant] = {
    "scores capped after the mask": Variant(
        "text.layers.0", computing("text.*.segments.0.probs", partial(capped_after_mask, 5.0))
    ),
    "scores without their cap": Variant("text.layers.0", weights=in_layer("text", -1, attn__cap=lambda _: None)),
    "scores capped at 50": Variant("text.layers.0", weights=in_layer("text", -1, attn__cap=lambda _: 50.0)),
    "logits without their cap": Variant("logits", weights=in_text(cap=None)),
    "head_dim for query_pre_attn_scalar": Variant(
        "text.layers.0", weights=in_layer("text", -1, attn__scale=lambda _: 10**-0.5)
    ),
    "windows on odd layers": Variant("text.layers.0", weights=windows_on_odd_layers),
    "window one short": Variant("prompts.0.near", weights=in_layer("text", -1, attn__window=lambda w: w and w - 1)),
    "window one long": Variant("prompts.0.near", weights=in_layer("text", -1, attn__window=lambda w: w and w + 1)),
    "window one short in the steps": Variant(
        "steps.1.text.layers.0", changing("steps.*.text.layers.[02].attn.segments.0.capped", without_oldest)
    ),
    "windows forgotten": Variant("prompts.0.near", computing("prompts.0.near", lambda _, seen: seen["prompts.0.mask"])),
    "prefix under the window": Variant("prompts.0.near", changing("prompts.0.near", within_window)),
    "norm after attention missing in one layer": Variant(
        "text.layers.2", computing("*text.layers.2.attn_post_norm", without("attn_post_norm", "attn.out"))
    ),
    "norm after the MLP missing in one layer": Variant(
        "text.layers.1", computing("*text.layers.1.mlp_post_norm", without("mlp_post_norm", "mlp.out"))
    ),
    "norms named as in Gemma 1": Variant("text.layers.0", weights=names_of_gemma_1),
}


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    one, two = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([one * cos - two * sin, two * cos + one * sin], -1)


def normed_after_rope(name: str, seen: Mapping[str, Array]) -> Array:
    """The root mean square of a head stays what it was, so that x_norm / x is the factor after the rotation, too."""
    x = seen[name.removesuffix("_rope")]
    factor = seen[name.replace("_rope", "_norm")] / x
    return rotated(x, seen[f"{name}.cos"], seen[f"{name}.sin"]) * factor


def in_attention(change: Callable[[Attention], Attention]) -> Callable[[Decoder], Decoder]:
    """The decoder with the attention of each layer changed."""

    def weights(p: Decoder) -> Decoder:
        blocks = (dataclasses.replace(block, attn=change(block.attn)) for block in p.blocks)
        return dataclasses.replace(p, blocks=tuple(blocks))

    return weights


def on_global_layers(**changes: object) -> Callable[[Decoder], Decoder]:
    return in_attention(lambda attn: attn if attn.window else dataclasses.replace(attn, **changes))


def on_local_layers(**changes: object) -> Callable[[Decoder], Decoder]:
    return in_attention(lambda attn: dataclasses.replace(attn, **changes) if attn.window else attn)


GEMMA_3_BUGS: dict[str, Variant] = {
    "local theta on layers without a window": Variant("text.layers.1", weights=on_global_layers(theta=1e4)),
    "global theta on layers with a window": Variant("text.layers.0", weights=on_local_layers(theta=1e6)),
    "positions not stretched": Variant("text.layers.1", weights=on_global_layers(factor=1.0)),
    "positions stretched on layers with a window": Variant("text.layers.0", weights=on_local_layers(factor=8.0)),
    "q and k normed after RoPE": Variant("text.layers.0", computing("*.attn.[qk]_rope", normed_after_rope)),
    "q and k not normed": Variant(
        "text.layers.0", weights=in_attention(lambda attn: dataclasses.replace(attn, q_norm=None, k_norm=None))
    ),
}
