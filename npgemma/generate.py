"""Generation: one prefill of all prompts, then steps of one token for every sequence that is not done.

Sequences of different length and different end run together as rows; one that is done leaves the rest as they were.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from npgemma.errors import BadModel
from npgemma.layers.ops import log_softmax
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.gemma import new_caches
from npgemma.models.paligemma import PaliGemma, Prompt, start, step
from npgemma.sampling import Sampling, choose


class Token(NamedTuple):
    """One token of sequence `row`; `finish_reason` is 'stop' (an end token), 'length', or None while it goes on.

    `logprob` is the natural logarithm of the model's own probability for it, before any sampling rule.
    """

    row: int
    id: int
    finish_reason: str | None
    logprob: float


def generate_tokens(
    p: PaliGemma,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    sampling: Sampling,
    eos_ids: Sequence[int],
    choices: int,
    tap: Tap = silent,
    ends: Callable[[Sequence[int]], bool] = lambda written: False,
) -> Iterator[Token]:
    """The tokens of all prompts, step by step, rows in order within a step. Only ids below `choices` are chosen.

    A row stops after an end token, or when `ends` says so of what it has written.
    Every row draws with a generator of its own, seeded alike, so a row's tokens do not depend on what runs beside it.
    Raises ValueError if max_new_tokens is below 1, BadModel if the logits are not finite.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it is at least 1")
    dtype = prompts[0].image_rows.dtype
    caches = [new_caches(p.text, len(prompt.input_ids) + max_new_tokens - 1, dtype) for prompt in prompts]
    rngs = [np.random.default_rng(sampling.seed) for _ in prompts]
    written: list[list[int]] = [[] for _ in prompts]
    scores = start(p, prompts, caches, tap=tap)
    going = list(range(len(prompts)))
    for count in range(1, max_new_tokens + 1):
        tokens = []
        for row, row_scores in zip(going, scores, strict=True):
            seen = np.concatenate([prompts[row].input_ids, written[row]]).astype(np.int64)
            chosen, logprob = pick(row_scores, choices, sampling, rngs[row], seen)
            written[row].append(chosen)
            stops = chosen in eos_ids or ends(written[row])
            reason = "stop" if stops else "length" if count == max_new_tokens else None
            tokens.append(Token(row, chosen, reason, logprob))
        yield from tokens
        tokens = [token for token in tokens if token.finish_reason is None]
        going = [token.row for token in tokens]
        if not going:
            return
        ids, heard = np.array([token.id for token in tokens]), at(tap, f"steps.{count}")
        scores = step(p, ids, [caches[row] for row in going], dtype, tap=heard)


def pick(
    scores: Float[Array, "V"], choices: int, sampling: Sampling, rng: np.random.Generator, seen: Int[Array, "T"]
) -> tuple[int, float]:
    """The next token of one row, and its log-probability."""
    if not np.isfinite(scores[:choices]).all():
        raise BadModel("the model's logits are not finite: some weight, or a pixel value, is NaN or infinite")
    chosen = choose(scores[:choices], sampling, rng, seen)
    return chosen, float(log_softmax(scores.astype(np.float64))[chosen])
