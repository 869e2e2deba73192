"""What tools/bench.py measures of training: the gradients of one example, with adapters of rank 8 on attention.

Tasks of tools/bench_tasks.py, for npgemma and for peft. Both compute the activations of each block again on the way
back. Pictures go through the frozen tower once, before what is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from bench_tasks import input_ids, memory, pixels, timed

import npgemma
from npgemma.checkpoints.trained_model import Home
from npgemma.layers.tree import leaves, thawed
from npgemma.models.gemma import logits, new_caches
from npgemma.models.paligemma import image_features, make_prompt
from npgemma.models.paligemma_grad import Labelled, loss_and_feature_gradient
from npgemma.models.prefix_lm import prefill
from npgemma.training import lora, parts

RANK = 8
SUFFIX = [603, 604, 605, 606] * 4


def example(model: npgemma.VisionLanguageModel) -> tuple[np.ndarray, np.ndarray]:
    """The ids and types of a picture, a prefix and a suffix."""
    prefix = input_ids(model)
    return np.array([*prefix, *SUFFIX]), np.repeat([0, 1], [len(prefix), len(SUFFIX)])


def task_train(folder: Path, repeats: int) -> dict[str, Any]:
    """npgemma: a forward pass with the logits of the suffix, and the loss with the gradients of all adapters."""
    model = npgemma.load(folder)
    weights, home = model.weights, Home(model.path, model.checkpoint, model.config)
    chosen = parts.adaptable(leaves(weights), ["attention"])
    adapted = lora.with_adapters(weights, {path: home.places[path].shape for path in chosen}, RANK, 1.0, 0)
    p = thawed(adapted, lora.is_update, model.dtype)
    ids, types = example(model)
    features = image_features(p, pixels(model))
    prompt = make_prompt(p, ids, types, features)
    learned = Labelled(ids, types, [0], types / len(SUFFIX))

    def forward() -> np.ndarray:
        hidden = prefill(p.text, [prompt], [new_caches(p.text, len(ids), model.dtype)])
        return logits(p.text, hidden[-len(SUFFIX) - 1 : -1])

    forwards = [timed(forward)[0] for _ in range(repeats)]
    both = [timed(lambda: loss_and_feature_gradient(p, features, [learned], recompute=True))[0] for _ in range(repeats)]
    return {"forward": min(forwards), "both": min(both)} | memory()


def task_peft(folder: Path, dtype: str, repeats: int) -> dict[str, Any]:
    """peft: the same with torch.autograd."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import PaliGemmaForConditionalGeneration

    kind = getattr(torch, dtype)
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=kind)
    targets = r".*language_model\.layers\.\d+\.self_attn\.[qkvo]_proj"
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    own = npgemma.load(folder)
    ids, types = (torch.from_numpy(x)[None] for x in example(own))
    labels = torch.where(types == 1, ids, -100)
    tower = next(each for name, each in model.named_modules() if name.endswith("vision_tower"))
    with torch.no_grad():
        kept = tower(torch.from_numpy(pixels(own)).to(kind))
    tower.forward = lambda *_, **__: kept

    def loss() -> Any:
        picture = torch.from_numpy(pixels(own)).to(kind)
        return model(input_ids=ids, pixel_values=picture, token_type_ids=types, labels=labels).loss

    with torch.no_grad():
        forwards = [timed(loss)[0] for _ in range(repeats)]
    both = [timed(lambda: loss().backward())[0] for _ in range(repeats)]
    return {"forward": min(forwards), "both": min(both)} | memory()
