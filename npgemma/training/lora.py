"""LoRA: a small update beside each chosen matrix, W + scale B A, which alone is trained.

It begins as PEFT's does: A uniform in +-1/sqrt(inputs), which is torch's Kaiming-uniform, B zero, so that the model is
at first what it was. Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1. The numbers of A are a function of the
seed and the matrix, so they do not depend on which other matrices are adapted.

Updates of layers cannot teach a word that the model has not met: the rows of its tokens in the table were never
trained, and all look alike to it. So the rows of some tokens can be trained beside the updates.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np

from npgemma.layers.bits import widened
from npgemma.layers.linear import AdaptedRows, AdaptedWeight
from npgemma.layers.tree import Leaf, map_tree
from npgemma.training.draws import uniform

Tree = TypeVar("Tree")


def with_adapters(tree: Tree, shapes: Mapping[str, tuple[int, ...]], rank: int, alpha: float, seed: int) -> Tree:
    """The tree with a new update beside each matrix of which `shapes`, by path, has the shape (outputs, inputs)."""

    def adapted(leaf: Leaf) -> Any:
        if leaf.path not in shapes:
            return leaf.value
        outputs, inputs = shapes[leaf.path]
        a = (2 * uniform(rank * inputs, "lora", seed, leaf.path) - 1) / math.sqrt(inputs)
        return AdaptedWeight(leaf.value, a.reshape(rank, inputs), np.zeros((outputs, rank)), alpha / rank)

    return map_tree(adapted, tree)


def with_rows(tree: Tree, paths: Collection[str], ids: Collection[int], dtype: np.dtype) -> Tree:
    """The tree with rows of its own for these tokens in the tables at `paths`; at first they are the table's."""

    def adapted(leaf: Leaf) -> Any:
        if leaf.path not in paths:
            return leaf.value
        chosen = np.array(sorted(ids))
        return AdaptedRows(leaf.value, chosen, widened(leaf.value[chosen], dtype))

    return map_tree(adapted, tree)


def is_update(path: str) -> bool:
    """Whether an array is one of the two halves of an update, or the rows of tokens."""
    return path.endswith((".a", ".b", ".rows"))
