"""What a run leaves: an adapter that peft loads, or a model that transformers loads."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors

from npgemma.checkpoints import adapter_writing
from npgemma.checkpoints.convert import whole_folder
from npgemma.checkpoints.layout import Stored
from npgemma.checkpoints.merging import updated
from npgemma.checkpoints.model_writing import as_stored, write_model
from npgemma.errors import BadData, why
from npgemma.layers.bits import widened
from npgemma.layers.shapes import Array
from npgemma.layers.tree import map_tree
from npgemma.training.lora import adapted_weights, trained, updates


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
        adapter_writing.write_adapter(unfinished, updates(tree, home.places), home.tensors, base)


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


def has_updates(tree: Any) -> bool:
    """Whether a tree has adapters, rather than arrays of its own that are trained."""
    return bool(adapted_weights(tree))
