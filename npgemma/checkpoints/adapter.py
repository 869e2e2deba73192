"""LoRA adapters, as PEFT saves them: the files of one, and what they say to change.

    W' = W + scale B A        A [r, in], B [out, r], scale = alpha / r (alpha / sqrt(r) with rank-stabilised LoRA)

`merging` applies them. Sources: Hu et al. 2021 (arXiv:2106.09685), section 4.1; Kalajdzievski 2023 (arXiv:2312.03732)
for the square root; the names and adapter_config.json of huggingface/peft.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from npgemma.checkpoints.adapter_config import (
    check_patterns,
    is_trained_whole,
    require_known_formula,
    scale_of,
    token_ids,
)
from npgemma.checkpoints.names import Names, unwrapped
from npgemma.checkpoints.paligemma import NAMES
from npgemma.errors import BadModel
from npgemma.io.model_folder import member
from npgemma.io.safetensors import open_any, readable
from npgemma.io.strict_json import Section, read_json
from npgemma.io.unusable import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from npgemma.layers.bits import widened
from npgemma.layers.shapes import Array, Float, Int

# The name of a part of an adapter: its module, what it is, and in a state_dict the name of the adapter. After lora_A
# and lora_B, which are layers, an end must follow.
PART = re.compile(
    r"(?P<module>.+)\.(?P<kind>(?P<layer>lora_A|lora_B)|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|trainable_tokens_delta)(\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?(layer)(?=.))(\.(?P<end>weight|bias))?"
)
# A module that was trained whole.
SAVED = re.compile(r"(?P<module>.+)\.modules_to_save\.(?:(?P<adapter>[^.]+)\.)?(?P<end>.+)")
# What was there before training, and what VeLoRA needs to train.
NOT_USED = re.compile(r"(.+\.)?(original_module|trainable_tokens_original|lora_velora_\w+)(\..+)?")
FLOAT64 = np.dtype(np.float64)
Value = TypeVar("Value")


class LowRank(NamedTuple):
    """The update of a matrix, or of another tensor as a matrix of its rows: scale B A.

    The magnitude of DoRA is [O 1], one number for each row, or [1 I], one for each column.
    """

    a: Float[Array, "R I"]
    b: Float[Array, "O R"]
    scale: float
    shape: tuple[int, ...]
    magnitude: Array | None = None


class Rows(NamedTuple):
    """Rows of a table, and their token ids."""

    ids: Int[Array, "T"]
    values: Array


@dataclass(frozen=True)
class Adapter:
    """By the names that the files on the hub have: updates of matrices, and tensors that replace those of the model.

    `tables` are embedding table and head, if they are stored beside the adapter: the ones it was trained with, which
    take the place of the model's before anything else, and are tied if those are. `rows` replace rows of a table,
    `shifts` are added to biases.
    """

    path: Path
    names: Names
    added: Mapping[str, LowRank]
    replaced: Mapping[str, Array]
    tables: Mapping[str, Array] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    shifts: Mapping[str, Array] = field(default_factory=dict)

    @property
    def changed(self) -> set[str]:
        """The names of what merging computes; `tables` stay as they are stored."""
        return {*self.added, *self.replaced, *self.rows, *self.shifts}


class Once(dict[str, Value]):
    """A dictionary that refuses another value for a key: two spellings of one name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __setitem__(self, name: str, value: Value) -> None:
        known = self.get(name)
        if known is not None and not (isinstance(known, np.ndarray) and np.array_equal(known, np.asarray(value))):
            raise BadModel(f"{self.path} contains two spellings of the tensor {name}")
        super().__setitem__(name, value)


def read_adapter(folder: Path, names: Names = NAMES) -> Adapter:
    """The adapter in a folder, of a model with these names.

    BadModel if it is damaged, or if its formula is not one that npgemma computes.
    """
    config = Section(read_json(member(folder, ADAPTER_CONFIG)), str(folder / ADAPTER_CONFIG))
    require_known_formula(config)
    path = member(folder, ADAPTER_WEIGHTS)
    if not path.exists() and (folder / "adapter_model.bin").exists():
        pickled = folder / "adapter_model.bin"
        raise BadModel(f"{pickled} is a pickle, which npgemma does not read; save the adapter as {ADAPTER_WEIGHTS}")
    used = {
        name: x for name, x in open_any(path)[0].items() if not NOT_USED.fullmatch(name) and not names.is_unused(name)
    }
    parts, whole, tables = sorted_out(readable(used), config, path, names)
    check_patterns(config, parts)
    added, shifts, rows = Once[LowRank](path), Once[Array](path), Once[Rows](path)
    for module, part in parts.items():
        if "trainable_tokens_delta" in part:
            values = np.array(widened(part.pop("trainable_tokens_delta"), FLOAT64))
            rows[names.saved_name(f"{module}.weight")] = Rows(np.array(token_ids(config, module, values.shape)), values)
        if part:
            update = low_rank(config, module, part, path)
            added[names.saved_name(f"{module}.weight")] = update
            if "lora_B.bias" in part:
                shifts[names.saved_name(f"{module}.bias")] = update.scale * widened(part["lora_B.bias"], FLOAT64)
    if not (added or whole or tables or rows):
        what = "it was not saved completely, or is that of another model"
        raise BadModel(f"{path} contains no tensors that change this model: {what}")
    if config.values.get("trainable_token_indices") and not rows:
        raise BadModel(f"{path} has no trainable_tokens_delta, the rows of trainable_token_indices in {config.where}")
    return Adapter(path, names, added, whole, tables, rows, shifts)


def sorted_out(
    tensors: Mapping[str, Array], config: Section, path: Path, names: Names
) -> tuple[dict[str, dict[str, Array]], Once[Array], Once[Array]]:
    """The parts of updates by module, tensors that were trained whole, and tables that were stored beside them."""
    parts: dict[str, dict[str, Array]] = {}
    known, whole, tables, adapters = Once[Array](path), Once[Array](path), Once[Array](path), set[str]()
    for stored, x in tensors.items():
        name = unwrapped(stored).removeprefix("base_model.model.")
        name = re.sub(r"\.(base_layer|token_adapter)(?=\.)", "", name)
        if found := PART.fullmatch(name):
            kind = f"{found['kind']}.bias" if found["end"] == "bias" else found["kind"]
            parts.setdefault(found["module"], {})[kind] = known[f"{found['module']}.{kind}"] = x
        elif found := SAVED.fullmatch(name):
            whole[names.saved_name(f"{found['module']}.{found['end']}")] = x
        elif names.saved_name(name) in (names.head, names.table) and not is_trained_whole(
            config, name.removesuffix(".weight")
        ):
            tables[names.saved_name(name)] = np.array(x)  # a copy: the adapter's file may be deleted
        else:
            whole[names.saved_name(name)] = x
        if found and found["adapter"]:
            adapters.add(found["adapter"])
    if len(adapters) > 1:
        raise BadModel(
            f"{path} contains {len(adapters)} adapters: {', '.join(sorted(adapters))}; save only the one that you "
            "want: save_pretrained(folder, selected_adapters=[name])"
        )
    return parts, whole, tables


def low_rank(config: Section, module: str, part: Mapping[str, Array], path: Path) -> LowRank:
    """The update of one matrix. BadModel if its halves do not fit each other."""
    # PEFT stores the update of an embedding table transposed: its A is our B
    is_table = "lora_embedding_A" in part or "lora_embedding_B" in part
    halves = ("lora_embedding_B", "lora_embedding_A") if is_table else ("lora_A", "lora_B")
    if unknown := part.keys() - {*halves, "lora_B.bias", "lora_magnitude_vector"}:
        raise BadModel(f"{path}: the update of {module} has a part that npgemma does not know: {min(unknown)}")
    a, b = (part.get(name) for name in halves)
    if a is not None and b is not None and is_table:
        a, b = a.T, b.T
    inputs: tuple[int, ...] = () if a is None else a.shape[1:]
    if a is not None and b is not None and a.ndim == b.ndim == 4 and b.shape[2:] == (1, 1):  # a convolution
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or not 0 < len(a) == b.shape[1]:
        raise BadModel(f"{path}: the update of {module} is not a matrix lora_A [r, in] and a matrix lora_B [out, r]")
    a, b = (np.array(widened(x, FLOAT64)) for x in (a, b))
    magnitude = magnitude_of(config, module, part, (1, a.shape[1]) if is_table else (len(b), 1), path)
    return LowRank(a, b, scale_of(config, module, len(a)), (len(b), *inputs), magnitude)


def magnitude_of(
    config: Section, module: str, part: Mapping[str, Array], shape: tuple[int, int], path: Path
) -> Array | None:
    """DoRA's magnitude of one matrix. BadModel unless it is there if the config says so, and only then."""
    magnitude = part.get("lora_magnitude_vector")
    if config.flag("use_dora", False) != (magnitude is not None):
        has = "does not have" if magnitude is None else "has"
        raise BadModel(
            f"{path} {has} the lora_magnitude_vector of {module}, but use_dora is "
            f"{'true' if magnitude is None else 'not true'} in {config.where}"
        )
    if magnitude is None:
        return None
    if magnitude.size != math.prod(shape):
        raise BadModel(
            f"{path}: lora_magnitude_vector of {module} has shape {magnitude.shape}, not ({math.prod(shape)},)"
        )
    if "lora_B.bias" in part:
        raise BadModel(f"{config.where}: lora_bias together with use_dora is not supported")
    return np.array(widened(magnitude, FLOAT64)).reshape(shape)
