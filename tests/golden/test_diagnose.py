"""Each well-known mistake is called by its name, and an honest tensor by none."""

import math

import numpy as np
import pytest

from npgemma.golden.diagnose import diagnose, diagnose_shape

TRUTH = np.random.default_rng(0).standard_normal((10, 4, 32))
HEADS = "text.layers.0.attn.q_rope"
OUT = "text.layers.0.out"


def halves_to_pairs(x: np.ndarray) -> np.ndarray:
    return np.stack(np.split(x, 2, -1), -1).reshape(x.shape)


@pytest.mark.parametrize(
    ("name", "mistake", "sentence"),
    [
        (HEADS, lambda x: np.roll(x, 1, 0), "one T row late"),
        (HEADS, lambda x: np.roll(x, -1, 0), "one T row early"),
        (HEADS, halves_to_pairs, "RoPE pairs stand side by side"),
        (HEADS, lambda x: x[:, [1, 0, 2, 3]], "heads are in the order [1, 0, 2, 3]"),
        (HEADS, lambda x: x[:, ::-1], "heads are in the order [3, 2, 1, 0]"),
        (HEADS, lambda x: x.transpose(0, 2, 1).reshape(x.shape), "its axes are T H N"),
        (HEADS, lambda x: -x, "times -1, which is -1"),
        (HEADS, lambda x: x / 255, "which is 1/255"),
        (HEADS, lambda x: x * math.sqrt(32), "which is sqrt(H)"),
        (HEADS, lambda x: x * 1.37, "it is the truth times 1.37"),
    ],
)
def test_a_mistake_is_named(name: str, mistake, sentence: str) -> None:
    found = diagnose(name, mistake(TRUTH), TRUTH, {})
    assert any(sentence in each for each in found), found


@pytest.mark.parametrize(("factor", "sentence"), [(math.sqrt(128), "sqrt(D)"), (1 / math.sqrt(128), "1/sqrt(D)")])
def test_the_factors_of_the_width_are_named(factor: float, sentence: str) -> None:
    truth = TRUTH.reshape(10, 128)
    assert f"which is {sentence}" in diagnose(OUT, truth * factor, truth, {})[0]


def test_a_tensor_that_is_another_tap_is_named() -> None:
    other = TRUTH + 1
    assert diagnose(HEADS, other, TRUTH, {HEADS: TRUTH, "text.layers.0.attn.q": other}) == [
        "it is text.layers.0.attn.q"
    ]


@pytest.mark.parametrize("noise", [1e-6, 0.1, 3.0])
def test_a_tensor_that_is_only_inexact_is_called_nothing(noise: float) -> None:
    x = TRUTH + noise * np.random.default_rng(1).standard_normal(TRUTH.shape)
    assert diagnose(HEADS, x, TRUTH, {"text.layers.0.attn.q": TRUTH + 5}) == []


@pytest.mark.parametrize(
    ("name", "shape", "truth", "sentence"),
    [
        ("projector", (36, 128), (2, 36, 128), "one picture of several"),
        (HEADS, (4, 10, 32), (10, 4, 32), "axes are in another order"),
        ("text.layers.0.attn.k", (10, 4, 32), (10, 2, 32), "2 times the numbers"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(name: str, shape, truth, sentence: str) -> None:
    found = diagnose_shape(name, np.zeros(shape), np.zeros(truth))
    assert any(sentence in each for each in found), found


def test_a_shape_that_nothing_explains_is_called_nothing() -> None:
    assert diagnose_shape(HEADS, np.zeros((11, 4, 32)), np.zeros((10, 4, 32))) == []
