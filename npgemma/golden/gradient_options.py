"""What a person may choose about a loss whose gradients are recorded, and the types of what it is made of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from npgemma.api.load import AnyModel
from npgemma.errors import BadPrompt
from npgemma.layers.shapes import Array

Texts: TypeAlias = str | Sequence[str]
# Tensors with their names and axes.
Named: TypeAlias = Iterator[tuple[str, Array, str]]
# What a golden file says about its gradients.
Facts: TypeAlias = Mapping[str, Any]
MEANS = ("token", "example")


@dataclass(frozen=True)
class GradientOptions:
    """What a loss is, and what of a model is trained.

    `mean` is of suffixes: 'token', by default, where each learned token counts the same; 'example', where each example
    does. `smoothing` is the share of the probability that is spread over all tokens or labels but the right one.
    `train` has presets and patterns as of `npgemma train`, or patterns of names in the checkpoint; all else is frozen.
    Without any, everything is trained, or of a model with an `adapter` beside it only that. `steps` are those of AdamW
    whose losses are recorded.
    """

    mean: str | None = None
    smoothing: float = 0.0
    train: tuple[str, ...] = ()
    adapter: str | Path | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        """ValueError, with its name, for an option that is out of its range."""
        if self.mean not in (None, *MEANS):
            raise ValueError(f"mean must be one of {', '.join(MEANS)}, not {self.mean!r}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be at least 0 and below 1, not {self.smoothing:g}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")


DEFAULTS = GradientOptions()


def refuse(model: AnyModel, options: GradientOptions, *names: str) -> None:
    """BadPrompt if the loss of a model has an option that it does not know."""
    if found := [name for name in names if getattr(options, name)]:
        raise BadPrompt(f"{model.folder}: its loss has no {found[0]}; leave it out")
