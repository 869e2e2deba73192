"""Ids and pixels from a caller's hand, held against the model they are for."""

from typing import Any

import numpy as np

from npgemma.errors import BadPrompt
from npgemma.io.config import Config
from npgemma.layers.shapes import Array


def check_inputs(config: Config, input_ids: Any, pixel_values: Any) -> tuple[Array, Array]:
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
