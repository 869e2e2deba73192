"""`linear` and `embed` give the stored numbers their due, in whatever dtype and however many blocks they come."""

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgemma.layers import matmul
from npgemma.layers.bfloat16 import pack, widen
from npgemma.layers.matmul import embed, linear, project, unproject, widened

STORED = ["float32", "float64", "float16", "bfloat16"]
COMPUTED = ["float32", "float64"]


def stored(numbers: np.ndarray, dtype: str) -> np.ndarray:
    return pack(numbers.astype(np.float32)) if dtype == "bfloat16" else numbers.astype(dtype)


def whole_numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """-8 .. 8: every stored dtype holds them, and sums of a million products are exact in float32 in any order."""
    return rng.integers(-8, 9, shape).astype(np.float64)


def close_to_the_dot_product(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> None:
    """Holds y to the bound of a sum of n products in any order: (n + 1) roundings of the sum of the absolute values."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    roundings = (x.shape[-1] + 1) * np.finfo(y.dtype).eps
    size = np.abs(x) @ np.abs(w).T + (0 if bias is None else np.abs(bias))
    # oracle and float64 alike are off by the bound of float64
    assert np.all(np.abs(y - oracle.linear(x, w, bias)) <= roundings * size * 2)


def test_linear_of_a_literal() -> None:
    """Rows of W are outputs: y[o] = sum over i of x[i] W[o, i] + b[o]."""
    x, w = np.array([[1.0, 10.0, 100.0]]), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    np.testing.assert_array_equal(linear(x, w), np.array([[321.0, 654.0]]), strict=True)
    np.testing.assert_array_equal(linear(x, w, np.array([0.5, -4.0])), np.array([[321.5, 650.0]]), strict=True)


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.sampled_from(STORED))
def test_linear_is_the_sum_of_products(rows: int, inputs: int, outputs: int, biased: bool, dtype: str) -> None:
    """Of the numbers that are stored, whatever their dtype; none, one or many rows, odd widths."""
    rng = np.random.default_rng(inputs)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    w = stored(rng.standard_normal((outputs, inputs)), dtype)
    bias = rng.standard_normal(outputs).astype(np.float32) if biased else None
    numbers = widen(w) if dtype == "bfloat16" else w
    # a float64 weight that float32 rows meet is rounded to float32 first
    close_to_the_dot_product(linear(x, w, bias), x, numbers.astype(np.float32), bias)
    close_to_the_dot_product(linear(x.astype(np.float64), w, bias), x, numbers, bias)


@pytest.mark.parametrize("block", [1, 7, 13, 14, 26, 60, 65, 66, 1000])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("dtype", STORED)
def test_no_block_edge_shows(block: int, rows: int, computed: str, dtype: str, monkeypatch) -> None:
    """5 x 13 weights in blocks of 1 row, 2, 4, 5 and more: whole numbers have exact sums, so not a bit differs."""
    monkeypatch.setattr(matmul, "BLOCK", block)
    rng = np.random.default_rng(0)
    x, w, bias = whole_numbers(rng, rows, 13), whole_numbers(rng, 5, 13), whole_numbers(rng, 5)
    y = linear(x.astype(computed), stored(w, dtype), bias.astype(np.float32))
    np.testing.assert_array_equal(y, oracle.linear(x, w, bias).astype(computed), strict=True)


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("inputs", [1, 17, 129])
def test_packed_weights_are_their_widened_selves_to_the_bit(rows: int, inputs: int) -> None:
    """One block: the product is the same call on the same numbers."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    w = pack(rng.standard_normal((31, inputs)).astype(np.float32))
    np.testing.assert_array_equal(linear(x, w), linear(x, widen(w)), strict=True)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (0, 3)])
@pytest.mark.parametrize("dtype", STORED)
def test_leading_axes_are_rows(leading: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, w = whole_numbers(rng, *leading, 7).astype(np.float32), whole_numbers(rng, 5, 7)
    np.testing.assert_array_equal(linear(x, stored(w, dtype)), oracle.linear(x, w).astype(np.float32), strict=True)


@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("dtype", STORED)
def test_the_rows_decide_the_dtype(computed: str, dtype: str) -> None:
    """Not the weights, nor a bias that is float32 in a float64 run."""
    x, w, bias = np.ones((2, 3), computed), stored(np.ones((4, 3)), dtype), np.ones(4, np.float32)
    assert linear(x, w, bias).dtype == computed
    assert project(x, w.reshape(2, 2, 3), bias.reshape(2, 2)).dtype == computed
    assert embed(np.array([1]), w, np.dtype(computed)).dtype == computed


def test_a_float64_run_keeps_the_digits_of_float64_weights() -> None:
    w = np.array([[1 + 2.0**-40]])
    np.testing.assert_array_equal(linear(np.ones((1, 1)), w), w, strict=True)


def test_linear_leaves_rows_and_weights_alone() -> None:
    """Rows are used again by the next layer; weights may be a file."""
    x, w, bias = np.ones((2, 3), np.float32), pack(np.ones((4, 3), np.float32)), np.ones(4, np.float32)
    for array in (x, w, bias):
        array.setflags(write=False)
    np.testing.assert_array_equal(linear(x, w, bias), np.full((2, 4), 4, np.float32), strict=True)


def test_weights_of_the_right_dtype_are_not_copied() -> None:
    w = np.ones((2, 3), np.float32)
    assert widened(w, np.dtype(np.float32)) is w


def test_project_of_a_literal() -> None:
    """Two heads of width one and a bias for each."""
    x, w = np.array([[1.0, 10.0]]), np.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    expected = np.array([[[21.0], [43.5]]])
    np.testing.assert_array_equal(project(x, w, np.array([[0.0], [0.5]])), expected, strict=True)


def test_unproject_of_a_literal() -> None:
    """Two heads of width two, W[d n h], each number a digit of its own."""
    x = np.array([[[1.0, 10.0], [100.0, 1000.0]]])
    w = np.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    np.testing.assert_array_equal(unproject(x, w, np.array([0.5, 0.0])), np.array([[4321.5, 8765.0]]), strict=True)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 7))
def test_heads_are_projected_and_unprojected_one_by_one(rows: int, heads: int, width: int, inputs: int) -> None:
    """Against a loop over heads: head n has its own matrix, and what heads write is summed."""
    rng = np.random.default_rng(heads)
    x, w, bias = whole_numbers(rng, rows, inputs), whole_numbers(rng, heads, width, inputs), np.arange(heads * width)
    bias = bias.reshape(heads, width).astype(np.float64)
    y = project(x, w, bias)
    for n in range(heads):
        np.testing.assert_array_equal(y[:, n], oracle.linear(x, w[n], bias[n]), strict=True)
    back = np.moveaxis(w, 2, 0).copy()  # D N H
    summed = sum(oracle.linear(y[:, n], back[:, n]) for n in range(heads))
    np.testing.assert_array_equal(unproject(y, back), summed, strict=True)


@pytest.mark.parametrize("dtype", STORED)
def test_embed_takes_the_rows_that_are_asked_for(dtype: str) -> None:
    """In the order they are asked for, again if asked again, the first and the last of the table included."""
    table = np.arange(12.0).reshape(4, 3)
    ids = np.array([3, 0, 0, 2])
    expected = table[[3, 0, 0, 2]].astype(np.float32)
    np.testing.assert_array_equal(embed(ids, stored(table, dtype), np.dtype(np.float32)), expected, strict=True)
    assert embed(ids[:0], stored(table, dtype), np.dtype(np.float32)).shape == (0, 3)


@pytest.mark.parametrize("ids", [[-1], [4], [0, 1, 4], [0, -1, 3]])
def test_embed_refuses_an_id_without_a_row(ids: list[int]) -> None:
    """A negative one would quietly count from the end."""
    with pytest.raises(IndexError, match=rf"from {min(ids)} to {max(ids)}, .* rows 0 to 3"):
        embed(np.array(ids), np.zeros((4, 3), np.float32), np.dtype(np.float32))
