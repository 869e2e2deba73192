"""A tree of weights that was trained -> an adapter that peft loads, or a model that transformers loads, and back."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import safetensors

from npgemma.checkpoints import adapter_writing
from npgemma.checkpoints.adapter import Adapter, LowRank, Rows
from npgemma.checkpoints.convert import whole_folder
from npgemma.checkpoints.layout import Stored
from npgemma.checkpoints.merging import updated
from npgemma.checkpoints.model_writing import as_stored, write_model
from npgemma.errors import BadData, why
from npgemma.layers.bits import widened
from npgemma.layers.linear import AdaptedRows, AdaptedWeight
from npgemma.layers.shapes import Array
from npgemma.layers.tree import Leaf, leaves, map_tree, trained

Tree = TypeVar("Tree")


class Home:
    """Where the arrays of a model stand on disk: `tensors` by name, and `places` by path."""

    def __init__(self, path: Path, checkpoint: ModuleType, config: Any) -> None:
        self.tensors: Mapping[str, Array] = checkpoint.read_tensors(path, config)
        stored = checkpoint.layout_of(self.tensors, config).stored
        self.places: Mapping[str, Stored] = {each.leaf.path: each for each in stored}

    def tensor_of(self, path: str) -> Array:
        """The tensor of the array at a path, as it is stored."""
        return self.tensors[self.places[path].name]


def changed_tensors(tree: Any, home: Home) -> dict[str, Array]:
    """The tensors that a run has changed, updates merged, by name and rounded to the dtypes they are stored in."""
    found = {}
    for path, x in trained(tree).items():
        if path in home.places:
            place = home.places[path]
            found[place.name] = as_stored(place.from_field(x), home.tensor_of(path))
    float32 = np.dtype(np.float32)
    for name, update in updates(tree, home.places).items():
        stored = home.tensors[name]
        found[name] = as_stored(updated(stored, update, float32), stored)
    for name, rows in token_rows(tree, home.places).items():
        found[name] = np.array(home.tensors[name])
        found[name][rows.ids] = as_stored(rows.values, found[name][rows.ids])
    return found


def as_written(tree: Any, home: Home) -> Any:
    """The tree with each trained array rounded as the folder of the model has it. Updates stay as they are."""

    def rounded(leaf: Any) -> Array:
        x: Array = leaf.value
        if not x.flags.writeable or leaf.path not in home.places:
            return x
        return widened(as_stored(x, np.empty(x.shape, home.tensor_of(leaf.path).dtype)), x.dtype)

    return map_tree(rounded, tree)


def save_adapter(folder: Path, tree: Any, home: Home, base: str) -> None:
    """Write the updates of a tree as PEFT saves them. BadData if that fails; then the folder has none of them."""
    with written(folder) as unfinished:
        found = updates(tree, home.places), token_rows(tree, home.places)
        adapter_writing.write_adapter(unfinished, *found, home.tensors, base)


def save_model(folder: Path, tree: Any, home: Home, source: Path, tokenizer: Path | None) -> None:
    """Write a model with updates merged. BadData if that fails; then the folder has none of it."""
    with written(folder) as unfinished:
        write_model(unfinished, {**home.tensors, **changed_tensors(tree, home)}, source, tokenizer)


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """A folder whose files move to `folder` at the end. BadData if something cannot be written."""
    try:
        with whole_folder(folder) as unfinished:
            yield unfinished
    except (OSError, safetensors.SafetensorError) as error:
        raise BadData(f"{folder} cannot be written: {why(error)}; the same command tries again") from None


def with_adapter(tree: Tree, known: Adapter, places: Mapping[str, Stored]) -> Tree:
    """The tree with the updates of an adapter, which goes on learning. BadData if it is more than updates."""
    updates = known.added
    others = known.changed - updates.keys() - known.rows.keys()
    if others or known.tables or any(each.magnitude is not None for each in updates.values()):
        what = "biases, magnitudes or whole tensors beside its low-rank updates"
        raise BadData(f"{known.path} has {what}, which npgemma does not train; merge it into its model first")
    named = {place.name: path for path, place in places.items()}
    unfit = [name for name, each in updates.items() if name not in named or places[named[name]].shape != each.shape]
    if unfit:
        raise BadData(f"{known.path} changes {unfit[0]}, which this model does not have in that shape")
    by_path = {named[name]: each for name, each in updates.items()}
    rows_by_path = {named[name]: each for name, each in known.rows.items()}

    def with_updates(leaf: Leaf) -> Any:
        if leaf.path in rows_by_path:
            ids, rows = rows_by_path[leaf.path]
            order = np.argsort(ids)
            return AdaptedRows(leaf.value, ids[order], rows[order])
        each = by_path.get(leaf.path)
        return leaf.value if each is None else AdaptedWeight(leaf.value, each.a, each.b, each.scale)

    return map_tree(with_updates, tree)


def updates(tree: Any, places: Mapping[str, Stored]) -> dict[str, LowRank]:
    """The updates of a tree by the names of their matrices on the hub, as files hold them."""
    return {
        places[path].name: LowRank(each.a, each.b, each.scale, places[path].shape)
        for path, each in adapted(tree, AdaptedWeight).items()
    }


def token_rows(tree: Any, places: Mapping[str, Stored]) -> dict[str, Rows]:
    """The rows of tokens that a tree trains, by the names of their tables on the hub."""
    return {places[path].name: Rows(each.ids, each.rows) for path, each in adapted(tree, AdaptedRows).items()}


def adapted(tree: Any, kind: type) -> dict[str, Any]:
    """What stands in a tree in place of an array, of this kind, by path."""
    bases = [leaf.path for leaf in leaves(tree) if leaf.owner is kind and leaf.path.endswith(".base")]
    return {path.removesuffix(".base"): at(tree, path.removesuffix(".base")) for path in bases}


def at(tree: Any, path: str) -> Any:
    """What stands at a path of a tree."""
    for step in path.replace("[", ".").replace("]", "").split("."):
        tree = tree[int(step)] if step.isdecimal() else getattr(tree, step)
    return tree
