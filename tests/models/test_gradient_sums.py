"""The gradient of a PaliGemma: the same bits on any number of threads, and the sum of those of the parts of a batch."""

import math
import tracemalloc
from collections.abc import Iterable
from functools import reduce
from typing import Any

import numpy as np
import pytest
from gradient_cases import random_weights

import npgemma
from npgemma.layers.tree import added, leaves, thawed
from npgemma.models.paligemma_grad import Labelled, loss_and_gradient

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
# Sums of a few examples in another order; a bias of the tower is a sum of terms that are ten times larger.
ROUNDING, CANCELLED = 1e-14, 1e-13


def batch(p: Any, count: int) -> tuple[np.ndarray, list[Labelled]]:
    """Examples of one picture each, with prefixes and suffixes of different lengths."""
    rng = np.random.default_rng(0)
    patches = len(p.vision.embedding.position)
    side = math.isqrt(patches) * p.vision.embedding.weight.shape[-1]
    pixels = rng.uniform(-1, 1, (count, 3, side, side))
    examples = []
    for i in range(count):
        suffix = 3 + i
        ids = np.concatenate([np.full(patches, p.image_token), rng.integers(3, p.image_token, 9)])
        types = np.repeat([0, 1], [len(ids) - suffix, suffix])
        examples.append(Labelled(ids, types, [i], types / sum(range(3, 3 + count))))
    return pixels, examples


@pytest.mark.parametrize(
    ("pattern", "runs"), [("", [(1, False), (2, False), (4, False), (2, True)]), ("norm", [(1, False), (4, True)])]
)
def test_gradients_have_the_same_bits_on_any_number_of_threads_kept_or_computed_again(
    pattern: str, runs: list[tuple[int, bool]], use_threads
) -> None:
    """Of the embedded model: of all its weights, and of its norms, its matrices frozen in bfloat16."""
    p = thawed(npgemma.load().weights, lambda path: pattern in path, F32)
    pixels, examples = batch(p, 2)
    found = []
    for threads, recompute in runs:
        use_threads(threads)
        found.append(loss_and_gradient(p, pixels.astype(F32), examples, recompute=recompute))
    for loss, gradient in found[1:]:
        assert loss == found[0][0]
        for one, other in zip(leaves(found[0][1]), leaves(gradient), strict=True):
            np.testing.assert_array_equal(other.value, one.value, err_msg=one.path, strict=True)


def test_the_gradients_of_the_parts_of_a_batch_add_up_to_its_own() -> None:
    p = random_weights("PaliGemma 1")
    pixels, examples = batch(p, 4)
    loss, whole = loss_and_gradient(p, pixels, examples)
    wanted = {leaf.path: leaf.value for leaf in leaves(whole)}
    for size in (2, 1):
        parts = []
        for start in range(0, 4, size):
            some = [each._replace(pictures=[i]) for i, each in enumerate(examples[start : start + size])]
            parts.append(loss_and_gradient(p, pixels[start : start + size], some))
        assert sum(each for each, _ in parts) == pytest.approx(loss, rel=ROUNDING)
        found = {leaf.path: leaf.value for leaf in leaves(reduce(added, [gradient for _, gradient in parts]))}
        assert length(found[path] - x for path, x in wanted.items()) <= ROUNDING * length(wanted.values())
        for path, x in wanted.items():
            expected = wanted[path.replace("k_bias", "q_bias")]  # that of a key bias is zero
            assert np.linalg.norm(found[path] - x) <= CANCELLED * np.linalg.norm(expected), path


def test_computing_blocks_again_takes_a_third_less_memory() -> None:
    """Of the embedded model, gradients of its weights included, which are as large either way."""
    p = thawed(npgemma.load().weights, lambda path: True, F32)
    pixels, examples = batch(p, 6)
    peaks = []
    for recompute in (False, True):
        tracemalloc.start()
        loss_and_gradient(p, pixels.astype(F32), examples, recompute=recompute)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 0.7 * peaks[0]


def length(arrays: Iterable[np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(x).sum()) for x in arrays))
