"""Widened copies of packed weights stay in memory as far as their limit goes, and change no bit of a product."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from npgemma.layers.bits import pack
from npgemma.layers.linear import embed, linear, project, unproject
from npgemma.layers.packed import FEW_ROWS
from npgemma.layers.retained import Copies, retained
from npgemma.layers.shapes import Array

OUTPUTS, INPUTS = 612, 514  # more than one block
COPY = 4 * OUTPUTS * INPUTS  # the bytes of a copy in float32


def stored(seed: int, *shape: int) -> Array:
    return pack(np.random.default_rng(seed).standard_normal(shape, np.float32))


def rows_of(count: int, dtype: str = "float32") -> Array:
    return np.random.default_rng(count).standard_normal((count, INPUTS)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [0, 1, 2, 8, FEW_ROWS, FEW_ROWS + 1])
def test_a_product_with_a_copy_has_the_bits_of_one_without(rows: int, dtype: str) -> None:
    w, copies = stored(0, OUTPUTS, INPUTS), Copies(10 * COPY, steps=0)
    x = rows_of(rows, dtype)
    for _ in range(2):
        y = linear(x, retained(w, copies))
        assert type(y) is np.ndarray
        assert_array_equal(y, linear(x, w), strict=True)
    assert len(copies.arrays) == (rows <= FEW_ROWS)


def test_a_copy_takes_the_place_of_the_stored_matrix() -> None:
    copies, x = Copies(COPY, steps=0), rows_of(1)
    w = retained(stored(0, OUTPUTS, INPUTS), copies)
    y = linear(x, w)
    (copy,) = copies.arrays.values()
    copy *= 2
    assert_array_equal(linear(x, w), 2 * y)


def test_copies_are_made_until_their_limit_is_reached() -> None:
    copies = Copies(2 * COPY, steps=0)
    ws = [stored(seed, OUTPUTS, INPUTS) for seed in range(3)]
    for w in ws:
        assert_array_equal(linear(rows_of(1), retained(w, copies)), linear(rows_of(1), w))
    assert copies.size == 2 * COPY


def test_a_smaller_limit_drops_the_newest_copies() -> None:
    copies = Copies(3 * COPY, steps=0)
    ws = [retained(stored(seed, OUTPUTS, INPUTS), copies) for seed in range(3)]
    before = [linear(rows_of(1), w) for w in ws]
    oldest = next(iter(copies.arrays))
    copies.set_limit(2 * COPY - 1)
    assert list(copies.arrays) == [oldest]
    for w, y in zip(ws, before, strict=True):
        assert_array_equal(linear(rows_of(1), w), y)
    assert copies.size == COPY


@pytest.mark.parametrize("limit", [0, COPY - 1])
def test_below_the_size_of_a_matrix_nothing_is_copied(limit: int) -> None:
    copies = Copies(limit, steps=0)
    linear(rows_of(1), retained(stored(0, OUTPUTS, INPUTS), copies))
    assert not copies.arrays


@pytest.mark.parametrize("steps", [1, 3])
def test_copies_are_made_after_some_steps(steps: int) -> None:
    copies = Copies(COPY, steps)
    w = retained(stored(0, OUTPUTS, INPUTS), copies)
    for _ in range(steps):
        linear(rows_of(1), w)
        assert not copies.arrays
    linear(rows_of(1), w)
    assert copies.size == COPY


def test_heads_share_the_copy_of_their_matrix() -> None:
    copies = Copies(10 * COPY, steps=0)
    w = retained(stored(0, OUTPUTS, INPUTS), copies)
    x = rows_of(2)
    y = linear(x, w)
    assert_array_equal(project(x, w.reshape(4, 153, INPUTS)).reshape(2, -1), y)
    assert_array_equal(unproject(x.reshape(2, 2, 257), w.reshape(OUTPUTS, 2, 257)), y)
    assert copies.size == COPY


def test_parts_of_a_matrix_have_copies_of_their_own() -> None:
    copies, w = Copies(10 * COPY, steps=0), stored(0, OUTPUTS, INPUTS)
    for part in (slice(None), slice(0, 300), slice(300, None)):
        assert_array_equal(linear(rows_of(1), retained(w, copies)[part]), linear(rows_of(1), w[part]))
    assert copies.size == 2 * COPY


@pytest.mark.parametrize("w", [stored(0, 20, 5), np.ones((20, 6), np.float32), np.ones((20, 6), np.float16)])
def test_matrices_that_steps_do_not_widen_in_pairs_are_not_copied(w: Array) -> None:
    copies = Copies(10 * COPY, steps=0)
    x = rows_of(2)[:, : w.shape[1]]
    assert_array_equal(linear(x, retained(w, copies)), linear(x, w), strict=True)
    assert not copies.arrays


def test_embedded_rows_are_plain_arrays() -> None:
    table = retained(stored(0, OUTPUTS, INPUTS), Copies(COPY, steps=0))
    assert type(embed(np.array([3, 3, 1]), table, np.dtype(np.float32))) is np.ndarray


def test_a_matrix_that_can_be_written_to_has_no_copy() -> None:
    """Its numbers may change, and another may take its place in memory."""
    copies = Copies(10 * COPY, steps=0)
    w = retained(stored(0, OUTPUTS, INPUTS), copies).copy()
    before = linear(rows_of(1), w)
    w[...] = 0
    assert before.any()
    assert not linear(rows_of(1), w).any()
    assert not copies.arrays
