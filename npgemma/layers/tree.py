"""Trees of arrays: a model's weights are frozen dataclasses and tuples of them, with arrays as their leaves.

The annotation of a field says what its leaf is: `q: Weight[Array, "N H D"]`. A field that is None is a part that the
model lacks, and has no leaf. In a skeleton, a `Slot` takes the place of an array that is not read yet.

    >>> from npgemma.layers.norms import RMSNorm
    >>> skeleton = sized(RMSNorm(Slot(), eps=1e-6), {"D": 4})
    >>> [(leaf.path, leaf.axes, leaf.value) for leaf in leaves(skeleton)]
    [('weight', 'D', Slot(shape=(4,)))]
    >>> map_tree(lambda leaf: np.zeros(leaf.value.shape), skeleton)
    RMSNorm(weight=array([0., 0., 0., 0.]), eps=1e-06)
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeAlias, TypeVar, get_args, get_type_hints

import numpy as np

from npgemma.layers.bits import widened
from npgemma.layers.shapes import Array

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of an array of this shape; the shape is None until the sizes of its axes are known."""

    shape: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape or ())


# The gradient of a weight: an array of its shape, or None if it is frozen.
Gradient: TypeAlias = Any

# A field of a model whose arrays are not read yet; to a type checker it is whatever the field wants.
SLOT: Any = Slot()


class Leaf(NamedTuple):
    """An array or a Slot: its path, such as 'blocks[3].attn.q', the class that holds it, and its annotation."""

    path: str
    owner: type
    kind: str
    axes: str
    value: Any


def leaves(tree: Any) -> list[Leaf]:
    """Every leaf, in the order of the fields."""
    return list(walk(tree, ""))


def walk(tree: Any, path: str) -> Iterator[Leaf]:
    for name, child, annotation in children(tree, path):
        if is_leaf(child):
            yield Leaf(name, type(tree), *annotation, child)
        else:
            yield from walk(child, name)


def children(tree: Any, path: str) -> Iterator[tuple[str, Any, tuple[str, str]]]:
    """The path, the value and the annotation of each child of a dataclass or a tuple."""
    if dataclasses.is_dataclass(tree):
        annotations = annotations_of(type(tree))  # type: ignore[arg-type]
        for field in dataclasses.fields(tree):
            name = f"{path}.{field.name}".lstrip(".")
            yield name, getattr(tree, field.name), annotations.get(field.name, ("", ""))
    elif isinstance(tree, tuple):
        for i, child in enumerate(tree):
            yield f"{path}[{i}]", child, ("", "")


def is_leaf(value: Any) -> bool:
    return isinstance(value, np.ndarray | Slot)


@cache
def annotations_of(owner: type) -> dict[str, tuple[str, str]]:
    """The kind and the axes of every field that is annotated with them, optional ones too."""
    found = {}
    for name, hint in get_type_hints(owner, include_extras=True).items():
        for each in (hint, *get_args(hint)):
            if hasattr(each, "__metadata__"):
                found[name] = each.__metadata__[0]
    return found


def map_tree(f: Callable[[Leaf], Any], tree: Tree) -> Tree:
    """The same tree with f(leaf) in place of each leaf; numbers, strings and None stay unchanged."""
    return rebuilt(f, tree, "")


def rebuilt(f: Callable[[Leaf], Any], tree: Any, path: str) -> Any:
    changed = []
    for name, child, annotation in children(tree, path):
        changed.append(f(Leaf(name, type(tree), *annotation, child)) if is_leaf(child) else rebuilt(f, child, name))
    if isinstance(tree, tuple):
        return tuple(changed)
    if dataclasses.is_dataclass(tree):
        names = [field.name for field in dataclasses.fields(tree)]
        return dataclasses.replace(tree, **dict(zip(names, changed, strict=True)))  # type: ignore[type-var]
    return tree


def thawed(tree: Tree, chosen: Callable[[str], bool], dtype: np.dtype) -> Tree:
    """The tree for training: a writable copy, as `dtype`, of each leaf whose path is `chosen`; the others read-only.

    A read-only weight is frozen: a backward pass has no gradient for it, and None stands in its place.
    """

    def copied(leaf: Leaf) -> Array:
        if chosen(leaf.path):
            return np.array(widened(leaf.value, dtype))
        view = leaf.value.view()
        view.flags.writeable = False
        return view

    return map_tree(copied, tree)


def is_frozen(w: Array) -> bool:
    """Whether a weight is read-only, so that a backward pass has no gradient for it."""
    return not w.flags.writeable


def trains(tree: Any) -> bool:
    """Whether a weight of the tree is not frozen."""
    return any(not is_frozen(leaf.value) for leaf in walk(tree, ""))


def trained(tree: Any) -> dict[str, Array]:
    """The weights that are not frozen, by path."""
    return {leaf.path: leaf.value for leaf in leaves(tree) if not is_frozen(leaf.value)}


def no_gradient(tree: Tree) -> Tree:
    """The gradient of weights that are all frozen."""
    return map_tree(lambda leaf: None, tree)


def added(tree: Tree, other: Tree) -> Tree:
    """The sum of two gradients of the same model, array by array."""
    values = iter(arrays(other))
    return map_tree(lambda leaf: leaf.value + next(values), tree)


def arrays(tree: Any) -> list[Array]:
    """The arrays or Slots of a tree."""
    return [leaf.value for leaf in leaves(tree)]


def sized(skeleton: Tree, sizes: Mapping[str, int]) -> Tree:
    """The skeleton with the shape of each Slot, from the size of each letter. KeyError for a letter without one."""

    def fill(leaf: Leaf) -> Slot:
        return Slot(tuple(int(letter) if letter.isdecimal() else sizes[letter] for letter in leaf.axes.split()))

    return map_tree(fill, skeleton)
