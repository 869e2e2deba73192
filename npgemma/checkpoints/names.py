"""What the programs that save a model call its tensors: prefixes, spellings, and tensors that it does not use."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from npgemma.errors import BadModel

Tensor = TypeVar("Tensor")

# Modules that wrap another module and compute what it computes: torch.compile, DataParallel, FSDP, checkpointing and
# Lightning Fabric. They may wrap the whole model or any part of it.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# Objects that hold a whole model: transformers, PEFT after merging, Lightning.
HOLDERS = {"model", "base_model", "state_dict"}
# Buffers that are computed from the config, and what a training or quantising library keeps beside the weights.
BUFFERS = (
    r"(.*\.)?(position_ids|inv_freq|original_inv_freq|cos_cached|sin_cached|causal_mask|masked_bias|_extra_state"
    r"|num_batches_tracked|[kv]_scale)"
    r"|.*\.(self_attn|attn)\.bias"
)
# Parts of the names of a PEFT model whose adapter is not merged.
NOT_MERGED = re.compile(r"(.*\.)?(lora_\w+|base_layer|modules_to_save|original_module|token_adapter)(\..*)?")
# What GPTQ, AWQ, bitsandbytes, compressed-tensors, torchao and MLX store beside or in place of a quantised matrix.
QUANTISED = re.compile(
    r".*\.(qweight|qzeros|scales|biases|g_idx|SCB|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*"
    r"|weight_scale|weight_scale_inv|weight_scale_2|weight_zero_point|weight_packed|weight_shape|weight_format"
    r"|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*))"
)


@dataclass(frozen=True)
class Names:
    """The names of one kind of model.

    `saved_name` turns any spelling into that of the files on the hub; `anchor` is part of the name of a tensor
    that every such model has once: what stands before it stands before all names. `unused` matches the saved names of
    tensors that checkpoints hold and the model does not use, `table` and `head` are those of the embedding table and of
    the output head, which tied checkpoints may lack; a model that writes no text has no head.
    """

    saved_name: Callable[[str], str]
    anchor: str
    unused: re.Pattern[str]
    table: str
    head: str = ""

    def is_unused(self, name: str) -> bool:
        """Whether a tensor, by any of its names, is one that the model does not use."""
        return self.unused.fullmatch(self.saved_name(name)) is not None


def paligemma_name(name: str) -> str:
    """A PaliGemma's name in the files on the hub, from any of the four spellings that transformers has written.

    hub files           language_model.model.layers.0.…     vision_tower.vision_model.encoder.…
    in memory, 4.52     model.language_model.layers.0.…     model.vision_tower.vision_model.encoder.…
    in memory, 5.6      model.language_model.layers.0.…     model.vision_tower.encoder.…
    saved by 5.x        language_model.model.layers.0.…     vision_tower.encoder.…

    The wrappers and holders above are left out.
    """
    name = ".".join(without_holders(name, HOLDERS))
    name = re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    return re.sub(r"^language_model\.(?!model\.)", "language_model.model.", name)


def language_model_name(name: str) -> str:
    """A language model's name as transformers 5 saves it, such as model.layers.0.mlp.up_proj.weight.

    Gemma 3 with a vision tower has it as language_model.model.… or model.language_model.…; the decoder alone, without
    its head, as layers.0.….
    """
    parts = without_holders(name, HOLDERS | {"language_model"})
    return ".".join(parts if parts[0] == "lm_head" else ["model", *parts])


def without_holders(name: str, holders: Collection[str]) -> list[str]:
    """The parts of a name, without wrappers and without the holders at its front."""
    parts = unwrapped(name).split(".")
    while len(parts) > 1 and parts[0] in holders:
        del parts[0]
    return parts


def unwrapped(name: str) -> str:
    """A name without the wrappers in it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def by_saved_name(tensors: Mapping[str, Tensor], where: Path, names: Names) -> dict[str, Tensor]:
    """The tensors that a model uses, by the names that the files on the hub have.

    BadModel if two have the same name, if the weights are quantised, or if they belong to a PEFT model whose adapter is
    not merged.
    """
    for stored in tensors:
        if QUANTISED.fullmatch(stored):
            raise BadModel(
                f"{where} is quantised (tensor {stored!r}), which npgemma does not read; load it in the library that "
                "quantised it, dequantise it, and save it in bfloat16"
            )
        if NOT_MERGED.fullmatch(stored):
            raise BadModel(
                f"{where} holds a PEFT model whose adapter is not merged (tensor {stored!r}); save the result of "
                "merge_and_unload(), or load the base model with the adapter that save_pretrained writes"
            )
    prefix = common_prefix(map(unwrapped, tensors), names.anchor)
    found: dict[str, Tensor] = {}
    spelled: dict[str, str] = {}
    for stored, array in tensors.items():
        name = names.saved_name(unwrapped(stored).removeprefix(prefix))
        if names.unused.fullmatch(name):
            continue
        if name in found:
            raise BadModel(f"{where}: {spelled[name]!r} and {stored!r} are two spellings of the same tensor")
        found[name], spelled[name] = array, stored
    return found


def common_prefix(names: Iterable[str], anchor: str) -> str:
    """What stands before the names of the parts of the model, such as 'paligemma.', if all names begin with it."""
    names = list(names)
    before = {name.partition(anchor)[0] for name in names if anchor in name}
    prefix = re.sub(r"(^|(?<=\.))((model|language_model)\.)+$", "", before.pop()) if len(before) == 1 else ""
    return prefix if all(name.startswith(prefix) for name in names) else ""


def check_head(tensors: dict[str, Any], tied: bool, names: Names, where: Path) -> None:
    """Give a tied model's one matrix the name of the embedding table, under whichever of its two names it is stored.

    BadModel if the config says that the model has a head of its own, and it is missing.
    """
    if tied and names.head in tensors and names.table not in tensors:
        tensors[names.table] = tensors.pop(names.head)
    if not tied and names.table in tensors and names.head not in tensors:
        raise BadModel(
            f"{where}: {names.head} {tensors[names.table].shape} is missing, and config.json says that the head is not "
            "the embedding table (tie_word_embeddings is false); save the model again with its head, or remove "
            "tie_word_embeddings if the two are one matrix"
        )
