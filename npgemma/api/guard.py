"""What a run is checked against before it starts: the model's inputs, its files, and the memory there is."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from npgemma.api.processor import Inputs
from npgemma.checkpoints import language_model, paligemma, towers, vit
from npgemma.checkpoints.footprint import BASE, Footprint, Run
from npgemma.checkpoints.gemma_config import DecoderConfig
from npgemma.checkpoints.language_model import LanguageModelConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.checkpoints.towers import DualEncoderConfig
from npgemma.checkpoints.vit import ViTConfig
from npgemma.errors import BadModel, BadPrompt, TooLittleMemory
from npgemma.io.system_memory import available_memory, size
from npgemma.layers.retained import Copies
from npgemma.layers.shapes import Array, Float, Int

Config = TypeVar("Config")
Writer = TypeVar("Writer", bound=DecoderConfig)
# Percent of the memory that a run leaves which copies of the weights may take: other programs need some.
COPIES_SHARE = 75
# What makes each part of a footprint smaller.
REMEDIES: Mapping[str, str] = {
    "weights": "use a smaller model, or weights that stay mapped (not resident)",
    "caches": "use a smaller max_new_tokens, or fewer beams, samples or prompts at a time",
    "activations": "use fewer or shorter prompts at a time, fewer pictures, or a model that reads them at fewer pixels",
}
# The same for an encoder of one picture or text, and what makes a run of several smaller.
SINGLE_REMEDIES = {**REMEDIES, "activations": "use a model that reads pictures at fewer pixels, or shorter texts"}
BATCH_REMEDY = "use a smaller batch_size (embed --batch-size), or fewer pictures or texts at a time"


@dataclass(frozen=True)
class Budget:
    """The bytes of a model's weights: all of them, those in memory of the process already, and those that are mapped.

    `allowed` is how much memory a run may take; None means what the machine has available.
    """

    weights: int = 0
    held: int = 0
    allowed: int | None = None
    mapped: int = 0

    @property
    def left(self) -> int | None:
        """How many of the bytes that a run may take are left to read a picture before it; None if no limit is set.

        Half of BASE is Python with its libraries; the blocks and scores of the run, the other half, are not there yet.
        """
        return None if self.allowed is None else self.allowed - BASE // 2 - self.weights

    def require(
        self,
        needed: Footprint,
        available_memory: Callable[[int], int | None] = available_memory,
        remedies: Mapping[str, str] = REMEDIES,
        retained: int = 0,
    ) -> int:
        """How many bytes a run leaves of those that are allowed or available; 0 if nobody knows what is available.

        `retained` bytes of copies are in memory and can be dropped. TooLittleMemory if a run, these weights included,
        needs more than there is.
        """
        remedy = remedies[max(remedies, key=lambda part: int(getattr(needed, part)))]
        if self.allowed is not None:
            if needed.total > self.allowed:
                found = f"this needs {needed}, more than the {size(self.allowed)} allowed"
                raise TooLittleMemory(f"{found}; {remedy}, or allow more (max_memory, --max-memory)")
            return self.allowed - needed.total
        available = available_memory(self.mapped)
        if available is None:
            return 0
        available += retained
        if needed.total - self.held > available:
            found = f"this needs {needed}, and {size(available)} are available"
            own = "a limit of your own (max_memory, --max-memory), which replaces this one"
            raise TooLittleMemory(f"{found}; {remedy}, or set {own}")
        return available - (needed.total - self.held)


@dataclass(frozen=True)
class Guard(ABC, Generic[Config]):
    """Checks of a model's runs. `files` are the mapped weight files, as they were when they were mapped.

    `copies` are those of weights that steps widen: they get what a run leaves.
    """

    config: Config
    dtype: np.dtype
    files: Mapping[Path, os.stat_result] = field(default_factory=dict)
    budget: Budget = Budget()
    copies: Copies | None = None

    @abstractmethod
    def footprint(self, run: Run) -> Footprint:
        """The memory that a run needs."""

    def check_memory(
        self, lengths: Sequence[int], pictures: int, max_new_tokens: int = 0, samples: int = 1, logit_rows: int = 0
    ) -> None:
        """TooLittleMemory unless so many pictures and texts of these lengths can be run at once; see `footprint`."""
        run = Run(self.budget.weights, self.dtype.itemsize, pictures, lengths, max_new_tokens, samples, logit_rows)
        retained = self.copies.size if self.copies else 0
        left = self.budget.require(self.footprint(run), remedies=self.remedies(run), retained=retained)
        if self.copies:
            self.copies.set_limit(max(0, left) * COPIES_SHARE // 100)

    def remedies(self, run: Run) -> Mapping[str, str]:
        """What makes each part of the footprint of a run smaller."""
        return REMEDIES

    def check_files(self) -> None:
        """BadModel if a mapped file has been written to: its weights are others, and reading a lost part of it would
        kill the process.

        A file that was replaced or deleted stays as it was for as long as it is mapped.
        """
        for path, was in self.files.items():
            with suppress(FileNotFoundError):
                found = path.stat()
                if found.st_ino == was.st_ino and found.st_dev == was.st_dev:
                    check_unchanged(path, was, found)


def check_unchanged(path: Path, was: os.stat_result, found: os.stat_result) -> None:
    """BadModel if a file has become shorter, longer, or was written to at its size."""
    if (was.st_size, was.st_mtime_ns) == (found.st_size, found.st_mtime_ns):
        return
    if found.st_size < was.st_size:
        sizes = f"{found.st_size} bytes, {was.st_size} when it was loaded"
        raise BadModel(f"{path} has been cut short ({sizes}); load the model again once the file is whole")
    raise BadModel(f"{path} has been written to since it was loaded; load the model again")


@dataclass(frozen=True)
class GenerativeGuard(Guard[Writer], Generic[Writer]):
    """Checks of the runs of a model that writes."""

    @property
    @abstractmethod
    def made_of(self) -> str:
        """What to use less of where a prompt is too long."""

    def check_ids(self, input_ids: Any, absent: Sequence[int] = ()) -> Int[Array, "T"]:
        """Ids [T] as an array. BadPrompt unless they are one row of tokens that have embeddings, or are `absent`."""
        rows, ids = self.config.text.vocab_size, as_array(input_ids, "input_ids")
        if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise BadPrompt(f"input_ids must be one row of whole numbers, not {ids.dtype} {list(ids.shape)}")
        if ((ids < 0) | (ids >= rows))[~np.isin(ids, absent)].any():
            raise BadPrompt(f"input_ids run from {ids.min()} to {ids.max()}; this model has tokens 0 to {rows - 1}")
        return ids

    def check_length(self, input_ids: Sequence[Int[Array, "T"]], max_new_tokens: int) -> None:
        """BadPrompt unless every prompt and its answer fit the model's positions."""
        longest, limit = max(map(len, input_ids)), self.config.text.max_position_embeddings
        if longest + max_new_tokens > limit:
            both = f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens}"
            hint = f"use max_new_tokens {limit - longest} or less" if longest < limit else self.shorten(longest)
            raise BadPrompt(f"{both} are more than the {limit} positions of this model; {hint}")

    def check_scored(self, lengths: Sequence[int]) -> None:
        """BadPrompt unless every prompt fits the model's positions with its suffix."""
        longest, limit = max(lengths), self.config.text.max_position_embeddings
        if longest > limit:
            both = f"a prompt with its suffix has {longest} tokens"
            raise BadPrompt(f"{both}, more than the {limit} positions of this model; {self.shorten(longest - 1)}")

    def shorten(self, length: int) -> str:
        """What to do about a prompt of this length, which leaves no position for a token after it."""
        more = length - self.config.text.max_position_embeddings + 1
        return f"use {self.made_of}: {more} tokens less"


@dataclass(frozen=True)
class TextGuard(GenerativeGuard[LanguageModelConfig]):
    """Checks of the runs of a language model."""

    made_of = "fewer words"

    def footprint(self, run: Run) -> Footprint:
        return language_model.footprint(self.config, run)


@dataclass(frozen=True)
class PictureGuard(GenerativeGuard[PaliGemmaConfig]):
    """Checks of the runs of a PaliGemma."""

    @property
    def made_of(self) -> str:
        return f"fewer pictures, of {self.config.vision.num_patches} tokens each, or words"

    def footprint(self, run: Run) -> Footprint:
        return paligemma.footprint(self.config, run)

    def check_inputs(self, input_ids: Any, pixel_values: Any, token_type_ids: Any = None) -> Inputs:
        """Ids [T], pixels [B 3 Y X] and types [T] as arrays. Without pixels there are no pictures; types are 0 if None.

        BadPrompt unless the ids are one row of this model's tokens, with the image tokens of exactly these pictures,
        and there is a type for each.
        """
        side, image = self.config.vision.image_size, self.config.image_token_index
        ids = self.check_ids(input_ids, [image])
        pixels = np.empty((0, 3, side, side)) if pixel_values is None else checked_pixels(pixel_values, side)
        tokens, wanted = (ids == image).sum(), len(pixels) * self.config.vision.num_patches
        if tokens != wanted:
            raise BadPrompt(f"input_ids hold {tokens} image tokens; {len(pixels)} pictures need {wanted}")
        types = np.zeros_like(ids) if token_type_ids is None else as_array(token_type_ids, "token_type_ids")
        if types.shape != ids.shape or not np.isin(types, (0, 1)).all():
            raise BadPrompt(f"token_type_ids must be 0 (prefix) or 1 (suffix) for each of {len(ids)} input_ids")
        return Inputs([ids], [types.astype(np.int64)], pixels, [len(pixels)])


@dataclass(frozen=True)
class EncoderGuard(Guard[Config], Generic[Config]):
    """Checks of the runs of a model that takes pictures and texts some at a time."""

    def remedies(self, run: Run) -> Mapping[str, str]:
        """A single picture or text was in the footprint that loading checked; the others need not run beside it."""
        single = max(run.pictures, len(run.prompts)) == 1
        return SINGLE_REMEDIES if single else dict.fromkeys(REMEDIES, BATCH_REMEDY)


@dataclass(frozen=True)
class DualEncoderGuard(EncoderGuard[DualEncoderConfig]):
    """Checks of the runs of a SigLIP or a CLIP."""

    def footprint(self, run: Run) -> Footprint:
        return towers.footprint(self.config, run)


@dataclass(frozen=True)
class ClassifierGuard(EncoderGuard[ViTConfig]):
    """Checks of the runs of a ViT."""

    def footprint(self, run: Run) -> Footprint:
        return vit.footprint(self.config, run)


def as_array(value: Any, name: str) -> Array:
    """`value` as an array. BadPrompt for nested lists of unequal lengths."""
    try:
        return np.asarray(value)
    except ValueError:
        raise BadPrompt(f"{name} has rows of different lengths; pass one prompt at a time") from None


def checked_pixels(pixel_values: Any, side: int) -> Float[Array, "B 3 Y X"]:
    """Pixel values as an array. BadPrompt unless they are finite, of pictures with this side."""
    pixels = as_array(pixel_values, "pixel_values")
    if pixels.shape[1:] != (3, side, side) or not np.issubdtype(pixels.dtype, np.floating):
        found = f"{pixels.dtype} {list(pixels.shape)}"
        raise BadPrompt(f"pixel_values must be floats of shape [pictures, 3, {side}, {side}], not {found}")
    if not np.isfinite(pixels).all():
        bad = next(i for i, picture in enumerate(pixels) if not np.isfinite(picture).all())
        raise BadPrompt(f"pixel_values are not finite: picture {bad} has NaN or infinity; pass values in -1 .. 1")
    return pixels
