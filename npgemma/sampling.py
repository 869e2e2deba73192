"""From the logits of one row to its next token: greedy, or drawn after temperature, top-k and top-p, in that order.

Order and rules are those of transformers' logits warpers; the source of top-p is Holtzman et al. 2019 (nucleus
sampling).
"""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from npgemma.layers.ops import softmax
from npgemma.layers.shapes import Array, Float


class SamplingOptions(TypedDict, total=False):
    """The keyword arguments that make a Sampling."""

    temperature: float
    top_k: int | None
    top_p: float
    seed: int


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_k None and top_p 1 keep every token. Raises ValueError for anything out of range."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it is 0 (greedy) or a positive number")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise ValueError(f"top_k is {self.top_k}; it is a whole number from 1 up")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it is above 0 and at most 1")
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


def probabilities(scores: Float[Array, "V"], sampling: Sampling) -> Float[Array, "V"]:
    """The distribution that a token is drawn from, in float64. The temperature must not be 0."""
    scores = scores.astype(np.float64)
    with np.errstate(over="ignore"):  # next to zero, all but the likeliest may become -inf, which is right
        scores = (scores - scores.max()) / sampling.temperature
    if sampling.top_k is not None:
        scores = keep_top_k(scores, sampling.top_k)
    if sampling.top_p < 1:
        scores = keep_top_p(scores, sampling.top_p)
    return softmax(scores)


def choose(scores: Float[Array, "V"], sampling: Sampling, rng: np.random.Generator) -> int:
    """The next token: the first of the largest scores if the temperature is 0, else a draw."""
    if sampling.temperature == 0:
        return int(scores.argmax())
    return int(rng.choice(len(scores), p=probabilities(scores, sampling)))
