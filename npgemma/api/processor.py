"""Prompts and pictures -> what a model reads, as transformers' tokenizers and PaliGemmaProcessor make it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from PIL import Image

from npgemma.errors import BadPrompt
from npgemma.io.picture import MAX_PIXELS, Limits, Picture, read_picture
from npgemma.io.pixels import PALIGEMMA, PixelSettings, pixel_values
from npgemma.io.tokenizers import IMAGE, Tokenizer
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, silent

Pictures: TypeAlias = Picture | Sequence[Picture]

NO_PICTURES = "a language model reads no pictures; leave them out, or load a PaliGemma"


class Inputs(NamedTuple):
    """A row of ids and of types (0 prefix, 1 suffix) for each prompt, all pictures, and how many each prompt has."""

    input_ids: list[Array]
    token_type_ids: list[Array]
    pixel_values: Float[Array, "B 3 Y X"]
    images: list[int]


def text_inputs(input_ids: list[Array]) -> Inputs:
    """Inputs without pictures, all suffix."""
    types, no_pictures = [np.ones_like(ids) for ids in input_ids], np.empty((0, 3, 0, 0), np.float32)
    return Inputs(input_ids, types, no_pictures, [0] * len(input_ids))


class Processor(Protocol):
    """Prompts, each with its pictures, as a model reads them. A file of more than `max_pixels` is refused.

    The pixel values of a picture take `picture_bytes`.
    """

    max_pixels: int

    @property
    def picture_bytes(self) -> int: ...

    def read(self, picture: Picture) -> Image.Image: ...

    def __call__(self, images: Sequence[Pictures], text: Sequence[str], tap: Tap = silent) -> Inputs: ...

    def suffix_ids(self, suffix: str) -> list[int]: ...


class TextProcessor:
    """For a language model: knows a tokenizer and the id of <bos>, with which every prompt begins."""

    max_pixels = MAX_PIXELS
    picture_bytes = 0

    def __init__(self, tokenizer: Tokenizer, bos_id: int, rows: int) -> None:
        self.tokenizer = tokenizer
        self.bos_id = bos_id
        self.rows = rows

    def __call__(self, images: Sequence[Pictures], text: Sequence[str], tap: Tap = silent) -> Inputs:
        """`images` are empty, one for each prompt of `text`. A prompt that begins with <bos> does not get another.

        Raises BadPrompt for a picture, or a token that the model has no row for.
        """
        check_pairs(images, text)
        if any(not isinstance(each, Sequence) or isinstance(each, str) or len(each) for each in images):
            raise BadPrompt(NO_PICTURES)
        ids = [self.encode(prompt) for prompt in text]
        return text_inputs(ids)

    def read(self, picture: Picture) -> Image.Image:
        """BadPrompt: there is nothing to read it for."""
        raise BadPrompt(NO_PICTURES)

    def encode(self, prompt: str) -> Array:
        """The ids of one prompt."""
        ids = self.checked(self.tokenizer.encode(prompt))
        return np.array(ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids], np.int64)

    def checked(self, ids: list[int]) -> list[int]:
        """The ids. BadPrompt if one of them stands for something else than text, such as a picture, and has no row."""
        for i in ids:
            if i >= self.rows:
                name = next(text for text, known in self.tokenizer.ids.items() if known == i)
                raise BadPrompt(f"the text contains {name}, which a language model cannot read; leave it out")
        return ids

    def suffix_ids(self, suffix: str) -> list[int]:
        """The tokens of a continuation that is scored. BadPrompt if there are none."""
        ids = self.tokenizer.encode(suffix)
        if not ids:
            raise BadPrompt("a suffix is empty: there is no token to score")
        return self.checked(ids)


class PictureReader:
    """Knows how pictures become the pixels of squares with this side, and how large their files may be: `max_pixels`,
    and `memory` bytes to read one, None for what is available.
    """

    def __init__(self, side: int, settings: PixelSettings, memory: int | None) -> None:
        self.side = side
        self.settings = settings
        self.memory = memory
        self.max_pixels = MAX_PIXELS

    @property
    def picture_bytes(self) -> int:
        """What the pixel values of a picture take."""
        return 3 * self.side**2 * np.dtype(np.float32).itemsize

    @property
    def limits(self) -> Limits:
        """What a file of a picture may have at most."""
        return Limits(self.max_pixels, self.memory)

    def read(self, picture: Picture) -> Image.Image:
        """A picture in RGB. BadPicture if it cannot be read, or is too large."""
        return read_picture(picture, self.limits)

    def pixel_values(self, pictures: Sequence[Picture], tap: Tap = silent) -> Float[Array, "B 3 Y X"]:
        """Pictures as a model reads them. BadPicture as for `read`, or if the settings make another size of one."""
        return pixel_values(pictures, self.side, self.settings, self.limits, tap)


class PictureProcessor(PictureReader):
    """For a PaliGemma: knows a tokenizer, how pictures become pixels, how many tokens each stands for, and <bos>."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        side: int,
        tokens_per_image: int,
        bos_id: int,
        eos_id: int,
        settings: PixelSettings = PALIGEMMA,
        memory: int | None = None,
    ) -> None:
        super().__init__(side, settings, memory)
        self.tokenizer = tokenizer
        self.tokens_per_image = tokens_per_image
        self.bos_id = bos_id
        self.eos_id = eos_id

    def __call__(self, images: Sequence[Pictures], text: Sequence[str], tap: Tap = silent) -> Inputs:
        """`images` holds for each prompt of `text` a picture or a sequence of pictures (an empty one for text alone).

        Raises BadPrompt if they do not pair up, BadPicture for a picture that cannot be read.
        """
        check_pairs(images, text)
        per_prompt = [
            list(each) if isinstance(each, Sequence) and not isinstance(each, str) else [each] for each in images
        ]
        ids = [self.encode(prompt, len(pictures)) for prompt, pictures in zip(text, per_prompt, strict=True)]
        return Inputs(
            ids,
            [np.zeros(len(row), np.int64) for row in ids],
            self.pixel_values([picture for pictures in per_prompt for picture in pictures], tap),
            [len(p) for p in per_prompt],
        )

    def encode(self, prompt: str, images: int) -> Array:
        """The ids of one prompt: image tokens, bos, prompt and newline, the last two tokenised as one string.

        If the prompt contains `<image>` itself, once for each picture, image tokens take its place, and bos follows the
        last of them.
        """
        said = prompt.count(IMAGE)
        if said not in (0, images):
            raise BadPrompt(
                f"the prompt says {IMAGE} {said} times and has {images} pictures; leave it out, it is added"
            )
        if IMAGE not in prompt:
            prompt = IMAGE * images + prompt
        cut = prompt.rfind(IMAGE) + len(IMAGE) if images else 0
        before, after = self.tokenizer.encode(prompt[:cut]), self.tokenizer.encode(prompt[cut:] + "\n")
        ids = np.array([*before, self.bos_id, *after], np.int64)
        return np.repeat(ids, np.where(ids == self.tokenizer.image_id, self.tokens_per_image, 1))

    def suffix_ids(self, suffix: str) -> list[int]:
        """The tokens of an answer that is scored: its own, and the end token."""
        return [*self.tokenizer.encode(suffix), self.eos_id]


class PixelProcessor(PictureReader):
    """For an encoder."""

    def __call__(self, images: Pictures, tap: Tap = silent) -> Float[Array, "B 3 Y X"]:
        """One picture, or a sequence of them; BadPicture for one that cannot be read."""
        return self.pixel_values(as_pictures(images), tap)


def as_pictures(images: Pictures) -> Sequence[Picture]:
    """A sequence, of one picture if it is one."""
    return [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else images


def check_pairs(images: Sequence[Pictures], text: Sequence[str]) -> None:
    """BadPrompt unless there is one entry of `images` for each prompt."""
    if isinstance(text, str) or not isinstance(images, Sequence) or len(images) != len(text):
        raise BadPrompt("images and text must be lists of equal length: for each prompt its picture, or its pictures")
