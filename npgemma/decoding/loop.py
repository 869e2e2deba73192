"""Generation: one prefill of all prompts, then steps of all sequences that have not ended.

Sequences of different lengths run together as rows. One that ends leaves the others as they were, and another may take
its place.

A step runs the last token of each sequence, and tokens that are likely to follow it: a draft, of which those are kept
that are chosen in their turn. So a draft saves steps, and changes a token only where two are equally likely up to
rounding, as running beside other sequences does; see `lookup` for where it comes from.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from npgemma.decoding.lookup import Draft, Drafter, no_drafts
from npgemma.decoding.options import Sampling
from npgemma.decoding.sampling import choose
from npgemma.errors import BadModel
from npgemma.layers.activations import log_softmax
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.gemma import MOST_ROWS, Cache, Decoder, new_caches
from npgemma.models.prefix_lm import Prompt, start, step

# A sequence may draft as many tokens as its credit, which is CREDIT and 1 for every PATIENCE tokens written; a drafted
# token that is not chosen costs 1, and one that is chosen adds EARNED. So drafts that do not help stop, at a loss of
# less than 1 % of a long answer. In a 3B model, one row more in a step takes 0.07 of the time of a step of one row, and
# of eight sequences together, a token takes 0.18 of it: a draft is worth its time if more than a third of it is chosen.
CREDIT, PATIENCE, EARNED = 4, 32, 2
NO_ROWS = np.empty((0, 0))


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

    def possible(self, draft: Sequence[int]) -> list[int]:
        """The ids of a draft before the first that is never chosen."""
        return list(itertools.takewhile(lambda i: i < self.choices and i not in self.never, draft))

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
    """A sequence that is being written: its prompt and tokens, its caches, and the logits of its next token.

    `drafted` are the tokens that may follow that one, of which the caches and the logits have a row each.
    """

    input_ids: Int[Array, "T"]
    caches: list[Cache]
    logits: Float[Array, "Q V"]
    rng: np.random.Generator
    draft: Draft
    drafted: list[int] = field(default_factory=list)
    credit: int = CREDIT
    written: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def generate_tokens(
    p: Decoder,
    prompts: Sequence[Prompt],
    limits: Limits,
    sampling: Sampling,
    samples: int = 1,
    tap: Tap = silent,
    drafter: Drafter = no_drafts,
) -> Iterator[Token]:
    """The tokens of all prompts, step by step, in the order of the sequences: `samples` of them for each prompt.

    A step gives each sequence a token, and those of its draft that are right. Raises NotFinite if the logits are not
    finite.
    """
    running = dict(enumerate(prefill_sequences(p, prompts, limits, sampling, samples, tap, drafter)))
    for count in itertools.count(1):
        tokens = [
            Token(i, *each) for i, sequence in running.items() for each in choose_next(sequence, limits, sampling)
        ]
        yield from tokens
        for token in tokens:
            if token.finish_reason is not None:
                del running[token.sequence]
        if not running:
            return
        step_sequences(p, list(running.values()), limits, at(tap, f"steps.{count}"))


def prefill_sequences(
    p: Decoder,
    prompts: Sequence[Prompt],
    limits: Limits,
    sampling: Sampling,
    samples: int = 1,
    tap: Tap = silent,
    drafter: Drafter = no_drafts,
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
            sequences.append(RunningSequence(prompt.input_ids, own, logits[None], rng, drafter(prompt.input_ids)))
    return sequences


def choose_next(sequence: RunningSequence, limits: Limits, sampling: Sampling) -> list[tuple[int, str | None, float]]:
    """Append the next token to a sequence, and one more after each drafted token that is the one chosen.

    Returns the id of each, why the sequence ends with it, and its log-probability. The caches forget what was drafted
    and not chosen.
    """
    found = []
    for logits, drafted in itertools.zip_longest(sequence.logits, sequence.drafted):
        chosen, reason, logprob = choose_token(sequence, logits, limits, sampling)
        found.append((chosen, reason, logprob))
        if reason is not None or chosen != drafted:
            break
    kept = len(found) - 1
    dropped = len(sequence.drafted) - kept
    for cache in sequence.caches:
        cache.forget(dropped)
    sequence.credit += EARNED * kept - dropped
    sequence.logits = NO_ROWS  # a step needs the memory
    return found


def choose_token(
    sequence: RunningSequence, logits: Float[Array, "V"], limits: Limits, sampling: Sampling
) -> tuple[int, str | None, float]:
    """Append the token that these logits give; returns its id, why the sequence ends with it, and log P of it."""
    logprobs = log_probabilities(logits)
    seen = np.concatenate([sequence.input_ids, sequence.written]).astype(np.int64)
    chosen = choose(limits.allowed(logits), sampling, sequence.rng, seen)
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


def step_sequences(p: Decoder, sequences: Sequence[RunningSequence], limits: Limits, tap: Tap = silent) -> None:
    """Run the last token of each sequence, and those drafted to follow it: one step of the decoder for all of them."""
    for sequence in sequences:
        sequence.drafted = drafted(sequence, limits)
    rows = [[sequence.written[-1], *sequence.drafted] for sequence in sequences]
    counts = [len(ids) for ids in rows]
    all_logits = step(p, np.concatenate(rows), [sequence.caches for sequence in sequences], tap, counts)
    for sequence, logits in zip(sequences, np.split(all_logits, np.cumsum(counts)[:-1]), strict=True):
        sequence.logits = logits


def drafted(sequence: RunningSequence, limits: Limits) -> list[int]:
    """The tokens likely to follow the last one, as many as one step, the answer and the credit have room for."""
    room = min(MOST_ROWS, limits.max_new_tokens - len(sequence.written)) - 1
    most = min(room, sequence.credit + len(sequence.written) // PATIENCE)
    return limits.possible(sequence.draft(sequence.written)[:most]) if most > 0 else []
