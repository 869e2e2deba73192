"""The catalogue of tools/gradient_study.py: mistakes that people make in backward passes, and passes that are right.

A mistake replaces functions of npgemma's own backward pass, changes gradients on their way through the taps, or changes
what is learned. None needs a change in npgemma's code.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from wrong_gradients import (
    ATTEND,
    LAYER_NORM_PLACES,
    RMS_PLACES,
    Change,
    attention,
    by_example,
    causal,
    erf_slope,
    first_head,
    head_times,
    labelled,
    last_example,
    last_wins,
    layer_norm_variant,
    mean_of_heads,
    no_cap,
    no_window,
    norms,
    of_probabilities,
    one_prompt_alone,
    over_rows,
    predicting_itself,
    rms_of_constant_size,
    rms_of_scaled_weight,
    rms_without_one,
    scaled_sum,
    square_root,
    times,
    with_newline,
    without_end,
    without_the_three,
    without_up,
)

from npgemma.golden.gradient_case import GradientCase
from npgemma.layers import activations
from npgemma.layers.linear import embed_backward
from npgemma.layers.rope import rope
from npgemma.layers.taps import Tap
from npgemma.models import gemma_grad, paligemma_grad, prefix_lm_grad, siglip_grad, vit_grad

Array = np.ndarray


@dataclass(frozen=True)
class Mutation:
    """A backward pass that differs from npgemma's own.

    `block` is where a mistake first shows; a correct variant has none. `replacements` are (module, name, function);
    `changes` maps globs of gradients to what becomes of them, given the earlier ones; `case` changes what is learned.
    `sketched` is the block where it first shows without gradients of activations, if that is another one.
    """

    block: str = ""
    replacements: tuple[tuple[object, str, object], ...] = ()
    changes: tuple[tuple[str, Change], ...] = ()
    case: Callable[[Any], GradientCase] = lambda case: case
    sketched: str = ""

    def tap(self, tap: Tap) -> Tap:
        """`tap` with the changed gradients."""
        seen: dict[str, Array] = {}

        def changed(name: str, x: Array, axes: str) -> Array:
            for each, change in self.changes:
                if fnmatchcase(name, each):
                    x = np.asarray(change(x, seen), x.dtype)
            seen[name] = x
            return tap(name, x, axes)

        return changed


_TEXT, _VISION = "language_model.model.layers", "vision_tower.vision_model.encoder.layers"
WEIGHT = "grad.weights."

BUGS: dict[str, Mutation] = {
    "1 + w missing": Mutation(
        "text.norm", norms(RMS_PLACES, "rms_norm_backward", rms_without_one), sketched="text.layers.3"
    ),
    "size of a row taken as constant": Mutation(
        "text.norm", norms(RMS_PLACES, "rms_norm_backward", rms_of_constant_size), sketched="text.layers.3"
    ),
    "dw of the rms norm times 1 + w": Mutation(
        "text.norm", norms(RMS_PLACES, "rms_norm_backward", rms_of_scaled_weight)
    ),
    "layer norm without mean(h)": Mutation(
        "vision.norm",
        norms(LAYER_NORM_PLACES, "layer_norm_backward", layer_norm_variant(mean=False, unbiased=False)),
        sketched="vision.layers.3",
    ),
    "variance over n - 1": Mutation(
        "vision.norm", norms(LAYER_NORM_PLACES, "layer_norm_backward", layer_norm_variant(mean=True, unbiased=True))
    ),
    "keys hear one query head": Mutation("text.layers.3", attention(first_head)),
    "mean over query heads": Mutation("text.layers.3", attention(mean_of_heads)),
    "ds = p dp": Mutation("text.layers.3", attention(lambda dq, dk, dv, a: of_probabilities(a, flash=False))),
    "1/sqrt(H) missing": Mutation(
        "text.layers.3", attention(lambda dq, dk, dv, a: (dq * square_root(a), dk * square_root(a), dv))
    ),
    "1/sqrt(H) twice for the keys": Mutation(
        "text.layers.3", attention(lambda dq, dk, dv, a: (dq, dk / square_root(a), dv))
    ),
    # The last layer has gradients at the rows of the answer alone, which see the same under both masks.
    "causal mask in the backward pass": Mutation("text.layers.2", attention(causal)),
    "gradients of q and k exchanged in the tower": Mutation(
        "vision.layers.3", ((vit_grad, "attend_backward", lambda *a: [ATTEND(*a)[i] for i in (1, 0, 2)]),)
    ),
    "RoPE turned forward": Mutation(
        "text.layers.3", ((gemma_grad, "rope_backward", lambda dy, at, theta, f: rope(dy, at, theta, factor=f)),)
    ),
    "RoPE left out": Mutation("text.layers.3", ((gemma_grad, "rope_backward", lambda dy, at, theta, f: dy),)),
    "RoPE off by one": Mutation(
        "text.layers.3", ((gemma_grad, "rope_backward", lambda dy, at, theta, f: rope(dy, -at - 1, theta, factor=f)),)
    ),
    "slope of the erf gelu": Mutation("text.layers.3", ((activations, "gelu_and_slope", erf_slope),)),
    "slope of gelu without its 3": Mutation("text.layers.3", ((activations, "gelu_and_slope", without_the_three),)),
    "dx of the up branch missing": Mutation("text.layers.3", ((gemma_grad, "mlp_backward", without_up),)),
    "residual cut at one MLP": Mutation(
        "text.layers.2",
        changes=(("grad.text.layers.2.mid", lambda x, seen: x - seen["grad.text.layers.2.out"]),),
    ),
    "residual cut at one attention": Mutation(
        "text.layers.1",
        changes=(("grad.text.layers.0.out", lambda x, seen: x - seen["grad.text.layers.1.mid"]),),
        sketched="text.layers.0",
    ),
    "sqrt(D) of the embedding missing": Mutation(
        "text.embedding",
        (
            (
                prefix_lm_grad,
                "embed_backward",
                lambda i, t, dy: embed_backward(i, t, dy / np.sqrt(t.shape[1], dtype=dy.dtype)),
            ),
        ),
    ),
    "last of repeated ids wins": Mutation("text.embedding", ((prefix_lm_grad, "embed_backward", last_wins),)),
    "head's share of the tied table missing": Mutation(
        "text.embedding", ((prefix_lm_grad, "logits_backward", head_times(0)),)
    ),
    "head's share of the tied table doubled": Mutation(
        "text.embedding", ((prefix_lm_grad, "logits_backward", head_times(2)),)
    ),
    "lookup's share of the tied table missing": Mutation(
        "text.embedding", ((prefix_lm_grad, "embed_backward", lambda i, t, dy: embed_backward(i, t, 0 * dy)),)
    ),
    "newline in the loss": Mutation("loss", case=labelled(with_newline)),
    "end token not in the loss": Mutation("loss", case=labelled(without_end)),
    "mean by example": Mutation("loss", case=labelled(by_example)),
    "mean over all rows": Mutation("loss", case=labelled(over_rows)),
    "the last micro-batch alone": Mutation("loss", case=labelled(last_example)),
    "labels not shifted": Mutation("loss", ((prefix_lm_grad, "learned_rows", predicting_itself),)),
    "smoothing 0.1": Mutation("loss", case=lambda case: replace(case, smoothing=0.1)),
    "image rows dropped": Mutation("text.embedding", changes=(("grad.projector", times(0)),), sketched="projector"),
    "image rows over sqrt(D)": Mutation(
        "text.embedding", changes=(("grad.projector", times(128**-0.5)),), sketched="projector"
    ),
    "rows of two pictures exchanged": Mutation(
        "text.embedding", changes=(("grad.projector", lambda x, seen: x[::-1]),), sketched="projector"
    ),
    "positions averaged over the pictures": Mutation(
        "vision.embedding",
        ((siglip_grad, "total", scaled_sum(lambda w, dy: 1 / len(dy), lambda w: w.ndim == 2)),),
    ),
    "biases averaged over the rows": Mutation(
        "vision.layers.3",
        ((vit_grad, "total", scaled_sum(lambda w, dy: w.size / dy.size, lambda w: w.ndim == 1)),),
    ),
    "bias of the projector has no gradient": Mutation(
        "projector", changes=((f"{WEIGHT}multi_modal_projector.linear.bias", times(0)),)
    ),
    "one matrix 1e-4 too large": Mutation(
        "text.layers.1", changes=((f"{WEIGHT}{_TEXT}.1.mlp.down_proj.weight", times(1.0001)),)
    ),
    "clipped before it is accumulated": Mutation("text.norm", changes=((f"{WEIGHT}*", times(0.01)),)),
    "heads of one matrix in another order": Mutation(
        "vision.layers.2",
        changes=((f"{WEIGHT}{_VISION}.2.self_attn.q_proj.weight", lambda x, seen: np.roll(x, len(x) // 4, 0)),),
    ),
    "dW transposed": Mutation(
        "text.layers.0", changes=((f"{WEIGHT}{_TEXT}.0.self_attn.q_proj.weight", lambda x, seen: x.T),)
    ),
}
# With one picture in two prompts.
SHARED_BUGS: dict[str, Mutation] = {
    "a picture reads the last of its prompts": Mutation(
        "text.embedding", ((paligemma_grad, "loss_and_feature_gradient", one_prompt_alone),), sketched="projector"
    ),
}
LOGITS = prefix_lm_grad.logits_backward
# In a random PaliGemma 2.
LATER_BUGS: dict[str, Mutation] = {
    "slope of the cap of the logits missing": Mutation(
        "loss", ((prefix_lm_grad, "logits_backward", lambda p, x, dy: LOGITS(replace(p, cap=None), x, dy)),)
    ),
    "slope of the cap of the scores missing": Mutation("text.layers.3", attention(no_cap)),
    "windows forgotten": Mutation("text.layers.2", attention(no_window)),
    "norms after attention and MLP skipped": Mutation(
        "text.layers.3", ((gemma_grad, "post_norm_backward", lambda p, saw, tap, name, dy: (dy, p)),)
    ),
    "scale 1/sqrt(H) for that of the config": Mutation(
        "text.layers.3",
        attention(lambda dq, dk, dv, a: (dq / a["scale"] / square_root(a), dk / a["scale"] / square_root(a), dv)),
    ),
}
