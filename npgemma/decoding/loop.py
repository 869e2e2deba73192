"""Generation: one prefill of all prompts, then steps of one token for every sequence that has not ended.

Sequences of different lengths run together as rows. One that ends leaves the others as they were, and another may take
its place.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from npgemma.decoding.options import Sampling
from npgemma.decoding.sampling import choose
from npgemma.errors import BadModel
from npgemma.layers.activations import log_softmax
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.gemma import Cache, Decoder, new_caches
from npgemma.models.prefix_lm import Prompt, start, step


class NotFinite(BadModel):
    """The numbers of a run are NaN or infinite. The library raises a plain BadModel, which says why."""


@dataclass(frozen=True)
class Limits:
    """Where an answer ends, and which tokens it may contain.

    It ends with an end token, when `has_stopped` says so of the ids written, or after `max_new_tokens`; only ids below
    `choices` are chosen, and those of `never` are not.
    """

    max_new_tokens: int
    eos_ids: Sequence[int]
    choices: int
    has_stopped: Callable[[Sequence[int]], bool] = lambda written: False
    never: Sequence[int] = ()

    def allowed(self, scores: Float[Array, "V"]) -> Float[Array, "W"]:
        """The scores of the ids that may be chosen; those of `never` become -inf."""
        scores = scores[: self.choices].copy()
        scores[[i for i in self.never if i < len(scores)]] = -np.inf
        return scores

    def reason_to_end(self, written: Sequence[int]) -> str | None:
        """'stop' (an end token or a stop string), 'length', or None while an answer goes on."""
        if written[-1] in self.eos_ids or self.has_stopped(written):
            return "stop"
        return "length" if len(written) == self.max_new_tokens else None


class Token(NamedTuple):
    """One token of a sequence; `finish_reason` is that of Limits.

    `logprob` is the natural logarithm of the model's own probability for it, before any sampling rule.
    """

    sequence: int
    id: int
    finish_reason: str | None
    logprob: float


@dataclass
class RunningSequence:
    """A sequence that is being written: its prompt and tokens, its caches, and the logits of its next token."""

    input_ids: Int[Array, "T"]
    caches: list[Cache]
    logits: Float[Array, "V"]
    rng: np.random.Generator
    written: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def generate_tokens(
    p: Decoder,
    prompts: Sequence[Prompt],
    limits: Limits,
    sampling: Sampling,
    samples: int = 1,
    tap: Tap = silent,
) -> Iterator[Token]:
    """The tokens of all prompts, step by step, in the order of the sequences: `samples` of them for each prompt.

    Raises NotFinite if the logits are not finite.
    """
    running = dict(enumerate(prefill_sequences(p, prompts, limits, sampling, samples, tap)))
    for count in itertools.count(1):
        tokens = [Token(i, *choose_next(sequence, limits, sampling)) for i, sequence in running.items()]
        yield from tokens
        running = {token.sequence: running[token.sequence] for token in tokens if token.finish_reason is None}
        if not running:
            return
        step_sequences(p, list(running.values()), at(tap, f"steps.{count}"))


def prefill_sequences(
    p: Decoder,
    prompts: Sequence[Prompt],
    limits: Limits,
    sampling: Sampling,
    samples: int = 1,
    tap: Tap = silent,
) -> list[RunningSequence]:
    """Run all prompts; each becomes `samples` sequences that have written nothing yet.

    Every sequence draws with a generator of its own, so its tokens do not depend on what runs beside it. The first of
    every prompt has the seed itself, so a single sample equals the first of several.
    """
    capacity = limits.max_new_tokens - 1  # the last token is never read
    all_caches = [new_caches(p, len(prompt.input_ids) + capacity, prompt.dtype) for prompt in prompts]
    sequences = []
    for prompt, caches, logits in zip(prompts, all_caches, start(p, prompts, all_caches, tap=tap), strict=True):
        for i in range(samples):
            rng = np.random.default_rng([sampling.seed, i] if i else sampling.seed)
            own = [cache.copy() for cache in caches] if i else caches
            sequences.append(RunningSequence(prompt.input_ids, own, logits, rng))
    return sequences


def choose_next(sequence: RunningSequence, limits: Limits, sampling: Sampling) -> tuple[int, str | None, float]:
    """Append the next token to a sequence; returns its id, why the sequence ends with it, and its log-probability."""
    logprobs = log_probabilities(sequence.logits)
    seen = np.concatenate([sequence.input_ids, sequence.written]).astype(np.int64)
    chosen = choose(limits.allowed(sequence.logits), sampling, sequence.rng, seen)
    logprob = float(logprobs[chosen])
    sequence.written.append(chosen)
    sequence.logprobs.append(logprob)
    return chosen, limits.reason_to_end(sequence.written), logprob


def log_probabilities(logits: Float[Array, "V"]) -> Float[Array, "V"]:
    """The natural logarithm of the model's own probability for each token, in float64.

    Raises NotFinite for logits that are NaN or infinite.
    """
    if not np.isfinite(logits).all():
        raise NotFinite("the model's logits are not finite: some weight, or a pixel value, is NaN or infinite")
    return log_softmax(logits.astype(np.float64))


def step_sequences(p: Decoder, sequences: Sequence[RunningSequence], tap: Tap = silent) -> None:
    """Run the last token of each sequence: one step of the decoder for all of them."""
    ids = np.array([sequence.written[-1] for sequence in sequences])
    all_logits = step(p, ids, [sequence.caches for sequence in sequences], tap=tap)
    for sequence, logits in zip(sequences, all_logits, strict=True):
        sequence.logits = logits
