"""Beam search: the answer whose tokens are likeliest together, not one by one.

    log P(answer) = sum over t of log P(token t | picture, prompt, tokens before t)

In each step, of all continuations of the K best unfinished answers by one token, the K best unfinished ones go on, and
those of the K best that end are kept. The search ends when no unfinished answer is better than the K best finished
ones. The score is the plain sum, as in big_vision, without reward or penalty for length; transformers computes the same
with num_beams=K and length_penalty=0.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from npgemma.decoding.loop import Limits, log_probabilities
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.gemma import Cache, Decoder, new_caches
from npgemma.models.prefix_lm import Prompt, start, step


class Beam(NamedTuple):
    """An answer so far: its ids, the log-probability of each, and which beam of the step before it continues."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    parent: int

    @property
    def total(self) -> float:
        return sum(self.logprobs)


def beam_search(p: Decoder, prompt: Prompt, num_beams: int, limits: Limits, tap: Tap = silent) -> list[Beam]:
    """The best finished answers, the likeliest first, at most `num_beams`. NotFinite if the logits are not."""
    caches = [new_caches(p, len(prompt.input_ids) + limits.max_new_tokens - 1, prompt.dtype)]
    logits = start(p, [prompt], caches, tap=tap)
    unfinished, finished = [Beam((), (), 0)], list[Beam]()
    while True:
        best, ended = best_continuations(unfinished, logits, num_beams, limits)
        finished += [beam for beam, end in zip(best[:num_beams], ended, strict=False) if end]
        finished = ranked(finished)[:num_beams]
        unfinished = [beam for beam, end in zip(best, ended, strict=True) if not end][:num_beams]
        if not unfinished or (len(finished) == num_beams and unfinished[0].total <= finished[-1].total):
            return finished
        caches = caches_of(unfinished, caches)
        ids = np.array([beam.ids for beam in unfinished])
        logits = step(p, ids[:, -1], caches, tap=at(tap, f"steps.{ids.shape[1]}"))


def best_continuations(
    unfinished: list[Beam], logits: Float[Array, "B V"], num_beams: int, limits: Limits
) -> tuple[list[Beam], list[bool]]:
    """The best continuations, and which of them end; enough that `num_beams` unfinished ones are among them."""
    count = (1 + len(limits.eos_ids)) * num_beams  # enough even if each of the best ends with every end token
    while True:
        best = continuations(unfinished, logits, limits, count)
        ended = [limits.reason_to_end(beam.ids) is not None for beam in best]
        enough = len(best) - sum(ended) >= num_beams
        if enough or len(best) < count or len(best[0].ids) == limits.max_new_tokens:
            return best, ended
        count *= 2  # many end with a stop string


def caches_of(beams: list[Beam], caches: list[list[Cache]]) -> list[list[Cache]]:
    """The caches of each beam's parent: the first child of a parent takes them over, the others get copies."""
    firsts = {beam.parent: beam for beam in reversed(beams)}
    idle = [each for parent, each in enumerate(caches) if parent not in firsts]
    return [caches[beam.parent] if firsts[beam.parent] is beam else fork(caches[beam.parent], idle) for beam in beams]


def fork(caches: list[Cache], idle: list[list[Cache]]) -> list[Cache]:
    """A copy of a beam's caches, in the memory of idle ones if there are any."""
    if not idle:
        return [cache.copy() for cache in caches]
    twins = idle.pop()
    for twin, cache in zip(twins, caches, strict=True):
        twin.become(cache)
    return twins


def continuations(unfinished: list[Beam], logits: Float[Array, "B V"], limits: Limits, count: int) -> list[Beam]:
    """The `count` likeliest answers that are one of `unfinished` and one token more, the likeliest first."""
    found = []
    for parent, (beam, row) in enumerate(zip(unfinished, logits, strict=True)):
        logprobs = limits.allowed(log_probabilities(row))
        best = [i for i in largest(logprobs, count).tolist() if logprobs[i] > -np.inf]
        found += [Beam((*beam.ids, i), (*beam.logprobs, float(logprobs[i])), parent) for i in best]
    return ranked(found)[:count]


def largest(x: Float[Array, "V"], count: int) -> Int[Array, "W"]:
    """Where the `count` largest numbers of `x` are, the largest first, the first of equals first."""
    count = min(count, len(x))
    least = np.partition(x, -count)[-count]
    candidates = np.flatnonzero(x >= least)
    return candidates[np.argsort(-x[candidates], kind="stable")][:count]


def ranked(beams: Iterable[Beam]) -> list[Beam]:
    """The likeliest first; of equals, the one that was found first."""
    return sorted(beams, key=lambda beam: -beam.total)
