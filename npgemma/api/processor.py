"""Pictures and prompts -> what the model reads, as transformers' PaliGemmaProcessor makes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from npgemma.errors import BadPrompt
from npgemma.io.picture import MAX_PIXELS, Picture, read_picture
from npgemma.io.pixels import PALIGEMMA, PixelSettings, pixel_values
from npgemma.io.tokenizers import IMAGE, Tokenizer
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, silent

Pictures: TypeAlias = Picture | Sequence[Picture]


@dataclass(frozen=True)
class Inputs:
    """A row of ids and of types (all 0: prefix) for each prompt, all pictures in order, and how many each has."""

    input_ids: list[Array]
    token_type_ids: list[Array]
    pixel_values: Float[Array, "B 3 Y X"]
    images: list[int]


class Processor:
    """Knows a tokenizer, how pictures become pixels, how many tokens a picture stands for, and the id of <bos>.

    A file of more than `max_pixels` is refused, which may be changed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        side: int,
        tokens_per_image: int,
        bos_id: int,
        settings: PixelSettings = PALIGEMMA,
    ) -> None:
        self.tokenizer = tokenizer
        self.side = side
        self.tokens_per_image = tokens_per_image
        self.bos_id = bos_id
        self.settings = settings
        self.max_pixels = MAX_PIXELS

    def __call__(self, images: Sequence[Pictures], text: Sequence[str], tap: Tap = silent) -> Inputs:
        """`images` holds for each prompt of `text` a picture or a sequence of pictures (an empty one for text alone).

        Raises BadPrompt if they do not pair up, BadPicture for a picture that cannot be read.
        """
        check_pairs(images, text)
        per_prompt = [
            list(each) if isinstance(each, Sequence) and not isinstance(each, str) else [each] for each in images
        ]
        ids = [self.encode(prompt, len(pictures)) for prompt, pictures in zip(text, per_prompt, strict=True)]
        read = [read_picture(picture, self.max_pixels) for pictures in per_prompt for picture in pictures]
        return Inputs(
            ids,
            [np.zeros(len(row), np.int64) for row in ids],
            pixel_values(read, self.side, self.settings, tap),
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


def check_pairs(images: Sequence[Pictures], text: Sequence[str]) -> None:
    """BadPrompt unless there is one entry of `images` for each prompt."""
    if isinstance(text, str) or not isinstance(images, Sequence) or len(images) != len(text):
        raise BadPrompt("images and text must be lists of equal length: for each prompt its picture, or its pictures")
