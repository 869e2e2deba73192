"""The curve of a run: where losses stand, and which numbers are written beside the axes."""

import pytest

from npgemma.training.curve import BOTTOM, LEFT, RIGHT, SIZE, TOP, Axes, Point, draw_curve, smoothed


def test_axes_are_logarithmic_and_end_at_the_last_step() -> None:
    axes = Axes([Point(0, 10.0), Point(100, 0.1)])
    assert axes.place(Point(0, 10.0)) == (LEFT, TOP)
    assert axes.place(Point(100, 0.1)) == (SIZE[0] - RIGHT, SIZE[1] - BOTTOM)
    assert axes.place(Point(50, 1.0))[1] == pytest.approx((TOP + SIZE[1] - BOTTOM) / 2)
    assert axes.place(Point(0, 0.0))[1] == SIZE[1] - BOTTOM


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.1, 10, [0.1, 0.2, 0.5, 1, 2, 5, 10]),
        (1e-4, 10, [1e-4, 1e-3, 1e-2, 0.1, 1, 10]),
        (2, 2, [1, 2, 5]),
    ],
)
def test_losses_on_the_axis_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert Axes([Point(0, high), Point(9, low)]).losses() == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("last", "steps"),
    [(1, [0, 1]), (8, list(range(9))), (300, list(range(0, 301, 50))), (23, [0, 5, 10, 15, 20])],
)
def test_steps_on_the_axis_are_round(last: int, steps: list[int]) -> None:
    assert Axes([Point(last, 1.0)]).steps() == steps


def test_the_strong_line_is_a_mean_of_the_last_steps() -> None:
    points = [Point(i, float(i)) for i in range(150)]
    assert smoothed(points)[100].loss == 99
    assert smoothed(points[:3])[2].loss == 2


def test_a_curve_shows_both_lines() -> None:
    steps = [Point(i, 10 / (1 + i)) for i in range(1, 40)]
    drawn = draw_curve(steps, {"held-out": [Point(0, 10.0), Point(39, 2.0)]}, "a run")
    colors = {color for _, color in drawn.getcolors(1 << 16)}
    assert drawn.size == SIZE
    assert {(31, 119, 180), (214, 39, 40), (255, 255, 255)} <= colors
