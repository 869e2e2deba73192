"""LoRA: a small update beside each chosen matrix, W + scale B A, which alone is trained.

It begins as PEFT's does: A uniform in +-1/sqrt(inputs), which is torch's Kaiming-uniform, B zero, so that the model is
at first what it was. Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1. The numbers of A are a function of the
seed and the matrix, so they do not depend on which other matrices are adapted.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np

from npgemma.checkpoints import adapter
from npgemma.checkpoints.adapter import Adapter
from npgemma.checkpoints.layout import Stored
from npgemma.errors import BadData
from npgemma.layers.linear import AdaptedWeight
from npgemma.layers.shapes import Array
from npgemma.layers.tree import Leaf, leaves, map_tree
from npgemma.training.draws import uniform

Tree = TypeVar("Tree")


def with_adapters(
    tree: Tree, paths: Collection[str], places: Mapping[str, Stored], rank: int, alpha: float, seed: int
) -> Tree:
    """The tree with a new update beside each matrix of `paths`; `places` are the homes of all arrays, by path."""

    def adapted(leaf: Leaf) -> Any:
        if leaf.path not in paths:
            return leaf.value
        outputs, inputs = places[leaf.path].shape
        a = (2 * uniform(rank * inputs, "lora", seed, leaf.path) - 1) / math.sqrt(inputs)
        return AdaptedWeight(leaf.value, a.reshape(rank, inputs), np.zeros((outputs, rank)), alpha / rank)

    return map_tree(adapted, tree)


def with_adapter(tree: Tree, known: Adapter, places: Mapping[str, Stored]) -> Tree:
    """The tree with the updates of an adapter, which goes on learning. BadData if it is more than updates."""
    updates = known.added
    if known.changed - updates.keys() or known.tables or any(each.magnitude is not None for each in updates.values()):
        what = "rows, biases, magnitudes or whole tensors beside its low-rank updates"
        raise BadData(f"{known.path} has {what}, which npgemma does not train; merge it into its model first")
    named = {place.name: path for path, place in places.items()}
    unfit = [name for name, each in updates.items() if name not in named or places[named[name]].shape != each.shape]
    if unfit:
        raise BadData(f"{known.path} changes {unfit[0]}, which this model does not have in that shape")
    by_path = {named[name]: each for name, each in updates.items()}

    def adapted(leaf: Leaf) -> Any:
        each = by_path.get(leaf.path)
        return leaf.value if each is None else AdaptedWeight(leaf.value, each.a, each.b, each.scale)

    return map_tree(adapted, tree)


def updates(tree: Any, places: Mapping[str, Stored]) -> dict[str, adapter.LowRank]:
    """The updates of a tree by the names of their matrices on the hub, as files hold them."""
    return {
        places[path].name: adapter.LowRank(each.a, each.b, each.scale, places[path].shape)
        for path, each in adapted_weights(tree).items()
    }


def adapted_weights(tree: Any) -> dict[str, AdaptedWeight]:
    """The matrices of a tree that have an update, by path."""
    bases = [leaf.path for leaf in leaves(tree) if leaf.owner is AdaptedWeight and leaf.path.endswith(".base")]
    return {path.removesuffix(".base"): at(tree, path.removesuffix(".base")) for path in bases}


def at(tree: Any, path: str) -> Any:
    """What stands at a path of a tree."""
    for step in path.replace("[", ".").replace("]", "").split("."):
        tree = tree[int(step)] if step.isdecimal() else getattr(tree, step)
    return tree


def is_update(path: str) -> bool:
    """Whether an array is one of the two halves of an update."""
    return path.endswith((".a", ".b"))


def trained(tree: Any) -> dict[str, Array]:
    """The arrays that are trained, by path: those that can be written."""
    return {leaf.path: leaf.value for leaf in leaves(tree) if leaf.value.flags.writeable}
