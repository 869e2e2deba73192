"""What tools/bench.py measures of training, as tasks of tools/bench_tasks.py, for npgemma and for torch or peft.

- The gradients of one example, with adapters of rank 8 on attention. Both compute the activations of each block again
  on the way back. Pictures go through the frozen tower once, before what is measured.
- Steps of full training of a small model: gradients, clipping and AdamW, of the same examples.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from bench_tasks import REST, input_ids, memory, pixels, timed
from draw_examples import write_examples

import npgemma
from npgemma.api.transfer import Lines, Transfer, encoder_of
from npgemma.checkpoints.trained_model import Home
from npgemma.layers.threads import BLAS
from npgemma.layers.tree import leaves, thawed
from npgemma.models.gemma import logits, new_caches
from npgemma.models.paligemma import image_features, make_prompt
from npgemma.models.paligemma_grad import Labelled, loss_and_feature_gradient
from npgemma.models.prefix_lm import prefill
from npgemma.training import lora, parts
from npgemma.training.examples import Example, read_examples
from npgemma.training.loop import Training
from npgemma.training.options import TrainingOptions
from npgemma.training.state import Log

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
    both = timed(lambda: loss_and_feature_gradient(p, features, [learned], recompute=True))[0]
    return {"forward": min(forwards), "both": both} | memory()


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
    both = timed(lambda: loss().backward())[0]
    return {"forward": min(forwards), "both": both} | memory()


def task_steps(folder: Path, batch: int, rounds: int) -> dict[str, Any]:
    """Steps of npgemma, and where torch is installed of transformers with either attention, in turns: seconds."""
    with TemporaryDirectory() as written:
        drawn = Path(written) / "examples"
        write_examples(drawn, batch)
        model = npgemma.load(folder)
        # one example of each picture: npgemma takes a picture through the tower once, however many examples show it
        of_pictures = {each.images: each for each in read_examples(drawn / "new.jsonl", encoder_of(model)).examples}
        examples = tuple(of_pictures.values())
        transfer = Transfer(model, Lines(examples, {}), TrainingOptions(batch=batch, epochs=1000))
        with transfer.recipe(drawn, transfer.processes) as recipe, (drawn / "log").open("wb") as file:
            log = Log(file, drawn / "log")
            training = Training(recipe, transfer.trained, drawn, {}, log, None, lambda line: None)
            steps = {"npgemma": training.step} | torch_steps(folder, model, examples)
            for step in [*steps.values()] * 3:  # workers start, and pictures are read
                step()
            rounds_of = {name: [] for name in steps}
            for _ in range(rounds):
                for name, step in steps.items():
                    time.sleep(REST)
                    rounds_of[name].append(timed(step)[0])
    ratios = {
        f"npgemma / {name}": median(a / b for a, b in zip(rounds_of["npgemma"], times, strict=True))
        for name, times in rounds_of.items()
        if name != "npgemma"
    }
    return {name: median(times) for name, times in rounds_of.items()} | ratios


def torch_steps(
    folder: Path, model: npgemma.VisionLanguageModel, examples: tuple[Example, ...]
) -> dict[str, Callable[[], None]]:
    """A step of each kind of attention of transformers, with as many threads as npgemma has; none without torch."""
    try:
        import torch
        from transformers import PaliGemmaForConditionalGeneration
    except ImportError:
        return {}
    torch.set_num_threads(BLAS.threads)
    inputs = padded(model, examples)

    def step_of(attention: str) -> Callable[[], None]:
        port = PaliGemmaForConditionalGeneration.from_pretrained(folder, attn_implementation=attention).float()
        optimizer = torch.optim.AdamW(port.parameters(), lr=1e-6, weight_decay=0.0)

        def step() -> None:
            optimizer.zero_grad()
            port(**inputs).loss.backward()
            torch.nn.utils.clip_grad_norm_(port.parameters(), 1.0)
            optimizer.step()

        return step

    return {f"torch {attention}": step_of(attention) for attention in ("eager", "sdpa")}


def padded(model: npgemma.VisionLanguageModel, examples: tuple[Example, ...]) -> dict[str, Any]:
    """What transformers learns from: the rows of all examples, filled up to the longest."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    encoder = encoder_of(model)
    read = [encoder.encode(each.prefix, each.suffix, 1) for each in examples]
    ids, types = ([torch.tensor(row[i]) for row in read] for i in (0, 1))
    labels = [row.clone() for row in ids]
    for row, each in zip(labels, read, strict=True):
        row[: each.learned_from] = -100
    return {
        "input_ids": pad_sequence(ids, True, 0),
        "token_type_ids": pad_sequence(types, True, 1),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True, 0),
        "labels": pad_sequence(labels, True, -100),
        "pixel_values": torch.from_numpy(np.concatenate([encoder.pixel_values([*each.images]) for each in examples])),
    }
