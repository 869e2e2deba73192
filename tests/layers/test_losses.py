"""The losses of pairs: literals, plain sums over every pair, and chunks."""

import math

import numpy as np
import pytest
from agreement import FLOAT32, FLOAT64, normal

from npgemma.layers.losses import contrastive_loss, sigmoid_loss
from npgemma.layers.norms import unit

IMAGES, TEXTS = unit(normal(7, 5)), unit(normal(7, 5, seed=1))
SCALE, BIAS = 9.0, -3.0
SCORES = [[SCALE * float(u @ v) for v in TEXTS] for u in IMAGES]


def test_the_sigmoid_loss_of_a_literal() -> None:
    """Scores of 0 give every pair the probability 1/2: two pairs for each picture, each log 2."""
    images, texts = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]]), np.array([[0.0, 0, 1, 0], [0, 0, 0, 1]])
    assert sigmoid_loss(images, texts, 1.0, 0.0) == pytest.approx(2 * math.log(2), rel=1e-15)


def test_the_sigmoid_loss_is_the_sum_over_every_pair_by_the_number_of_pictures() -> None:
    """Equation 1 of the paper, pair by pair."""
    total = 0.0
    for i, row in enumerate(SCORES):
        for j, score in enumerate(row):
            z = 1 if i == j else -1
            total += math.log(1 / (1 + math.exp(-z * (score + BIAS))))
    np.testing.assert_allclose(sigmoid_loss(IMAGES, TEXTS, SCALE, BIAS), -total / 7, rtol=FLOAT64["rtol"])


@pytest.mark.parametrize("columns", [1, 2, 3, 6, 7, 100])
def test_chunks_of_texts_do_not_change_the_sigmoid_loss(columns: int) -> None:
    expected = sigmoid_loss(IMAGES, TEXTS, SCALE, BIAS)
    np.testing.assert_allclose(sigmoid_loss(IMAGES, TEXTS, SCALE, BIAS, columns), expected, rtol=FLOAT64["rtol"])


def test_the_contrastive_loss_of_a_literal() -> None:
    """Equal scores give each of two texts the probability 1/2, and each picture too."""
    images, texts = np.array([[1.0, 0, 0], [0, 1, 0]]), np.array([[0.0, 0, 1], [0, 0, 1]])
    assert contrastive_loss(images, texts, 5.0) == pytest.approx(math.log(2), rel=1e-15)


def test_the_contrastive_loss_is_the_mean_over_both_directions() -> None:
    """-log of the probability of the right text, and of the right picture, one by one."""
    total = 0.0
    for i in range(7):
        right = math.exp(SCORES[i][i])
        total -= math.log(right / sum(math.exp(score) for score in SCORES[i]))
        total -= math.log(right / sum(math.exp(row[i]) for row in SCORES))
    np.testing.assert_allclose(contrastive_loss(IMAGES, TEXTS, SCALE), total / 14, rtol=FLOAT64["rtol"])


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_losses_of_huge_scores_do_not_overflow(scale: float) -> None:
    """A right pair with a score of 10,000 costs nothing, and a wrong one 10,000."""
    images = texts = np.eye(2)
    wrong = max(-scale, 0.0)
    assert sigmoid_loss(images, texts, scale, 0.0) == pytest.approx(wrong + math.log(2), rel=1e-12)
    assert contrastive_loss(images, texts, scale) == pytest.approx(wrong, abs=1e-12)


def test_losses_compute_in_the_dtype_of_the_pictures() -> None:
    images, texts = IMAGES.astype(np.float32), TEXTS.astype(np.float32)
    exact = sigmoid_loss(images.astype(np.float64), texts.astype(np.float64), SCALE, BIAS)
    np.testing.assert_allclose(sigmoid_loss(images, texts, SCALE, BIAS), exact, rtol=FLOAT32["rtol"])
    assert sigmoid_loss(images, texts, SCALE, BIAS) != exact


@pytest.mark.parametrize("loss", [lambda u, v: sigmoid_loss(u, v, 1.0, 0.0), lambda u, v: contrastive_loss(u, v, 1.0)])
def test_as_many_pictures_as_texts_are_needed(loss) -> None:
    with pytest.raises(AssertionError, match="B is 7"):
        loss(IMAGES, TEXTS[:6])
