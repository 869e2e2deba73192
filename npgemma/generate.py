"""Generation: one prefill of all prompts, then steps of one token for every sequence that is not done.

Sequences of different length and different end run together as rows; one that is done leaves the rest as they were.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from npgemma.errors import BadModel
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.gemma import new_caches
from npgemma.models.paligemma import PaliGemma, Prompt, start, step
from npgemma.sampling import Sampling, choose


class Token(NamedTuple):
    """One token of sequence `row`; `finish_reason` is 'stop' (an end token), 'length', or None while it goes on."""

    row: int
    id: int
    finish_reason: str | None


def generate_tokens(
    p: PaliGemma,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    sampling: Sampling,
    eos_ids: Sequence[int],
    choices: int,
    tap: Tap = silent,
) -> Iterator[Token]:
    """The tokens of all prompts, step by step, rows in order within a step. Only ids below `choices` are chosen.

    Every row draws with a generator of its own, seeded alike, so a row's tokens do not depend on what runs beside it.
    Raises ValueError if max_new_tokens is below 1, BadModel if the logits are not finite.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it is at least 1")
    dtype = prompts[0].image_rows.dtype
    caches = [new_caches(p.text, len(prompt.input_ids) + max_new_tokens - 1, dtype) for prompt in prompts]
    rngs = [np.random.default_rng(sampling.seed) for _ in prompts]
    scores = start(p, prompts, caches, tap=tap)
    going = list(range(len(prompts)))
    for count in range(1, max_new_tokens + 1):
        tokens = [
            pick(row, scores[i, :choices], sampling, rngs[row], eos_ids, count == max_new_tokens)
            for i, row in enumerate(going)
        ]
        yield from tokens
        tokens = [token for token in tokens if token.finish_reason is None]
        going = [token.row for token in tokens]
        if not going:
            return
        ids, heard = np.array([token.id for token in tokens]), at(tap, f"steps.{count}")
        scores = step(p, ids, [caches[row] for row in going], dtype, tap=heard)


def pick(
    row: int,
    scores: Float[Array, "V"],
    sampling: Sampling,
    rng: np.random.Generator,
    eos_ids: Sequence[int],
    is_last: bool,
) -> Token:
    """The next token of one row, and whether it ends it."""
    if not np.isfinite(scores).all():
        raise BadModel("the model's logits are not finite: some weight, or a pixel value, is NaN or infinite")
    chosen = choose(scores, sampling, rng)
    return Token(row, chosen, "stop" if chosen in eos_ids else "length" if is_last else None)
