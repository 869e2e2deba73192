"""The verdict on one tap: each of its limits is sharp, and each catches what the others let pass."""

import numpy as np
import pytest

from npgemma.golden.judge import LIMITS, RELATIVE_LIMIT, judge, judge_relative, logit_facts
from npgemma.golden.record import row_errors

NAME = "text.layers.0.out"
RNG = np.random.default_rng(0)
TRUTH = RNG.standard_normal((40, 128))
# An honest run: every number off by the same amount, so that the ratios of a port are what is put in.
HONEST = 1e-4 * np.sign(RNG.standard_normal(TRUTH.shape))
ENVELOPE = row_errors(NAME, TRUTH + HONEST, TRUTH)


def verdict(x: np.ndarray, dtype: str = "float32", name: str = NAME, truth: np.ndarray = TRUTH, envelope=ENVELOPE):
    return judge(name, "theirs", x, truth, envelope, dtype)


def test_the_truth_itself_has_no_error() -> None:
    found = verdict(TRUTH)
    assert found.explained
    assert found.ratios == {"rms": 0.0, "row": 0.0, "max": 0.0}
    assert (found.error, found.reason, found.bad_rows) == (0.0, "", ())


@pytest.mark.parametrize(("factor", "explained"), [(0.5, True), (1.99, True), (2.01, False), (1e6, False)])
def test_the_rms_limit_is_sharp(factor: float, explained: bool) -> None:
    found = verdict(TRUTH + factor * HONEST)
    assert found.explained == explained
    assert found.ratios["rms"] == pytest.approx(factor)
    assert ("rms error" in found.reason) == (not explained)


@pytest.mark.parametrize(("factor", "explained"), [(3.9, True), (4.1, False)])
def test_one_bad_row_is_seen_though_the_rms_is_not(factor: float, explained: bool) -> None:
    scale = np.where(np.arange(40) == 7, factor, 0.9)[:, None]
    found = verdict(TRUTH + scale * HONEST)
    assert found.ratios["rms"] < LIMITS["rms"]
    assert found.explained == explained
    assert found.bad_rows == (() if explained else (7,))


@pytest.mark.parametrize(("factor", "explained"), [(3.9, True), (4.1, False)])
def test_one_bad_number_is_seen_though_its_row_is_not(factor: float, explained: bool) -> None:
    scale = np.ones(TRUTH.shape)
    scale[5, 6] = factor
    found = verdict(TRUTH + scale * HONEST)
    assert found.ratios["row"] < LIMITS["row"]
    assert found.explained == explained


def test_a_row_that_was_lucky_in_the_honest_run_is_not_held_to_its_luck() -> None:
    envelope = ENVELOPE.copy()
    envelope[:, 3] = 0
    assert verdict(TRUTH + HONEST, envelope=envelope).explained


@pytest.mark.parametrize(("dtype", "roundoff"), [("float32", 2.0**-24), ("bfloat16", 2.0**-8)])
def test_storing_a_tensor_is_always_allowed(dtype: str, roundoff: float) -> None:
    nothing = np.zeros_like(ENVELOPE)
    size = np.sqrt(np.square(TRUTH).mean())
    assert verdict(TRUTH + 1.9 * roundoff * size, dtype, envelope=nothing).explained
    assert not verdict(TRUTH + 2.1 * roundoff * size, dtype, envelope=nothing).explained


@pytest.mark.parametrize("shape", [(2, 128), (1, 1280)])
def test_a_small_tap_or_one_of_a_single_row_is_given_twice(shape: tuple[int, int]) -> None:
    truth, honest = np.ones(shape), np.full(shape, 1e-4)
    envelope = row_errors(NAME, truth + honest, truth)
    for factor, explained in ((3.9, True), (4.1, False)):
        assert verdict(truth + factor * honest, truth=truth, envelope=envelope).explained == explained


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_explained(bad: float) -> None:
    x = TRUTH.copy()
    x[3, 4] = bad
    found = verdict(x)
    assert not found.explained
    assert "1 of 5120 numbers are NaN or infinite, the first at [3, 4]" in found.reason


def test_the_floor_is_what_a_tap_could_not_have_told() -> None:
    found = verdict(TRUTH + HONEST)
    just_below, just_above = (
        verdict(TRUTH + share * found.floor * np.sqrt(np.square(TRUTH).mean()) * np.sign(HONEST))
        for share in (0.99, 1.01)
    )
    assert just_below.explained
    assert not just_above.explained


def test_ids_and_masks_are_right_or_wrong() -> None:
    ids = np.array([5, 6, 7], np.int32)
    assert judge("positions", "p", ids.astype(np.int64), ids, None, "float32").explained
    found = judge("positions", "p", ids + np.array([0, 0, 1]), ids, None, "float32")
    assert not found.explained
    assert found.reason == "1 of 3 differ, the first at [2]: 8 instead of 7"
    assert found.bad_rows == (2,)
    mask = np.tri(3, dtype=np.uint8)
    assert judge("prompts.0.mask", "m", mask.astype(bool), mask, None, "float32").explained


def test_a_tensor_of_zeros_is_judged_without_a_warning() -> None:
    zeros = np.zeros((40, 128))
    assert verdict(zeros, truth=zeros, envelope=np.zeros((2, 40))).explained
    assert not verdict(zeros + 1e-30, truth=zeros, envelope=np.zeros((2, 40), np.float32)).explained


def test_small_numbers_are_held_to_their_own_size_in_a_replay() -> None:
    """A gelu of the other form is a tenth off where it is nearly 0, and nowhere else."""
    truth = np.where(np.arange(5120).reshape(40, 128) % 2, 1.0, 0.005)
    honest = truth * (1 + 2.0**-10)
    plain = judge(NAME, "theirs", honest, truth, row_errors(NAME, honest, truth), "bfloat16")
    for off, explained in ((1e-6, True), (1e-4, False)):
        x = truth + np.where(truth < 1, off, 0)
        assert judge_relative(plain, x, truth, honest).explained == explained
    assert judge_relative(plain, honest, truth, honest).limits["relative"] == RELATIVE_LIMIT


# -------------------------------------------------------------------------------------------------------------- logits

LOGITS = np.array([[0.0, 3.0, 2.99, -5.0]])


def facts(x: np.ndarray, largest: float) -> dict:
    return logit_facts(x, LOGITS, np.array([[largest], [largest]]))


def test_equal_logits_have_no_divergence() -> None:
    assert facts(LOGITS, 0.1) == {"kl": 0.0, "top1_agreement": 1.0, "flipped": []}
    assert facts(LOGITS + 7.0, 0.1)["kl"] == pytest.approx(0, abs=1e-15)


def test_the_divergence_is_that_of_the_definition() -> None:
    x = np.array([[1.0, 2.0, 0.0, 0.5]])
    p, q = (np.exp(y) / np.exp(y).sum() for y in (LOGITS, x))
    assert facts(x, 0.1)["kl"] == pytest.approx((p * np.log(p / q)).sum())


@pytest.mark.parametrize(("largest", "explained"), [(0.006, True), (0.004, False)])
def test_a_flipped_token_is_explained_by_the_margin(largest: float, explained: bool) -> None:
    found = facts(LOGITS + np.array([[0, 0, 0.02, 0]]), largest)
    assert found["top1_agreement"] == 0
    flip = found["flipped"][0]
    assert (flip["truth"], flip["port"], flip["explained"]) == (1, 2, explained)
    assert flip["margin"] == pytest.approx(0.01)


def test_a_divergence_is_never_told_below_zero() -> None:
    for seed in range(50):
        x = np.random.default_rng(seed).standard_normal((1, 1000))
        assert logit_facts(x + 1e-15, x, np.ones((2, 1)))["kl"] >= 0
