"""From the logits of one row to its next token: greedy, or drawn after temperature, top-k, top-p and min-p, in order.

Before all of them the repetition penalty. Order and rules are those of transformers' logits processors; the sources
are Holtzman et al. 2019 (top-p, nucleus sampling), Nguyen et al. 2024 (min-p) and Keskar et al. 2019, section 4.1
(repetition penalty).
"""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from npgemma.layers.activations import softmax
from npgemma.layers.shapes import Array, Float, Int


class SamplingOptions(TypedDict, total=False):
    """The keyword arguments that make a Sampling."""

    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_k None, top_p 1 and min_p 0 keep every token; repetition_penalty 1 is none.

    Raises ValueError for anything out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it is 0 (greedy) or a positive number")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise ValueError(f"top_k is {self.top_k}; it is a whole number from 1 up")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it is above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it is 0 to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it is a positive number")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it is a whole number from 0 up")


def keep_top_k(scores: Float[Array, "V"], k: int) -> Float[Array, "V"]:
    """Everything below the k-th largest score becomes -inf; what equals it stays."""
    k = min(k, len(scores))
    return np.where(scores < np.partition(scores, -k)[-k], -np.inf, scores)


def keep_top_p(scores: Float[Array, "V"], p: float) -> Float[Array, "V"]:
    """The fewest likeliest tokens whose probabilities reach p stay, the rest becomes -inf. One always stays."""
    order = np.argsort(scores, kind="stable")
    unlikely = np.cumsum(softmax(scores[order])) <= 1 - p
    unlikely[-1] = False
    return np.where(unlikely[np.argsort(order)], -np.inf, scores)


def keep_min_p(scores: Float[Array, "V"], p: float) -> Float[Array, "V"]:
    """Everything less likely than p times the likeliest becomes -inf."""
    likely = softmax(scores)
    return np.where(likely < p * likely.max(), -np.inf, scores)


def penalize(scores: Float[Array, "V"], seen: Int[Array, "T"], penalty: float) -> Float[Array, "V"]:
    """The score of every token that was seen, in the prompt too, is divided by `penalty`; a negative one multiplied."""
    scores = scores.copy()
    seen = seen[seen < len(scores)]
    with np.errstate(over="ignore", divide="ignore"):  # an absurd penalty makes infinities, which rank as they should
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def probabilities(scores: Float[Array, "V"], sampling: Sampling) -> Float[Array, "V"]:
    """The distribution that a token is drawn from, in float64. The temperature must not be 0."""
    scores = scores.astype(np.float64)
    with np.errstate(over="ignore"):  # next to zero, all but the likeliest may become -inf, which is right
        scores = (scores - scores.max()) / sampling.temperature
    if sampling.top_k is not None:
        scores = keep_top_k(scores, sampling.top_k)
    if sampling.top_p < 1:
        scores = keep_top_p(scores, sampling.top_p)
    if sampling.min_p > 0:
        scores = keep_min_p(scores, sampling.min_p)
    return softmax(scores)


NOTHING = np.empty(0, np.int64)


def choose(
    scores: Float[Array, "V"], sampling: Sampling, rng: np.random.Generator, seen: Int[Array, "T"] = NOTHING
) -> int:
    """The token after those `seen`: the first of the largest scores if the temperature is 0, else a draw."""
    if sampling.repetition_penalty != 1:
        scores = penalize(scores, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(scores.argmax())
    return int(rng.choice(len(scores), p=probabilities(scores, sampling)))
