"""Losses of transformers' models and their gradients by autograd, held against those of npgemma.

A gradient has the shapes of a model: written into the parameters of a copy of it, it is saved as a folder, and read as
any model is. So no test needs a table of names.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from make_fixtures import in_float64, truth
from paligemma_2_models import NOISE, Model
from transformers import PreTrainedConfig, PreTrainedModel

from npgemma.layers.taps import Tap, silent
from npgemma.layers.tree import leaves, thawed
from npgemma.models import paligemma_grad, prefix_lm, prefix_lm_grad
from npgemma.models.paligemma_grad import Labelled

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
IGNORED = -100  # the label of a token that is not learned

# Both float64 runs round sums in another order: a loss of tens of logarithms, and gradients that passed some layers.
LOSS, GRADIENT = 1e-14, 1e-12
# The same in float32, where the error of a parameter is chance: half of them may be 1.2 times torch's, none 3 times.
MEDIAN_RATIO, WORST_RATIO = 1.2, 3.0
# Rounding the gradient itself to float32 may change it by so much.
ROUNDOFF = 2.0**-24

# A key bias adds the same to all scores of a row: its gradient is zero. Found is rounding: in float32 usually 1e-6 of
# the query bias's, and more where these scores hardly matter.
KEY_BIAS, ZERO = ("k_bias", "q_bias"), 1e-4

Gradients = dict[str, np.ndarray]  # by path


class Batch(NamedTuple):
    """What transformers takes, its loss among the outputs, and npgemma's loss and gradient of the same.

    `gradient` takes weights, a dtype and a tap. `pictures` says which picture of npgemma's each of transformers' is.
    """

    inputs: Mapping[str, Any]
    gradient: Callable[..., tuple[float, Any]]
    pictures: Sequence[int] = ()


class Found(NamedTuple):
    """A loss and its gradients."""

    loss: float
    gradients: Gradients


class Pair:
    """A float32 model of transformers, the same in float64, and npgemma's weights of it, read from a folder."""

    def __init__(self, model: PreTrainedModel, checkpoint: ModuleType, folder: Path) -> None:
        self.single, self.wide = model, in_float64(model)
        self.checkpoint, self.folder = checkpoint, folder
        self.weights = {dtype: self.saved(model, dtype) for dtype in (F32, F64)}

    def saved(self, model: PreTrainedModel, dtype: np.dtype) -> Any:
        """The weights of a folder that transformers writes, all of them for training in `dtype`."""
        model.save_pretrained(self.folder)
        config = self.checkpoint.read_config(self.folder)
        tensors = self.checkpoint.read_tensors(self.folder, config)
        return thawed(self.checkpoint.weights(tensors, config, dtype), lambda path: True, dtype)

    def ours(self, batch: Batch, dtype: np.dtype) -> Found:
        loss, gradient = batch.gradient(self.weights[dtype], dtype)
        return Found(loss, by_path(gradient))

    def torchs(self, batch: Batch, dtype: np.dtype) -> Found:
        """In float64, the truth."""
        if dtype == F32:
            return self.autograd(self.single, batch.inputs)
        with truth():
            return self.autograd(self.wide, widened(batch.inputs))

    def autograd(self, model: PreTrainedModel, inputs: Mapping[str, Any]) -> Found:
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        gradient = copy.deepcopy(model)
        for x, weight in zip(gradient.parameters(), model.parameters(), strict=True):
            x.data = torch.zeros_like(weight) if weight.grad is None else weight.grad
        return Found(float(loss.detach()), by_path(self.saved(gradient, F64)))


def widened(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with their floating-point tensors in float64."""
    floating = {name: x for name, x in inputs.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    return {**inputs, **{name: x.double() for name, x in floating.items()}}


def by_path(tree: Any) -> Gradients:
    return {leaf.path: leaf.value for leaf in leaves(tree)}


def errors(some: Gradients, exact: Gradients) -> dict[str, float]:
    """|gradient - exact| / |exact| of each. That of a key bias is zero: a share of that of the query bias instead."""
    assert some.keys() == exact.keys()
    sizes = {path: np.linalg.norm(exact[path.replace(*KEY_BIAS)]) for path in exact}
    return {path: float(np.linalg.norm(some[path] - x) / sizes[path]) for path, x in exact.items()}


def assert_exact(pair: Pair, batch: Batch) -> Found:
    """In float64, the loss and each gradient are torch's up to rounding; returns torch's."""
    exact, ours = pair.torchs(batch, F64), pair.ours(batch, F64)
    assert ours.loss == pytest.approx(exact.loss, rel=LOSS)
    wrong = errors(ours.gradients, exact.gradients)
    assert {path: error for path, error in wrong.items() if not error <= GRADIENT} == {}
    return exact


def ratios(pairs: Sequence[tuple[Pair, Batch]]) -> dict[str, list[float]]:
    """npgemma's float32 error of each parameter divided by torch's, for each batch; float64 must be exact.

    torch's counts as ROUNDOFF where it is less: a single number, such as log_scale, may be rounded to the right side.
    """
    found: dict[str, list[float]] = {}
    for pair, batch in pairs:
        exact = assert_exact(pair, batch).gradients
        ours, theirs = (errors(run(batch, F32).gradients, exact) for run in (pair.ours, pair.torchs))
        for path, error in ours.items():
            if path.endswith(KEY_BIAS[0]):
                assert error <= ZERO, path
            else:
                found.setdefault(path, []).append(error / max(theirs[path], ROUNDOFF))
    return found


def assert_near(found: Mapping[str, list[float]]) -> None:
    """The usual ratio of a parameter is at most 1.2 for half of them, and at most 3 for each."""
    usual = {path: float(np.median(each)) for path, each in found.items()}
    assert np.median([*usual.values()]) <= MEDIAN_RATIO
    assert {path: ratio for path, ratio in usual.items() if ratio > WORST_RATIO} == {}


def noisy(model: Model, seed: int) -> Model:
    """The model with noise in place of every parameter; about 1 for layer norms, or biases would drown their rows."""
    generator = torch.Generator().manual_seed(seed)
    for x in model.eval().parameters():
        x.data = NOISE * torch.randn(x.shape, generator=generator)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data += 1
    model.tie_weights()
    return model


# -------------------------------------------------------------------------------------------------------------- batches

LENGTHS = ((4, 6), (7, 3), (2, 9))  # tokens of prefix and suffix


def examples_of(
    vocabulary: int, rng: np.random.Generator, picture: int = 0, image_token: int = 0
) -> tuple[dict[str, torch.Tensor], list[Labelled]]:
    """Random texts, padded on the right for transformers. The suffixes are learned, all tokens with equal weights.

    Each begins with the `picture` image tokens of a picture, if there are pictures: all but the last with one of its
    own, the last with that of the first and another.
    """
    last = len(LENGTHS) - 1
    pictures = [[i] if i < last else [0, last] for i in range(last + 1)] if picture else [[] for _ in LENGTHS]
    learned = sum(suffix for _, suffix in LENGTHS)
    examples = []
    for seen, (prefix, suffix) in zip(pictures, LENGTHS, strict=True):
        text = rng.integers(3, vocabulary, prefix + suffix)
        ids = np.concatenate([np.full(len(seen) * picture, image_token), text])
        types = np.repeat([0, 1], [len(ids) - suffix, suffix])
        examples.append(Labelled(ids, types, seen, types / learned))
    labels = [np.where(each.token_type_ids == 1, each.input_ids, IGNORED) for each in examples]
    inputs = dict(
        input_ids=padded([each.input_ids for each in examples]),
        attention_mask=padded([np.ones_like(each.input_ids) for each in examples]),
        labels=padded(labels, IGNORED),
    )
    return inputs, examples


def padded(rows: list[np.ndarray], filling: int = 0) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], True, filling)


def texts_batch(config: PreTrainedConfig, seed: int) -> Batch:
    """For a language model."""
    inputs, examples = examples_of(config.vocab_size, np.random.default_rng(seed))

    def gradient(p: Any, dtype: np.dtype) -> tuple[float, Any]:
        prompts = [prefix_lm.causal_prompt(p, each.input_ids, dtype) for each in examples]
        loss, _, found = prefix_lm_grad.loss_and_gradient(p, prompts, [each.weights for each in examples])
        return loss, found

    return Batch(inputs, gradient)


def pictures_batch(config: PreTrainedConfig, seed: int, pixels: np.ndarray | None = None) -> Batch:
    """For a PaliGemma, with three pictures, of noise by default."""
    rng, vision = np.random.default_rng(seed), config.vision_config
    vocabulary = min(config.text_config.vocab_size, config.image_token_index)
    picture = (vision.image_size // vision.patch_size) ** 2
    inputs, examples = examples_of(vocabulary, rng, picture, config.image_token_index)
    if pixels is None:
        pixels = rng.uniform(-1, 1, (len(LENGTHS), 3, vision.image_size, vision.image_size)).astype(F32)
    order = [i for each in examples for i in each.pictures]
    inputs["pixel_values"] = torch.from_numpy(pixels[order])
    inputs["token_type_ids"] = padded([each.token_type_ids for each in examples])

    def gradient(p: Any, dtype: np.dtype, tap: Tap = silent) -> tuple[float, Any]:
        return paligemma_grad.loss_and_gradient(p, pixels.astype(dtype), examples, tap=tap)

    return Batch(inputs, gradient, order)
