"""Backward passes in blocks and on several threads, of weights that are stored narrow, frozen or adapted."""

import numpy as np
import pytest

from npgemma.layers.attention import attend_backward
from npgemma.layers.conv import ConvTranspose, upsample_backward
from npgemma.layers.linear import (
    AdaptedWeight,
    embed_backward,
    linear_backward,
    project_backward,
    total,
    unproject_backward,
)


def test_attention_in_blocks_has_the_gradients_of_one_block() -> None:
    """400 x 400 scores in 4 heads are cut into blocks; a tap makes them one."""
    q, keys, values, dy = np.random.default_rng(0).standard_normal((4, 400, 4, 6))
    mask = np.tri(400, dtype=bool)
    in_blocks = attend_backward(q, keys, values, mask, dy)
    whole = attend_backward(q, keys, values, mask, dy, tap=lambda name, x, axes: x.copy())
    for found, wanted in zip(in_blocks, whole, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-13)


@pytest.mark.parametrize("shape", [(1200, 1200), (4000, 600)], ids=["wide", "tall"])
def test_gradients_have_the_same_bits_on_any_number_of_threads(shape: tuple[int, int], use_threads) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape).astype(np.float32)
    x, dy = (rng.standard_normal((300, width)).astype(np.float32) for width in (w.shape[1], len(w)))
    q, keys, values, dheads = rng.standard_normal((4, 300, 8, 16)).astype(np.float32)
    mask = np.tri(300, dtype=bool)
    found = []
    for threads in (1, 2, 4):
        use_threads(threads)
        found.append([*linear_backward(x, w, dy), *attend_backward(q, keys, values, mask, dheads)])
    for other in found[1:]:
        for one, another in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, another)


@pytest.mark.parametrize("stored", ["float32", "float16", "uint16"])
def test_the_gradient_of_x_through_a_stored_weight_is_that_of_its_numbers(stored: str) -> None:
    """1,000 x 700 is more than one block."""
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((1000, 700)).astype(np.float32)
    w = (wide.view(np.uint32) >> 16).astype(np.uint16) if stored == "uint16" else wide.astype(stored)
    numbers = (w.astype(np.uint32) << 16).view(np.float32) if stored == "uint16" else w.astype(np.float32)
    dy = rng.standard_normal((5, 1000))
    dx, _ = linear_backward(np.zeros((5, 700)), w, dy)
    np.testing.assert_allclose(dx, dy @ numbers.astype(np.float64), atol=1e-11)


def test_a_frozen_weight_stays_frozen_where_its_heads_cannot_be_flattened_in_place() -> None:
    """A checkpoint that stores it in another order of axes gives a view."""
    w = np.ones((2, 3, 4)).transpose(0, 2, 1)
    w.flags.writeable = False
    assert project_backward(np.ones((5, 3)), w, np.ones((5, 2, 4)))[1] is None
    assert unproject_backward(np.ones((5, 4, 3)), w, np.ones((5, 2)))[1] is None
    kernels = np.ones((3, 5, 4, 4))
    kernels.flags.writeable = False
    _, p = upsample_backward(ConvTranspose(kernels, np.ones(5)), np.ones((2, 3, 4, 6)), np.ones((2, 5, 8, 12)))
    assert p.weight is None
    assert p.bias.shape == (5,)


def test_a_frozen_weight_has_no_gradient() -> None:
    x, dy, w = np.ones((5, 3)), np.ones((5, 4)), np.ones((4, 3))
    w.flags.writeable = False
    dx, dw = linear_backward(x, w, dy)
    assert dw is None
    assert dx.tolist() == [[4.0] * 3] * 5
    assert total(w, np.ones((2, 4, 3))) is None
    assert embed_backward(np.array([1, 3]), w, np.ones((2, 3))) is None


def test_an_adapted_weight_trains_its_matrices_alone_if_its_base_is_frozen() -> None:
    base = np.ones((4, 3))
    base.flags.writeable = False
    _, dw = linear_backward(
        np.ones((5, 3)), AdaptedWeight(base, np.ones((2, 3)), np.ones((4, 2)), 0.5), np.ones((5, 4))
    )
    assert dw.base is None
    assert dw.a.shape == (2, 3)
    assert dw.b.shape == (4, 2)
