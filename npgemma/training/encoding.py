"""An example -> the ids that a model is trained on, and its pictures as pixel values.

    PaliGemma    [image tokens, bos, prefix, newline | suffix, eos]     the prefix sees all of itself
    Gemma        [bos, prefix, suffix, eos]                             causal

Loss is taken on the suffix and the end token, and nowhere else. These are the ids, types and labels of transformers'
PaliGemmaProcessor(suffix=...).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from npgemma.io.picture import Picture
from npgemma.io.pixels import PixelSettings, picture_values
from npgemma.io.tokenizers import Tokenizer
from npgemma.layers.shapes import Array, Float, Int


class Encoded(NamedTuple):
    """The ids of an example, the type of each (0 prefix, 1 suffix), and where those that are learned begin."""

    input_ids: Int[Array, "T"]
    token_type_ids: Int[Array, "T"]
    learned_from: int


class PictureText(Protocol):
    """A PaliGemma's processor, as npgemma.api.processor has it."""

    tokenizer: Tokenizer
    side: int
    settings: PixelSettings

    def read(self, picture: Picture) -> Image.Image: ...

    def encode(self, prompt: str, images: int) -> Array: ...

    def suffix_ids(self, suffix: str) -> list[int]: ...


class PlainText(Protocol):
    """A language model's processor, as npgemma.api.processor has it."""

    def read(self, picture: Picture) -> Image.Image: ...

    def encode(self, prompt: str) -> Array: ...

    def suffix_ids(self, suffix: str) -> list[int]: ...


class Encoder(Protocol):
    """How a model reads an example: which pictures and texts it takes, and how many tokens at most."""

    @property
    def most_tokens(self) -> int: ...

    @property
    def reads_pictures(self) -> bool: ...

    @property
    def forbidden(self) -> Collection[str]: ...

    def read(self, picture: Picture) -> Image.Image: ...

    def encode(self, prefix: str, suffix: str, pictures: int) -> Encoded: ...

    def pixel_values(self, pictures: list[Picture]) -> Float[Array, "B 3 Y X"]: ...


@dataclass(frozen=True)
class PictureEncoder:
    """For a PaliGemma whose decoder has positions for `most_tokens`."""

    processor: PictureText
    most_tokens: int
    reads_pictures = True

    def read(self, picture: Picture) -> Image.Image:
        """A picture in RGB. BadPicture for one that cannot be read, or is too large."""
        return self.processor.read(picture)

    @property
    def forbidden(self) -> Collection[str]:
        """The control tokens, which the processor adds itself."""
        return self.processor.tokenizer.specials

    def encode(self, prefix: str, suffix: str, pictures: int) -> Encoded:
        """[image tokens, bos, prefix, newline | suffix, eos]. BadPrompt for text that is not valid Unicode."""
        return joined(self.processor.encode(prefix, pictures), self.processor.suffix_ids(suffix), type_before=0)

    def pixel_values(self, pictures: list[Picture]) -> Float[Array, "B 3 Y X"]:
        """The pictures as the vision tower reads them. BadPicture for one that cannot be read."""
        side = self.processor.side
        values = np.empty((len(pictures), 3, side, side), np.float32)
        for i, picture in enumerate(pictures):
            values[i] = picture_values(self.read(picture), side, self.processor.settings)
        return values


@dataclass(frozen=True)
class TextEncoder:
    """For a language model that ends its texts with `eos_id`; a prefix may spell control tokens, such as of a chat."""

    processor: PlainText
    most_tokens: int
    eos_id: int
    reads_pictures = False
    forbidden = ()

    def read(self, picture: Picture) -> Image.Image:
        """A picture in RGB. BadPicture for one that cannot be read, or is too large."""
        return self.processor.read(picture)

    def encode(self, prefix: str, suffix: str, pictures: int) -> Encoded:
        """[bos, prefix, suffix, eos], all of it causal. BadPrompt for a token that the model has no row for."""
        return joined(self.processor.encode(prefix), [*self.processor.suffix_ids(suffix), self.eos_id], type_before=1)

    def pixel_values(self, pictures: list[Picture]) -> Float[Array, "B 3 Y X"]:
        """No picture at all: `pictures` is empty."""
        return np.empty((len(pictures), 3, 0, 0), np.float32)


def joined(before: Int[Array, "S"], learned: list[int], type_before: int) -> Encoded:
    """The ids of a prefix and of what is learned after it."""
    types = np.repeat(np.array([type_before, 1]), [len(before), len(learned)])
    return Encoded(np.concatenate([before, np.array(learned, np.int64)]), types, len(before))
