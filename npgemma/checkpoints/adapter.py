"""LoRA adapters, as PEFT saves them, merged into the weights they were trained on.

    W' = W + scale B A        A [r, in], B [out, r], scale = alpha / r (alpha / sqrt(r) with rank-stabilised LoRA)

Sources: Hu et al. 2021 (arXiv:2106.09685), section 4.1; Kalajdzievski 2023 (arXiv:2312.03732) for the square root; the
names and adapter_config.json of huggingface/peft.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgemma.checkpoints.layout import finite
from npgemma.checkpoints.paligemma import saved_name
from npgemma.errors import BadModel
from npgemma.io.model_folder import ADAPTER_CONFIG, member
from npgemma.io.safetensors import open_file
from npgemma.io.strict_json import Section, read_json
from npgemma.layers.bits import widened
from npgemma.layers.packed import BLOCK, row_blocks
from npgemma.layers.shapes import Array, Float
from npgemma.layers.threads import in_parallel

WEIGHTS = "adapter_model.safetensors"
# Options of PEFT that can change the formula, and the values that leave it as it is above.
PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False,),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "ensure_weight_tying": (False,),
    "layer_replication": (),
    "alora_invocation_tokens": (),
    "arrow_config": (),
    # other initialisations subtract from the base model what the adapter starts with
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", "mica"),
}
FLOAT64 = np.dtype(np.float64)


class LowRank(NamedTuple):
    """The update of a matrix: scale B A."""

    a: Float[Array, "R I"]
    b: Float[Array, "O R"]
    scale: float


@dataclass(frozen=True)
class Adapter:
    """By the names that transformers 5 saves: updates of matrices, and tensors that replace those of the model."""

    path: Path
    added: Mapping[str, LowRank]
    replaced: Mapping[str, Array]

    @property
    def changed(self) -> set[str]:
        return {*self.added, *self.replaced}


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder. BadModel if it is damaged, or if its formula is not the one above."""
    config = Section(read_json(member(folder, ADAPTER_CONFIG)), str(folder / ADAPTER_CONFIG))
    for key, allowed in PLAIN.items():
        config.require(key, *allowed)
    path = member(folder, WEIGHTS)
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise BadModel(
            f"{folder / 'adapter_model.bin'} is a pickle, which npgemma does not read; save the adapter as {WEIGHTS}"
        )
    replaced: dict[str, Array] = {}
    halves: dict[str, dict[str, Array]] = {}

    def once(known: Mapping[str, object], name: str) -> str:
        if name in known:
            raise BadModel(f"{path} contains two spellings of the tensor {name}")
        return name

    for stored, x in open_file(path).items():
        if not finite(x):
            raise BadModel(f"{path}: {stored} is not finite: it contains NaN or infinity; save the adapter again")
        stored = stored.removeprefix("base_model.model.").replace(".base_layer.", ".")
        found = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?", stored)
        if found is None:
            replaced[once(replaced, saved_name(stored))] = x
        else:
            # PEFT stores the update of an embedding table transposed: its A is our B
            module, table, half = found.groups()
            side, x = ({"A": "B", "B": "A"}[half], x.T) if table else (half, x)
            halves.setdefault(module, {})[side] = widened(x, FLOAT64)
    added: dict[str, LowRank] = {}
    for module, half in halves.items():
        rank = len(half.get("A", ()))
        if half.keys() != {"A", "B"} or any(x.ndim != 2 for x in half.values()) or not 0 < rank == half["B"].shape[1]:
            raise BadModel(
                f"{path}: the update of {module} is not a matrix lora_A [r, in] and a matrix lora_B [out, r]"
            )
        name = once(added, saved_name(f"{module}.weight"))
        added[name] = LowRank(half["A"], half["B"], scale_of(config, module, rank))
    if not added and not replaced:
        raise BadModel(f"{path} contains no tensors; the adapter was not saved completely")
    return Adapter(path, added, replaced)


def scale_of(config: Section, module: str, rank: int) -> float:
    """alpha / r of one matrix. The keys of alpha_pattern are regular expressions for the ends of names."""
    patterns = config.section("alpha_pattern")
    alpha = config.positive("lora_alpha", 8)
    for pattern in patterns.values:
        try:
            # a pattern with nested or many repetitions may take exponential time to fail
            if re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 2 or len(pattern + module) > 400:
                raise re.error("it is too long or has too many repetitions")
            fits = re.match(rf"(.*\.)?({pattern})$", module)
        except (re.error, OverflowError, RecursionError) as error:
            raise BadModel(f"{patterns.where}: npgemma cannot use the expression {pattern!r}: {error}") from None
        if fits:
            alpha = patterns.positive(pattern, alpha)
            break
    return alpha / (math.sqrt(rank) if config.flag("use_rslora", False) else rank)


def untied(tensors: Mapping[str, Array], adapter: Adapter, head: str, table: str) -> dict[str, Array]:
    """All tensors; the head is one of its own if the adapter changes a tied head or the table that it is tied to.

    `head` and `table` are their names. As in PEFT, an adapter that changes only the table leaves the head unchanged.
    """
    parts = head not in tensors and adapter.changed & {head, table}
    return {**tensors, head: tensors[table]} if parts else dict(tensors)


def merged(tensors: Mapping[str, Array], adapter: Adapter, dtype: np.dtype) -> dict[str, Array]:
    """All tensors; those that the adapter changes are `dtype` and in memory. BadModel if it does not fit the model.

    `tensors` come from `untied`.
    """
    whole = dict(tensors)

    def base(name: str, wanted: tuple[int, ...]) -> Array:
        if name not in whole or whole[name].shape != wanted:
            found = f"has shape {whole[name].shape}" if name in whole else "does not exist"
            raise BadModel(f"{adapter.path} is for another model: {name} {found}, the adapter changes one of {wanted}")
        return whole[name]

    for name, new in adapter.replaced.items():
        base(name, new.shape)
        whole[name] = np.array(widened(new, dtype))  # a copy: the adapter's file may be deleted
    for name, (a, b, scale) in adapter.added.items():
        whole[name] = updated(base(name, (len(b), a.shape[1])), a, b, scale, dtype)
    return whole


def updated(w: Array, a: Float[Array, "R I"], b: Float[Array, "O R"], scale: float, dtype: np.dtype) -> Array:
    """W + scale B A, computed in float64 and rounded once, a block of rows at a time."""
    y = np.empty(w.shape, dtype)

    def block(rows: slice) -> None:
        y[rows] = widened(w[rows], FLOAT64) + scale * (b[rows] @ a)

    in_parallel(block, row_blocks(w, BLOCK))
    return y
