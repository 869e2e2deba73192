"""Generation: one prefill of all prompts, then steps of one token for every sequence that is not done.

Sequences of different length and different end run together as rows; one that is done leaves the rest as they were,
and another may take its place.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from npgemma.decoding.sampling import Sampling, choose
from npgemma.errors import BadModel
from npgemma.layers.activations import log_softmax
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.gemma import Cache, new_caches
from npgemma.models.paligemma import PaliGemma, Prompt, start, step


@dataclass(frozen=True)
class Limits:
    """Where an answer ends, and what it may hold.

    It ends with an end token, where `ends` says so of the ids written, or after `max_new_tokens`; only ids below
    `choices` are chosen. Raises ValueError if max_new_tokens is below 1.
    """

    max_new_tokens: int
    eos_ids: Sequence[int]
    choices: int
    ends: Callable[[Sequence[int]], bool] = lambda written: False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it is at least 1")

    def reason_to_end(self, written: Sequence[int]) -> str | None:
        """'stop' (an end token, or `ends`), 'length', or None while an answer goes on."""
        if written[-1] in self.eos_ids or self.ends(written):
            return "stop"
        return "length" if len(written) == self.max_new_tokens else None


class Token(NamedTuple):
    """One token of sequence `row`; `finish_reason` is that of Limits.

    `logprob` is the natural logarithm of the model's own probability for it, before any sampling rule.
    """

    row: int
    id: int
    finish_reason: str | None
    logprob: float


@dataclass
class Row:
    """A sequence in flight: what it has read and written, its caches, and the logits of its next token."""

    input_ids: Int[Array, "T"]
    caches: list[Cache]
    scores: Float[Array, "V"]
    rng: np.random.Generator
    written: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def generate_tokens(
    p: PaliGemma,
    prompts: Sequence[Prompt],
    limits: Limits,
    sampling: Sampling,
    samples: int = 1,
    tap: Tap = silent,
) -> Iterator[Token]:
    """The tokens of all prompts, step by step, rows in order within a step: `samples` rows for each prompt.

    Raises BadModel if the logits are not finite.
    """
    going = dict(enumerate(begin(p, prompts, limits, sampling, samples, tap)))
    for count in itertools.count(1):
        tokens = [Token(i, *write_next(row, limits, sampling)) for i, row in going.items()]
        yield from tokens
        going = {token.row: going[token.row] for token in tokens if token.finish_reason is None}
        if not going:
            return
        advance(p, list(going.values()), at(tap, f"steps.{count}"))


def begin(
    p: PaliGemma,
    prompts: Sequence[Prompt],
    limits: Limits,
    sampling: Sampling,
    samples: int = 1,
    tap: Tap = silent,
) -> list[Row]:
    """Read all prompts; each becomes `samples` rows that have written nothing yet.

    Every row draws with a generator of its own, so its tokens do not depend on what runs beside it. The first row of
    every prompt is seeded with the seed, so one sample is the same one among several.
    """
    room = limits.max_new_tokens - 1  # the last token is never read
    dtype = prompts[0].image_rows.dtype
    all_caches = [new_caches(p.text, len(prompt.input_ids) + room, dtype) for prompt in prompts]
    scores = start(p, prompts, all_caches, tap=tap)
    rows = []
    for prompt, caches, row_scores in zip(prompts, all_caches, scores, strict=True):
        for i in range(samples):
            rng = np.random.default_rng([sampling.seed, i] if i else sampling.seed)
            own = [cache.copy() for cache in caches] if i else caches
            rows.append(Row(prompt.input_ids, own, row_scores, rng))
    return rows


def write_next(row: Row, limits: Limits, sampling: Sampling) -> tuple[int, str | None, float]:
    """Choose the next token of a row: its id, whether and why the row ends with it, and its log-probability."""
    logprobs = log_probabilities(row.scores)
    seen = np.concatenate([row.input_ids, row.written]).astype(np.int64)
    chosen = choose(row.scores[: limits.choices], sampling, row.rng, seen)
    logprob = float(logprobs[chosen])
    row.written.append(chosen)
    row.logprobs.append(logprob)
    return chosen, limits.reason_to_end(row.written), logprob


def log_probabilities(scores: Float[Array, "V"]) -> Float[Array, "V"]:
    """The natural logarithm of the model's own probability for each token, in float64. BadModel for NaN, infinities."""
    if not np.isfinite(scores).all():
        raise BadModel("the model's logits are not finite: some weight, or a pixel value, is NaN or infinite")
    return log_softmax(scores.astype(np.float64))


def advance(p: PaliGemma, rows: Sequence[Row], tap: Tap = silent) -> None:
    """Read the last token of each row: one step of the decoder for all of them."""
    ids = np.array([row.written[-1] for row in rows])
    dtype = rows[0].caches[0].keys.dtype
    for row, scores in zip(rows, step(p, ids, [row.caches for row in rows], dtype, tap=tap), strict=True):
        row.scores = scores
