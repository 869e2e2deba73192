"""LoRA: a small update beside each chosen matrix, W + scale B A, which alone is trained.

It begins as PEFT's does: A uniform in +-1/sqrt(inputs), which is torch's Kaiming-uniform, B zero, so that the model is
at first what it was. Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1. The numbers of A are a function of the
seed and the matrix, so they do not depend on which other matrices are adapted.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from npgemma.layers.linear import AdaptedWeight
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


def is_update(path: str) -> bool:
    """Whether an array is one of the two halves of an update."""
    return path.endswith((".a", ".b"))
