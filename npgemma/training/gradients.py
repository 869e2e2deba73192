"""The loss and the gradients of a batch, of whichever model it is."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from npgemma.layers import threads
from npgemma.layers.shapes import Array
from npgemma.layers.taps import Tap, silent
from npgemma.layers.tree import leaves
from npgemma.models import paligemma_grad, prefix_lm_grad
from npgemma.models.gemma import Decoder
from npgemma.models.paligemma import PaliGemma
from npgemma.models.prefix_lm import causal_prompt
from npgemma.training.batches import Batch


class Computing(NamedTuple):
    """How gradients are computed: in which dtype, with which smoothing, and whether activations are recomputed."""

    dtype: np.dtype
    smoothing: float = 0.0
    recompute: bool = False


Found: TypeAlias = tuple[float, dict[str, Array]]
OfParts: TypeAlias = Callable[[Sequence[Batch]], Iterable[Found]]


class BatchGradient(Protocol):
    """The loss of a batch, and the gradients of the weights that are not frozen."""

    def __call__(self, p: Any, batch: Batch, how: Computing, tap: Tap = silent) -> Found: ...


def whole(p: PaliGemma, batch: Batch, how: Computing, tap: Tap = silent) -> Found:
    """Those of a PaliGemma, towers included."""
    pixels = batch.pixel_values.astype(how.dtype, copy=False)
    loss, gradient = paligemma_grad.loss_and_gradient(p, pixels, batch.prompts, how.smoothing, how.recompute, tap)
    return loss, by_path(gradient)


def decoder_alone(p: PaliGemma, batch: Batch, how: Computing, tap: Tap = silent) -> Found:
    """Those of a PaliGemma whose towers are frozen; `batch` has the features of its pictures in place of pixels."""
    loss, _, gradient = paligemma_grad.loss_and_feature_gradient(
        p, batch.pixel_values, batch.prompts, how.smoothing, how.recompute, tap
    )
    return loss, {f"text.{path}": g for path, g in by_path(gradient).items()}


def language_model(p: Decoder, batch: Batch, how: Computing, tap: Tap = silent) -> Found:
    """Those of a Gemma."""
    prompts = [causal_prompt(p, each.input_ids, how.dtype) for each in batch.prompts]
    weights = [each.weights for each in batch.prompts]
    loss, _, gradient = prefix_lm_grad.loss_and_gradient(p, prompts, weights, how.smoothing, how.recompute, tap)
    return loss, by_path(gradient)


def in_parallel(compute: Callable[[Batch], Found], parts: Sequence[Batch]) -> list[Found]:
    """Those of several batches, in order, each on a core of its own."""
    found: dict[int, Found] = {}

    def run(i: int) -> None:
        found[i] = compute(parts[i])

    threads.in_parallel(run, range(len(parts)))
    return [found[i] for i in range(len(parts))]


def by_path(gradient: Any) -> dict[str, Array]:
    """The gradients of a tree, without the frozen arrays, which have none."""
    return {leaf.path: leaf.value for leaf in leaves(gradient)}


def add(total: dict[str, Array], more: dict[str, Array]) -> dict[str, Array]:
    """The sums of gradients, in the arrays of the first."""
    for path, g in more.items():
        total[path] += g
    return total
