"""`linear` and `embed` give the stored numbers their due, in whatever dtype and however many blocks they come."""

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npgemma.layers import linear as matmul
from npgemma.layers.bits import pack, widen, widened
from npgemma.layers.linear import embed, linear, project, unproject
from npgemma.layers.packed import FEW_ROWS, multiply, row_blocks

STORED = ["float32", "float64", "float16", "bfloat16"]
COMPUTED = ["float32", "float64"]


def stored(numbers: np.ndarray, dtype: str) -> np.ndarray:
    return pack(numbers.astype(np.float32)) if dtype == "bfloat16" else numbers.astype(dtype)


def cut(patch: pytest.MonkeyPatch, block: int) -> None:
    """Blocks of about so many elements, however small the matrix."""
    for name in ("BLOCK", "LARGE_BLOCK", "SMALL"):
        patch.setattr(matmul, name, block)


def whole_numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """-8 .. 8: every stored dtype holds them, and sums of a million products are exact in float32 in any order."""
    return rng.integers(-8, 9, shape).astype(np.float64)


def close_to_the_dot_product(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> None:
    """Holds y to the bound of a sum of n products in any order: (n + 1) roundings of the sum of the absolute values."""
    x, w = x.astype(np.float64), w.astype(np.float64)
    # oracle and float64 alike are off by the bound of float64
    assert np.all(np.abs(y - oracle.linear(x, w, bias)) <= envelope(x, w, y.dtype, bias) * 2)


def envelope(x: np.ndarray, w: np.ndarray, dtype: np.dtype, bias: np.ndarray | None = None) -> np.ndarray:
    roundings = (x.shape[-1] + 1) * np.finfo(dtype).eps
    return roundings * (np.abs(x) @ np.abs(w).T + (0 if bias is None else np.abs(bias)))


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
    cut(monkeypatch, block)
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


# Blocks, pieces and pairs of columns: the ways in which a large packed matrix is cut up.


@given(
    st.integers(0, 40),
    st.integers(1, 70),
    st.integers(0, 140),
    st.sampled_from([1, 64, 300, 1000, matmul.BLOCK]),
    st.sampled_from([1, 16, 100, 1000, matmul.PIECE]),
    st.sampled_from(COMPUTED),
)
def test_packed_weights_in_any_cut_are_within_the_bound_of_a_dot_product(
    rows: int, inputs: int, outputs: int, block: int, piece: int, computed: str
) -> None:
    """Few rows and many, odd widths and even, blocks of 16 rows and more with a smaller last one, pieces that divide a
    block and that do not. And so are widened ones, so that the two are no further apart than both bounds together.
    """
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, inputs)).astype(computed)
    w = pack(rng.standard_normal((outputs, inputs)).astype(np.float32))
    numbers = widen(w)
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, block)
        patch.setattr(matmul, "PIECE", piece)
        packed, plain = linear(x, w), linear(x, numbers)
    assert packed.dtype == plain.dtype == x.dtype
    close_to_the_dot_product(packed, x, numbers)
    close_to_the_dot_product(plain, x, numbers)
    assert np.all(np.abs(packed - plain) <= 2 * envelope(x.astype(np.float64), numbers.astype(np.float64), x.dtype))


@pytest.mark.parametrize("piece", [1, 8, 100, 1000, matmul.PIECE])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, FEW_ROWS - 1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("outputs", [0, 1, 10, 12, 16, 64])
def test_a_product_in_pieces_is_the_product(outputs: int, rows: int, piece: int, monkeypatch) -> None:
    """In place, into some columns of a larger result, of which no other number is touched."""
    monkeypatch.setattr(matmul, "PIECE", piece)
    rng = np.random.default_rng(0)
    x, w = whole_numbers(rng, rows, 7).astype(np.float32), whole_numbers(rng, outputs, 7).astype(np.float32)
    y = np.full((rows, outputs + 5), 999, np.float32)
    multiply(x, w, y[:, 2 : 2 + outputs])
    np.testing.assert_array_equal(y[:, 2 : 2 + outputs], oracle.linear(x, w).astype(np.float32), strict=True)
    assert np.all(y[:, :2] == 999)
    assert np.all(y[:, 2 + outputs :] == 999)


def test_pieces_are_as_small_as_was_said(monkeypatch) -> None:
    """Else nothing would be gained by them: a product of few rows hands BLAS at most PIECE multiply-adds at a time."""
    sizes = []

    def spy(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        sizes.append(a.shape[-2] * b.shape[-2] * b.shape[-1])
        np.einsum("...ti,...io->...to", a, b, out=out)

    monkeypatch.setattr(matmul, "PIECE", 100)
    monkeypatch.setattr(matmul.np, "matmul", spy)
    multiply(np.ones((2, 5)), np.ones((64, 5)), np.empty((2, 64)))
    assert max(sizes) <= 100


@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("rows", [1, 5, FEW_ROWS + 1])
@pytest.mark.parametrize("inputs", [13, 14])
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_packed_weights_may_begin_at_any_byte_of_a_file(
    offset: int, inputs: int, rows: int, computed: str, monkeypatch
) -> None:
    """The length of a safetensors header is anybody's choice: two neighbours are then no aligned word."""
    cut(monkeypatch, 200)
    rng = np.random.default_rng(0)
    x, w = whole_numbers(rng, rows, inputs), whole_numbers(rng, 41, inputs)
    file = np.frombuffer(bytes(offset) + stored(w, "bfloat16").tobytes(), np.uint8)
    weight = file[offset:].view(np.uint16).reshape(w.shape)
    assert inputs % 2 or weight.view(np.uint32).flags.aligned == (offset == 0)
    y = linear(x.astype(computed), weight)
    np.testing.assert_array_equal(y, oracle.linear(x, w).astype(computed), strict=True)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("rows", [0, 1, 5, FEW_ROWS + 1])
@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.T,
        lambda w: w[:, ::2],
        lambda w: w[:, 1:],
        lambda w: w[:, 1:-1],
        lambda w: w[::2],
        lambda w: w[::-1, ::-1],
        lambda w: np.asfortranarray(w),
        lambda w: np.broadcast_to(w[:1], (9, w.shape[1])),
    ],
    ids=[
        "transposed",
        "every other",
        "all but one",
        "all but two",
        "half the rows",
        "backwards",
        "Fortran",
        "repeated",
    ],
)
def test_weights_need_not_be_contiguous(view, rows: int, dtype: str, monkeypatch) -> None:
    """Neighbours in memory are then not neighbours in a row, and must not be taken for such."""
    cut(monkeypatch, 100)
    rng = np.random.default_rng(0)
    w = whole_numbers(rng, 38, 24)
    weight, numbers = view(stored(w, dtype)), view(w)
    x = whole_numbers(rng, rows, numbers.shape[1])
    y = linear(x.astype(np.float32), weight)
    np.testing.assert_array_equal(y, oracle.linear(x, numbers).astype(np.float32), strict=True)


@pytest.mark.parametrize("rows", [1, 5, FEW_ROWS + 1])
@pytest.mark.parametrize("dtype", STORED)
def test_rows_need_not_be_contiguous(dtype: str, rows: int, monkeypatch) -> None:
    """The columns of x are taken apart too: here they are every other one, and rows from the last to the first."""
    cut(monkeypatch, 100)
    rng = np.random.default_rng(0)
    x, w = whole_numbers(rng, rows, 48).astype(np.float32), whole_numbers(rng, 38, 24)
    for view in (x[:, ::2], x[::-1, 24:], np.asfortranarray(x[:, :24])):
        y = linear(view, stored(w, dtype))
        np.testing.assert_array_equal(y, oracle.linear(view, w).astype(np.float32), strict=True)


@pytest.mark.parametrize("rows", [1, 7, FEW_ROWS, FEW_ROWS + 1, 100])
@pytest.mark.parametrize("inputs", [130, 131])
@pytest.mark.parametrize("dtype", STORED)
def test_neither_the_number_of_threads_nor_the_time_changes_a_bit(
    dtype: str, inputs: int, rows: int, use_threads, monkeypatch
) -> None:
    """A reference that answered otherwise on another machine, or the second time, would be none."""
    cut(monkeypatch, 5000)
    monkeypatch.setattr(matmul, "PIECE", 10000)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((rows, inputs)).astype(np.float32), stored(rng.standard_normal((300, inputs)), dtype)
    assert len(row_blocks(w, matmul.BLOCK)) > 4
    results = []
    for count in (1, 1, 2, 2, 3):
        use_threads(count)
        results.append(linear(x, w))
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0], strict=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_result_is_not_the_memory_that_the_next_one_is_widened_into(dtype: str) -> None:
    """Threads widen into the same memory again and again."""
    rng = np.random.default_rng(0)
    x, w = whole_numbers(rng, 2, 8).astype(np.float32), stored(whole_numbers(rng, 6, 8), dtype)
    y = linear(x, w)
    kept = y.copy()
    linear(x, stored(whole_numbers(rng, 60, 80)[:, :8].copy(), dtype))
    linear(-x, w)
    np.testing.assert_array_equal(y, kept, strict=True)


@given(st.integers(0, 5000), st.integers(1, 50), st.integers(1, 3000))
def test_row_blocks_cover_every_row_exactly_once(outputs: int, inputs: int, block: int) -> None:
    """In order; one block where all fits, else blocks of 16 rows or a multiple, the last one aside."""
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, block)
        blocks = row_blocks(np.broadcast_to(np.float32(0), (outputs, inputs)), block)
    rows = np.arange(outputs)
    np.testing.assert_array_equal(np.concatenate([rows[b] for b in blocks] or [rows]), rows, strict=True)
    if outputs and outputs * inputs <= block:
        assert len(blocks) == 1
    else:
        assert all(len(rows[b]) % 16 == 0 for b in blocks[:-1])
        # neither so large that a cache overflows, nor larger than the 16 rows that there are at least
        assert all(len(rows[b]) * inputs <= max(block, 16 * inputs) * 2 for b in blocks)


@pytest.mark.parametrize("size", [matmul.BLOCK, matmul.LARGE_BLOCK])
@pytest.mark.parametrize(("outputs", "inputs"), [(257216, 2048), (16384, 2048), (2048, 16384), (4304, 1152)])
def test_blocks_of_the_matrices_of_the_3b_model_are_near_the_size_that_is_wanted(
    outputs: int, inputs: int, size: int
) -> None:
    blocks = row_blocks(np.broadcast_to(np.float32(0), (outputs, inputs)), size)
    sizes = [min(b.stop, outputs) - b.start for b in blocks]
    assert sum(sizes) == outputs
    assert size / 2 <= sizes[0] * inputs <= size * 2
