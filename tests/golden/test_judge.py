"""The verdict on one tap: each limit is exact, and each finds errors that the others do not."""

from itertools import pairwise

import numpy as np
import pytest

from npgemma.golden.judge import (
    LIKE,
    LIMITS,
    SIZE_LIMIT,
    Verdict,
    errors_by_size,
    judge,
    judge_by_size,
    limits_of,
    logit_facts,
    parts_by_size,
)
from npgemma.golden.record import row_errors

NAME, AXES = "text.layers.0.out", "T D"
RNG = np.random.default_rng(0)
TRUTH = RNG.standard_normal((40, 128))
# An honest run whose errors are all of one size, so that the ratios of a port are the factors that the tests choose.
HONEST = 1e-4 * np.sign(RNG.standard_normal(TRUTH.shape))
ENVELOPE = row_errors(AXES, TRUTH + HONEST, TRUTH)


def verdict(x: np.ndarray, dtype: str = "float32", truth: np.ndarray = TRUTH, envelope=ENVELOPE) -> Verdict:
    return judge(NAME, AXES, "theirs", x, truth, envelope, dtype)


def test_truth_has_no_error() -> None:
    found = verdict(TRUTH)
    assert found.explained
    assert found.ratios == {"rms": 0.0, "row": 0.0, "max": 0.0}
    assert (found.error, found.reason, found.bad_rows) == (0.0, "", ())


@pytest.mark.parametrize(("factor", "explained"), [(0.5, True), (1.99, True), (2.01, False), (1e6, False)])
def test_rms_limit_is_exact(factor: float, explained: bool) -> None:
    found = verdict(TRUTH + factor * HONEST)
    assert found.explained == explained
    assert found.ratios["rms"] == pytest.approx(factor)
    assert ("rms error" in found.reason) == (not explained)


@pytest.mark.parametrize(("factor", "explained"), [(3.9, True), (5.1, False)])
def test_one_wrong_row_is_found_although_the_rms_is_small(factor: float, explained: bool) -> None:
    scale = np.where(np.arange(40) == 7, factor, 0.9)[:, None]
    found = verdict(TRUTH + scale * HONEST)
    assert found.ratios["rms"] < LIMITS["rms"]
    assert found.explained == explained
    assert found.bad_rows == (() if explained else (7,))


@pytest.mark.parametrize(("factor", "explained"), [(3.9, True), (5.1, False)])
def test_one_wrong_number_is_found_although_the_rms_of_its_row_is_small(factor: float, explained: bool) -> None:
    scale = np.ones(TRUTH.shape)
    scale[5, 6] = factor
    found = verdict(TRUTH + scale * HONEST)
    assert found.ratios["row"] < LIMITS["row"]
    assert found.explained == explained


def test_row_without_an_error_in_the_honest_run_is_judged_by_the_rms_of_all_rows() -> None:
    envelope = ENVELOPE.copy()
    envelope[:, 3] = 0
    assert verdict(TRUTH + HONEST, envelope=envelope).explained


@pytest.mark.parametrize(("dtype", "roundoff"), [("float32", 2.0**-24), ("bfloat16", 2.0**-8)])
def test_rounding_a_tensor_to_its_dtype_is_explained(dtype: str, roundoff: float) -> None:
    nothing = np.zeros_like(ENVELOPE)
    size = np.sqrt(np.square(TRUTH).mean())
    assert verdict(TRUTH + 1.9 * roundoff * size, dtype, envelope=nothing).explained
    assert not verdict(TRUTH + 2.1 * roundoff * size, dtype, envelope=nothing).explained


@pytest.mark.parametrize("shape", [(2, 128), (1, 1280)])
def test_limits_are_doubled_for_few_values_and_for_one_row(shape: tuple[int, int]) -> None:
    truth, honest = np.ones(shape), np.full(shape, 1e-4)
    envelope = row_errors(AXES, truth + honest, truth)
    for factor, explained in ((3.9, True), (4.1, False)):
        assert verdict(truth + factor * honest, truth=truth, envelope=envelope).explained == explained


@pytest.mark.parametrize(("shape", "axes"), [((), ""), ((3,), "B"), ((3, 5), "B U")])
def test_limits_of_a_handful_of_values_are_ten_times_as_large(shape: tuple[int, ...], axes: str) -> None:
    truth, honest = np.ones(shape), np.full(shape, 1e-4)
    envelope = row_errors(axes, truth + honest, truth)
    for factor, explained in ((19.0, True), (21.0, False)):
        found = judge("loss", axes, "theirs", truth + factor * honest, truth, envelope, "float32")
        assert found.explained == explained


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_number_that_is_not_finite_is_not_explained(bad: float) -> None:
    x = TRUTH.copy()
    x[3, 4] = bad
    found = verdict(x)
    assert not found.explained
    assert "1 of 5120 numbers are NaN or infinite, the first at [3, 4]" in found.reason


@pytest.mark.parametrize(("factor", "borderline", "wrong"), [(1.9, False, False), (19, True, False), (21, False, True)])
def test_up_to_ten_times_the_limit_is_borderline(factor: float, borderline: bool, wrong: bool) -> None:
    found = verdict(TRUTH + factor * HONEST)
    assert (found.borderline, found.wrong) == (borderline, wrong)
    assert found.excess == pytest.approx(factor / LIMITS["rms"])


def test_the_limit_of_the_worst_row_grows_with_the_number_of_rows() -> None:
    rows = [limits_of(10_000, count)["row"] for count in (2, 40, 292, 4096)]
    assert rows == pytest.approx([5, 5, 7.36, 11.21], abs=0.01)


def test_an_outlier_that_is_rounded_is_explained() -> None:
    """Its rounding error is half a unit in its own last place, not in that of the rms."""
    truth = np.where(np.arange(5120).reshape(40, 128) == 77, 300.0, TRUTH)
    x = truth + np.where(truth == 300.0, 2.0**-24 * 256, 0)
    assert verdict(x, truth=truth, envelope=np.zeros_like(ENVELOPE)).explained


def test_floor_is_the_largest_error_that_passes() -> None:
    found = verdict(TRUTH + HONEST)
    just_below, just_above = (
        verdict(TRUTH + share * found.floor * np.sqrt(np.square(TRUTH).mean()) * np.sign(HONEST))
        for share in (0.99, 1.01)
    )
    assert just_below.explained
    assert not just_above.explained


def test_integers_and_masks_must_be_equal() -> None:
    ids = np.array([5, 6, 7], np.int32)
    assert judge("positions", "T", "p", ids.astype(np.int64), ids, None, "float32").explained
    found = judge("positions", "T", "p", ids + np.array([0, 0, 1]), ids, None, "float32")
    assert not found.explained
    assert found.reason == "1 of 3 differ, the first at [2]: 8 instead of 7"
    assert found.bad_rows == (2,)
    mask = np.tri(3, dtype=np.uint8)
    assert judge("prompts.0.mask", "T S", "m", mask.astype(bool), mask, None, "float32").explained


def test_tensor_of_zeros_is_judged() -> None:
    zeros = np.zeros((40, 128))
    assert verdict(zeros, truth=zeros, envelope=np.zeros((2, 40))).explained
    assert not verdict(zeros + 1e-30, truth=zeros, envelope=np.zeros((2, 40), np.float32)).explained


def in_replay(x: np.ndarray, truth: np.ndarray, honest: np.ndarray) -> Verdict:
    plain = judge(NAME, AXES, "theirs", x, truth, row_errors(AXES, honest, truth), "bfloat16")
    return judge_by_size(plain, x, truth, errors_by_size(honest, truth), "bfloat16")


@pytest.mark.parametrize(("off", "explained"), [(1e-6, True), (1e-4, False)])
def test_errors_of_small_numbers_are_judged_in_a_replay(off: float, explained: bool) -> None:
    """The erf form of gelu differs from the tanh form by a tenth where both are nearly 0."""
    truth = np.where(np.arange(5120).reshape(40, 128) % 2, 1.0, 0.005)
    honest = truth * (1 + 2.0**-10)
    found = in_replay(truth + np.where(truth < 1, off, 0), truth, honest)
    assert found.explained == explained
    assert ("error of its 2560 numbers of about 0.005" in found.reason) != explained
    assert not found.borderline
    assert in_replay(honest, truth, honest).limits["size"] == SIZE_LIMIT


def test_the_error_of_one_sum_near_zero_is_no_mistake() -> None:
    """Errors of sums do not shrink with them: here one of 128 is nearly 0 in the truth, and an honest run is lucky."""
    truth = np.where(np.arange(128) == 5, 0.001, 1.0)[None]
    error = 2.0**-9 * np.where(np.arange(128) % 2, 1, -1)
    lucky = truth + np.where(truth < 1, 1e-5, error)
    assert in_replay(truth + error, truth, lucky).explained


@pytest.mark.parametrize("values", [10, 64, 5120])
def test_parts_are_of_like_size_and_hold_enough_numbers(values: int) -> None:
    truth = np.exp2(-RNG.uniform(0, 12, values)) * np.where(RNG.random(values) < 0.5, -1, 1)
    part = parts_by_size(truth)
    counts = np.bincount(part)
    assert counts.min() >= min(LIKE, values)
    for smaller, larger in pairwise(range(len(counts))):
        assert np.abs(truth[part == smaller]).max() <= np.abs(truth[part == larger]).min()
    assert (len(counts) > 5) == (values == 5120)


@pytest.mark.parametrize("x", [np.zeros(100), np.full(100, np.nan), np.full(100, 1e300)])
def test_parts_of_unusual_numbers(x: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        assert set(parts_by_size(x)) == {0}


# -------------------------------------------------------------------------------------------------------------- logits

LOGITS = np.array([[0.0, 3.0, 2.99, -5.0]])


def facts(x: np.ndarray, largest: float) -> dict:
    return logit_facts(x, LOGITS, np.array([[largest], [largest]]))


def test_equal_logits_have_no_divergence() -> None:
    assert facts(LOGITS, 0.1) == {"kl": 0.0, "top1_agreement": 1.0, "flipped": []}
    assert facts(LOGITS + 7.0, 0.1)["kl"] == pytest.approx(0, abs=1e-15)


def test_divergence_follows_its_definition() -> None:
    x = np.array([[1.0, 2.0, 0.0, 0.5]])
    p, q = (np.exp(y) / np.exp(y).sum() for y in (LOGITS, x))
    assert facts(x, 0.1)["kl"] == pytest.approx((p * np.log(p / q)).sum())


@pytest.mark.parametrize(("largest", "explained"), [(0.006, True), (0.004, False)])
def test_different_token_is_explained_by_a_small_margin(largest: float, explained: bool) -> None:
    found = facts(LOGITS + np.array([[0, 0, 0.02, 0]]), largest)
    assert found["top1_agreement"] == 0
    flip = found["flipped"][0]
    assert (flip["truth"], flip["port"], flip["explained"]) == (1, 2, explained)
    assert flip["margin"] == pytest.approx(0.01)


def test_divergence_is_never_negative() -> None:
    for seed in range(50):
        x = np.random.default_rng(seed).standard_normal((1, 1000))
        assert logit_facts(x + 1e-15, x, np.ones((2, 1)))["kl"] >= 0
