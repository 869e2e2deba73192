"""The names that PaliGemma's tensors have in files of different origins, and those that transformers 5 saves."""

import re
from collections.abc import Iterable
from itertools import takewhile

from npgemma.errors import BadModel

# Tensors that some checkpoints hold and PaliGemma does not use, in whatever dtype.
NOT_USED = re.compile(
    r"(.*\.)?(position_ids|inv_freq|original_inv_freq|masked_bias|_extra_state|num_batches_tracked)"
    r"|(.*\.)?vision_tower\.(vision_model\.)?head\..*"
)
# Levels that torch.compile, DataParallel, FSDP and activation checkpointing put into the names of a module's tensors.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def is_used(name: str) -> bool:
    """Whether the model uses a tensor of this name."""
    return NOT_USED.fullmatch(name) is None


def saved_name(name: str) -> str:
    """A name as transformers 5 saves it, from any of the four spellings that its releases have written.

    hub files           language_model.model.layers.0.…     vision_tower.vision_model.encoder.…
    in memory, 4.52     model.language_model.layers.0.…     model.vision_tower.vision_model.encoder.…
    in memory, 5.6      model.language_model.layers.0.…     model.vision_tower.encoder.…
    saved by 5.x        language_model.model.layers.0.…     vision_tower.encoder.…
    """
    name = name.removeprefix("model.")
    name = re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", name)
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    return re.sub(r"^language_model\.(?!model\.)", "language_model.model.", name)


def saved_names(names: Iterable[str], where: object) -> dict[str, str]:
    """Names as stored, by the names that transformers 5 saves.

    A prefix of all names, which a program that wrapped the model has left, is dropped. BadModel for two spellings of a
    tensor, and for a model that holds a LoRA adapter's matrices beside its own.
    """
    stored = list(names)
    plain = [WRAPPERS.sub("", name) for name in stored]
    adapted = [name for name in plain if re.search(r"\.(lora_\w+|base_layer|lora_magnitude_vector)\.", name)]
    if adapted:
        merge = "model.merge_and_unload().save_pretrained(FOLDER)"
        raise BadModel(f"{where} holds a LoRA adapter inside the model ({adapted[0]}); merge it with PEFT: {merge}")
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*(name.split(".") for name in plain), strict=False))
    prefix = "".join(f"{level[0]}." for level in levels)
    if not re.search(r"language_model|vision_tower|multi_modal_projector|lm_head", prefix):
        plain = [name.removeprefix(prefix) for name in plain]
    found: dict[str, str] = {}
    for name, whole in zip(map(saved_name, plain), stored, strict=True):
        if name in found:
            raise BadModel(f"{where}: {found[name]!r} and {whole!r} are two spellings of the same tensor")
        found[name] = whole
    return found
