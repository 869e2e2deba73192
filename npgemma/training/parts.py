"""Which arrays of a model are trained: chosen by patterns over their paths, as `text.blocks.3.attn.q`."""

import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from npgemma.errors import BadData
from npgemma.layers.tree import Leaf

PRESETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("text.blocks.*.attn.*",),
    "mlp": ("text.blocks.*.mlp.*",),
    "decoder": ("text.*",),
    "projector": ("projector.*",),
    "vision": ("vision.*",),
    "all": ("*",),
}
LORA = "text.blocks.*"  # what adapters change unless told otherwise: all matrices of the decoder's layers
# Matrices that adapters can change: those of layers and the projector, and neither tables nor patches.
ADAPTABLE = re.compile(r"(text|vision)\.blocks\.\d+\..*|projector\.weight")


def name_of(path: str) -> str:
    """What patterns are compared with: `text.blocks[3].attn.q` is text.blocks.3.attn.q.

    The weights of a language model are those of a decoder alone, which is called text here too.
    """
    name = re.sub(r"\[(\d+)\]", r".\1", path)
    return name if name.partition(".")[0] in ("text", "vision", "projector") else f"text.{name}"


def chosen(leaves: Sequence[Leaf], patterns: Sequence[str]) -> frozenset[str]:
    """The paths of the arrays that presets and patterns name. BadData for one that names none, with what there is."""
    found: set[str] = set()
    for pattern in patterns:
        globs = PRESETS.get(pattern, (pattern,))
        paths = {leaf.path for leaf in leaves if any(fnmatchcase(name_of(leaf.path), glob) for glob in globs)}
        if not paths:
            raise nothing(pattern, leaves)
        found |= paths
    return frozenset(found)


def adaptable(leaves: Sequence[Leaf], patterns: Sequence[str]) -> frozenset[str]:
    """The same, of the matrices that adapters can change. BadData likewise."""
    return chosen([leaf for leaf in leaves if is_adaptable(leaf)], patterns)


def is_adaptable(leaf: Leaf) -> bool:
    """Whether an adapter can change an array."""
    return leaf.kind == "weight" and ADAPTABLE.fullmatch(name_of(leaf.path)) is not None


def nothing(pattern: str, leaves: Collection[Leaf]) -> BadData:
    """The error for a pattern that names no array."""
    names = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name_of(leaf.path)) for leaf in leaves))
    return BadData(
        f"--train {pattern} names nothing that can be trained here; presets are {', '.join(PRESETS)}, and patterns are "
        f"compared with such names: {', '.join(names)}"
    )
