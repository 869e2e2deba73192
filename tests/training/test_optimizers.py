"""Optimizers: first steps by hand, limits, and which arrays decay. Beside torch.optim they stand in tests/live."""

import numpy as np
import pytest

from npgemma.layers.norms import RMSNorm
from npgemma.layers.tree import leaves
from npgemma.models.gemma import MLP
from npgemma.training.optimizers import BLOCK, OPTIMIZERS, SGD, Adafactor, AdamW, clip, is_decayed, length

ROUNDING = 1e-14  # of a few float64 operations on numbers near 1


@pytest.mark.parametrize(
    ("optimizer", "decay", "moved"),
    [
        # the first step of Adam has the size of the rate, whatever the gradient is
        (AdamW(eps=0), 0.0, [[0.9, -1.1]]),
        # decay first: 1 - 0.1 * 0.5 of the weight is left
        (AdamW(eps=0), 0.5, [[0.85, -1.05]]),
        (SGD(momentum=0), 0.0, [[0.8, -1.3]]),
        # torch adds the decay to the gradient
        (SGD(momentum=0), 0.5, [[0.75, -1.25]]),
        (SGD(momentum=0.9), 0.0, [[0.8, -1.3]]),
        # one row: v is exact, u is the sign, and alpha is 0.1 times the size 1 of the weight
        (Adafactor(), 0.0, [[0.9, -1.1]]),
    ],
)
def test_the_first_step_by_hand(optimizer: object, decay: float, moved: list[list[float]]) -> None:
    w, g = np.array([[1.0, -1.0]]), np.array([[2.0, 3.0]])
    optimizer.update(w, g, optimizer.start(w), 1, 0.1, decay)
    np.testing.assert_allclose(w, moved, rtol=ROUNDING, strict=True)


def test_momentum_adds_what_came_before() -> None:
    w = np.zeros(1)
    optimizer = SGD(momentum=0.5)
    moments = optimizer.start(w)
    for step in (1, 2, 3):
        optimizer.update(w, np.ones(1), moments, step, 1.0, 0.0)
    assert w == -(1 + 1.5 + 1.75)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(7,), (5, 3), (4, 3, 5), (5, 2, 3)])
def test_every_optimizer_finds_the_minimum_of_a_quadratic(name: str, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    w, goal = random.standard_normal(shape), random.standard_normal(shape)
    optimizer = OPTIMIZERS[name]
    moments = optimizer.start(w)
    for step in range(1, 301):
        optimizer.update(w, w - goal, moments, step, 0.1 * (1 - step / 301), 0.0)
    assert np.abs(w - goal).max() < 0.05


def test_the_float32_numbers_of_a_large_array_do_not_depend_on_blocks() -> None:
    random = np.random.default_rng(1)
    w, g = (random.standard_normal(BLOCK + 5).astype(np.float32) for _ in range(2))
    whole, parts = w.copy(), [w[:5].copy(), w[5:].copy()]
    AdamW().update(whole, g, AdamW().start(w), 1, 1e-3, 0.1)
    for part, slope in zip(parts, (g[:5], g[5:]), strict=True):
        AdamW().update(part, slope, AdamW().start(part), 1, 1e-3, 0.1)
    np.testing.assert_array_equal(whole, np.concatenate(parts), strict=True)
    assert whole.dtype == np.float32


def test_an_array_that_cannot_be_changed_in_place_is_refused() -> None:
    w = np.ones((3, 2)).T
    with pytest.raises(ValueError, match="contiguous"):
        AdamW().update(w, w, AdamW().start(w), 1, 1.0, 0.0)


def test_clipping_keeps_the_direction() -> None:
    gradients = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    assert length(gradients) == 5.0
    clip(gradients, 1.0, 5.0)
    assert gradients["a"][0] / gradients["b"][0, 0] == pytest.approx(0.75, rel=ROUNDING)
    assert length(gradients) == pytest.approx(5 / (5 + 1e-6), rel=ROUNDING)


def test_a_short_gradient_is_not_clipped() -> None:
    gradients = {"a": np.array([0.3, 0.4])}
    assert length(gradients) == pytest.approx(0.5, rel=ROUNDING)
    clip(gradients, 1.0, 0.5)
    assert gradients["a"].tolist() == [0.3, 0.4]


def test_matrices_decay_and_norms_do_not() -> None:
    tree = (RMSNorm(np.ones(3), 1e-6), MLP(np.ones((2, 3)), np.ones((2, 3)), np.ones((3, 2))))
    assert [is_decayed(leaf) for leaf in leaves(tree)] == [False, True, True, True]
