"""Schedules: literal rates, and the properties of all of them."""

import pytest

from npgemma.training.schedules import CURVES, Schedule


@pytest.mark.parametrize(
    ("curve", "rates"),
    [
        ("constant", [0, 0.5, 1, 1, 1, 1]),
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0, 0.5, 1, 0.8535533905932737, 0.5, 0.14644660940672627]),
    ],
)
def test_rates_by_hand(curve: str, rates: list[float]) -> None:
    schedule = Schedule(curve, 2.0, steps=6, warmup=2)
    assert [schedule.rate(step) for step in range(1, 7)] == pytest.approx([2 * rate for rate in rates], rel=1e-15)


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0, 1])
def test_rates_stay_between_zero_and_the_peak(curve: str, steps: int, warmup: int) -> None:
    schedule = Schedule(curve, 0.3, steps, warmup)
    rates = [schedule.rate(step) for step in range(1, steps + 1)]
    assert all(0 <= rate <= 0.3 for rate in rates)
    assert rates[0] == (0 if warmup else 0.3)
