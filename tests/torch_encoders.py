"""Small SigLIPs, CLIPs and ViTs of transformers for the tests of gradients, and batches for them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch_gradients import F32, Batch
from transformers import PreTrainedConfig

from npgemma.models import clip_grad, siglip_grad, vit_grad

VISION = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=3, image_size=14)
VISION |= dict(patch_size=4)
TEXT = dict(hidden_size=20, intermediate_size=28, num_attention_heads=4, num_hidden_layers=2, vocab_size=50)
TEXT |= dict(max_position_embeddings=6)
COUNT = 5  # pictures of a batch
EAGER = dict(attn_implementation="eager")

SIGLIP = transformers.SiglipConfig(vision_config=VISION, text_config=TEXT | dict(projection_size=16), **EAGER)


def clip_config(act: str, end: int) -> transformers.CLIPConfig:
    """A CLIP with an activation, and what its config says the end token is."""
    text = TEXT | dict(hidden_act=act, eos_token_id=end)
    return transformers.CLIPConfig(
        vision_config=VISION | dict(hidden_act=act), text_config=text, projection_dim=10, **EAGER
    )


def vit_config(act: str, eps: float, problem_type: str | None = None) -> transformers.ViTConfig:
    kind = dict(problem_type=problem_type, num_labels=5)
    return transformers.ViTConfig(**VISION, hidden_act=act, layer_norm_eps=eps, **kind, **EAGER)


def pairs_batch(config: PreTrainedConfig, gradient: Callable[..., tuple[float, Any]], seed: int) -> Batch:
    """Pictures of noise and texts of random tokens; the end tokens of CLIP stand at different places."""
    rng, vision, text = np.random.default_rng(seed), config.vision_config, config.text_config
    pixels = rng.uniform(-1, 1, (COUNT, 3, vision.image_size, vision.image_size)).astype(F32)
    ids = rng.integers(3, text.vocab_size - 1, (COUNT, text.max_position_embeddings))
    ids[np.arange(COUNT), rng.integers(1, text.max_position_embeddings, COUNT)] = text.vocab_size - 1
    inputs = dict(pixel_values=torch.from_numpy(pixels), input_ids=torch.from_numpy(ids), return_loss=True)
    return Batch(inputs, lambda p, dtype: gradient(p, pixels.astype(dtype), ids))


def siglip_batch(config: PreTrainedConfig, seed: int) -> Batch:
    return pairs_batch(config, siglip_grad.loss_and_gradient, seed)


def clip_batch(config: PreTrainedConfig, seed: int) -> Batch:
    return pairs_batch(config, clip_grad.loss_and_gradient, seed)


def vit_batch(config: PreTrainedConfig, seed: int) -> Batch:
    """Pictures of noise; the loss is the mean over them."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(-1, 1, (COUNT, 3, config.image_size, config.image_size)).astype(F32)
    labels, weights = rng.integers(0, config.num_labels, COUNT), np.full(COUNT, 1 / COUNT)
    theirs = torch.from_numpy(labels)
    if config.problem_type == "multi_label_classification":
        labels = rng.integers(0, 2, (COUNT, config.num_labels)).astype(bool)
        theirs = torch.from_numpy(labels).double()
    inputs = dict(pixel_values=torch.from_numpy(pixels), labels=theirs)
    return Batch(inputs, lambda p, dtype: vit_grad.loss_and_gradient(p, pixels.astype(dtype), labels, weights))
