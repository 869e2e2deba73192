"""Each well-known mistake is named, and an inexact tensor has no diagnosis."""

import math

import numpy as np
import pytest

from npgemma.golden.diagnose import diagnose, diagnose_shape

TRUTH = np.random.default_rng(0).standard_normal((10, 4, 32))
HEADS, OUT = "T N H", "T D"


def halves_to_pairs(x: np.ndarray) -> np.ndarray:
    return np.stack(np.split(x, 2, -1), -1).reshape(x.shape)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (lambda x: np.roll(x, 1, 0), "shifted by one along T, to later rows"),
        (lambda x: np.roll(x, -1, 0), "shifted by one along T, to earlier rows"),
        (halves_to_pairs, "RoPE pairs are interleaved"),
        (lambda x: x[:, [1, 0, 2, 3]], "heads are in the order [1, 0, 2, 3]"),
        (lambda x: x[:, ::-1], "heads are in the order [3, 2, 1, 0]"),
        (lambda x: x.transpose(0, 2, 1).reshape(x.shape), "its axes are T H N"),
        (lambda x: -x, "times -1, which is -1"),
        (lambda x: x / 255, "which is 1/255"),
        (lambda x: x * math.sqrt(32), "which is sqrt(H)"),
        (lambda x: x * 1.37, "it is the truth times 1.37"),
    ],
)
def test_mistake_is_named(mistake, sentence: str) -> None:
    found = diagnose(HEADS, mistake(TRUTH), TRUTH, {})
    assert any(sentence in each for each in found), found


@pytest.mark.parametrize(("factor", "sentence"), [(math.sqrt(128), "sqrt(D)"), (1 / math.sqrt(128), "1/sqrt(D)")])
def test_factors_of_the_width_are_named(factor: float, sentence: str) -> None:
    truth = TRUTH.reshape(10, 128)
    assert f"which is {sentence}" in diagnose(OUT, truth * factor, truth, {})[0]


def test_rows_of_other_lengths_are_named() -> None:
    truth = TRUTH[:, 0] / np.linalg.norm(TRUTH[:, 0], axis=-1, keepdims=True)
    found = diagnose("U E", TRUTH[:, 0], truth, {})
    assert len(found) == 1
    assert "lengths of their own" in found[0]
    assert diagnose("U E", 2 * truth, truth, {}) == ["it is the truth times 2, which is 2"]


def test_a_logarithm_instead_of_its_exponential_is_named() -> None:
    (first, *_) = diagnose("", np.array(2.5), np.exp(np.array(2.5)), {})
    assert "logarithm" in first


def test_tensor_that_equals_another_tap_is_named() -> None:
    other = TRUTH + 1
    assert diagnose(HEADS, other, TRUTH, {"k": TRUTH + 2, "q": other}) == ["it equals the tap q"]


@pytest.mark.parametrize("noise", [1e-6, 0.1, 3.0])
def test_inexact_tensor_has_no_diagnosis(noise: float) -> None:
    x = TRUTH + noise * np.random.default_rng(1).standard_normal(TRUTH.shape)
    assert diagnose(HEADS, x, TRUTH, {"q": TRUTH + 5}) == []


@pytest.mark.parametrize(
    ("axes", "shape", "truth", "sentence"),
    [
        ("B P D", (36, 128), (2, 36, 128), "one of several pictures"),
        (HEADS, (4, 10, 32), (10, 4, 32), "axes are in a different order"),
        ("T K H", (10, 4, 32), (10, 2, 32), "2 times as many numbers"),
        ("B T D", (3, 16, 24), (3, 17, 24), "perhaps the class token"),
    ],
)
def test_wrong_shape_is_named(axes: str, shape, truth, sentence: str) -> None:
    found = diagnose_shape(axes, np.zeros(shape), np.zeros(truth))
    assert any(sentence in each for each in found), found


def test_unknown_shape_has_no_diagnosis() -> None:
    assert diagnose_shape(HEADS, np.zeros((11, 4, 32)), np.zeros((10, 4, 32))) == []
