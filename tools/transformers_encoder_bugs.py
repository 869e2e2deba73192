"""Mistakes that ports make, planted in transformers' CLIP, SigLIP and ViT: the second part of transformers_bugs.py."""

from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from unittest import mock

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.clip import modeling_clip
from transformers_bugs import Bug


def module_of(model: PreTrainedModel, name: str) -> torch.nn.Module:
    return model.get_submodule(name)


def skipped(name: str, model: PreTrainedModel, stack: ExitStack) -> None:
    """A norm does nothing."""
    stack.enter_context(mock.patch.object(module_of(model, name), "forward", lambda x: x))


def activated(act: torch.nn.Module, layers: str, model: PreTrainedModel, stack: ExitStack) -> None:
    """The MLPs of a tower have another activation."""
    for layer in module_of(model, layers):
        layer.mlp.activation_fn = deepcopy(act)  # a hook knows a module by its name


def changed_output(name: str, change: Callable[[Tensor], Tensor], model: PreTrainedModel, stack: ExitStack) -> None:
    def hook(module: object, args: object, output: object) -> object:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    stack.callback(module_of(model, name).register_forward_hook(hook).remove)


def pooled(norm: str, head: str, pool: Callable[[Tensor], Tensor], model: PreTrainedModel, stack: ExitStack) -> None:
    """What `head` reads is `pool` of the rows that `norm` returns."""
    rows: list[Tensor] = []
    keep = module_of(model, norm).register_forward_hook(lambda module, args, output: rows.append(output))
    swap = module_of(model, head).register_forward_pre_hook(lambda module, args: (pool(rows.pop()),))
    stack.callback(keep.remove)
    stack.callback(swap.remove)


def parameter(name: str, change: Callable[[Tensor], Tensor], model: PreTrainedModel, stack: ExitStack) -> None:
    x = model.get_parameter(name)
    x.data = change(x.data)


def layer_norm_eps(eps: float, model: PreTrainedModel, stack: ExitStack) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps


def not_causal(model: PreTrainedModel, stack: ExitStack) -> None:
    """The eager attention of CLIP's text tower has no mask."""
    stack.enter_context(mock.patch.object(modeling_clip, "create_causal_mask", return_value=None))


def padding_masked(model: PreTrainedModel, stack: ExitStack) -> None:
    """SigLIP's texts do not see their padding, which is end tokens."""

    def hook(module: object, args: tuple, kwargs: dict) -> tuple:
        ends = (kwargs["input_ids"] == 1).cumsum(-1)
        return args, kwargs | {"attention_mask": (ends <= 1).long()}

    stack.callback(model.text_model.register_forward_pre_hook(hook, with_kwargs=True).remove)


GELU, TANH_GELU = torch.nn.GELU(), torch.nn.GELU(approximate="tanh")
CLIP_BUGS = {
    "not_causal": Bug("text.layers.0", not_causal),
    "pre_norm_forgotten": Bug("vision.pre_norm", partial(skipped, "vision_model.pre_layrnorm")),
    "gelu_for_quick_gelu": Bug("vision.layers.0", partial(activated, GELU, "vision_model.encoder.layers")),
    "last_end_token": Bug(
        "text.end", partial(pooled, "text_model.final_layer_norm", "text_projection", lambda x: x[:, -1])
    ),
    "scale_not_exponentiated": Bug("logits_per_image", partial(parameter, "logit_scale", torch.log)),
    "eps_of_siglip": Bug("vision.pre_norm", partial(layer_norm_eps, 1e-6)),
}
SIGLIP_BUGS = {
    "padding_masked": Bug("text.layers.0", padding_masked),
    "gelu_of_texts": Bug("text.layers.0", partial(activated, GELU, "text_model.encoder.layers")),
    "first_row_for_last": Bug(
        "text.last", partial(pooled, "text_model.final_layer_norm", "text_model.head", lambda x: x[:, 0])
    ),
    "pooling_norm_forgotten": Bug("vision.head", partial(skipped, "vision_model.head.layernorm")),
    "bias_forgotten": Bug("logits_per_image", partial(parameter, "logit_bias", torch.zeros_like)),
}
VIT_BUGS = {
    "class_token_last": Bug("embedding", partial(changed_output, "vit.embeddings", lambda x: x.roll(-1, 1))),
    "tanh_gelu": Bug("layers.0", partial(activated, TANH_GELU, "vit.layers")),
    "mean_of_patches": Bug("class", partial(pooled, "vit.layernorm", "classifier", lambda x: x[:, 1:].mean(1))),
    "last_norm_forgotten": Bug("norm", partial(skipped, "vit.layernorm")),
}
ENCODER_BUGS = CLIP_BUGS | SIGLIP_BUGS | VIT_BUGS
