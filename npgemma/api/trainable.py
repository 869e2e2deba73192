"""What of a model can be trained, and what each gradient is called on disk.

A weight has the name of its tensor in the checkpoint; so queries, keys and values that one tensor holds have one
gradient. An adapter stands beside the matrices that it changes, instead of being merged into them: the halves A and B
of each update have the names that PEFT saves, and all weights of the model are frozen.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

import numpy as np

from npgemma.api.load import AnyModel
from npgemma.api.transfer import files_digest
from npgemma.checkpoints.adapter import read_adapter
from npgemma.checkpoints.adapter_writing import module_name
from npgemma.checkpoints.layout import Stored
from npgemma.checkpoints.trained_model import at, with_adapter
from npgemma.errors import BadData, BadModel
from npgemma.io.model_folder import find_adapter
from npgemma.io.unusable import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from npgemma.layers.linear import AdaptedRows, AdaptedWeight
from npgemma.layers.shapes import Array
from npgemma.training.parts import PRESETS, name_of

M = TypeVar("M", bound=AnyModel)


@dataclass(frozen=True)
class Tensor:
    """A tensor that can be trained: its name and shape on disk, and the paths of the arrays of the model that it holds.

    `homes` say how each of these is stored; a part of an adapter has none.
    """

    name: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    homes: tuple[Stored, ...] = ()

    def whole(self, gradients: Sequence[Array]) -> Array:
        """The gradient in the shape of the tensor, from those of its arrays."""
        parts = [home.from_field(g) for home, g in zip(self.homes, gradients, strict=bool(self.homes))] or gradients
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def tensors_of(model: AnyModel) -> dict[str, Tensor]:
    """The tensors of a model by name: those of its checkpoint, and those of the adapter beside it."""
    layout = model.checkpoint.hf_layout(model.config)
    stored: dict[str, list[Stored]] = {}
    for home in layout.stored:
        stored.setdefault(home.name, []).append(home)
    shapes = layout.shapes
    found = {
        name: Tensor(name, shapes[name], tuple(home.leaf.path for home in homes), tuple(homes))
        for name, homes in stored.items()
    }
    return found | {tensor.name: tensor for home in layout.stored for tensor in updates_of(model, home)}


def updates_of(model: AnyModel, home: Stored) -> list[Tensor]:
    """The parts of an adapter that change an array."""
    path, module = home.leaf.path, f"base_model.model.{module_name(home.name)}"
    x = at(model.weights, path)
    parts: dict[str, tuple[str, Array]] = {}
    if isinstance(x, AdaptedWeight):
        parts = {"a": ("lora_A.weight", x.a), "b": ("lora_B.weight", x.b)}
    if isinstance(x, AdaptedRows):
        parts = {"rows": ("token_adapter.trainable_tokens_delta", x.rows)}
    return [Tensor(f"{module}.{end}", part.shape, (f"{path}.{field}",)) for field, (end, part) in parts.items()]


def trained(model: AnyModel, train: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors that are trained, by name: those that `train` names; by default all, or only those of an adapter.

    A preset or a pattern names weights as in `npgemma train`, or tensors on disk. BadData for one that names none.
    """
    tensors = tensors_of(model)
    updates = {name: tensor for name, tensor in tensors.items() if not tensor.homes}
    chosen = updates or tensors
    if not train:
        return chosen
    found: set[str] = set()
    for pattern in train:
        globs = PRESETS.get(pattern, (pattern,))
        named = {name for name, tensor in chosen.items() if any(matches(tensor, glob) for glob in globs)}
        if not named:
            such = ", ".join([*chosen][:3])
            raise BadData(f"--train {pattern} names no weight of {model.folder} that is trained; those are {such}, ...")
        found |= named
    return {name: tensor for name, tensor in chosen.items() if name in found}


def matches(tensor: Tensor, glob: str) -> bool:
    """Whether a pattern names a tensor: its name on disk, or that of an array that it holds."""
    return any(fnmatchcase(name, glob) for name in (tensor.name, *map(name_of, tensor.paths)))


def frozen(model: AnyModel, train: Sequence[str] = ()) -> list[str]:
    """The names of the tensors of the checkpoint that are not trained."""
    found = trained(model, train)
    return [name for name, tensor in tensors_of(model).items() if tensor.homes and name not in found]


def digest_of(adapter: str | Path) -> str:
    """The sha256 of an adapter's files."""
    folder = find_adapter(adapter)
    return files_digest([folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS])


def scales_of(model: AnyModel) -> dict[str, float]:
    """The scale of each update, by the names of both of its halves."""
    halves = {name: tensor.paths[0] for name, tensor in tensors_of(model).items() if not tensor.homes}
    return {name: at(model.weights, path[:-2]).scale for name, path in halves.items() if path.endswith((".a", ".b"))}


def beside(model: M, adapter: str | Path) -> M:
    """The model with an adapter beside its weights. BadModel or BadData for one that does not fit, or is not read."""
    names = getattr(model.checkpoint, "NAMES", None)
    if not hasattr(model, "decoder") or names is None:
        raise BadModel(f"adapter {adapter}: only a PaliGemma or a Gemma has adapters; leave it out")
    known = read_adapter(find_adapter(adapter), names)
    places = {home.leaf.path: home for home in model.checkpoint.hf_layout(model.config).stored}
    other = copy(model)
    other.weights = with_adapter(model.weights, known, places)
    return other
