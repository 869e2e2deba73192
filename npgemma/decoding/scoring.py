"""Scoring: how likely a model finds a given answer, token by token.

    log P(answer | picture, prompt) = sum over t of log P(token t | picture, prompt, tokens before t)

One pass over prompt and answer gives all of it: the answer is the causal suffix of PaliGemma's training (Beyer et al.
2024, section 3.2.2), and the mean of its negative log-probabilities is the training loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npgemma.decoding.loop import log_probabilities
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.gemma import Decoder, logits, new_caches
from npgemma.models.prefix_lm import Prompt, followed_by, prefill


@dataclass(frozen=True)
class Score:
    """How likely a model finds an answer.

    Attributes
    ----------
    token_ids : list of int
        The tokens of the answer, the end token last.
    logprobs : list of float
        The natural logarithm of the probability of each of them.

    Examples
    --------
    >>> import npgemma
    >>> model = npgemma.load()
    >>> score = model.score(npgemma.sample_picture(), "answer en what color is the star?", "red")
    >>> print(f"{score.total:.2f} {score.loss:.2f} {score.perplexity:.0f}")
    -14.73 7.37 1581
    """

    token_ids: list[int]
    logprobs: list[float]

    @property
    def total(self) -> float:
        """log P of the whole answer."""
        return math.fsum(self.logprobs)

    @property
    def loss(self) -> float:
        """The mean of -log P over the tokens, in nats: what transformers returns for labels."""
        return -self.total / len(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp(loss): among how many equally likely tokens the model chooses, on average."""
        return math.exp(self.loss)


def score_answers(
    p: Decoder, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], tap: Tap = silent
) -> list[Float[Array, "T"]]:
    """For each prompt, log P of each token of its answer, in float64; all of them are rows of one pass.

    Raises NotFinite if the logits are not finite.
    """
    whole = [followed_by(prompt, np.array(answer)) for prompt, answer in zip(prompts, answers, strict=True)]
    caches = [new_caches(p, len(prompt.input_ids), prompt.dtype) for prompt in whole]
    hidden = prefill(p, whole, caches, tap=tap)
    found, end = [], 0
    for prompt, answer in zip(whole, answers, strict=True):
        end += len(prompt.input_ids)
        before = hidden[end - len(answer) - 1 : end - 1]  # row t scores the token after it
        each = zip(tap("logits", logits(p, before, at(tap, "logits")), "T V"), answer, strict=True)
        found.append(np.array([log_probabilities(row)[token] for row, token in each]))
    return found
