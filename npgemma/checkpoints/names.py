"""What the programs that save a PaliGemma call its tensors: prefixes, spellings, and tensors that it does not use."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from npgemma.errors import BadModel

Tensor = TypeVar("Tensor")

# Modules that wrap another module and compute what it computes: torch.compile, DataParallel, FSDP, checkpointing and
# Lightning Fabric. They may wrap the whole model or any part of it.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# Objects that hold a whole model: transformers, PEFT after merging, Lightning.
HOLDERS = {"model", "base_model", "state_dict"}
# The module that every PaliGemma has exactly once: what stands before its name stands before all names.
PROJECTOR = "multi_modal_projector."
# Tensors that some checkpoints hold and PaliGemma does not use: SigLIP's pooling head, buffers that are computed from
# the config, and what a training or quantising library keeps beside the weights.
NOT_USED = re.compile(
    r"vision_tower\.head\..*"
    r"|(.*\.)?(position_ids|inv_freq|original_inv_freq|cos_cached|sin_cached|causal_mask|masked_bias|_extra_state"
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


def saved_name(name: str) -> str:
    """A name as transformers 5 saves it, from any of the four spellings that its releases have written.

    hub files           language_model.model.layers.0.…     vision_tower.vision_model.encoder.…
    in memory, 4.52     model.language_model.layers.0.…     model.vision_tower.vision_model.encoder.…
    in memory, 5.6      model.language_model.layers.0.…     model.vision_tower.encoder.…
    saved by 5.x        language_model.model.layers.0.…     vision_tower.encoder.…

    The wrappers and holders above are left out.
    """
    parts = unwrapped(name).split(".")
    while len(parts) > 1 and parts[0] in HOLDERS:
        del parts[0]
    name = ".".join(parts)
    name = re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", name)
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    return re.sub(r"^language_model\.(?!model\.)", "language_model.model.", name)


def unwrapped(name: str) -> str:
    """A name without the wrappers in it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def is_unused(name: str) -> bool:
    """Whether a tensor, by any of its names, is one that PaliGemma does not use."""
    return NOT_USED.fullmatch(saved_name(name)) is not None


def by_saved_name(tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The tensors that a PaliGemma uses, by the names that transformers 5 saves.

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
    prefix = common_prefix(map(unwrapped, tensors))
    found: dict[str, Tensor] = {}
    spelled: dict[str, str] = {}
    for stored, array in tensors.items():
        name = saved_name(unwrapped(stored).removeprefix(prefix))
        if NOT_USED.fullmatch(name):
            continue
        if name in found:
            raise BadModel(f"{where}: {spelled[name]!r} and {stored!r} are two spellings of the same tensor")
        found[name], spelled[name] = array, stored
    return found


def common_prefix(names: Iterable[str]) -> str:
    """What stands before the names of the parts of the model, such as 'paligemma.', if all names begin with it."""
    names = list(names)
    before = {name.partition(PROJECTOR)[0] for name in names if PROJECTOR in name}
    prefix = re.sub(r"(^|(?<=\.))model\.$", "", before.pop()) if len(before) == 1 else ""
    return prefix if all(name.startswith(prefix) for name in names) else ""
