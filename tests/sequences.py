"""A sequence for the small PaliGemma of `tiny`, and prompts of the models made of ids and pictures."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tiny

from npgemma.models import gemma, prefix_lm
from npgemma.models.gemma import Cache
from npgemma.models.paligemma import PaliGemma, image_features, make_prompt
from npgemma.models.prefix_lm import Prompt

C = tiny.CONFIG
IMAGE = [C.image_token_index] * C.vision.num_patches
PREFIX = [*IMAGE, 2, 5, 9, 11]
SUFFIX = [3, 4, 60, 3]
IDS = np.array(PREFIX + SUFFIX)
TYPES = np.array([0] * len(PREFIX) + [1] * len(SUFFIX))


def pictures(count: int = 1, dtype: str = "float64", side: int = C.vision.image_size, seed: int = 0) -> np.ndarray:
    """Random pixels that float32 holds exactly, so that runs in float32 and float64 get the same."""
    numbers = np.random.default_rng(seed).uniform(-1, 1, (count, 3, side, side))
    return numbers.astype(np.float32).astype(dtype)


def prompt(p: PaliGemma, ids: Sequence[int], pixel_values: np.ndarray, suffix: int = 0) -> Prompt:
    """The last `suffix` ids are suffix, the others prefix."""
    types = [0] * (len(ids) - suffix) + [1] * suffix
    return make_prompt(p, np.array(ids), np.array(types), image_features(p, pixel_values))


def new_caches(p: PaliGemma, prompts: Sequence[Prompt], capacity: int = 60) -> list[list[Cache]]:
    return [gemma.new_caches(p.text, capacity, made.dtype) for made in prompts]


def counting_from(p: PaliGemma, first: int) -> PaliGemma:
    """The same model, whose positions count from `first`."""
    return replace(p, text=replace(p.text, first_position=first))


def prefill(p: PaliGemma, prompts: Sequence[Prompt], capacity: int = 60) -> tuple[np.ndarray, list[list[Cache]]]:
    """The logits of every row, and the caches."""
    caches = new_caches(p, prompts, capacity)
    return gemma.logits(p.text, prefix_lm.prefill(p.text, prompts, caches)), caches
