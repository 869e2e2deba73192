"""Decoding with Gemma 1, 2 and 3 as plain language models, against passes over whole sequences without a cache."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from language_models import FAMILIES, IDS, weights, whole

from npgemma.decoding.beams import beam_search
from npgemma.decoding.loop import Limits, generate_tokens
from npgemma.decoding.options import Sampling
from npgemma.decoding.scoring import score_answers
from npgemma.layers.activations import log_softmax
from npgemma.models.prefix_lm import causal_prompt

F64 = np.dtype(np.float64)
V = 31  # of Gemma 2 and 3 here; Gemma 1 has more, which are not chosen
PROMPTS = [IDS, IDS[:2]]  # beyond the window of three tokens and within it
ANSWERS = [[3, 8, 8, 21, 5], [6]]
# Sums of float64 in another order: log-probabilities of a few tens at most are off by some 1e-14.
ROUNDINGS = dict(rtol=0, atol=1e-9)
every_family = pytest.mark.parametrize("family", FAMILIES)


def logprobs(family: str, ids: np.ndarray, answer: Sequence[int]) -> list[float]:
    """log P of each token of the answer to `ids`."""
    rows = log_softmax(whole(weights(family), np.array([*ids, *answer])))[len(ids) - 1 : -1]
    return rows[np.arange(len(answer)), answer].tolist()


@every_family
def test_drawn_tokens_have_the_log_probabilities_of_one_pass(family: str) -> None:
    p = weights(family)
    prompts = [causal_prompt(p, ids, F64) for ids in PROMPTS]
    tokens = list(generate_tokens(p, prompts, Limits(6, (V,), V), Sampling(temperature=2.0)))
    for i, ids in enumerate(PROMPTS):
        answer, found = zip(*((token.id, token.logprob) for token in tokens if token.sequence == i), strict=True)
        assert len(set(answer)) > 2
        np.testing.assert_allclose(found, logprobs(family, ids, answer), **ROUNDINGS)


@every_family
@pytest.mark.parametrize("ids", PROMPTS, ids=len)
def test_enough_beams_find_the_likeliest_answers(family: str, ids: np.ndarray) -> None:
    """Of all answers of three tokens out of three, the nine likeliest, in order."""
    p = weights(family)
    every = {answer: logprobs(family, ids, answer) for answer in itertools.product(range(3), repeat=3)}
    expected = sorted(every, key=lambda answer: -sum(every[answer]))[:9]
    found = beam_search(p, causal_prompt(p, ids, F64), 9, Limits(3, (V,), 3))
    assert [beam.ids for beam in found] == expected
    np.testing.assert_allclose([beam.logprobs for beam in found], [every[answer] for answer in expected], **ROUNDINGS)


@every_family
def test_scores_are_the_log_probabilities_of_one_pass(family: str) -> None:
    p = weights(family)
    found = score_answers(p, [causal_prompt(p, ids, F64) for ids in PROMPTS], ANSWERS)
    for ids, answer, row in zip(PROMPTS, ANSWERS, found, strict=True):
        np.testing.assert_allclose(row, logprobs(family, ids, answer), **ROUNDINGS)
