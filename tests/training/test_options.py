"""Options of a run: their ranges, and the rate that they stand for."""

import pytest

from npgemma.training.options import TrainingOptions


@pytest.mark.parametrize(
    ("options", "width", "adapts", "rate"),
    [
        ({}, 2048, False, 1e-5),
        ({}, 2048, True, 2e-4),
        ({}, 128, False, 1.6e-4),
        ({"optimizer": "adafactor"}, 128, True, 3.2e-3),
        ({"optimizer": "sgd"}, 128, False, 0.03),
        ({"rate": 0.5}, 128, True, 0.5),
    ],
)
def test_the_rate_depends_on_the_width_unless_it_is_given(options, width: int, adapts: bool, rate: float) -> None:
    assert TrainingOptions(**options).peak_rate(width, adapts) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("lora", "train", "patterns"),
    [(None, (), ("all",)), (8, (), ("text.blocks.*",)), (8, ("vision",), ("vision",)), (None, ("mlp",), ("mlp",))],
)
def test_what_is_trained(lora: int | None, train: tuple[str, ...], patterns: tuple[str, ...]) -> None:
    assert TrainingOptions(lora=lora, train=train).patterns == patterns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be above 0"),
        ({"epochs": float("nan")}, "epochs must be above 0"),
        ({"rate": -1.0}, "rate must be above 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"smoothing": 1.0}, "smoothing must be at least 0 and below 1"),
        ({"clip": -1.0}, "clip must be at least 0"),
        ({"decay": float("inf")}, "decay must be at least 0 and finite"),
        ({"schedule": "steps"}, "schedule must be one of cosine, linear, constant"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**options)
