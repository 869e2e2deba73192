"""What adapter_config.json says about a LoRA adapter of PEFT: its formula, and the scale of each update."""

import math
import re
from collections.abc import Collection

from npgemma.errors import BadModel, shortened
from npgemma.io.expressions import check_steps, compiled
from npgemma.io.strict_json import Section

# Options of PEFT that can change the formula, and the values for which `adapter` states it.
PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "use_qalora": (False,),
    "use_bdlora": (False,),
    "layer_replication": ([],),
    "alora_invocation_tokens": ([],),
    "arrow_config": (),
    "kasa_config": (),
    "monteclora_config": (),
    # other initialisations subtract from the base model what the adapter starts with
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", "mica"),
}


def require_known_formula(config: Section) -> None:
    """BadModel, with the option, if the formula is not one that npgemma computes."""
    for key, allowed in PLAIN.items():
        config.require(key, *allowed)


def names(config: Section, key: str) -> list[str]:
    """A list of names; empty if the key is missing or null."""
    found = config.get(key, [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise BadModel(f"{config.where}: {key} is {found!r}, not a list of names")
    return found


def is_trained_whole(config: Section, module: str) -> bool:
    """Whether modules_to_save lists a module."""
    return any(module.endswith(name) for name in names(config, "modules_to_save"))


def check_patterns(config: Section, modules: Collection[str]) -> None:
    """BadModel unless the keys of alpha_pattern are expressions whose matching with these names ends soon."""
    patterns = config.section("alpha_pattern")
    for pattern in patterns.values:
        try:
            compiled(f"(?:{pattern})$")
        except ValueError as error:
            raise BadModel(
                f"{patterns.where}: npgemma cannot use the expression {shortened(repr(pattern))}: {error}"
            ) from None
    try:
        check_steps(patterns.values, sum(map(len, map(starts, modules))), max(map(len, modules), default=0))
    except ValueError as error:
        raise BadModel(f"{patterns.where}: npgemma cannot use the expressions: {error}") from None


def scale_of(config: Section, module: str, rank: int) -> float:
    """alpha / r of one matrix. The keys of alpha_pattern are regular expressions for whole names, or those after a dot.

    `check_patterns` has found that they can be matched.
    """
    patterns = config.section("alpha_pattern")
    alpha = config.positive("lora_alpha", 8)
    # PEFT calls a matrix that is listed in target_parameters by the name of the parameter
    targets = [f".{target}" for target in names(config, "target_parameters")]
    name = f"{module}.weight" if f".{module}.weight".endswith(tuple(targets)) else module
    for pattern in patterns.values:
        if any(compiled(f"(?:{pattern})$").match(name, start) for start in starts(name)):
            alpha = patterns.positive(pattern, alpha)
            break
    return alpha / (math.sqrt(rank) if config.flag("use_rslora", False) else rank)


def starts(name: str) -> list[int]:
    """Where a pattern may begin to match a name: at its beginning, or after a dot."""
    return [0, *(dot.end() for dot in re.finditer(r"\.", name))]


def token_ids(config: Section, module: str, shape: tuple[int, ...]) -> list[int]:
    """The tokens whose rows of a table were trained. BadModel unless there is one for each row of this shape."""
    given = config.values.get("trainable_token_indices")
    if isinstance(given, dict):
        # a head that shares the rows of the table has no key of its own
        keys = [key for key in given if module.endswith(key)] or [key for key in given if key.endswith("embed_tokens")]
        given = given[keys[0]] if keys else None
    ids = given if isinstance(given, list) else []
    are_ids = all(type(each) is int and 0 <= each < 1 << 24 for each in ids)
    if not are_ids or not ids or len(shape) != 2 or not len({*ids}) == len(ids) == shape[0]:
        raise BadModel(
            f"{config.where}: trainable_token_indices is {given!r} for {module}, not the different ids of the tokens "
            f"whose rows are the trained {shape}"
        )
    return ids
