"""Beam search: the answer whose tokens are likeliest together, not one by one.

    log P(answer) = sum over t of log P(token t | picture, prompt, tokens before t)

Of all continuations of the K best unfinished answers by one token, the K best go on; finished ones are kept aside,
and the search ends when nothing unfinished is better than the K best of those. The score is the plain sum, as in
big_vision, without reward or penalty for length; so is that of transformers with num_beams=K and length_penalty=0.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from npgemma.decoding.loop import Limits, log_probabilities
from npgemma.layers.shapes import Array, Float, Int
from npgemma.models.gemma import Cache, new_caches
from npgemma.models.paligemma import PaliGemma, Prompt, start, step


class Beam(NamedTuple):
    """An answer so far: its ids, the log-probability of each, and which beam of the step before it continues."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    parent: int

    @property
    def total(self) -> float:
        return sum(self.logprobs)


def beam_search(p: PaliGemma, prompt: Prompt, num_beams: int, limits: Limits) -> list[Beam]:
    """The best finished answers, the likeliest first, at most `num_beams`.

    Raises ValueError if num_beams is below 1, BadModel if the logits are not finite.
    """
    if type(num_beams) is not int or num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}; it is a whole number from 1 up")
    dtype = prompt.image_rows.dtype
    caches = [new_caches(p.text, len(prompt.input_ids) + limits.max_new_tokens - 1, dtype)]
    scores = start(p, [prompt], caches)
    going, finished = [Beam((), (), 0)], list[Beam]()
    while True:
        # so many that K unfinished ones are among them, even if each of the K best ends in every possible way
        width = (1 + len(limits.eos_ids)) * num_beams
        best, ended = ranking(going, scores, width, limits)
        while sum(ended) > len(best) - num_beams and len(best) == width and len(best[0].ids) < limits.max_new_tokens:
            width *= 2  # many end with a stop string
            best, ended = ranking(going, scores, width, limits)
        finished += [beam for beam, end in zip(best[:num_beams], ended, strict=False) if end]
        finished = ranked(finished)[:num_beams]
        going = [beam for beam, end in zip(best, ended, strict=True) if not end][:num_beams]
        if not going or (len(finished) == num_beams and going[0].total <= finished[-1].total):
            return finished
        # The first child of a beam goes on in its caches, the others in copies.
        firsts = {beam.parent: beam for beam in reversed(going)}
        idle = [each for parent, each in enumerate(caches) if parent not in firsts]
        caches = [
            caches[beam.parent] if firsts[beam.parent] is beam else fork(caches[beam.parent], idle) for beam in going
        ]
        scores = step(p, np.array([beam.ids[-1] for beam in going]), caches, dtype)


def ranking(
    going: list[Beam], scores: Float[Array, "B V"], width: int, limits: Limits
) -> tuple[list[Beam], list[bool]]:
    """The `width` best continuations, and which of them end."""
    best = continuations(going, scores, limits.choices, width)
    return best, [limits.reason_to_end(beam.ids) is not None for beam in best]


def fork(caches: list[Cache], idle: list[list[Cache]]) -> list[Cache]:
    """A copy of a beam's caches, in the memory of one that nothing goes on from, if there is one."""
    if not idle:
        return [cache.copy() for cache in caches]
    twins = idle.pop()
    for twin, cache in zip(twins, caches, strict=True):
        twin.become(cache)
    return twins


def continuations(going: list[Beam], scores: Float[Array, "B V"], choices: int, count: int) -> list[Beam]:
    """The `count` likeliest answers that are one of `going` and one token more, the likeliest first."""
    found = []
    for parent, (beam, row) in enumerate(zip(going, scores, strict=True)):
        logprobs = log_probabilities(row)[:choices]
        best = largest(logprobs, count)
        found += [Beam((*beam.ids, i), (*beam.logprobs, float(logprobs[i])), parent) for i in best.tolist()]
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
