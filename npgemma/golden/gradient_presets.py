"""The preset for gradients of transformers' models, as tools/dump_gradients.py dumps them.

    grad.<module>              of what a module returns         grad.<module>.input    of what it takes
    grad.weights.<parameter>   of a parameter                   loss

Where a forward hook finds a tensor, a backward hook finds its gradient: the rules are those of the preset for the
forward pass. Parameters have other names than the tensors of a checkpoint of PaliGemma or ViT.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from npgemma.errors import BadGolden
from npgemma.golden.contents import PAIRS
from npgemma.golden.file import Golden
from npgemma.golden.gradient_taps import ACTIVATION
from npgemma.golden.mapping import NameMap, Rule
from npgemma.golden.presets import preset

PALIGEMMA = {
    r"model\.language_model\.(.*)": r"language_model.model.\2",
    r"model\.vision_tower\.(?:vision_model\.)?(.*)": r"vision_tower.vision_model.\2",
    r"model\.(multi_modal_projector\..*)": r"\2",
    r"(lm_head\..*)": r"\2",
}
_LAYER = r"vit\.layers\.(\d+)\."
VIT = {
    rf"{_LAYER}attention\.q_proj\.(.*)": r"vit.encoder.layer.\2.attention.attention.query.\3",
    rf"{_LAYER}attention\.k_proj\.(.*)": r"vit.encoder.layer.\2.attention.attention.key.\3",
    rf"{_LAYER}attention\.v_proj\.(.*)": r"vit.encoder.layer.\2.attention.attention.value.\3",
    rf"{_LAYER}attention\.o_proj\.(.*)": r"vit.encoder.layer.\2.attention.output.dense.\3",
    rf"{_LAYER}mlp\.fc1\.(.*)": r"vit.encoder.layer.\2.intermediate.dense.\3",
    rf"{_LAYER}mlp\.fc2\.(.*)": r"vit.encoder.layer.\2.output.dense.\3",
    rf"{_LAYER}(layernorm_.*)": r"vit.encoder.layer.\2.\3",
    r"((?:vit\.(?:embeddings|layernorm)|classifier)\..*)": r"\2",
}
SAME = {"(.*)": r"\2"}
# PEFT's parameters of an adapter have its name, which is usually "default", in theirs; files do not.
ADAPTER = {
    r"(.*)\.lora_([AB])\.weight": r"\2.lora_\3.weight",
    r"(.*)\.lora_([AB])\.\w+\.weight": r"\2.lora_\3.weight",
    r"(.*)\.trainable_tokens_delta(?:\.\w+)?": r"\2.trainable_tokens_delta",
}
# PEFT wraps a model in two others, and its modules in one.
IN_PEFT = r"grad\.(?:base_model\.model\.)?"
# Forward taps of a decoder that are inputs, or that have no gradient.
NO_GRADIENT = re.compile(r"prompts\..*|steps\..*|pixel_values|.*(positions|logits.*)")
# What no module of any model returns, or what is the same tensor under another name.
ABSENT = ("log_probs", "*.act", "*.mlp.hidden")
IGNORED = (
    *("grad.*.input", "*lm_head", "grad.*.dropout", "grad.base_model", "grad.base_model.model"),
    *("grad.*.base_layer", "grad.*.lora_[AB].*", "grad.*.lora_dropout.*"),
)


def gradient_preset(name: str, golden: Golden) -> NameMap:
    """The mapping with this name for dumps of gradients. BadGolden for an unknown name."""
    if name != "transformers":
        raise BadGolden(f"the preset {name!r} has no names of gradients; write a mapping file, and use --map")
    found = preset(name, golden)
    kind = golden.metadata["model"].get("type")
    forward = found.rules
    if kind is None:
        embedded = Rule(r"(?:model\.language_model|model)\.layers\.0\.input", "text.embedding")
        forward = (*(rule for rule in forward if not NO_GRADIENT.fullmatch(rule.ours)), embedded)
    backward = tuple(replace(rule, theirs=IN_PEFT + rule.theirs, ours=ACTIVATION + rule.ours) for rule in forward)
    others = () if kind in PAIRS else (Rule("(loss|log_probs)", r"\1"),)
    return NameMap(
        (*forward, *backward, *parameters(golden), *others, Rule("(gradient_norm)", r"\1")),
        (*found.ignore, *(ACTIVATION + each for each in found.ignore), *IGNORED),
        (*(ACTIVATION + each for each in found.absent), *ABSENT),
        found.where,
    )


def parameters(golden: Golden) -> Iterator[Rule]:
    """The rules for gradients of parameters, whose names in memory differ from those in files."""
    kind, with_adapter = golden.metadata["model"].get("type"), golden.metadata["gradients"].get("adapter")
    names = VIT if kind == "vit" else PALIGEMMA if kind is None and golden.has_pictures else SAME
    names = ADAPTER if with_adapter else names
    for theirs, ours in names.items():
        yield Rule(rf"grad\.(weights|rows|columns)\.{theirs}", rf"grad.\1.{ours}")
