"""More mistakes that ports make, planted in transformers' code: those of a study of ports that nobody here wrote.

`PORT_BUGS` are found in float32. `LATE_BUGS` show only with more than three steps, or with more than 256 rows. The
results of `HARMLESS` are right in float32.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import PaliGemmaForConditionalGeneration
from transformers.cache_utils import DynamicLayer
from transformers.models.gemma import modeling_gemma
from transformers_bugs import Bug, Inputs, layers_of

from npgemma.io.picture import Picture, read_picture

Model = PaliGemmaForConditionalGeneration


# ------------------------------------------------------------------------------------------------------------- inputs


def replaced(resize: Callable[[Image.Image, int], Tensor], inputs: Inputs, pictures: Sequence[Picture]) -> Inputs:
    """The inputs with pixel values in -1 .. 1 of what `resize` makes of each picture: gray values in 0 .. 255."""
    side = inputs["pixel_values"].shape[-1]
    pixels = torch.stack([resize(read_picture(picture), side) for picture in pictures])
    return inputs | {"pixel_values": pixels / 127.5 - 1}


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)


def interpolated(image: Image.Image, side: int, **how: object) -> Tensor:
    return F.interpolate(as_tensor(image)[None], (side, side), **how)[0]


def without_antialias(image: Image.Image, side: int) -> Tensor:
    return interpolated(image, side, mode="bicubic").round().clamp(0, 255)


def bilinear(image: Image.Image, side: int) -> Tensor:
    return as_tensor(image.resize((side, side), Image.Resampling.BILINEAR))


def in_floats(image: Image.Image, side: int) -> Tensor:
    """Resized grays that are not rounded to 8 bits."""
    return interpolated(image, side, mode="bicubic", antialias=True).clamp(0, 255)


def imagenet_mean(inputs: Inputs, pictures: Sequence[Picture]) -> Inputs:
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    share = (inputs["pixel_values"] + 1) / 2
    return inputs | {"pixel_values": (share - mean[:, None, None]) / deviation[:, None, None]}


def image_after_bos(inputs: Inputs, pictures: Sequence[Picture]) -> Inputs:
    ids = inputs["input_ids"]
    bos = int((ids[0] == 2).nonzero()[0])
    return inputs | {"input_ids": torch.cat([ids[:, bos : bos + 1], ids[:, :bos], ids[:, bos + 1 :]], 1)}


def two_pads(inputs: Inputs, pictures: Sequence[Picture]) -> Inputs:
    """Two pads in front, which the other rows see."""
    return inputs | {name: F.pad(inputs[name], (2, 0)) for name in ("input_ids", "token_type_ids")}


# ------------------------------------------------------------------------------------------------------------ weights


def another_head_bias(model: Model, stack: ExitStack) -> None:
    """The q bias of one head in the tower is that of the next."""
    attention = model.model.vision_tower.encoder.layers[1].self_attn
    bias = attention.q_proj.bias.data
    bias[: attention.head_dim] = bias[attention.head_dim : 2 * attention.head_dim].clone()


def slice_transposed(model: Model, stack: ExitStack) -> None:
    """The slice of one head in an output projection is read as its transpose."""
    attention = layers_of(model)[1].self_attn
    weight = attention.o_proj.weight.data[:, : attention.head_dim]
    weight[:] = weight.clone().reshape(attention.head_dim, -1).T


def values_exchanged(model: Model, stack: ExitStack) -> None:
    one, two = (layer.self_attn.v_proj for layer in layers_of(model)[1:3])
    one.weight, two.weight = two.weight, one.weight


# ------------------------------------------------------------------------------------------------------------ modules


def hooked(module: Callable[[Model], torch.nn.Module], change: Callable[[Tensor], Tensor]) -> Callable:
    """Plants a change of what a module returns."""

    def plant(model: Model, stack: ExitStack) -> None:
        stack.callback(module(model).register_forward_hook(lambda module, args, y: change(y)).remove)

    return plant


def projector(model: Model) -> torch.nn.Module:
    return model.model.multi_modal_projector


def head(model: Model) -> torch.nn.Module:
    return model.lm_head


def copied_patch(x: Tensor) -> Tensor:
    return torch.cat([x[:, :-1], x[:, -2:-1]], 1)


def soft_capped(x: Tensor) -> Tensor:
    return 30 * torch.tanh(x / 30)


def dropout(model: Model, stack: ExitStack) -> None:
    """A hundredth of what each MLP writes is dropped."""
    torch.manual_seed(0)
    for layer in layers_of(model):
        stack.callback(layer.mlp.register_forward_hook(lambda module, args, y: F.dropout(y, 0.01)).remove)


def row_before(model: Model, stack: ExitStack) -> None:
    """The logits of the row before the last."""
    seen = {}
    norm = model.model.language_model.norm
    stack.callback(norm.register_forward_hook(lambda module, args, y: seen.update(rows=y)).remove)

    def earlier(module: object, args: tuple) -> tuple:
        return (seen["rows"][:, -2:-1],) if seen["rows"].shape[1] > 1 else args

    stack.callback(model.lm_head.register_forward_pre_hook(earlier).remove)


def softmax_in_bfloat16(model: Model, stack: ExitStack) -> None:
    """Exponentials in float32, whose sum is rounded to bfloat16."""

    def attend(module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **more: object):
        k, v = (modeling_gemma.repeat_kv(x, module.num_key_value_groups) for x in (k, v))
        scores = q @ k.transpose(2, 3) * scaling + (0 if mask is None else mask)
        exp = (scores - scores.amax(-1, keepdim=True)).exp()
        probs = exp / exp.sum(-1, keepdim=True).bfloat16().to(q.dtype)
        return (probs @ v).transpose(1, 2).contiguous(), probs

    stack.enter_context(mock.patch.object(modeling_gemma, "eager_attention_forward", attend))


def rotated(angles: Callable[[Tensor, Tensor], Tensor], model: Model, stack: ExitStack) -> None:
    """The rotation by `angles` of positions and frequencies."""

    def forward(self: torch.nn.Module, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        turned = angles(position_ids[..., None], self.inv_freq.float())
        angle = torch.cat([turned, turned], -1).float()
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)

    stack.enter_context(mock.patch.object(modeling_gemma.GemmaRotaryEmbedding, "forward", forward))


# -------------------------------------------------------------------------------------------------------------- cache


def eight_bits(model: Model, stack: ExitStack) -> None:
    """Keys and values in float8."""
    update = DynamicLayer.update

    def rounded(self: DynamicLayer, keys: Tensor, values: Tensor, *args: object, **more: object):
        found = update(self, keys, values, *args, **more)
        return tuple(x.to(torch.float8_e4m3fn).to(x.dtype) for x in found)

    stack.enter_context(mock.patch.object(DynamicLayer, "update", rounded))


def one_off_after_step_3(model: Model, stack: ExitStack) -> None:
    """From the fourth step on, a new row is written over the one before it, too."""
    update = DynamicLayer.update

    def written(self: DynamicLayer, keys: Tensor, values: Tensor, *args: object, **more: object):
        self.calls = getattr(self, "calls", 0) + 1
        update(self, keys, values, *args, **more)
        if self.calls > 4:  # the first is the prefill
            for x in (self.keys, self.values):
                x[..., -2, :] = x[..., -1, :]
        return self.keys, self.values

    stack.enter_context(mock.patch.object(DynamicLayer, "update", written))


# ----------------------------------------------------------------------------------------------------------- harmless


def norm_order_of_llama(model: Model, stack: ExitStack) -> None:
    """The normed row is rounded before it is multiplied by 1 + w."""

    def forward(self: modeling_gemma.GemmaRMSNorm, x: Tensor) -> Tensor:
        return self._norm(x.float()).type_as(x) * (1 + self.weight)

    stack.enter_context(mock.patch.object(modeling_gemma.GemmaRMSNorm, "forward", forward))


def last_vision_eps(model: Model, stack: ExitStack) -> None:
    model.model.vision_tower.post_layernorm.eps = 1e-5


PORT_BUGS = {
    "bicubic_without_antialias": Bug("pixel_values", inputs=partial(replaced, without_antialias)),
    "bilinear": Bug("pixel_values", inputs=partial(replaced, bilinear)),
    "grays_not_rounded": Bug("pixel_values", inputs=partial(replaced, in_floats)),
    "imagenet_mean": Bug("pixel_values", inputs=imagenet_mean),
    "image_after_bos": Bug("prompts.0.input_ids", inputs=image_after_bos),
    "two_pads": Bug("prompts.0.token_type_ids", inputs=two_pads, culprit="positions"),
    "another_head_bias": Bug("vision.layers.1", another_head_bias),
    "copied_patch": Bug("projector", hooked(projector, copied_patch)),
    "dropout": Bug("text.layers.0", dropout),
    "softmax_in_bfloat16": Bug("text.layers.0", softmax_in_bfloat16),
    "angles_in_bfloat16": Bug(
        "text.layers.0", partial(rotated, lambda position, frequency: (position * frequency).bfloat16())
    ),
    "cache_in_float8": Bug("text.layers.0", eight_bits),
    "slice_transposed": Bug("text.layers.1", slice_transposed),
    "values_exchanged": Bug("text.layers.1", values_exchanged),
    "logits_capped": Bug("logits", hooked(head, soft_capped)),
    "row_before_the_last": Bug("logits", row_before),
}
LATE_BUGS = {
    "cache_one_off_after_step_3": Bug("steps.4.text.layers.0", one_off_after_step_3),
    "positions_in_bfloat16": Bug(
        "text.layers.0", partial(rotated, lambda position, frequency: position.bfloat16() * frequency)
    ),
}
HARMLESS = {
    "norm_order_of_llama": Bug("", norm_order_of_llama),
    "last_vision_eps": Bug("", last_vision_eps),
}
