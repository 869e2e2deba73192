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
# How many times the rms error of an honest float32 run that of another may be, and of a tensor of fewer values: see
# golden/README.md.
ENVELOPE, FEW = (4, 8), 1000


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


def in_parts(p: Any, dtype: np.dtype, size: int) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of four examples and its gradients, by path: sums of those of so many examples at a time."""
    pixels, examples = batch(p, 4)
    p, pixels, parts = thawed(p, lambda path: True, dtype), pixels.astype(dtype), []
    for start in range(0, 4, size):
        some = [each._replace(pictures=[i]) for i, each in enumerate(examples[start : start + size])]
        parts.append(loss_and_gradient(p, pixels[start : start + size], some))
    total = reduce(added, [gradient for _, gradient in parts])
    return sum(each for each, _ in parts), {leaf.path: leaf.value for leaf in leaves(total)}


@pytest.mark.parametrize("size", [2, 1])
def test_the_gradients_of_the_parts_of_a_batch_add_up_to_its_own(size: int) -> None:
    p = random_weights("PaliGemma 1")
    (loss, wanted), (parts_loss, found) = in_parts(p, F64, 4), in_parts(p, F64, size)
    assert parts_loss == pytest.approx(loss, rel=ROUNDING)
    assert length(found[path] - x for path, x in wanted.items()) <= ROUNDING * length(wanted.values())
    for path, x in wanted.items():
        expected = wanted[path.replace("k_bias", "q_bias")]  # that of a key bias is zero
        assert np.linalg.norm(found[path] - x) <= CANCELLED * np.linalg.norm(expected), path


@pytest.mark.parametrize("size", [2, 1])
def test_in_float32_the_parts_are_as_exact_as_the_whole(size: int) -> None:
    p = thawed(random_weights("PaliGemma 1"), lambda path: True, F32)
    (_, truth), (_, whole), (_, parts) = in_parts(p, F64, 4), in_parts(p, F32, 4), in_parts(p, F32, size)
    for path, x in truth.items():
        expected = truth[path.replace("k_bias", "q_bias")]
        honest = max(np.linalg.norm(whole[path] - x), np.finfo(F32).eps * np.linalg.norm(expected))
        assert 0 < np.linalg.norm(parts[path] - x) <= ENVELOPE[x.size < FEW] * honest, path


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
