"""Products with large packed matrices, which are cut into blocks, pieces and pairs of columns."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from host_threads import finish
from hypothesis import given
from hypothesis import strategies as st
from products import COMPUTED, STORED, assert_close_to_the_dot_product, envelope, stored, whole_numbers

from npgemma.layers.bits import pack, widen
from npgemma.layers.linear import linear
from npgemma.layers.packed import (
    BLOCK,
    FEW_ROWS,
    LARGE_BLOCK,
    PIECE,
    TALL,
    TILED_ROWS,
    large_blocks,
    multiply,
    multiply_back,
    multiply_in_pieces,
    outer_products,
    piece_count,
    row_blocks,
    scratch,
)

# More than 2^18 elements, so four blocks of rows, the last one smaller; one row, a few and many.
OUTPUTS, ROWS = 610, [1, 5, FEW_ROWS + 1]


def large(inputs: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of whole numbers, and the same as stored."""
    numbers = whole_numbers(np.random.default_rng(1), OUTPUTS, inputs)
    assert len(row_blocks(numbers, BLOCK)) == len(row_blocks(numbers, LARGE_BLOCK)) == 4
    return numbers, stored(numbers, dtype)


@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("rows", [0, *ROWS])
@pytest.mark.parametrize(("inputs", "dtype"), [*((514, dtype) for dtype in STORED), (513, "bfloat16")])
def test_a_product_in_blocks_is_exact_for_whole_numbers(inputs: int, dtype: str, rows: int, computed: str) -> None:
    """In every stored dtype, for even and odd widths."""
    numbers, w = large(inputs, dtype)
    x = whole_numbers(np.random.default_rng(0), rows, inputs)
    np.testing.assert_array_equal(linear(x.astype(computed), w), (x @ numbers.T).astype(computed), strict=True)


@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("outputs", "inputs"), [(513, 4200), (4200, 513), (610, 610), (64, 40_000)])
def test_products_of_the_backward_pass_are_exact_for_whole_numbers(
    outputs: int, inputs: int, dtype: str, computed: str
) -> None:
    """In several blocks, of columns of a wide matrix and of rows of a tall one."""
    rng = np.random.default_rng(0)
    numbers = whole_numbers(rng, outputs, inputs)
    x, dy = whole_numbers(rng, 40, inputs), whole_numbers(rng, 40, outputs)
    dx = multiply_back(dy.astype(computed), stored(numbers, dtype))
    np.testing.assert_array_equal(dx, (dy @ numbers).astype(computed), strict=True)
    dw = outer_products(dy.astype(computed), x.astype(computed))
    np.testing.assert_array_equal(dw, (dy.T @ x).astype(computed), strict=True)


@pytest.mark.parametrize("computed", COMPUTED)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("inputs", [513, 514])
def test_a_product_in_blocks_is_within_the_bound_of_a_dot_product(inputs: int, rows: int, computed: str) -> None:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, inputs)).astype(computed)
    w = pack(rng.standard_normal((OUTPUTS, inputs)).astype(np.float32))
    packed, plain = linear(x, w), linear(x, widen(w))
    assert_close_to_the_dot_product(packed, x, widen(w))
    assert_close_to_the_dot_product(plain, x, widen(w))
    assert np.all(np.abs(packed - plain) <= 2 * envelope(x.astype(np.float64), widen(w).astype(np.float64), x.dtype))


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("inputs", [1, 17, 129])
def test_one_block_of_packed_weights_is_multiplied_as_its_widened_copy(rows: int, inputs: int) -> None:
    """To the bit, for odd widths: the same call on the same numbers."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, inputs)).astype(np.float32)
    w = pack(rng.standard_normal((31, inputs)).astype(np.float32))
    np.testing.assert_array_equal(linear(x, w), linear(x, widen(w)), strict=True)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("inputs", [513, 514])
@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_packed_weights_may_start_at_any_byte_of_a_file(offset: int, inputs: int, rows: int) -> None:
    """A safetensors header has any length, so two neighbours need not be an aligned word."""
    numbers, w = large(inputs, "bfloat16")
    file = np.frombuffer(bytes(offset) + w.tobytes(), np.uint8)
    weight = file[offset:].view(np.uint16).reshape(w.shape)
    assert inputs % 2 or weight.view(np.uint32).flags.aligned == (offset == 0)
    x = whole_numbers(np.random.default_rng(0), rows, inputs)
    np.testing.assert_array_equal(linear(x.astype(np.float32), weight), (x @ numbers.T).astype(np.float32), strict=True)


VIEWS = {
    "transposed": lambda w: w.T,
    "every other column": lambda w: w[:, ::2],
    "all but one column": lambda w: w[:, 1:],
    "all but two columns": lambda w: w[:, 1:-1],
    "half the rows": lambda w: w[::2],
    "reversed": lambda w: w[::-1, ::-1],
    "Fortran order": np.asfortranarray,
    "repeated": lambda w: np.broadcast_to(w[:1], (9, w.shape[1])),
}


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("rows", [0, *ROWS])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_weights_need_not_be_contiguous(view, rows: int, dtype: str) -> None:
    """Neighbours in memory are then not neighbours in a row, so pairs of columns must not be used."""
    rng = np.random.default_rng(0)
    w = whole_numbers(rng, 38, 24)
    weight, numbers = view(stored(w, dtype)), view(w)
    x = whole_numbers(rng, rows, numbers.shape[1])
    np.testing.assert_array_equal(linear(x.astype(np.float32), weight), (x @ numbers.T).astype(np.float32), strict=True)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", STORED)
def test_rows_need_not_be_contiguous(dtype: str, rows: int) -> None:
    """The columns of x are taken apart too: here they are every other one, and rows from the last to the first."""
    rng = np.random.default_rng(0)
    x, (numbers, w) = whole_numbers(rng, rows, 1028).astype(np.float32), large(514, dtype)
    for view in (x[:, ::2], x[::-1, 514:], np.asfortranarray(x[:, :514])):
        np.testing.assert_array_equal(linear(view, w), (view @ numbers.T).astype(np.float32), strict=True)


@pytest.mark.parametrize("rows", [1, 7, FEW_ROWS, FEW_ROWS + 1, 100])
@pytest.mark.parametrize(("inputs", "dtype"), [*((514, dtype) for dtype in STORED), (513, "bfloat16")])
def test_neither_the_number_of_threads_nor_repetition_changes_a_bit(
    inputs: int, dtype: str, rows: int, use_threads
) -> None:
    """A reference must give the same result on another machine, and the second time."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((rows, inputs)).astype(np.float32), stored(rng.standard_normal((OUTPUTS, inputs)), dtype)
    results = []
    for count in (1, 1, 2, 2, 3):
        use_threads(count)
        results.append(linear(x, w))
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0], strict=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_result_does_not_share_the_memory_that_weights_are_widened_into(dtype: str) -> None:
    """Threads widen into the same memory again and again."""
    rng = np.random.default_rng(0)
    x, w = whole_numbers(rng, 2, 8).astype(np.float32), stored(whole_numbers(rng, 6, 8), dtype)
    y = linear(x, w)
    kept = y.copy()
    linear(x, stored(whole_numbers(rng, 60, 80)[:, :8].copy(), dtype))
    linear(-x, w)
    np.testing.assert_array_equal(y, kept, strict=True)


def test_threads_widen_into_memory_of_their_own() -> None:
    found = [scratch.words(4)]
    finish(lambda: found.append(scratch.words(4)))
    assert np.shares_memory(found[0], scratch.words(3))
    assert not np.shares_memory(*found)


# pieces


IN_PIECES = {f"pieces of {piece}": partial(multiply_in_pieces, piece=piece) for piece in (1, 8, 100, 1000, PIECE)}


@pytest.mark.parametrize("product", [multiply, *IN_PIECES.values()], ids=["as this processor does", *IN_PIECES])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, TILED_ROWS - 1, TILED_ROWS, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("outputs", [0, 1, 10, 12, 16, 64])
def test_every_way_to_multiply_gives_the_product(
    outputs: int, rows: int, product: Callable[[np.ndarray, np.ndarray, np.ndarray], None]
) -> None:
    """Written to some columns of a larger result, of which no other number is touched."""
    rng = np.random.default_rng(0)
    x, w = whole_numbers(rng, rows, 7).astype(np.float32), whole_numbers(rng, outputs, 7).astype(np.float32)
    y = np.full((rows, outputs + 5), 999, np.float32)
    product(x, w, y[:, 2 : 2 + outputs])
    np.testing.assert_array_equal(y[:, 2 : 2 + outputs], x @ w.T, strict=True)
    assert np.all(y[:, :2] == 999)
    assert np.all(y[:, 2 + outputs :] == 999)


@given(st.integers(0, 10**9), st.integers(1, 10**7))
def test_pieces_are_a_power_of_two_and_as_few_as_possible(multiply_adds: int, piece: int) -> None:
    """Each piece is at most as large as OpenBLAS multiplies in place."""
    count = piece_count(multiply_adds, piece)
    assert count.bit_count() == 1
    assert multiply_adds / count <= piece
    assert count == 1 or multiply_adds / (count // 2) >= piece


# blocks


@given(st.integers(0, 5000), st.integers(1, 50), st.integers(1, 3000))
def test_row_blocks_cover_every_row_exactly_once(outputs: int, inputs: int, block: int) -> None:
    """In order; one block if everything fits, else blocks of a multiple of 16 rows except the last."""
    blocks = row_blocks(np.broadcast_to(np.float32(0), (outputs, inputs)), block, small=block)
    rows = np.arange(outputs)
    np.testing.assert_array_equal(np.concatenate([rows[b] for b in blocks] or [rows]), rows, strict=True)
    if outputs and outputs * inputs <= block:
        assert len(blocks) == 1
    else:
        assert all(len(rows[b]) % 16 == 0 for b in blocks[:-1])
        # not so large that a cache overflows; the least is 16 rows
        assert all(len(rows[b]) * inputs <= max(block, 16 * inputs) * 2 for b in blocks)


@pytest.mark.parametrize("size", [BLOCK, LARGE_BLOCK])
@pytest.mark.parametrize(("outputs", "inputs"), [(257216, 2048), (16384, 2048), (2048, 16384), (4304, 1152)])
def test_blocks_of_the_matrices_of_the_3b_model_are_near_the_wanted_size(outputs: int, inputs: int, size: int) -> None:
    blocks = row_blocks(np.broadcast_to(np.float32(0), (outputs, inputs)), size)
    sizes = [min(b.stop, outputs) - b.start for b in blocks]
    assert sum(sizes) == outputs
    assert size / 2 <= sizes[0] * inputs <= size * 2


@pytest.mark.parametrize(("outputs", "inputs"), [(257216, 2048), (16384, 2048), (2048, 16384), (4304, 1152)])
def test_blocks_for_many_rows_are_large_and_tall(outputs: int, inputs: int) -> None:
    blocks = large_blocks(np.broadcast_to(np.float32(0), (outputs, inputs)))
    assert all(b.stop - b.start >= TALL / 2 for b in blocks)
    assert LARGE_BLOCK / 2 <= (blocks[0].stop - blocks[0].start) * inputs <= max(LARGE_BLOCK, TALL * inputs) * 2
