"""From scores to a token: what temperature, top-k and top-p keep, in that order, and that a draw can be repeated."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from npgemma.decoding.options import Sampling
from npgemma.decoding.sampling import choose, keep_min_p, keep_top_k, keep_top_p, penalize, probabilities

INF = math.inf
EPS = np.finfo(np.float64).eps
# A sum of V probabilities of float64, each off by some roundings of its own (exponential, sum, quotient).
SUM_TOLERANCE = 64 * EPS

SCORES = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-30, 30, width=32))
TEMPERATURES = st.floats(0.05, 20)


def scores(*shares: float) -> np.ndarray:
    """Scores whose softmax is `shares`."""
    return np.log(np.array(shares))


def support(probs: np.ndarray) -> list[int]:
    return np.flatnonzero(probs).tolist()


# --------------------------------------------------------------------------------------------------------------- top-k


@pytest.mark.parametrize(
    ("k", "kept"),
    [
        (1, [-INF, 3.0, 3.0, -INF, -INF]),
        (2, [-INF, 3.0, 3.0, -INF, -INF]),
        (3, [-INF, 3.0, 3.0, 2.0, -INF]),
        (4, [1.0, 3.0, 3.0, 2.0, -INF]),
        (5, [1.0, 3.0, 3.0, 2.0, -4.0]),
        (99, [1.0, 3.0, 3.0, 2.0, -4.0]),
    ],
)
def test_top_k_keeps_the_k_largest_and_what_equals_the_last_of_them(k, kept):
    """No order among equals is better than another, so none of them is dropped."""
    np.testing.assert_array_equal(keep_top_k(np.array([1.0, 3.0, 3.0, 2.0, -4.0]), k), np.array(kept), strict=True)


@given(x=SCORES, k=st.integers(1, 40))
def test_top_k_keeps_those_that_fewer_than_k_exceed(x, k):
    """The definition, counted out for every token."""
    kept = [i for i, score in enumerate(x) if (x > score).sum() < k]
    expected = np.full(len(x), -INF, np.float32)
    expected[kept] = x[kept]
    np.testing.assert_array_equal(keep_top_k(x, k), expected, strict=True)


# --------------------------------------------------------------------------------------------------------------- top-p


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (1e-300, [2]),
        (0.49, [2]),
        (0.51, [2, 0]),
        (0.74, [2, 0]),
        (0.76, [2, 0, 3]),
        (0.86, [2, 0, 3]),
        (0.89, [2, 0, 3, 4]),
        (0.96, [2, 0, 3, 4, 1]),
    ],
)
def test_top_p_keeps_the_likeliest_until_they_reach_p(p, kept):
    x = scores(0.25, 0.05, 0.5, 0.125, 0.075)
    expected = np.full(5, -INF)
    expected[kept] = x[kept]
    np.testing.assert_array_equal(keep_top_p(x, p), expected, strict=True)


def test_top_p_keeps_one_of_equals():
    """The fewest: of four equals, one reaches a fifth and two reach a third."""
    for p, count in ((0.2, 1), (0.3, 2), (0.6, 3), (0.9, 4)):
        assert np.isfinite(keep_top_p(np.zeros(4), p)).sum() == count


@given(x=SCORES.map(lambda x: x.astype(np.float64)), p=st.floats(1e-9, 1, exclude_max=True))
def test_top_p_keeps_the_smallest_likeliest_set_that_reaches_p(x, p):
    """Four things define it: one stays, none that is dropped was likelier, they reach p, and one fewer would not."""
    shares = np.exp(x - x.max())
    shares /= shares.sum()
    kept = np.isfinite(keep_top_p(x, p))
    assert kept.any()
    assert x[kept].min() >= x[~kept].max(initial=-INF)
    assert shares[kept].sum() >= p - SUM_TOLERANCE
    assert kept.sum() == 1 or shares[kept].sum() - shares[kept].min() < p + SUM_TOLERANCE
    np.testing.assert_array_equal(keep_top_p(x, p)[kept], x[kept], strict=True)


# ------------------------------------------------------------------------------------------------------- probabilities


def test_temperature_divides_the_scores():
    """At 1/2 the shares 1/2, 1/4, 1/4 are squared: 4, 1, 1 sixths."""
    found = probabilities(scores(0.5, 0.25, 0.25), Sampling(temperature=0.5))
    np.testing.assert_allclose(found, [4 / 6, 1 / 6, 1 / 6], rtol=SUM_TOLERANCE, strict=True)
    found = probabilities(scores(4 / 6, 1 / 6, 1 / 6), Sampling(temperature=2))
    np.testing.assert_allclose(found, [0.5, 0.25, 0.25], rtol=SUM_TOLERANCE, strict=True)


def test_temperature_comes_before_top_p():
    """At 1/2, 0.6 of the shares becomes 0.78 and is enough alone; without it, 0.65 takes two tokens."""
    x = scores(0.6, 0.3, 0.1)
    assert support(probabilities(x, Sampling(temperature=0.5, top_p=0.65))) == [0]
    assert support(probabilities(x, Sampling(temperature=1, top_p=0.65))) == [0, 1]


def test_top_k_comes_before_top_p():
    """Of the two that are left, the first has 4/7 of the share and is enough alone; of all four it had 0.4."""
    x = scores(0.4, 0.3, 0.2, 0.1)
    assert support(probabilities(x, Sampling(temperature=1, top_k=2, top_p=0.5))) == [0]
    assert support(probabilities(x, Sampling(temperature=1, top_p=0.5))) == [0, 1]


def test_top_k_tells_scores_apart_that_differ_by_less_than_their_distance_to_the_largest():
    x = np.array([1, 2e-23, 0], np.float32)
    assert support(probabilities(x, Sampling(temperature=1, top_k=2))) == [0, 1]


def test_top_p_of_one_keeps_all():
    assert support(probabilities(np.array([0.0, -30.0, -600.0]), Sampling(temperature=1))) == [0, 1, 2]


@given(x=SCORES, temperature=TEMPERATURES, k=st.none() | st.integers(1, 40), p=st.floats(0, 1, exclude_min=True))
def test_probabilities_are_float64_sum_to_one_and_keep_the_ratios_of_what_is_kept(x, temperature, k, p):
    sampling = Sampling(temperature=temperature, top_k=k, top_p=p)
    found = probabilities(x, sampling)
    assert found.dtype == np.float64
    assert (found >= 0).all()
    assert abs(found.sum() - 1) <= SUM_TOLERANCE
    assert found[x.argmax()] > 0 or (found[x == x.max()] > 0).any()
    kept = found > 0
    if k is not None:
        assert (x[kept] >= np.sort(x)[-min(k, len(x))]).all()
    whole = np.exp((x.astype(np.float64) - x.max()) / temperature)
    # a score of up to 60/0.05 = 1200 is rounded to 2^-43, which its exponential takes over as relative error
    np.testing.assert_allclose(found[kept], whole[kept] / whole[kept].sum(), rtol=2.0**-41, strict=True)


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-300, 1e-308, 1e-310, 5e-324])
def test_a_tiny_temperature_takes_the_likeliest(temperature):
    """Every positive number is allowed, so no quotient may overflow on the way."""
    found = probabilities(np.array([-300, 2, 300, 299], np.float32), Sampling(temperature=temperature))
    np.testing.assert_array_equal(found, np.array([0.0, 0.0, 1.0, 0.0]), strict=True)


def test_a_huge_temperature_makes_all_equally_likely():
    found = probabilities(np.array([-300, 2, 300, 299], np.float32), Sampling(temperature=1e300))
    np.testing.assert_array_equal(found, np.full(4, 0.25), strict=True)


# -------------------------------------------------------------------------------------------------------------- choose


def test_greedy_takes_the_first_of_the_largest():
    rng = np.random.default_rng(0)
    assert choose(np.array([1, 5, 2, 5], np.float32), Sampling(), rng) == 1
    assert choose(np.zeros(4, np.float32), Sampling(), rng) == 0


def test_greedy_ignores_top_k_and_top_p():
    """top-k, top-p and seed are of no account, and the generator is left as it was."""
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert choose(np.array([1.0, 2.0, 3.0]), Sampling(top_k=2, top_p=0.1, seed=5), rng) == 2
    assert rng.bit_generator.state == before


def test_a_token_is_a_python_int():
    for sampling in (Sampling(), Sampling(temperature=1)):
        assert type(choose(np.array([1.0, 2.0]), sampling, np.random.default_rng(0))) is int


@given(
    x=SCORES, temperature=TEMPERATURES, k=st.none() | st.integers(1, 5), p=st.floats(0.01, 1), seed=st.integers(0, 99)
)
def test_only_kept_tokens_are_drawn_and_a_seed_repeats_its_draw(x, temperature, k, p, seed):
    sampling = Sampling(temperature=temperature, top_k=k, top_p=p, seed=seed)
    one, two = np.random.default_rng(seed), np.random.default_rng(seed)
    drawn = [choose(x, sampling, one) for _ in range(5)]
    assert drawn == [choose(x, sampling, two) for _ in range(5)]
    assert set(drawn) <= set(support(probabilities(x, sampling)))


def test_top_k_of_one_draws_what_greedy_takes():
    x = np.random.default_rng(0).standard_normal(50)
    assert choose(x, Sampling(temperature=3, top_k=1), np.random.default_rng(1)) == x.argmax()


def test_tokens_are_drawn_as_often_as_they_are_likely():
    """4,000 draws: the share of each token is off by no more than five standard deviations."""
    shares = np.array([0.5, 0.25, 0.2, 0.05])
    rng = np.random.default_rng(0)
    counts = np.bincount([choose(np.log(shares), Sampling(temperature=1), rng) for _ in range(4_000)], minlength=4)
    deviation = np.sqrt(shares * (1 - shares) / 4_000)
    assert (np.abs(counts / 4_000 - shares) <= 5 * deviation).all()


def test_another_seed_draws_other_tokens():
    x = np.zeros(1000)
    drawn = {choose(x, Sampling(temperature=1, seed=s), np.random.default_rng(s)) for s in range(10)}
    assert len(drawn) > 5


# ------------------------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", INF),
        ("temperature", -INF),
        ("top_k", 0),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", -0.5),
        ("top_p", 1.0001),
        ("top_p", math.nan),
        ("top_p", INF),
        ("seed", -1),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is {value}; it must be "):
        Sampling(**{name: value})


@pytest.mark.parametrize("options", [{}, {"temperature": 5e-324}, {"top_k": 1}, {"top_p": 1}, {"top_p": 5e-324}])
def test_the_ends_of_the_ranges_are_allowed(options):
    for name, value in options.items():
        assert getattr(Sampling(**options), name) == value


def test_the_defaults_are_greedy():
    assert Sampling() == Sampling(temperature=0.0, top_k=None, top_p=1.0, seed=0)


# ------------------------------------------------------------------------------------------- min-p, repetition penalty


@pytest.mark.parametrize(
    ("p", "kept"), [(0.0, [0, 1, 2, 3]), (0.24, [0, 1, 2, 3]), (0.26, [0, 1, 2]), (0.6, [0, 1]), (1.0, [0])]
)
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(p: float, kept: list[int]) -> None:
    assert np.flatnonzero(np.isfinite(keep_min_p(scores(0.4, 0.3, 0.2, 0.1), p))).tolist() == kept


def test_min_p_keeps_all_that_are_likeliest() -> None:
    np.testing.assert_array_equal(keep_min_p(np.array([1.0, 1.0, 0.0]), 1.0), [1.0, 1.0, -INF])


def test_min_p_comes_after_the_temperature() -> None:
    """Hot, the four are nearly alike and all stay; cold, one is left."""
    x = scores(0.4, 0.3, 0.2, 0.1)
    assert support(probabilities(x, Sampling(100.0, min_p=0.5))) == [0, 1, 2, 3]
    assert support(probabilities(x, Sampling(0.1, min_p=0.5))) == [0]


def test_a_penalty_divides_what_is_above_zero_and_multiplies_what_is_below() -> None:
    x = np.array([2.0, -2.0, 2.0, -2.0])
    np.testing.assert_array_equal(penalize(x, np.array([0, 1, 1, 99]), 4.0), [0.5, -8.0, 2.0, -2.0])
    np.testing.assert_array_equal(x, [2.0, -2.0, 2.0, -2.0])


def test_greedy_is_penalized_too() -> None:
    x, rng = np.array([3.0, 2.0]), np.random.default_rng(0)
    assert choose(x, Sampling(repetition_penalty=2.0), rng, np.array([0])) == 1
    assert choose(x, Sampling(repetition_penalty=2.0), rng) == 0
    assert choose(x, Sampling(), rng, np.array([0])) == 0


@pytest.mark.parametrize(
    "options",
    [
        *({"min_p": bad} for bad in (-0.1, 1.1, math.nan)),
        *({"repetition_penalty": bad} for bad in (0, -1.0, math.inf, math.nan)),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)
