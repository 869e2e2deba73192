"""What a run is checked against before it starts: the model's inputs, its files, and the memory there is."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from npgemma.checkpoints.footprint import Footprint
from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.errors import BadPrompt, TooLittleMemory
from npgemma.io.system_memory import available_memory, size
from npgemma.layers.shapes import Array


def check_inputs(config: PaliGemmaConfig, input_ids: Any, pixel_values: Any) -> tuple[Array, Array]:
    """Ids [T] and pixels [B 3 Y X] as arrays; no pixels are a stack of no pictures.

    BadPrompt unless the ids are one row of tokens of this model with the image tokens of just these pictures.
    """
    rows, side = config.text.vocab_size, config.vision.image_size
    ids = as_array(input_ids, "input_ids")
    if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise BadPrompt(f"input_ids are one row of whole numbers, not {ids.dtype} {list(ids.shape)}")
    is_image = ids == config.image_token_index
    if ((ids < 0) | (ids >= rows))[~is_image].any():
        raise BadPrompt(f"input_ids run from {ids.min()} to {ids.max()}; this model has tokens 0 to {rows - 1}")
    pixels = np.empty((0, 3, side, side)) if pixel_values is None else as_array(pixel_values, "pixel_values")
    if pixels.shape[1:] != (3, side, side) or not np.issubdtype(pixels.dtype, np.floating):
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise BadPrompt(f"pixel_values are floats of shape [pictures, 3, {side}, {side}], not {found}")
    tokens, wanted = is_image.sum(), len(pixels) * config.vision.num_patches
    if tokens != wanted:
        raise BadPrompt(f"the ids hold {tokens} image tokens; {len(pixels)} pictures stand for {wanted}")
    return ids, pixels


def as_array(value: Any, name: str) -> Array:
    """`value` as an array. BadPrompt for nested lists of unequal lengths, which are none."""
    try:
        return np.asarray(value)
    except ValueError:
        raise BadPrompt(f"{name} has rows of different lengths; give one prompt at a time") from None


@dataclass(frozen=True)
class Budget:
    """What a model's weights take in all; how much of that is in memory of its own already, and how much is mapped.

    `allowed` is how much memory may be taken; None is what the machine has available.
    """

    weights: int = 0
    held: int = 0
    allowed: int | None = None
    mapped: int = 0

    def require(self, plan: Footprint) -> None:
        """TooLittleMemory if the plan, these weights in it, is more than is allowed, or than there is."""
        if self.allowed is not None:
            if plan.total > self.allowed:
                raise TooLittleMemory(f"this needs {plan}, more than the {size(self.allowed)} allowed; {ADVICE}")
            return
        available = available_memory(self.mapped)
        if available is not None and plan.total - self.held > available:
            found = f"{size(available)} are available"
            raise TooLittleMemory(
                f"this needs {plan}, and {found}; {ADVICE}; a max_memory of your own goes before that"
            )


UNLIMITED = Budget()
ADVICE = "smaller pictures, fewer of them at once, or weights that stay mapped (not resident) take less"
