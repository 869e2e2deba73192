"""Norms and gelu work on blocks of rows in parallel: the blocks change no result."""

from collections.abc import Iterator

import numpy as np
import one_page
import pytest
from agreement import assert_agrees, f32, normal

from npgemma.layers.activations import geglu_backward, gelu, gelu_backward
from npgemma.layers.norms import LayerNorm, RMSNorm, layer_norm, rms_norm
from npgemma.layers.threads import ROW_BLOCK


def blocked(x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The result of each function that works on rows in blocks, and the second spelling of it."""
    wide = x.astype(np.float64)
    weight, bias = f32(normal(x.shape[-1]), normal(x.shape[-1], seed=1))
    return [
        (layer_norm(LayerNorm(weight, bias, 1e-6), x), one_page.layer_norm(wide, weight, bias, 1e-6)),
        (rms_norm(RMSNorm(weight, 1e-6), x), one_page.rms_norm(wide, weight.astype(np.float64), 1e-6)),
        (gelu(x), one_page.gelu(wide)),
        (gelu_backward(x, x[::-1]), slope_of_gelu(wide) * wide[::-1]),
        *(gated(x, wide) if x.ndim == 2 else []),
    ]


def gated(x: np.ndarray, wide: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both results of the backward pass of a geglu, whose arguments are x in other orders."""
    up, dy = wide[::-1], 2 * wide
    expected = dy * up * slope_of_gelu(wide), dy * one_page.gelu(wide)
    yield from zip(geglu_backward(x, x[::-1], 2 * x), expected, strict=True)


def slope_of_gelu(x: np.ndarray) -> np.ndarray:
    """That of the second spelling, by a complex step."""
    return one_page.gelu(x + 1e-200j).imag / 1e-200


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((ROW_BLOCK + 3,), id="one row, larger than a block"),
        pytest.param((3, ROW_BLOCK // 2 + 5), id="a block holds one row"),
        pytest.param((ROW_BLOCK // 16, 33), id="three blocks, the last one smaller"),
        pytest.param((70, 3, 701), id="three axes"),
        pytest.param((2, 0, 7), id="no rows"),
        pytest.param((4, 7), id="one block"),
    ],
)
def test_blocks_of_rows_agree_with_the_second_spelling(shape: tuple[int, ...], dtype: str, use_threads) -> None:
    use_threads(2)
    for y, expected in blocked(normal(*shape, seed=3).astype(dtype)):
        assert y.dtype == dtype
        assert_agrees(y, expected)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 0, 2),
        lambda x: x[:, :, ::2],
        lambda x: x[::-1],
        lambda x: np.broadcast_to(x[:1], (5, *x.shape[1:])),
    ],
    ids=["transposed", "every other number", "reversed", "repeated"],
)
def test_rows_in_blocks_need_not_be_contiguous(view) -> None:
    """A tap may return an array in any memory order."""
    x = view(normal(3, 500, 240, seed=3))
    assert x.size > ROW_BLOCK
    for y, expected in blocked(x):
        assert_agrees(y, expected)


def test_blocks_of_rows_do_not_write_to_their_argument() -> None:
    x = normal(400, 400)
    x.setflags(write=False)
    for y, _ in blocked(x):
        assert not np.shares_memory(y, x)


def test_the_number_of_threads_changes_no_bit_of_a_norm(use_threads) -> None:
    x, results = normal(5000, 70).astype(np.float32), []
    for count in (1, 2, 3):
        use_threads(count)
        results.append(layer_norm(LayerNorm(*f32(normal(70), normal(70, seed=1)), 1e-6), x))
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0], strict=True)


@pytest.mark.parametrize("row", [0, 3000, 4999])
def test_an_infinite_number_raises_in_whichever_block_it_is(row: int, use_threads) -> None:
    use_threads(2)
    x = normal(5000, 70)
    x[row, 3] = np.inf
    with pytest.raises(FloatingPointError):
        layer_norm(LayerNorm(np.ones(70), np.zeros(70), 1e-6), x)
