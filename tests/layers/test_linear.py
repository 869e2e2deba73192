"""`linear`, `project`, `unproject` and `embed`, for weights of every stored dtype."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from products import COMPUTED, STORED, assert_close_to_the_dot_product, stored, whole_numbers

from npgemma.layers.bits import pack, widen
from npgemma.layers.linear import embed, linear, project, unproject


def test_linear_of_a_literal() -> None:
    """Rows of W are outputs: y[o] = sum over i of x[i] W[o, i] + b[o]."""
    x, w = np.array([[1.0, 10.0, 100.0]]), np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    np.testing.assert_array_equal(linear(x, w), np.array([[321.0, 654.0]]), strict=True)
    np.testing.assert_array_equal(linear(x, w, np.array([0.5, -4.0])), np.array([[321.5, 650.0]]), strict=True)


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.sampled_from(STORED))
def test_linear_is_the_sum_of_products(rows: int, inputs: int, outputs: int, biased: bool, dtype: str) -> None:
    """Of the stored numbers, whatever their dtype; for no rows, one or many, odd widths and even."""
    rng = np.random.default_rng(inputs)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    w = stored(rng.standard_normal((outputs, inputs)), dtype)
    bias = rng.standard_normal(outputs).astype(np.float32) if biased else None
    numbers = widen(w) if dtype == "bfloat16" else w
    # with float32 rows, a float64 weight is first rounded to float32
    assert_close_to_the_dot_product(linear(x, w, bias), x, numbers.astype(np.float32), bias)
    assert_close_to_the_dot_product(linear(x.astype(np.float64), w, bias), x, numbers, bias)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (0, 3)])
@pytest.mark.parametrize("dtype", STORED)
def test_leading_axes_are_rows(leading: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, w = whole_numbers(rng, *leading, 7).astype(np.float32), whole_numbers(rng, 5, 7)
    np.testing.assert_array_equal(linear(x, stored(w, dtype)), (x @ w.T).astype(np.float32), strict=True)


@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("dtype", STORED)
def test_the_result_has_the_dtype_of_the_rows(computed: str, dtype: str) -> None:
    """Not that of the weights, nor of a bias that is float32 in a float64 run."""
    x, w, bias = np.ones((2, 3), computed), stored(np.ones((4, 3)), dtype), np.ones(4, np.float32)
    assert linear(x, w, bias).dtype == computed
    assert project(x, w.reshape(2, 2, 3), bias.reshape(2, 2)).dtype == computed
    assert embed(np.array([1]), w, np.dtype(computed)).dtype == computed


def test_a_float64_run_keeps_the_digits_of_float64_weights() -> None:
    w = np.array([[1 + 2.0**-40]])
    np.testing.assert_array_equal(linear(np.ones((1, 1)), w), w, strict=True)


def test_linear_does_not_write_to_its_arguments() -> None:
    """The next layer uses the rows again; weights may be a mapped file."""
    x, w, bias = np.ones((2, 3), np.float32), pack(np.ones((4, 3), np.float32)), np.ones(4, np.float32)
    for array in (x, w, bias):
        array.setflags(write=False)
    np.testing.assert_array_equal(linear(x, w, bias), np.full((2, 4), 4, np.float32), strict=True)


def test_linear_refuses_rows_of_another_width() -> None:
    """The checker of the tests would be the first to say so, so it is bypassed."""
    with pytest.raises(ValueError, match="reshape"):
        linear.unchecked(np.ones((3, 4), np.float32), np.ones((2, 5), np.float32))


def test_project_of_a_literal() -> None:
    """Two heads of width one, and a bias for each."""
    x, w = np.array([[1.0, 10.0]]), np.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    expected = np.array([[[21.0], [43.5]]])
    np.testing.assert_array_equal(project(x, w, np.array([[0.0], [0.5]])), expected, strict=True)


def test_unproject_of_a_literal() -> None:
    """Two heads of width two, W[d n h], each number a digit of its own."""
    x = np.array([[[1.0, 10.0], [100.0, 1000.0]]])
    w = np.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    np.testing.assert_array_equal(unproject(x, w, np.array([0.5, 0.0])), np.array([[4321.5, 8765.0]]), strict=True)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 7))
def test_each_head_is_projected_with_its_own_matrix(rows: int, heads: int, width: int, inputs: int) -> None:
    """Against a loop over heads; `unproject` sums over them."""
    rng = np.random.default_rng(heads)
    x, w, bias = whole_numbers(rng, rows, inputs), whole_numbers(rng, heads, width, inputs), np.arange(heads * width)
    bias = bias.reshape(heads, width).astype(np.float64)
    y = project(x, w, bias)
    for n in range(heads):
        np.testing.assert_array_equal(y[:, n], x @ w[n].T + bias[n], strict=True)
    back = np.moveaxis(w, 2, 0).copy()  # D N H
    summed = sum(y[:, n] @ back[:, n].T for n in range(heads))
    np.testing.assert_array_equal(unproject(y, back), summed, strict=True)


@pytest.mark.parametrize("dtype", STORED)
def test_embed_takes_the_rows_of_the_ids(dtype: str) -> None:
    """In their order, repeated ones too, the first and the last of the table included."""
    table = np.arange(12.0).reshape(4, 3)
    ids = np.array([3, 0, 0, 2])
    expected = table[[3, 0, 0, 2]].astype(np.float32)
    np.testing.assert_array_equal(embed(ids, stored(table, dtype), np.dtype(np.float32)), expected, strict=True)
    assert embed(ids[:0], stored(table, dtype), np.dtype(np.float32)).shape == (0, 3)


@pytest.mark.parametrize("ids", [[-1], [4], [0, 1, 4], [0, -1, 3]])
def test_embed_refuses_an_id_without_a_row(ids: list[int]) -> None:
    """A negative id would otherwise count from the end."""
    with pytest.raises(IndexError, match=rf"from {min(ids)} to {max(ids)}, .* rows 0 to 3"):
        embed(np.array(ids), np.zeros((4, 3), np.float32), np.dtype(np.float32))
