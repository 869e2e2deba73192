"""What CLIP and SigLIP have in common on disk, as models of a text tower and a vision tower."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from npgemma.checkpoints.config_keys import check_common
from npgemma.checkpoints.layout import Layout, Part, name_of
from npgemma.checkpoints.names import BUFFERS, HOLDERS, Names, by_saved_name, without_holders
from npgemma.checkpoints.towers import LEFTOVERS
from npgemma.errors import BadModel
from npgemma.io.safetensors import Unreadable, readable
from npgemma.io.strict_json import Section
from npgemma.layers.shapes import Array

TOWERS = ("text", "vision")


def check_pair(s: Section, kind: str, sections: tuple[Section, Section]) -> None:
    """BadModel unless the config is that of a pair of this kind, with the text tower and the vision tower in sections.

    A config whose model_type is that of a tower alone describes half a model.
    """
    found = s.get("model_type")
    for tower in TOWERS:
        if found == f"{kind}_{tower}_model":
            raise half(s.where, f"model_type is {found!r}: this is", tower)
    if found != kind:
        raise BadModel(f"{s.where}: model_type is {'missing' if found is None else repr(found)}, not {kind!r}")
    for each, name in zip((s, *sections), (kind, *(f"{kind}_{tower}_model" for tower in TOWERS)), strict=True):
        check_common(each)
        each.ignore(LEFTOVERS)
        each.require("model_type", name)


def check_towers(tensors: Iterable[str], where: Path) -> None:
    """BadModel if the tensors, by the names that transformers 5 saves, are those of one tower alone."""
    begins = {name.partition("_")[0] for name in tensors}
    for tower, other in (TOWERS, TOWERS[::-1]):
        if tower in begins and other not in begins:
            raise half(where, "these are the tensors of", tower)


def half(where: str | Path, what: str, tower: str) -> BadModel:
    """The error for half a model."""
    return BadModel(f"{where}: {what} the {tower} tower alone; give the folder of the whole model, with both towers")


def pair_names(parts: Sequence[Part]) -> Names:
    """The names of a pair in which each of its parts may be wrapped."""
    return Names(
        lambda name: ".".join(without_holders(name, HOLDERS)),
        "logit_scale",
        re.compile(BUFFERS),
        name_of("text.embedding.tokens", parts),
    )


def pair_tensors(
    stored: Mapping[str, Array | Unreadable], model: Path, names: Names, layout: Layout[Any]
) -> dict[str, Array]:
    """The tensors of a pair by the names that transformers 5 saves.

    BadModel as for `by_saved_name`, `check_towers`, `Layout.check` and `readable`.
    """
    tensors = by_saved_name(stored, model, names)
    check_towers(tensors, model)
    layout.check(tensors, model)
    return readable(tensors)
