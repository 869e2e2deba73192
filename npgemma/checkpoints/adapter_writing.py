"""LoRA adapters written as PEFT saves them, so that peft loads them without a warning, and `adapter` reads them."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from npgemma.checkpoints.adapter import LowRank, Rows
from npgemma.io.unusable import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from npgemma.io.weight_writing import write_file
from npgemma.layers.shapes import Array

# What transformers 5 calls the parts of a PaliGemma in memory, by the names that the files on the hub have.
IN_MEMORY = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^vision_tower\.vision_model\.", "model.vision_tower."),
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
)


def module_name(tensor: str) -> str:
    """The module in memory of a weight by its name in the files on the hub; PEFT names adapters after modules."""
    name = tensor.removesuffix(".weight")
    for pattern, replacement in IN_MEMORY:
        name = re.sub(pattern, replacement, name)
    return name


def write_adapter(
    folder: Path, updates: Mapping[str, LowRank], rows: Mapping[str, Rows], tensors: Collection[str], base: str
) -> None:
    """Write adapter_config.json and adapter_model.safetensors for updates of matrices, and rows of tables, by their
    names on the hub.

    `tensors` are the names of all tensors of the model, `base` is the name of the model. Rank and alpha of the config
    are those that most updates have; the others stand in rank_pattern and alpha_pattern. OSError or SafetensorError if
    the files cannot be written.
    """
    updates = {module_name(name): update for name, update in updates.items()}
    halves: dict[str, Array] = {}
    for module, update in updates.items():
        for kind, half in (("lora_A", update.a), ("lora_B", update.b)):
            halves[f"base_model.model.{module}.{kind}.weight"] = np.ascontiguousarray(half, np.float32)
    for name, some in rows.items():
        delta = f"base_model.model.{module_name(name)}.token_adapter.trainable_tokens_delta"
        halves[delta] = np.ascontiguousarray(some.values, np.float32)
    write_file(halves, folder / ADAPTER_WEIGHTS)
    config = adapter_config(updates, {module_name(name) for name in tensors}, base)
    if rows:
        config["trainable_token_indices"] = {
            module_name(name).rpartition(".")[2]: some.ids.tolist() for name, some in rows.items()
        }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def adapter_config(updates: Mapping[str, LowRank], modules: Collection[str], base: str) -> dict[str, object]:
    """The content of adapter_config.json for updates by module, of a model with these modules."""
    ranks = {module: len(update.a) for module, update in updates.items()}
    alphas = {module: whole(update.scale * len(update.a)) for module, update in updates.items()}
    rank, alpha = (Counter(found.values()).most_common(1)[0][0] for found in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {module: a for module, a in alphas.items() if a != alpha},
        "target_modules": target_modules(updates, modules),
    }


def whole(number: float) -> float:
    """A number as JSON readers expect it: 8 rather than 8.0, also where it was computed as 8.000000000000002."""
    number = float(f"{number:.12g}")
    return int(number) if number.is_integer() else number


def target_modules(chosen: Collection[str], modules: Collection[str]) -> str:
    r"""The regular expression that matches the names of the chosen modules, and of no others of the model.

    A list, which PEFT compares with the ends of names, would match modules of the vision tower too: their q_proj is
    called as that of the decoder. Layers become \d+ where all layers of the model have the module.
    """
    general = {re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(module)) for module in chosen}
    expression = "|".join(grouped(general))
    if {module for module in modules if re.fullmatch(expression, module)} == set(chosen):
        return expression
    return "|".join(grouped({re.escape(module) for module in chosen}))


def grouped(expressions: Collection[str]) -> list[str]:
    """Expressions that match the same names, with alternatives for the last part of those that begin alike."""
    ends: dict[str, list[str]] = {}
    for expression in sorted(expressions):
        begin, _, end = expression.rpartition(r"\.")
        ends.setdefault(begin, []).append(end)
    return [rf"{begin}\.({'|'.join(each)})" if begin else "|".join(each) for begin, each in ends.items()]
