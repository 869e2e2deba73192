"""Checkpoint layouts: one table line is one tensor.

    blocks[i].attn.q      layers.{i}.self_attn.q_proj.weight      (N H) D

A line has the field of the weights, the name on disk, and the axes as they are stored; `(N H)` is one axis that holds
two, `1` an axis to drop. The field's annotation says which axes it wants, so the line implies reshape and transpose,
and the sizes of the letters give the expected shape; `-` stands for the axes of a single number. `[i, 0]` after a name
selects a part of a tensor that holds several: layers stacked on the first axis, keys and values fused on the second.
With the axes `(3 N H) D`, `[1]` selects the second third of the rows.

A line whose field is None in the skeleton describes a part that this model lacks, and is skipped.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from npgemma.errors import BadModel
from npgemma.layers.bits import widened
from npgemma.layers.packed import BLOCK, row_blocks
from npgemma.layers.shapes import Array
from npgemma.layers.threads import in_parallel
from npgemma.layers.tree import Leaf, leaves, map_tree

Tree = TypeVar("Tree")
FLOAT32 = np.dtype(np.float32)
# The most tensors that one error names.
MOST_NAMED = 10


class Line(NamedTuple):
    field: str
    name: str
    axes: str


def table(text: str) -> tuple[Line, ...]:
    """The lines of a table: field, name and axes, separated by two or more spaces."""
    return tuple(Line(*re.split(r"\s{2,}", line.strip())) for line in text.strip().splitlines())


def within(lines: Iterable[Line], field: str, name: str) -> tuple[Line, ...]:
    """The lines with `field` before their fields, and in `name`, in which {} stands for the name of each."""
    return tuple(Line(field + line.field, name.replace("{}", line.name), line.axes) for line in lines)


class Shaped(Protocol):
    """A tensor, or what will be one."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class Part(NamedTuple):
    """A table, the size of each letter in it (L is the number of layers), and the prefixes of its fields and names."""

    lines: tuple[Line, ...]
    sizes: Mapping[str, int]
    field: str = ""
    name: str = ""


def name_of(path: str, parts: Iterable[Part]) -> str:
    """The name of the tensor for a path of the weights, such as 'text.head', that is not in a layer."""
    return next(part.name + line.name for part in parts for line in part.lines if part.field + line.field == path)


@dataclass(frozen=True)
class Stored:
    """One array of a model, and where it is stored: in tensor `name`, at `index` if that holds several.

    `fused` is the number of arrays whose rows the tensor holds one behind the other, or 0.
    """

    leaf: Leaf
    name: str
    index: tuple[int, ...]
    axes: str
    sizes: Mapping[str, int]
    fused: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the stored array."""
        return tuple(math.prod(map(self.size_of, group)) for group in groups(self.axes))

    def part(self, tensor: Array) -> Array:
        """The stored array within its tensor: a view of it."""
        whole = tensor.reshape(self.fused, *self.shape) if self.fused else tensor
        index: tuple[Any, ...] = (*self.index, ...)  # with the dots, a single number stays an array
        return whole[index]

    def size_of(self, letter: str) -> int:
        return int(letter) if letter.isdecimal() else self.sizes[letter]

    @property
    def letters(self) -> list[str]:
        """The axes as stored, each on its own, those of size 1 dropped."""
        return [letter for group in groups(self.axes) for letter in group if letter != "1"]

    def to_field(self, x: Array) -> Array:
        """The stored array with the axes that the field wants: a view of it."""
        wanted, letters = self.leaf.axes.split(), self.letters
        split = x.reshape([self.size_of(letter) for letter in letters])
        return split.transpose([letters.index(letter) for letter in wanted])

    def from_field(self, x: Array) -> Array:
        """The opposite of `to_field`."""
        wanted = self.leaf.axes.split()
        return x.transpose([wanted.index(letter) for letter in self.letters]).reshape(self.shape)


@cache
def groups(axes: str) -> tuple[tuple[str, ...], ...]:
    """'(N H) D' is ((N, H), (D,))."""
    return tuple(tuple(group.strip("()").split()) for group in re.findall(r"\([^)]*\)|\S+", axes))


@dataclass(frozen=True)
class Layout(Generic[Tree]):
    """Every array of a skeleton, with the place where it is stored."""

    skeleton: Tree
    stored: tuple[Stored, ...]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the checkpoint, by name."""
        ends: dict[str, tuple[int, ...]] = {}
        for each in self.stored:
            known = ends.get(each.name, (0,) * len(each.index))
            ends[each.name] = tuple(max(end, i + 1) for end, i in zip(known, each.index, strict=True))
        return {
            each.name: (each.fused * each.shape[0], *each.shape[1:]) if each.fused else ends[each.name] + each.shape
            for each in self.stored
        }

    def check(self, tensors: Mapping[str, Shaped], where: Path, source: str = "config.json") -> None:
        """BadModel, naming tensors that are missing, unexpected or of another shape than `source` asks for.

        It names all of them, or some of each kind if there are more than MOST_NAMED.
        """
        expected = self.shapes
        missing = [f"  missing     {name} {shape}" for name, shape in expected.items() if name not in tensors]
        extra = [f"  unexpected  {name} {x.shape}" for name, x in tensors.items() if name not in expected]
        wrong = [
            f"  mis-shaped  {name}: stored {tensors[name].shape}, expected {shape}"
            for name, shape in expected.items()
            if name in tensors and tensors[name].shape != shape
        ]
        if missing or extra or wrong:
            count = f"{len(missing)} missing, {len(extra)} unexpected, {len(wrong)} mis-shaped"
            found = f"{where}: the tensors do not fit {source} ({count})"
            raise BadModel("\n".join([found, *some_of(missing, extra, wrong)]))

    def fill(self, tensors: Mapping[str, Array], vectors: np.dtype = FLOAT32) -> Tree:
        """The weights. Matrices are views of the stored tensors; norms, biases and position tables become `vectors`."""
        homes = {each.leaf.path: each for each in self.stored}

        def read(leaf: Leaf) -> Array:
            home = homes[leaf.path]
            x = home.to_field(home.part(tensors[home.name]))
            return x if leaf.kind == "weight" else widened(x, vectors)

        return map_tree(read, self.skeleton)


def translated(tensors: Mapping[str, Array], source: Layout[Tree], target: Layout[Tree]) -> dict[str, Array]:
    """The tensors of a model by the names of another layout, in which each array has a tensor of its own.

    They are views where the order of the axes allows it.
    """
    arrays = {each.leaf.path: each.to_field(each.part(tensors[each.name])) for each in source.stored}
    return {each.name: each.from_field(arrays[each.leaf.path]) for each in target.stored}


def some_of(*kinds: list[str]) -> list[str]:
    """At most MOST_NAMED lines, the first of each kind by turns, and how many more there are."""
    turns = [(turn, kind, line) for kind, lines in enumerate(kinds) for turn, line in enumerate(lines)]
    named = sorted(sorted(turns)[:MOST_NAMED], key=lambda each: each[1])
    more = [f"  and {len(turns) - len(named)} more"] if len(turns) > len(named) else []
    return [line for _, _, line in named] + more


def make_layout(skeleton: Tree, *parts: Part) -> Layout[Tree]:
    """The layout of a skeleton by its tables.

    ValueError for a field without a line or with several, and for a line that does not fit a field of the skeleton.
    """
    by_path = {leaf.path: leaf for leaf in leaves(skeleton)}
    stored = [each for part in parts for each in expand(part, skeleton, by_path)]
    lines = Counter(each.leaf.path for each in stored)
    for path in by_path:
        if lines[path] != 1:
            raise ValueError(f"{path} has {lines[path]} lines in the tables; every array has one")
    return Layout(skeleton, tuple(stored))


def expand(part: Part, skeleton: Any, by_path: Mapping[str, Leaf]) -> Iterator[Stored]:
    """The lines of a part, with those of layers repeated for every layer, layer by layer."""
    layered = [line for line in part.lines if "[i]" in line.field]
    for line in (line for line in part.lines if line not in layered):
        yield from place(line, part, "", skeleton, by_path)
    for i in range(part.sizes.get("L", 0)):
        for line in layered:
            yield from place(line, part, str(i), skeleton, by_path)


def place(line: Line, part: Part, i: str, skeleton: Any, by_path: Mapping[str, Leaf]) -> Iterator[Stored]:
    """The array of a line for layer `i`, unless the model lacks it."""
    path = part.field + line.field.replace("[i]", f"[{i}]")
    name, _, index = line.name.replace("{i}", i).partition("[")
    if path in by_path:
        numbers = tuple(int(number) for number in re.findall(r"\d+", index.replace("i", i)))
        fused = re.match(r"\((\d+) ", line.axes)
        axes = line.axes.replace("-", "") if fused is None else line.axes.replace(fused[1] + " ", "", 1)
        stored = Stored(by_path[path], part.name + name, numbers, axes, part.sizes, int(fused[1]) if fused else 0)
        if sorted(stored.letters) != sorted(stored.leaf.axes.split()):
            raise ValueError(f"{path} has the axes {stored.leaf.axes!r}; its table line says {line.axes!r}")
        yield stored
    elif not lacks(skeleton, path):
        raise ValueError(f"a table has a line for {path}; the weights have no such field")


def lacks(tree: Any, path: str) -> bool:
    """Whether a path leads to None."""
    for step in re.findall(r"\w+", path):
        try:
            tree = tree[int(step)] if step.isdecimal() else getattr(tree, step)
        except (AttributeError, IndexError):
            return False
        if tree is None:
            return True
    return False


def in_memory(tensors: Mapping[str, Array], dtype: np.dtype) -> dict[str, Array]:
    """All tensors as `dtype` and in memory, so that the files may be deleted; copied only where necessary."""
    return {name: w if w.flags.owndata and w.dtype == dtype else copied(w, dtype) for name, w in tensors.items()}


def copied(w: Array, dtype: np.dtype) -> Array:
    """A copy of `w`, widened to `dtype` one block at a time."""
    copy = np.empty(w.shape, dtype)

    rows = w.reshape(len(w) if w.ndim else 1, -1)

    def copy_block(block: slice) -> None:
        copy.reshape(rows.shape)[block] = widened(rows[block], dtype)

    in_parallel(copy_block, row_blocks(rows, BLOCK))
    return copy


def not_finite(tensors: Mapping[str, Array]) -> list[str]:
    """The names of the tensors that contain an infinity or a NaN; weights are read one block at a time."""

    def all_finite(w: Array) -> bool:
        rows = w.reshape(len(w) if w.ndim else 1, -1)
        return all(finite(rows[block]) for block in row_blocks(rows, BLOCK))

    return [name for name, w in tensors.items() if not all_finite(w)]


def finite(w: Array) -> bool:
    """Whether all numbers are finite. bfloat16 is stored as bits: an exponent of ones is infinity or NaN."""
    return bool(((w & 0x7F80) != 0x7F80).all() if w.dtype == np.uint16 else np.isfinite(w).all())
