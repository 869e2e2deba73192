"""Packed weights whose widened copies stay in memory once some steps have needed them, for the steps after these.

An array says where its copies go: it is a `RetainedWeight`, a view of stored numbers with the `Copies` of its model.
Everything but the products of few rows treats it as any other array.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TypeAlias

import numpy as np

from npgemma.layers.shapes import Array, Float, Weight
from npgemma.layers.tree import Tree, map_tree

# Whether the weights of a model are widened in memory: all of them at once, none, or those that steps need.
Resident: TypeAlias = bool | Literal["auto"]
# The address and the shape of a stored matrix, and the dtype of its copy.
Key: TypeAlias = tuple[int, tuple[int, ...], np.dtype]


# Copies are made for the steps after so many: to write one to memory takes as long as it saves in 10 to 80 steps.
STEPS = 16


class Copies:
    """Copies of the matrices that `steps` steps have widened, of at most `limit` bytes in all."""

    def __init__(self, limit: int = 0, steps: int = STEPS) -> None:
        self.limit = limit
        self.steps = steps
        self.uses = Counter[Key]()
        self.arrays: dict[Key, Array] = {}

    @property
    def size(self) -> int:
        """The bytes of all copies."""
        return sum(copy.nbytes for copy in list(self.arrays.values()))

    def set_limit(self, limit: int) -> None:
        """Drop the newest copies until the others have no more than `limit` bytes."""
        self.limit = limit
        with suppress(KeyError):  # another thread may have dropped the last one
            while self.size > limit:
                self.arrays.popitem()

    def copy_of(self, w: "RetainedWeight", dtype: np.dtype, widen: Callable[[Array, np.dtype], Array]) -> Array | None:
        """The copy of a matrix, made by `widen` after `steps` uses; None before, and if it would exceed the limit."""
        key = w.ctypes.data, w.shape, dtype
        copy = self.arrays.get(key)
        if copy is None:
            self.uses[key] += 1
            if self.uses[key] > self.steps and self.size + w.size * dtype.itemsize <= self.limit:
                copy = self.arrays[key] = widen(np.asarray(w), dtype)
        return copy


class RetainedWeight(np.ndarray):
    """A view of stored numbers, and of any part or shape of them, with the Copies of its model."""

    copies: Copies | None = None

    def __array_finalize__(self, whole: Array | None) -> None:
        self.copies = getattr(whole, "copies", None)


def retained(w: Weight[Array, "*R"], copies: Copies) -> RetainedWeight:
    """The same numbers, whose widened copies are kept among these."""
    view = w.view(RetainedWeight)
    view.copies = copies
    view.flags.writeable = False
    return view


def retaining(model: Tree, copies: Copies) -> Tree:
    """The model, the widened copies of whose matrices are kept among these."""
    return map_tree(lambda leaf: retained(leaf.value, copies) if leaf.kind == "weight" else leaf.value, model)


def retained_copy(
    w: Weight[Array, "O I"], dtype: np.dtype, widen: Callable[[Array, np.dtype], Array]
) -> Float[Array, "2 O J"] | None:
    """The copy of a matrix as `dtype`; None if it has none, or can be written to: its numbers may change."""
    if isinstance(w, RetainedWeight) and w.copies is not None and not w.flags.writeable:
        return w.copies.copy_of(w, dtype, widen)
    return None
