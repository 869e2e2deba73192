"""LoRA adapters as PEFT saves them: adapter_config.json, and the names of the tensors.

The scale of an update is alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA.

Sources: huggingface/peft; Kalajdzievski 2023 (arXiv:2312.03732) for the square root.
"""

import math
import re
from pathlib import Path

import numpy as np

from npgemma.checkpoints.layout import finite
from npgemma.checkpoints.merging import FLOAT64, Adapter, LowRank, TokenRows
from npgemma.checkpoints.spellings import saved_name
from npgemma.errors import BadModel
from npgemma.io.model_folder import member
from npgemma.io.safetensors import open_file
from npgemma.io.strict_json import Section, read_json
from npgemma.io.unusable import ADAPTER_CONFIG
from npgemma.layers.bits import widened
from npgemma.layers.shapes import Array

WEIGHTS = "adapter_model.safetensors"
# Options of PEFT that can change the formula, and the values that leave it as it is above.
PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "ensure_weight_tying": (False,),
    "layer_replication": (),
    "alora_invocation_tokens": (),
    "arrow_config": (),
    # other initialisations subtract from the base model what the adapter starts with
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", "mica"),
}


# The names of PEFT's tensors inside a module, and whether they are followed by the name of the adapter, as in
# `state_dict()`, and by `.weight`.
HALF = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.(\w+))??(?:\.weight)?")
MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.(\w+))??(?:\.weight)?")
ROWS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta(?:\.(\w+))?")
SAVED = re.compile(r"(.+)\.modules_to_save\.(\w+)\.(.+)")
# What `state_dict()` holds beside the adapter: the module before it was trained.
BEFORE = re.compile(r".+\.(original_module|token_adapter\.base_layer)\..+")


class Tensors:
    """The tensors of an adapter's file, sorted by what they are: each is read once, under one name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replaced: dict[str, Array] = {}
        self.halves: dict[str, dict[str, Array]] = {}
        self.magnitudes: dict[str, Array] = {}
        self.rows: dict[str, Array] = {}
        self.tables: set[str] = set()
        self.adapters: set[str] = set()
        for stored, x in open_file(path).items():
            if not finite(x):
                raise BadModel(f"{path}: {stored} is not finite: it contains NaN or infinity; save the adapter again")
            self.sort(stored.removeprefix("base_model.model."), x)
        if len(self.adapters) > 1:
            raise BadModel(f"{path} contains several adapters: {', '.join(sorted(self.adapters))}; save one of them")

    def sort(self, name: str, x: Array) -> None:
        """Put a tensor where it belongs."""
        name = name.replace(".base_layer.", ".") if ".token_adapter." not in name else name
        if BEFORE.fullmatch(name):
            return
        if found := HALF.fullmatch(name):
            module, table, half, adapter = found.groups()
            # PEFT stores the update of an embedding table transposed: its A is our B
            side, x = ({"A": "B", "B": "A"}[half], x.T) if table else (half, x)
            self.once(self.halves.setdefault(module, {}), side, widened(x, FLOAT64))
            self.tables |= {module} if table else set()
        elif found := MAGNITUDE.fullmatch(name):
            module, adapter = found.groups()
            self.once(self.magnitudes, module, widened(x, FLOAT64).reshape(-1))
        elif found := ROWS.fullmatch(name):
            module, adapter = found.groups()
            self.once(self.rows, module, widened(x, FLOAT64))
        elif found := SAVED.fullmatch(name):
            module, adapter, rest = found.groups()
            self.once(self.replaced, saved_name(f"{module}.{rest}"), x)
        else:
            adapter = None
            self.once(self.replaced, saved_name(name), x)
        self.adapters |= {adapter} if adapter else set()

    def once(self, known: dict[str, Array], name: str, x: Array) -> None:
        if name in known:
            raise BadModel(f"{self.path} contains two spellings of the tensor {name}")
        known[name] = x


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder. BadModel if it is damaged, or has a feature that npgemma does not support."""
    config = Section(read_json(member(folder, ADAPTER_CONFIG)), str(folder / ADAPTER_CONFIG))
    for key, allowed in PLAIN.items():
        config.require(key, *allowed)
    path = member(folder, WEIGHTS)
    if not path.exists() and (folder / "adapter_model.bin").exists():
        raise BadModel(
            f"{folder / 'adapter_model.bin'} is a pickle, which npgemma does not read; save the adapter as {WEIGHTS}"
        )
    found = Tensors(path)
    added: dict[str, LowRank] = {}
    for module, half in found.halves.items():
        rank = len(half.get("A", ()))
        if half.keys() != {"A", "B"} or any(x.ndim != 2 for x in half.values()) or not 0 < rank == half["B"].shape[1]:
            raise BadModel(
                f"{path}: the update of {module} is not a matrix lora_A [r, in] and a matrix lora_B [out, r]"
            )
        name = saved_name(f"{module}.weight")
        if name in added:
            raise BadModel(f"{path} contains two spellings of the tensor {name}")
        magnitude, table = found.magnitudes.get(module), module in found.tables
        wanted = (half["A"].shape[1] if table else len(half["B"])) if config.flag("use_dora", False) else 0
        if wanted != (0 if magnitude is None else len(magnitude)):
            where = f"{path}: {module}"
            raise BadModel(f"{where} must have a lora_magnitude_vector of {wanted} numbers, by use_dora and its update")
        added[name] = LowRank(half["A"], half["B"], scale_of(config, module, rank), magnitude, table)
    rows = {saved_name(f"{module}.weight"): token_rows(config, path, module, x) for module, x in found.rows.items()}
    if not added and not found.replaced and not rows:
        raise BadModel(f"{path} contains no tensors; the adapter was not saved completely")
    return Adapter(path, added, found.replaced, rows)


def token_rows(config: Section, path: Path, module: str, values: Array) -> TokenRows:
    """The rows of a table that were trained: `trainable_token_indices` is a list, or a list for each module."""
    listed = config.values.get("trainable_token_indices")
    if isinstance(listed, dict):
        listed = next((tokens for name, tokens in listed.items() if f".{module}".endswith(f".{name}")), None)
    tokens = [token for token in listed if type(token) is int and token >= 0] if isinstance(listed, list) else []
    if not tokens or tokens != listed or values.ndim != 2 or len(tokens) != len(values):
        rows = f"{path} has {len(values)} rows of {module}"
        raise BadModel(f"{config.where}: trainable_token_indices does not list their tokens: {rows}")
    return TokenRows(np.array(tokens), values)


def scale_of(config: Section, module: str, rank: int) -> float:
    """alpha / r of one matrix. The keys of alpha_pattern are regular expressions for the ends of names."""
    patterns, repeats = config.section("alpha_pattern"), r"[*+?{]"
    alpha = config.positive("lora_alpha", 8)
    for pattern in patterns.values:
        try:
            # a pattern with nested or many repetitions may take exponential time to fail
            repetitions = len(re.findall(repeats, pattern))
            if re.search(rf"\){repeats}", pattern) or repetitions > 2 or len(pattern) > 300:
                raise re.error("it is too long or has too many repetitions")
            fits = re.match(rf"(.*\.)?({pattern})$", module)
        except (re.error, OverflowError, RecursionError) as error:
            raise BadModel(f"{patterns.where}: npgemma cannot use the expression {pattern!r}: {error}") from None
        if fits:
            alpha = patterns.positive(pattern, alpha)
            break
    return alpha / (math.sqrt(rank) if config.flag("use_rslora", False) else rank)
