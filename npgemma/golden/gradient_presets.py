"""The preset for gradients of transformers' PaliGemma and Gemma, as tools/dump_gradients.py dumps them.

    grad.<module>              of what a module returns         grad.<module>.input    of what it takes
    grad.weights.<parameter>   of a parameter                   loss

Where a forward hook finds a tensor, a backward hook finds its gradient: the rules are those of the preset for the
forward pass. Parameters have other names than the tensors of a PaliGemma checkpoint.
"""

import re
from dataclasses import replace

from npgemma.errors import BadGolden
from npgemma.golden.file import Golden
from npgemma.golden.gradient_taps import ACTIVATION
from npgemma.golden.mapping import NameMap, Rule
from npgemma.golden.presets import preset

_START = r"grad\.(weights|rows|columns)\."
PARAMETERS = (
    Rule(_START + r"model\.language_model\.(.*)", r"grad.\1.language_model.model.\2"),
    Rule(_START + r"model\.vision_tower\.(?:vision_model\.)?(.*)", r"grad.\1.vision_tower.vision_model.\2"),
    Rule(_START + r"model\.(multi_modal_projector\..*)", r"grad.\1.\2"),
    Rule(_START + r"(lm_head\..*)", r"grad.\1.\2"),
)
SAME = (Rule(_START + "(.*)", r"grad.\1.\2"),)
# Forward taps that are inputs, or of which there is no gradient.
NO_GRADIENT = re.compile(r"prompts\..*|steps\..*|pixel_values|.*(positions|logits.*)")


def gradient_preset(name: str, golden: Golden) -> NameMap:
    """The mapping with this name for dumps of gradients. BadGolden if there is none."""
    if name != "transformers":
        raise BadGolden(f"the preset {name!r} has no names of gradients; write a mapping file, and use --map")
    found = preset(name, golden)
    forward = tuple(rule for rule in found.rules if not NO_GRADIENT.fullmatch(rule.ours))
    backward = tuple(replace(rule, theirs=r"grad\." + rule.theirs, ours=ACTIVATION + rule.ours) for rule in forward)
    embedded = Rule(r"grad\.(?:model\.language_model|model)\.layers\.0\.input", "grad.text.embedding")
    parameters = PARAMETERS if golden.has_pictures else SAME
    return NameMap(
        (*forward, *backward, embedded, *parameters, Rule("(loss|log_probs|gradient_norm)", r"\1")),
        (*found.ignore, *(ACTIVATION + each for each in found.ignore), "grad.*.input", "*lm_head"),
        (*(ACTIVATION + each for each in found.absent), "log_probs", "*.act", "*.mlp.hidden"),
        found.where,
    )
