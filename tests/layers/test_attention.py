"""Attention: the formula, its taps, and the blocks that the scores are cut into."""

import math
import tracemalloc

import numpy as np
import one_page
import pytest
from agreement import FLOAT32, FLOAT64, assert_agrees, f32, normal
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from npgemma.layers.attention import FEWEST_SCORES, attend, score_blocks
from npgemma.layers.taps import Recorder

TAPS = ["dots", "scores", "exp", "probs"]


def test_attend_of_a_literal() -> None:
    """Products 0 and 2 ln 3, over sqrt(4): scores 0 and ln 3, probabilities a quarter and three quarters."""
    q = np.array([[[2.0, 0, 0, 0]]])
    keys = np.array([[[0.0, 0, 0, 0]], [[math.log(3), 0, 0, 0]]])
    values = np.array([[[4.0, 0, 0, 8]], [[8.0, 0, 0, 0]]])
    expected = np.array([[[7.0, 0, 0, 2]]])
    np.testing.assert_allclose(attend(q, keys, values, np.ones((1, 2), bool)), expected, **FLOAT64)


def test_neighbouring_query_heads_share_a_key_head() -> None:
    """Six query heads, two key heads, one row seen: heads 0 to 2 read the first value and 3 to 5 the second."""
    values = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    y = attend(normal(3, 6, 2), normal(1, 2, 2), values, np.ones((3, 1), bool))
    np.testing.assert_array_equal(y, np.tile(values[0].repeat(3, 0), (3, 1, 1)), strict=True)


@st.composite
def attention_inputs(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rows, seen, groups, shared = (draw(st.integers(1, 4)) for _ in range(4))
    width = draw(st.integers(1, 6))
    q = normal(rows, groups * shared, width)
    keys, values = normal(seen, groups, width, seed=1), normal(seen, groups, width, seed=2)
    mask = draw(arrays(bool, (rows, seen)))
    mask[np.arange(rows), draw(arrays(np.int64, rows, elements=st.integers(0, seen - 1)))] = True  # each sees one
    return q, keys, values, mask


@given(attention_inputs())
def test_attend_agrees_with_the_second_spelling(inputs) -> None:
    """Any number of query heads to a key head, any mask that leaves each row something to see."""
    *tensors, mask = inputs
    expected = one_page.attend(*tensors, mask)
    np.testing.assert_allclose(attend(*tensors, mask), expected, **FLOAT64)
    rounded = one_page.attend(*(x.astype(np.float64) for x in f32(*tensors)), mask).astype(np.float32)
    np.testing.assert_allclose(attend(*f32(*tensors), mask), rounded, **FLOAT32)


def test_a_masked_row_changes_no_bit() -> None:
    """Not even if it is enormous: its probability is exactly 0."""
    q, keys, values = normal(2, 6, 10), normal(3, 2, 10, seed=1), normal(3, 2, 10, seed=2)
    mask = np.array([[True, False, True], [True, True, False]])
    y = attend(q, keys, values, mask)
    keys[1], values[1] = 1e100, -1e100
    np.testing.assert_array_equal(attend(q, keys, values, mask)[0], y[0], strict=True)
    assert np.abs(attend(q, keys, values, mask)[1] - y[1]).max() > 1


@given(attention_inputs(), st.randoms())
def test_the_order_of_the_rows_seen_does_not_matter(inputs, random) -> None:
    q, keys, values, mask = inputs
    order = random.sample(range(len(keys)), len(keys))
    y = attend(q, keys[order], values[order], mask[:, order])
    np.testing.assert_allclose(y, attend(q, keys, values, mask), **FLOAT64)


def test_a_row_that_sees_nothing_raises() -> None:
    with pytest.raises(FloatingPointError):
        attend(normal(2, 1, 2), normal(1, 1, 2), normal(1, 1, 2), np.array([[True], [False]]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attend_keeps_the_dtype(dtype: str) -> None:
    x = normal(2, 3, 4).astype(dtype)
    assert attend(x, x, x, np.ones((2, 2), bool)).dtype == dtype


# taps


def test_attend_taps_scores_before_the_mask_and_probabilities_after() -> None:
    """Whole tensors [N T S], head by head in the order of the queries."""
    q, keys, values = normal(3, 6, 10), normal(4, 2, 10, seed=1), normal(4, 2, 10, seed=2)
    mask = np.tri(3, 4, 1, bool)
    taps = Recorder()
    attend(q, keys, values, mask, taps)
    scores = np.einsum("tnh,snh->nts", q, keys.repeat(3, 1)) / math.sqrt(10)
    probs = one_page.softmax(np.where(mask, scores, -np.inf))
    np.testing.assert_allclose(taps["dots"], scores * math.sqrt(10), **FLOAT64)
    np.testing.assert_allclose(taps["scores"], scores, **FLOAT64)
    np.testing.assert_allclose(taps["exp"], probs / probs.max(-1, keepdims=True), **FLOAT64)
    np.testing.assert_allclose(taps["probs"], probs, **FLOAT64)
    assert list(taps.axes.items()) == [(name, "N T S") for name in TAPS]


@pytest.mark.parametrize("name", ["dots", "scores", "probs"])
def test_a_tap_that_replaces_a_tensor_changes_the_result(name: str) -> None:
    """Uniform products, scores or probabilities make every row the mean of the values."""
    values = normal(4, 1, 10)

    def level(tapped: str, x: np.ndarray, axes: str) -> np.ndarray:
        return np.full_like(x, 0.25) if tapped == name else x

    y = attend(normal(2, 1, 10), normal(4, 1, 10, seed=1), values, np.ones((2, 4), bool), level)
    np.testing.assert_allclose(y, np.stack([values.mean(0)] * 2), **FLOAT64)


def test_the_sum_of_the_exponentials_is_taken_before_the_tap() -> None:
    """A kernel of attention rounds the exponentials for the product with the values, and adds them up unrounded.

    So halving them halves the result; had they been summed afterwards, nothing would change.
    """
    inputs = normal(2, 1, 10), normal(4, 1, 10, seed=1), normal(4, 1, 10, seed=2), np.ones((2, 4), bool)
    y = attend(*inputs, lambda name, x, axes: x / 2 if name == "exp" else x)
    np.testing.assert_array_equal(y, attend(*inputs) / 2, strict=True)


# blocks


def large(key_heads: int, dtype: str = "float32") -> list[np.ndarray]:
    """Six query heads and 150 x 151 scores in each: three blocks, of rows or of key heads, and of unequal sizes."""
    rows, seen = 150, 151
    tensors = normal(rows, 6, 10), normal(seen, key_heads, 10, seed=1), normal(seen, key_heads, 10, seed=2)
    mask = normal(rows, seen, seed=3) > 0
    mask[np.arange(rows), np.arange(rows)] = True
    assert len(score_blocks(key_heads, 6 // key_heads, rows, seen)) > 2
    return [*(x.astype(dtype) for x in tensors), mask]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_attend_in_blocks_agrees_with_the_second_spelling(key_heads: int, dtype: str) -> None:
    *tensors, mask = large(key_heads, dtype)
    assert_agrees(attend(*tensors, mask), one_page.attend(*(x.astype(np.float64) for x in tensors), mask))


@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_a_recorder_changes_no_bit_of_attention_in_blocks(key_heads: int) -> None:
    """And records all scores and probabilities, those of every block in their place."""
    q, keys, values, mask = large(key_heads)
    taps = Recorder()
    y = attend(q, keys, values, mask, taps)
    np.testing.assert_array_equal(y, attend(q, keys, values, mask), strict=True)
    wide = q.astype(np.float64), keys.repeat(6 // key_heads, 1).astype(np.float64)
    scores = np.einsum("tnh,snh->nts", *wide) / math.sqrt(10)
    assert_agrees(taps["scores"], scores)
    assert_agrees(taps["probs"], one_page.softmax(np.where(mask, scores, -np.inf)))


@pytest.mark.parametrize("key_heads", [1, 6])
def test_a_tap_that_replaces_a_tensor_changes_every_block(key_heads: int) -> None:
    """Twice the probabilities are twice the result, to the bit: they are powers of two apart."""
    inputs = large(key_heads)
    y = attend(*inputs, lambda name, x, axes: x * 2 if name == "probs" else x)
    np.testing.assert_array_equal(y, 2 * attend(*inputs), strict=True)


@pytest.mark.parametrize("tap", [None, Recorder()], ids=["silent", "recorded"])
@pytest.mark.parametrize("key_heads", [1, 6])
def test_the_number_of_threads_changes_no_bit(key_heads: int, tap, use_threads) -> None:
    results = []
    for count in (1, 2, 3):
        use_threads(count)
        results.append(attend(*large(key_heads), *([tap] if tap is not None else [])))
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0], strict=True)


def test_an_error_in_a_tap_is_raised() -> None:
    def failing(name: str, x: np.ndarray, axes: str) -> np.ndarray:
        raise KeyError(name)

    with pytest.raises(KeyError, match="dots"):
        attend(*large(1), failing)


@given(*[st.integers(1, 8)] * 2, st.integers(1, 40), st.integers(1, 40), st.integers(1, 3000), st.integers(1, 3000))
def test_score_blocks_cover_every_row_of_every_head_exactly_once(
    key_heads: int, queries: int, rows: int, seen: int, one: int, other: int
) -> None:
    """No block has more scores than `most`, unless it is a single row of one key head, the least there is. There are at
    least four blocks for the cores to share, unless they would be too small.
    """
    fewest, most = sorted((one, other))
    covered = np.zeros((key_heads, queries, rows), int)
    blocks = score_blocks(key_heads, queries, rows, seen, fewest, most)
    for block in blocks:
        covered[block] += 1
        assert covered[block].size * seen <= max(most, queries * seen)
    assert np.all(covered == 1)
    assert len(blocks) >= 4 or covered.size * seen // 4 < max(fewest, queries * seen)


def test_few_scores_are_one_block() -> None:
    assert len(score_blocks(2, 4, 10, FEWEST_SCORES // 80)) == 1


def test_attention_to_many_rows_needs_little_memory(use_threads) -> None:
    """All 16 x 2048 x 2048 scores would be 256 MB in float32, and softmax makes more of them. A block has 4 MB, and
    each of two threads holds about four arrays of that size.
    """
    use_threads(2)
    q, key = normal(2048, 16, 4).astype(np.float32), normal(2048, 1, 4).astype(np.float32)
    mask = np.tri(2048, dtype=bool)
    tracemalloc.start()
    try:
        attend(q, key, key, mask)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
