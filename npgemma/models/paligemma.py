"""PaliGemma: pictures as a soft prompt of a language model.

    pixel_values --> SigLIP --> projector --> image rows --.
                                                           |-- one row a token --> Gemma --> logits
    input_ids ---------------------------> text rows ------'

A prompt is [image tokens, bos, prefix, newline | suffix]. The prefix attends to all of itself, pictures included; the
suffix is causal (PaliGemma, Beyer et al. 2024, section 3.2, figure 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npgemma.layers.linear import linear
from npgemma.layers.shapes import Array, Float, Int, Weight
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.gemma import (
    Cache,
    Decoder,
    Rows,
    Segment,
    decoder,
    embed_tokens,
    last_rows,
    logits,
    new_caches,
    prefix_lm_mask,
    within,
)
from npgemma.models.siglip import VisionTower, vision_tower


@dataclass(frozen=True)
class Projector:
    weight: Weight[Array, "D E"]
    bias: Float[Array, "D"]


@dataclass(frozen=True)
class PaliGemma:
    vision: VisionTower
    projector: Projector
    text: Decoder
    image_token: int


class Prompt(NamedTuple):
    """One sequence to start from: ids, the type of each (0 prefix, 1 suffix), and a row for each image token."""

    input_ids: Int[Array, "T"]
    token_type_ids: Int[Array, "T"]
    image_rows: Float[Array, "R D"]


def image_features(p: PaliGemma, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent) -> Float[Array, "B P D"]:
    """Each picture as P rows of the decoder's width, which replace its image tokens."""
    pixel_values = tap("pixel_values", pixel_values, "B C Y X")
    x = vision_tower(p.vision, pixel_values, at(tap, "vision"))
    return tap("projector", linear(x, p.projector.weight, p.projector.bias), "B P D")


def embed_prompt(
    p: PaliGemma, input_ids: Int[Array, "T"], image_rows: Float[Array, "R D"], tap: Tap = silent
) -> Float[Array, "T D"]:
    """Text tokens are looked up and scaled; the R image tokens become the image rows, in order and unscaled.

    Raises ValueError unless there are as many image rows as image tokens.
    """
    x = np.empty((len(input_ids), image_rows.shape[1]), image_rows.dtype)
    is_image = input_ids == p.image_token
    if is_image.sum() != len(image_rows):
        raise ValueError(f"the ids hold {is_image.sum()} image tokens, the pictures give {len(image_rows)} rows")
    x[is_image] = image_rows
    x[~is_image] = embed_tokens(p.text, input_ids[~is_image], x.dtype, tap)
    return x


def lay_out(
    p: PaliGemma, prompts: Sequence[Prompt], first_position: int, tap: Tap = silent
) -> tuple[Float[Array, "T D"], Rows]:
    """All prompts concatenated: their embeddings, and which rows belong together.

    Positions count from `first_position`: 1 in transformers, 0 in big_vision. Attention depends only on their
    differences, so this changes only the cached keys.
    """
    ends = np.cumsum([len(prompt.input_ids) for prompt in prompts])
    segments, positions, embeddings, window = [], [], [], p.text.window
    for i, (prompt, end) in enumerate(zip(prompts, ends.tolist(), strict=True)):
        prompt_tap = at(tap, f"prompts.{i}")
        ids = prompt_tap("input_ids", prompt.input_ids, "T")
        types = prompt_tap("token_type_ids", prompt.token_type_ids, "T")
        mask = prompt_tap("mask", prefix_lm_mask(types), "T S")
        near = None if window is None else prompt_tap("near", prefix_lm_mask(types, window), "T S")
        segments.append(Segment(slice(end - len(ids), end), mask, near))
        positions.append(np.arange(first_position, first_position + len(ids)))
        embeddings.append(embed_prompt(p, ids, prompt.image_rows, at(tap, "text")))
    x = tap("text.embedding", np.concatenate(embeddings), "T D")
    return x, Rows(slice(None), tap("positions", np.concatenate(positions), "T"), segments)


def prefill(
    p: PaliGemma,
    prompts: Sequence[Prompt],
    caches: Sequence[Sequence[Cache]],
    first_position: int = 1,
    tap: Tap = silent,
) -> Float[Array, "T D"]:
    """Run whole prompts through the decoder: fills their caches, and returns the hidden states of all their rows."""
    x, rows = lay_out(p, prompts, first_position, tap)
    return decoder(p.text, x, rows, caches, tap=at(tap, "text"))


def start(
    p: PaliGemma,
    prompts: Sequence[Prompt],
    caches: Sequence[Sequence[Cache]],
    first_position: int = 1,
    tap: Tap = silent,
) -> Float[Array, "B V"]:
    """Fill the caches of B prompts; returns the logits of the token after each.

    In the last layer, only the last row of each prompt is computed beyond its keys and values.
    """
    x, rows = lay_out(p, prompts, first_position, tap)
    x = decoder(p.text, x, rows, caches, last_rows(rows), at(tap, "text"))
    return tap("logits", logits(p.text, x, at(tap, "logits")), "B V")


def step(
    p: PaliGemma,
    input_ids: Int[Array, "T"],
    caches: Sequence[Sequence[Cache]],
    dtype: np.dtype,
    first_position: int = 1,
    tap: Tap = silent,
) -> Float[Array, "T V"]:
    """Add one token to each of T sequences; returns the logits of the token after it.

    It attends to everything cached, or to the last tokens where a layer has a window.
    """
    lengths = [sequence[0].length + 1 for sequence in caches]
    segments = [
        Segment(slice(t, t + 1), *(within(np.array([n - 1]), np.arange(n), w) for w in (None, p.text.window)))
        for t, n in enumerate(lengths)
    ]
    rows = Rows(slice(None), tap("positions", np.array(lengths) - 1 + first_position, "T"), segments)
    x = embed_tokens(p.text, tap("input_ids", input_ids, "T"), dtype, at(tap, "text"))
    x = tap("text.embedding", x, "T D")
    x = decoder(p.text, x, rows, caches, tap=at(tap, "text"))
    return tap("logits", logits(p.text, x, at(tap, "logits")), "B V")


def forward(
    p: PaliGemma,
    input_ids: Int[Array, "T"],
    pixel_values: Float[Array, "B C Y X"],
    token_type_ids: Int[Array, "T"],
    first_position: int = 1,
    tap: Tap = silent,
) -> Float[Array, "T V"]:
    """The logits of every row of one sequence in one pass, as in training; its caches are dropped."""
    features = image_features(p, pixel_values, tap)
    prompt = Prompt(input_ids, token_type_ids, features.reshape(-1, features.shape[-1]))
    caches = [new_caches(p.text, len(input_ids), features.dtype)]
    x = prefill(p, [prompt], caches, first_position, tap)
    return tap("logits", logits(p.text, x, at(tap, "logits")), "T V")
