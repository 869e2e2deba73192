"""Mistakes that ports have made, planted in transformers' code: `npgemma compare` has to find them in a dump of it."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration, PreTrainedModel, masking_utils
from transformers.models.gemma import modeling_gemma
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.paligemma import modeling_paligemma

from npgemma.io.picture import Picture

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Bug:
    """A mistake. `plant` makes it in a model until the stack closes; `block` is npgemma's block where it first acts.

    `inputs` makes it in what the model receives, from the right inputs and the pictures. `culprit` is the block that a
    replay names, if it is another one.
    """

    block: str
    plant: Callable[[PreTrainedModel, ExitStack], object] = lambda model, stack: None
    inputs: Callable[[Inputs, Sequence[Picture]], Inputs] = lambda inputs, pictures: inputs
    culprit: str = ""


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The decoder of a PaliGemma, or of a language model."""
    return getattr(model.model, "language_model", model.model)


def theta(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    rotary = model.model.language_model.rotary_emb
    width = 2 * len(rotary.inv_freq)
    rotary.inv_freq = 1.0 / (20000.0 ** (torch.arange(0, width, 2, dtype=torch.float) / width))


def norm_without_one(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    def forward(self: modeling_gemma.GemmaRMSNorm, x: Tensor) -> Tensor:
        return (self._norm(x.float()) * self.weight.float()).type_as(x)

    stack.enter_context(mock.patch.object(modeling_gemma.GemmaRMSNorm, "forward", forward))


def causal_mask(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    """Every token is its own block: none sees a later one."""

    def overlay(*_: object) -> Callable:
        return lambda batch, head, q, kv: kv <= q

    stack.enter_context(mock.patch.object(masking_utils, "blockwise_overlay", overlay))


def erf_gelu(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    for layer in model.model.language_model.layers:
        layer.mlp.act_fn = torch.nn.GELU()


def vision_erf_gelu(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    for layer in model.model.vision_tower.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()


def image_scaled(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    projector = model.model.multi_modal_projector
    width = projector.linear.out_features
    stack.callback(projector.register_forward_hook(lambda module, args, y: y / math.sqrt(width)).remove)


def heads_swapped(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    """Query heads 0 and 1 of layer 2 are swapped before the output projection."""
    attention = model.model.language_model.layers[2].self_attn

    def swap(module: object, args: tuple) -> tuple:
        x = args[0].unflatten(-1, (-1, attention.head_dim))
        order = torch.tensor([1, 0, *range(2, x.shape[-2])])
        return (x[..., order, :].flatten(-2),)

    stack.callback(attention.o_proj.register_forward_pre_hook(swap, prepend=True).remove)


def eps(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    for module in model.modules():
        if isinstance(module, modeling_gemma.GemmaRMSNorm):
            module.eps = 1e-3


def rotated_one_late(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    """Layer 1 rotates its queries, but not its keys, by one more position."""
    angle = model.model.language_model.rotary_emb.inv_freq.repeat(2)

    def turn(module: object, args: tuple, q: Tensor) -> Tensor:
        heads = q.unflatten(-1, (-1, len(angle)))
        turned = heads * angle.cos() + modeling_gemma.rotate_half(heads) * angle.sin()
        return turned.flatten(-2).to(q.dtype)

    stack.callback(model.model.language_model.layers[1].self_attn.q_proj.register_forward_hook(turn).remove)


BUGS = {
    "rope_theta": Bug("text.layers.0", theta),
    "norm_without_one": Bug("text.layers.0", norm_without_one),
    "causal_mask": Bug("prompts.0.mask", causal_mask),
    "erf_gelu": Bug("text.layers.0", erf_gelu),
    "vision_erf_gelu": Bug("vision.layers.0", vision_erf_gelu),
    "image_scaled": Bug("projector", image_scaled),
    "heads_swapped": Bug("text.layers.2", heads_swapped),
    "eps": Bug("text.layers.0", eps),
    "rotated_one_late": Bug("text.layers.1", rotated_one_late),
}


# -------------------------------------------------------------------------------------------------------- PaliGemma 2


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    return decoder_of(model).layers


def scores_uncapped(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    for layer in layers_of(model):
        layer.self_attn.attn_logit_softcapping = None


def logits_uncapped(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    model.config.text_config.final_logit_softcapping = None


def scaled_by_head_dim(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    for layer in layers_of(model):
        layer.self_attn.scaling = layer.self_attn.head_dim**-0.5


def capped_after_mask(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    """What the mask hides becomes -cap, and is seen."""

    def attend(module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **more: object):
        k, v = (modeling_gemma2.repeat_kv(x, module.num_key_value_groups) for x in (k, v))
        scores = (q @ k.transpose(2, 3) * scaling + mask) / more["softcap"]
        probs = (torch.tanh(scores) * more["softcap"]).softmax(-1, dtype=torch.float32).to(q.dtype)
        return (probs @ v).transpose(1, 2).contiguous(), probs

    stack.enter_context(mock.patch.object(modeling_gemma2, "eager_attention_forward", attend))


def windows_on_odd_layers(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    """The cache of each layer keeps what its new kind needs."""
    model.config.text_config.layer_types = [*model.config.text_config.layer_types[1:], "sliding_attention"]


def window_one_short(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    """The mask, and with it the cache, which keeps a row less."""
    model.config.text_config.sliding_window -= 1


def step_sees_one_less(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    """In the steps alone, layer 2 does not see the oldest row of its window."""
    attend = modeling_gemma2.eager_attention_forward

    def shorter(module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **more: object):
        if q.shape[2] == 1 and module.layer_idx == 2:
            mask = torch.zeros(1, 1, 1, k.shape[2], dtype=q.dtype)
            mask[..., 0] = torch.finfo(q.dtype).min
        return attend(module, q, k, v, mask, **more)

    stack.enter_context(mock.patch.object(modeling_gemma2, "eager_attention_forward", shorter))


def prefix_under_window(model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    """The prefix sees only its window, in layers that have one."""
    make = modeling_paligemma.create_sliding_window_causal_mask

    def causal(block_sequence_ids: Tensor | None = None, **more: object) -> Tensor:
        return make(**more)

    stack.enter_context(mock.patch.object(modeling_paligemma, "create_sliding_window_causal_mask", causal))


def skipped(norm: str, layer: int, model: PaliGemmaForConditionalGeneration, stack: ExitStack) -> None:
    """A layer lacks one of its norms."""
    module = getattr(layers_of(model)[layer], norm)
    stack.enter_context(mock.patch.object(module, "forward", lambda x: x))


BUGS_2 = {
    "scores_uncapped": Bug("text.layers.0", scores_uncapped),
    "logits_uncapped": Bug("logits", logits_uncapped),
    "scaled_by_head_dim": Bug("text.layers.0", scaled_by_head_dim),
    "capped_after_mask": Bug("text.layers.0", capped_after_mask),
    "windows_on_odd_layers": Bug("text.layers.0", windows_on_odd_layers),
    "window_one_short": Bug("prompts.0.near", window_one_short),
    "step_sees_one_less": Bug("steps.1.text.layers.2", step_sees_one_less),
    "prefix_under_window": Bug("prompts.0.near", prefix_under_window),
    "attn_post_norm_forgotten": Bug("text.layers.2", partial(skipped, "post_attention_layernorm", 2)),
    "mlp_post_norm_forgotten": Bug("text.layers.1", partial(skipped, "post_feedforward_layernorm", 1)),
}


# ------------------------------------------------------------------------------------------------------------- Gemma 3


def local_theta(model: PreTrainedModel, stack: ExitStack) -> None:
    """Layers without a window rotate by the theta of those with one."""
    rotary = decoder_of(model).rotary_emb
    factor = model.config.rope_parameters["full_attention"]["factor"]
    rotary.full_attention_inv_freq = rotary.sliding_attention_inv_freq / factor


def heads_not_normed(model: PreTrainedModel, stack: ExitStack) -> None:
    for layer in layers_of(model):
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            stack.enter_context(mock.patch.object(norm, "forward", lambda x: x))


BUGS_3 = {
    "local_theta": Bug("text.layers.1", local_theta),
    "heads_not_normed": Bug("text.layers.0", heads_not_normed),
}
