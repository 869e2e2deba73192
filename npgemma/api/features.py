"""The rows that pictures become, kept for the next question about the same picture.

A picture that a model has seen does not go through its vision tower again. The decoder's keys and values cannot be kept
in the same way: PaliGemma's prefix attends in both directions, so from the second layer on, the keys and values of a
picture's rows depend on the words of the prompt too.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from npgemma.api.processor import Inputs
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, silent
from npgemma.layers.tree import trains
from npgemma.models.paligemma import PaliGemma, image_features, make_prompt
from npgemma.models.prefix_lm import Prompt


@dataclass
class FeatureCache:
    """The features of the last pictures, at most `most`, by the digest of their pixel values.

    They are those of one tower and projector. Where these can be trained, nothing is kept. Several threads may use a
    cache: each puts a new dictionary in place of the old one.
    """

    dtype: np.dtype
    most: int
    kept: dict[bytes, Float[Array, "P D"]] = field(default_factory=dict)
    made_by: tuple[object, object] = (None, None)

    def prompts(self, p: PaliGemma, inputs: Inputs, tap: Tap) -> list[Prompt]:
        """The prompts that the decoder continues. A tap sees all pictures go through the tower."""
        pixels = inputs.pixel_values.astype(self.dtype, copy=False)
        rows = self.features(p, pixels) if tap is silent else image_features(p, pixels, tap)
        features = np.split(rows, np.cumsum(inputs.images)[:-1])
        each = zip(inputs.input_ids, inputs.token_type_ids, features, strict=True)
        return [make_prompt(p, *prompt) for prompt in each]

    def features(self, p: PaliGemma, pixel_values: Float[Array, "B C Y X"]) -> Float[Array, "B P D"]:
        """As `image_features`, which computes those that are not kept, and each picture once."""
        if not len(pixel_values) or trains(p.vision) or trains(p.projector):
            return image_features(p, pixel_values)
        vision, projector = self.made_by
        kept = self.kept if vision is p.vision and projector is p.projector else {}
        keys = [digest(pixels) for pixels in pixel_values]
        new = {key: i for i, key in enumerate(keys) if key not in kept}
        if new:
            computed = image_features(p, pixel_values[list(new.values())])
            kept = kept | {key: rows.copy() for key, rows in zip(new, computed, strict=True)}
        self.made_by, self.kept = (p.vision, p.projector), newest(kept, keys, self.most)
        return np.stack([kept[key] for key in keys])


def digest(pixels: Float[Array, "C Y X"]) -> bytes:
    """The digest of pixel values."""
    return hashlib.sha256(pixels.tobytes()).digest()


def newest(kept: dict[bytes, Array], keys: list[bytes], most: int) -> dict[bytes, Array]:
    """The last `most` entries, once those of `keys` have been made the last ones."""
    last = {key: kept[key] for key in keys}
    ordered = [(key, rows) for key, rows in kept.items() if key not in last] + list(last.items())
    return dict(ordered[-most:])
