"""From the logits of one row to its next token: greedy, or drawn after temperature, top-k, top-p and min-p, in order.

The repetition penalty comes before all of them. Order and rules are those of transformers' logits processors. Sources:
Holtzman et al. 2019 (top-p, nucleus sampling), Nguyen et al. 2024 (min-p), Keskar et al. 2019, section 4.1 (repetition
penalty).
"""

import numpy as np

from npgemma.decoding.options import Sampling
from npgemma.layers.activations import softmax
from npgemma.layers.shapes import Array, Float, Int


def keep_top_k(scores: Float[Array, "V"], k: int) -> Float[Array, "V"]:
    """Scores below the k-th largest become -inf; those equal to it stay."""
    k = min(k, len(scores))
    return np.where(scores < np.partition(scores, -k)[-k], -np.inf, scores)


def keep_top_p(scores: Float[Array, "V"], p: float) -> Float[Array, "V"]:
    """The fewest likeliest tokens whose probabilities reach p stay, the others become -inf. One always stays."""
    order = np.argsort(scores, kind="stable")
    unlikely = np.cumsum(softmax(scores[order])) <= 1 - p
    unlikely[-1] = False
    return np.where(unlikely[np.argsort(order)], -np.inf, scores)


def keep_min_p(scores: Float[Array, "V"], p: float) -> Float[Array, "V"]:
    """Tokens less likely than p times the likeliest become -inf."""
    likely = softmax(scores)
    return np.where(likely < p * likely.max(), -np.inf, scores)


def penalize(scores: Float[Array, "V"], seen: Int[Array, "T"], penalty: float) -> Float[Array, "V"]:
    """Divide the score of every token in `seen`, prompt included, by `penalty`; multiply it if it is negative."""
    scores = scores.copy()
    seen = seen[seen < len(scores)]
    with np.errstate(over="ignore", divide="ignore"):  # an extreme penalty gives infinities, which still rank correctly
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def probabilities(scores: Float[Array, "V"], sampling: Sampling) -> Float[Array, "V"]:
    """The distribution that the next token is drawn from, in float64. The temperature must not be 0."""
    scores = scores.astype(np.float64)
    if sampling.top_k is not None:  # before the difference, which may round neighbours to the same number
        scores = keep_top_k(scores, sampling.top_k)
    with np.errstate(over="ignore"):  # near temperature 0, all but the likeliest may become -inf
        scores = (scores - scores.max()) / sampling.temperature
    if sampling.top_p < 1:
        scores = keep_top_p(scores, sampling.top_p)
    if sampling.min_p > 0:
        scores = keep_min_p(scores, sampling.min_p)
    return softmax(scores)


NOTHING = np.empty(0, np.int64)


def choose(
    scores: Float[Array, "V"], sampling: Sampling, rng: np.random.Generator, seen: Int[Array, "T"] = NOTHING
) -> int:
    """The token that follows those `seen`: the first of the largest scores at temperature 0, else a draw."""
    if sampling.repetition_penalty != 1:
        scores = penalize(scores, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(scores.argmax())
    return int(rng.choice(len(scores), p=probabilities(scores, sampling)))
