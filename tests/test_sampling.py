"""Greedy, temperature, top-k and top-p: the rules by hand, and what holds of any scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from npgemma.sampling import Sampling, choose, keep_top_k, keep_top_p, probabilities

F64 = np.float64
# softmax and a sum of it: a few roundings of float64
SUM = 1e-12

scores_of = arrays(np.float32, st.integers(1, 30), elements=st.floats(-20, 20, width=32))


def test_greedy_takes_the_first_of_the_largest():
    assert choose(np.array([1.0, 3.0, 3.0]), Sampling(), np.random.default_rng(0)) == 1


def test_top_k_keeps_what_equals_the_kth():
    kept = keep_top_k(np.array([1.0, 2.0, 2.0, 3.0]), 2)
    np.testing.assert_array_equal(kept, np.array([-np.inf, 2, 2, 3]), strict=True)


def test_top_k_beyond_the_vocabulary_keeps_everything():
    scores = np.array([1.0, 0.0])
    np.testing.assert_array_equal(keep_top_k(scores, 9), scores, strict=True)


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0.4, [3]), (0.5, [3]), (0.6, [2, 3]), (0.79, [2, 3]), (0.85, [1, 2, 3]), (1e-9, [3])],
)
def test_top_p_keeps_the_fewest_that_reach_it(p, kept):
    scores = np.log(np.array([0.05, 0.15, 0.3, 0.5]))
    assert np.flatnonzero(np.isfinite(keep_top_p(scores, p))).tolist() == kept


def test_top_p_works_in_any_order_of_the_tokens():
    scores = np.log(np.array([0.5, 0.05, 0.3, 0.15]))
    assert np.flatnonzero(np.isfinite(keep_top_p(scores, 0.79))).tolist() == [0, 2]


def test_temperature_comes_first_then_top_k_then_top_p():
    """At temperature 2 the odds 1 : 4 : 16 become 1 : 2 : 4; the two likeliest are 1/3 and 2/3; 0.6 keeps one."""
    scores = np.log(np.array([1.0, 4.0, 16.0]))
    np.testing.assert_allclose(probabilities(scores, Sampling(2.0)), np.array([1, 2, 4]) / 7, rtol=SUM, strict=True)
    np.testing.assert_allclose(
        probabilities(scores, Sampling(2.0, top_k=2)), np.array([0, 1, 2]) / 3, rtol=SUM, strict=True
    )
    np.testing.assert_array_equal(
        probabilities(scores, Sampling(2.0, top_k=2, top_p=0.6)), np.array([0.0, 0.0, 1.0]), strict=True
    )


@given(scores_of, st.floats(0.05, 5), st.none() | st.integers(1, 40), st.floats(0.01, 1))
def test_what_a_token_is_drawn_from_is_a_distribution_with_the_likeliest_in_it(scores, temperature, top_k, top_p):
    p = probabilities(scores, Sampling(temperature, top_k, top_p))
    assert p.dtype == F64
    assert abs(p.sum() - 1) < SUM
    assert scores[p.argmax()] == scores.max()
    if top_k is not None:
        assert np.all(p[scores < np.sort(scores)[-min(top_k, len(scores))]] == 0)


def test_draws_follow_the_distribution_and_the_seed():
    scores, sampling = np.log(np.array([0.2, 0.3, 0.5])), Sampling(1.0, seed=3)
    rng = np.random.default_rng(3)
    draws = [choose(scores, sampling, rng) for _ in range(4000)]
    # three standard deviations of a share of 4,000 are at most 0.024
    np.testing.assert_allclose(np.bincount(draws) / 4000, [0.2, 0.3, 0.5], atol=0.024)
    again = np.random.default_rng(3)
    assert draws[:50] == [choose(scores, sampling, again) for _ in range(50)]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"seed": -1},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)
