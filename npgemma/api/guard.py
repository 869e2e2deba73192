"""What a run is checked against before it starts: the model's inputs, its files, and the memory there is."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from npgemma.checkpoints.footprint import Footprint, Run
from npgemma.checkpoints.paligemma import PaliGemmaConfig, footprint
from npgemma.errors import BadModel, BadPrompt, TooLittleMemory
from npgemma.io.system_memory import available_memory, size
from npgemma.layers.shapes import Array, Int

ADVICE = "use smaller pictures, fewer of them at once, or weights that stay mapped (not resident)"


@dataclass(frozen=True)
class Budget:
    """The bytes of a model's weights: all of them, those in memory of the process already, and those that are mapped.

    `allowed` is how much memory a run may take; None means what the machine has available.
    """

    weights: int = 0
    held: int = 0
    allowed: int | None = None
    mapped: int = 0

    def require(self, needed: Footprint, available_memory: Callable[[int], int | None] = available_memory) -> None:
        """TooLittleMemory if a run, these weights included, needs more than is allowed or available."""
        if self.allowed is not None:
            if needed.total > self.allowed:
                raise TooLittleMemory(f"this needs {needed}, more than the {size(self.allowed)} allowed; {ADVICE}")
            return
        available = available_memory(self.mapped)
        if available is not None and needed.total - self.held > available:
            found = f"this needs {needed}, and {size(available)} are available"
            raise TooLittleMemory(f"{found}; {ADVICE}, or set a max_memory of your own, which replaces this limit")


@dataclass(frozen=True)
class Guard:
    """Checks of a model's runs. `files` are the mapped weight files, as they were when they were mapped."""

    config: PaliGemmaConfig
    dtype: np.dtype
    files: Mapping[Path, os.stat_result] = field(default_factory=dict)
    budget: Budget = Budget()

    def check_inputs(self, input_ids: Any, pixel_values: Any) -> tuple[Array, Array]:
        """Ids [T] and pixels [B 3 Y X] as arrays; None for pixels means no pictures.

        BadPrompt unless the ids are one row of this model's tokens, with the image tokens of exactly these pictures.
        """
        rows, side = self.config.text.vocab_size, self.config.vision.image_size
        ids = as_array(input_ids, "input_ids")
        if ids.ndim != 1 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise BadPrompt(f"input_ids must be one row of whole numbers, not {ids.dtype} {list(ids.shape)}")
        is_image = ids == self.config.image_token_index
        if ((ids < 0) | (ids >= rows))[~is_image].any():
            raise BadPrompt(f"input_ids run from {ids.min()} to {ids.max()}; this model has tokens 0 to {rows - 1}")
        pixels = np.empty((0, 3, side, side)) if pixel_values is None else as_array(pixel_values, "pixel_values")
        if pixels.shape[1:] != (3, side, side) or not np.issubdtype(pixels.dtype, np.floating):
            found = f"{pixels.dtype} {list(pixels.shape)}"
            raise BadPrompt(f"pixel_values must be floats of shape [pictures, 3, {side}, {side}], not {found}")
        if not np.isfinite(pixels).all():
            bad = next(i for i, picture in enumerate(pixels) if not np.isfinite(picture).all())
            raise BadPrompt(f"pixel_values are not finite: picture {bad} has NaN or infinity; pass values in -1 .. 1")
        tokens, wanted = is_image.sum(), len(pixels) * self.config.vision.num_patches
        if tokens != wanted:
            raise BadPrompt(f"input_ids hold {tokens} image tokens; {len(pixels)} pictures need {wanted}")
        return ids, pixels

    def check_types(self, token_type_ids: Any, input_ids: Int[Array, "T"]) -> Int[Array, "T"]:
        """A type for each id, all prefix by default. BadPrompt for anything else."""
        types = np.zeros_like(input_ids) if token_type_ids is None else as_array(token_type_ids, "token_type_ids")
        if types.shape != input_ids.shape or not np.isin(types, (0, 1)).all():
            raise BadPrompt(f"token_type_ids must be 0 (prefix) or 1 (suffix) for each of {len(input_ids)} input_ids")
        return types.astype(np.int64)

    def check_length(self, input_ids: Sequence[Int[Array, "T"]], max_new_tokens: int) -> None:
        """BadPrompt unless every prompt and its answer fit the model's positions."""
        longest, limit = max(map(len, input_ids)), self.config.text.max_position_embeddings
        if longest + max_new_tokens > limit:
            both = f"a prompt of {longest} tokens and max_new_tokens {max_new_tokens}"
            hint = "ask for fewer tokens" if longest < limit else "use fewer pictures or words"
            raise BadPrompt(f"{both} are more than the {limit} positions of this model; {hint}")

    def check_memory(
        self, lengths: Sequence[int], pictures: int, max_new_tokens: int, samples: int = 1, logit_rows: int = 0
    ) -> None:
        """TooLittleMemory unless prompts of these lengths can be answered all at once; see `footprint`."""
        run = (self.dtype.itemsize, pictures, lengths, max_new_tokens, samples, logit_rows)
        self.budget.require(footprint(self.config, Run(self.budget.weights, *run)))

    def check_files(self) -> None:
        """BadModel if a mapped file has become shorter: reading the lost part would kill the process.

        A file that was replaced or deleted stays readable for as long as it is mapped.
        """
        for path, was in self.files.items():
            with suppress(FileNotFoundError):
                found = path.stat()
                if found.st_ino == was.st_ino and found.st_size < was.st_size:
                    sizes = f"{found.st_size} bytes, {was.st_size} when it was loaded"
                    raise BadModel(f"{path} has been cut short ({sizes}); load the model again once the file is whole")


def as_array(value: Any, name: str) -> Array:
    """`value` as an array. BadPrompt for nested lists of unequal lengths."""
    try:
        return np.asarray(value)
    except ValueError:
        raise BadPrompt(f"{name} has rows of different lengths; pass one prompt at a time") from None
