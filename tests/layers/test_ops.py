"""Norms, gelu, softmax, rotary positions and attention against hand-sized literals and the second spelling."""

import math
import tracemalloc

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from npgemma.layers import ops
from npgemma.layers.activations import geglu, gelu, softmax
from npgemma.layers.attention import attend, attention_blocks
from npgemma.layers.norms import LayerNorm, RMSNorm, layer_norm, rms_norm
from npgemma.layers.rope import rope
from npgemma.layers.taps import Recorder

# Two spellings in float64 of a formula with some ten roundings, on numbers of size one: 1e-15 was seen.
FLOAT64 = dict(rtol=1e-12, atol=1e-12, strict=True)
# The same in float32, where a rounding is 2^29 times as large: 4e-7 was seen.
FLOAT32 = dict(rtol=5e-6, atol=5e-6, strict=True)

ROWS = arrays(np.float64, array_shapes(min_dims=1, max_dims=3, max_side=6), elements=st.floats(-30, 30, width=32))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def f32(*arrays: np.ndarray) -> list[np.ndarray]:
    return [x.astype(np.float32) for x in arrays]


# layer_norm


def test_layer_norm_of_a_literal() -> None:
    """Mean 3, deviations -2 and 2, variance 4 (over two, not over one); with eps 12 the root is 4."""
    p = LayerNorm(np.array([1.0, 10.0]), np.array([0.0, 1.0]), 12.0)
    np.testing.assert_array_equal(layer_norm(p, np.array([[1.0, 5.0]])), np.array([[-0.5, 6.0]]), strict=True)


def test_layer_norm_of_a_constant_row_is_the_bias() -> None:
    """The variance is 0, and eps keeps the division possible."""
    p = LayerNorm(normal(5), normal(5, seed=1), 1e-6)
    np.testing.assert_array_equal(layer_norm(p, np.full((2, 5), 7.0)), np.stack([p.bias, p.bias]), strict=True)


@given(ROWS, st.sampled_from([1e-6, 1e-2, 1.0]))
def test_layer_norm_is_the_second_spelling(x: np.ndarray, eps: float) -> None:
    p = LayerNorm(normal(x.shape[-1]), normal(x.shape[-1], seed=1), eps)
    # where a row is nearly constant, what is left of x after the mean is taken off counts for 1/sqrt(eps) times as much
    atol = 1e-14 * 30 / math.sqrt(eps)
    np.testing.assert_allclose(
        layer_norm(p, x), oracle.layer_norm(x, p.weight, p.bias, eps), rtol=1e-12, atol=atol, strict=True
    )


@given(st.integers(2, 9), st.floats(-100, 100, width=32), st.floats(0.5, 50, width=32))
def test_layer_norm_forgets_shift_and_scale(width: int, shift: float, scale: float) -> None:
    """With next to no eps: a row and the same row in other units come out alike."""
    p = LayerNorm(np.ones(width), np.zeros(width), 1e-30)
    x = normal(3, width)
    # the shift costs digits: 100 / scale of them
    np.testing.assert_allclose(layer_norm(p, x * scale + shift), layer_norm(p, x), rtol=1e-10, atol=1e-10, strict=True)


def test_layer_norm_survives_a_large_mean_in_float32() -> None:
    """mean(x^2) - mean(x)^2 has no digit left at a mean of 1000: float32 squares are off by 0.1, the variance is 1."""
    p = LayerNorm(*f32(np.ones(64), np.zeros(64)), 1e-6)
    x = (normal(4, 64) + 1000).astype(np.float32)
    expected = oracle.layer_norm(x.astype(np.float64), p.weight, p.bias, 1e-6).astype(np.float32)
    # numbers near 1000 are stored to 3e-5, and the mean of them is no better
    np.testing.assert_allclose(layer_norm(p, x), expected, rtol=0, atol=1e-4, strict=True)


# rms_norm


def test_rms_norm_of_a_literal() -> None:
    """Mean square (9 + 25) / 2 = 17; with eps 8 the root is 5. A stored weight of 0 multiplies by one."""
    p = RMSNorm(np.array([0.0, 1.0]), 8.0)
    np.testing.assert_array_equal(rms_norm(p, np.array([[3.0, 5.0]])), np.array([[0.6, 2.0]]), strict=True)


def test_rms_norm_of_nothing_is_nothing() -> None:
    np.testing.assert_array_equal(rms_norm(RMSNorm(normal(5), 1e-6), np.zeros((2, 5))), np.zeros((2, 5)), strict=True)


@given(ROWS, st.sampled_from([1e-6, 1e-2, 1.0]))
def test_rms_norm_is_the_second_spelling(x: np.ndarray, eps: float) -> None:
    p = RMSNorm(normal(x.shape[-1]), eps)
    np.testing.assert_allclose(rms_norm(p, x), oracle.rms_norm(x, p.weight, eps), **FLOAT64)


@given(st.integers(1, 9), st.floats(0.0625, 64, width=32))
def test_rms_norm_forgets_scale_but_not_shift(width: int, scale: float) -> None:
    p, x = RMSNorm(np.zeros(width), 1e-30), normal(3, width)
    np.testing.assert_allclose(rms_norm(p, x * scale), rms_norm(p, x), **FLOAT64)
    np.testing.assert_allclose(np.square(rms_norm(p, x)).mean(-1), np.ones(3), **FLOAT64)
    assert np.abs(rms_norm(p, x + 3) - rms_norm(p, x)).max() > 0.1


# gelu


def test_gelu_of_literals_is_the_tanh_form() -> None:
    """At 1 the tanh form gives 0.841192, the exact one 0.841345, the sigmoid one 0.845796."""
    expected = np.array([0.0, 0.841192, -0.158808, 1.954598])
    np.testing.assert_allclose(gelu(np.array([0.0, 1.0, -1.0, 2.0])), expected, rtol=0, atol=5e-7, strict=True)


@given(ROWS)
def test_gelu_is_the_second_spelling(x: np.ndarray) -> None:
    np.testing.assert_allclose(gelu(x), oracle.gelu(x), **FLOAT64)


@given(ROWS)
def test_gelu_of_x_and_of_minus_x_differ_by_x(x: np.ndarray) -> None:
    np.testing.assert_allclose(gelu(x) - gelu(-x), x, **FLOAT64)


def test_gelu_of_large_numbers_is_themselves_or_zero() -> None:
    x = np.array([-1000.0, 1000.0], np.float32)
    np.testing.assert_array_equal(gelu(x), np.array([0, 1000], np.float32), strict=True)


# geglu


def test_geglu_of_literals_gates_the_second_with_the_first() -> None:
    """gelu(1) = 0.841192 and gelu(2) = 1.954598; the other way round it would be other numbers."""
    y = geglu(np.array([1.0, 2.0, 0.0]), np.array([10.0, -1.0, 7.0]))
    np.testing.assert_allclose(y, np.array([8.41192, -1.954598, 0.0]), rtol=0, atol=5e-6, strict=True)


@given(ROWS)
def test_geglu_is_the_second_spelling(x: np.ndarray) -> None:
    up = normal(*x.shape)
    np.testing.assert_allclose(geglu(x, up), oracle.gelu(x) * up, **FLOAT64)


# a block of rows at a time


def blocked(x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each operation that works on rows in blocks, on x: what it gives, and what the second spelling does."""
    wide = x.astype(np.float64)
    weight, bias, up = f32(normal(x.shape[-1]), normal(x.shape[-1], seed=1), normal(*x.shape, seed=2))
    return [
        (layer_norm(LayerNorm(weight, bias, 1e-6), x), oracle.layer_norm(wide, weight, bias, 1e-6)),
        (rms_norm(RMSNorm(weight, 1e-6), x), oracle.rms_norm(wide, weight.astype(np.float64), 1e-6)),
        (gelu(x), oracle.gelu(wide)),
        (geglu(x, up.astype(x.dtype)), oracle.gelu(wide) * up),
        (geglu(up.astype(x.dtype), x), oracle.gelu(up.astype(np.float64)) * wide),
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("numbers", [1, 7, 14, 20, 34, 35, 1000])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (4, 3, 7), (2, 0, 7), (2, 1, 3, 7)])
def test_no_edge_of_a_block_of_rows_shows(
    shape: tuple[int, ...], numbers: int, dtype: str, use_threads, monkeypatch
) -> None:
    """Less than a row at a time, a row, several and a rest, all; of one axis and of more, empty too."""
    use_threads(2)
    monkeypatch.setattr(ops, "NUMBERS", numbers)
    for y, expected in blocked(normal(*shape, seed=3).astype(dtype)):
        assert y.dtype == dtype
        oracle.assert_agrees(y, expected)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(1, 0, 2),
        lambda x: x.transpose(2, 1, 0),
        lambda x: x[:, :, ::2],
        lambda x: x[::-1],
        lambda x: x[1].T,
        lambda x: np.broadcast_to(x[:1], (5, *x.shape[1:])),
    ],
    ids=["axes changed", "backwards axes", "every other", "backwards", "transposed", "repeated"],
)
def test_rows_in_blocks_need_not_be_contiguous(view, monkeypatch) -> None:
    """A tap may hand back another library's array, in whatever order that keeps it."""
    monkeypatch.setattr(ops, "NUMBERS", 20)
    for y, expected in blocked(view(normal(4, 3, 6, seed=3))):
        oracle.assert_agrees(y, expected)


def test_blocks_of_rows_leave_their_arguments_alone(monkeypatch) -> None:
    monkeypatch.setattr(ops, "NUMBERS", 20)
    x = normal(5, 7)
    x.setflags(write=False)
    for y, _ in blocked(x):
        assert not np.shares_memory(y, x)
    np.testing.assert_array_equal(x, normal(5, 7), strict=True)


def test_a_number_that_is_none_raises_in_whichever_block_it_is(use_threads, monkeypatch) -> None:
    use_threads(2)
    monkeypatch.setattr(ops, "NUMBERS", 7)
    x = normal(20, 7)
    x[13, 3] = np.inf
    with pytest.raises(FloatingPointError):
        layer_norm(LayerNorm(np.ones(7), np.zeros(7), 1e-6), x)


# softmax


def test_softmax_of_a_literal() -> None:
    """exp of these is 1, 2 and 5, of eight."""
    x = np.log(np.array([[1.0, 2.0, 5.0]]))
    np.testing.assert_allclose(softmax(x), np.array([[0.125, 0.25, 0.625]]), **FLOAT64)


@given(ROWS)
def test_softmax_is_the_second_spelling_and_sums_to_one(x: np.ndarray) -> None:
    np.testing.assert_allclose(softmax(x), oracle.softmax(x), **FLOAT64)
    np.testing.assert_allclose(softmax(x).sum(-1), np.ones(x.shape[:-1]), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_gives_minus_infinity_exactly_nothing(dtype: str) -> None:
    """And everything else what it would have had without."""
    x = np.array([[1.0, -np.inf, 3.0, -np.inf], [-np.inf, 1.0, -np.inf, 3.0]], dtype)
    rest = softmax(np.array([1.0, 3.0], dtype))
    expected = np.zeros((2, 4), dtype)
    expected[0, ::2] = expected[1, 1::2] = rest
    np.testing.assert_array_equal(softmax(x), expected, strict=True)


def test_softmax_of_huge_scores_does_not_overflow() -> None:
    x = np.array([1e30, -1e30, 1e30], np.float32)
    np.testing.assert_array_equal(softmax(x), np.array([0.5, 0, 0.5], np.float32), strict=True)


def test_softmax_of_a_row_of_nothing_is_refused() -> None:
    """NaN is not made out of a row that sees nothing without a floating-point error."""
    with pytest.raises(FloatingPointError):
        softmax(np.full(3, -np.inf))


def test_softmax_leaves_the_scores_alone() -> None:
    x = np.array([1.0, 2.0])
    softmax(x)
    np.testing.assert_array_equal(x, np.array([1.0, 2.0]), strict=True)


# rope


def test_rope_of_a_literal() -> None:
    """Theta 16, H = 4: pair 0 (numbers 0 and 2) turns by the position, pair 1 (numbers 1 and 3) by a quarter of it."""
    x = np.array([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    expected = np.array([[[math.cos(2), 0, math.sin(2), 0], [0, -math.sin(0.5), 0, math.cos(0.5)]]])
    np.testing.assert_allclose(rope(x, np.array([2]), 16.0), expected, **FLOAT64)


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.sampled_from([1.0, 100.0, 10000.0]), st.integers(0, 99)
)
def test_rope_is_the_second_spelling(rows: int, heads: int, half: int, theta: float, start: int) -> None:
    """Complex numbers, position by position; positions need be neither in order nor different."""
    x = normal(rows, heads, 2 * half, seed=start)
    positions = np.random.default_rng(start).integers(0, 200, rows)
    np.testing.assert_allclose(rope(x, positions, theta), oracle.rope(x, positions, theta), **FLOAT64)


def test_rope_at_position_nought_changes_no_bit() -> None:
    x = normal(2, 3, 10).astype(np.float32)
    np.testing.assert_array_equal(rope(x, np.array([0, 0]), 10000.0), x, strict=True)


def test_rope_keeps_the_length_of_every_pair() -> None:
    x = normal(4, 3, 10)
    turned = rope(x, np.array([1, 7, 100, 4000]), 10000.0)
    for pairs in (x, turned):
        np.testing.assert_allclose(
            np.hypot(pairs[..., :5], pairs[..., 5:]), np.hypot(x[..., :5], x[..., 5:]), **FLOAT64
        )


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 500))
def test_products_of_turned_rows_depend_on_the_distance_alone(one: int, other: int, shift: int) -> None:
    q, k = normal(1, 1, 10), normal(1, 1, 10, seed=1)

    def product(shift: int) -> float:
        return np.vdot(rope(q, np.array([one + shift]), 10000.0), rope(k, np.array([other + shift]), 10000.0))

    np.testing.assert_allclose(product(shift), product(0), rtol=0, atol=1e-11)


def test_rope_is_as_good_at_position_4000_as_at_4_in_float32() -> None:
    """Angles of float32 would be off by 1e-4 there. What is left is the rounding of cos, sin and three operations."""
    x = normal(2, 1, 10).astype(np.float32)
    positions = np.array([4, 4000])
    expected = oracle.rope(x, positions, 10000.0).astype(np.float32)
    np.testing.assert_allclose(rope(x, positions, 10000.0), expected, **FLOAT32)
    assert np.abs(rope(x, positions, 10000.0) - expected).max() < 1e-6


# attend


def test_attend_of_a_literal() -> None:
    """Products 0 and 2 ln 3, over sqrt(4): scores 0 and ln 3, probabilities a quarter and three quarters."""
    q = np.array([[[2.0, 0, 0, 0]]])
    keys = np.array([[[0.0, 0, 0, 0]], [[math.log(3), 0, 0, 0]]])
    values = np.array([[[4.0, 0, 0, 8]], [[8.0, 0, 0, 0]]])
    expected = np.array([[[7.0, 0, 0, 2]]])
    np.testing.assert_allclose(attend(q, keys, values, np.ones((1, 2), bool)), expected, **FLOAT64)


def test_query_heads_that_stand_together_share_a_key_head() -> None:
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
def test_attend_is_the_second_spelling(inputs) -> None:
    """Any number of query heads to a key head, any mask that leaves each row something to see."""
    np.testing.assert_allclose(attend(*inputs), oracle.attend(*inputs), **FLOAT64)


@given(attention_inputs())
def test_attend_in_float32_is_the_second_spelling_to_float32(inputs) -> None:
    *tensors, mask = inputs
    tensors = f32(*tensors)
    np.testing.assert_allclose(attend(*tensors, mask), oracle.attend(*tensors, mask).astype(np.float32), **FLOAT32)


def test_what_is_masked_changes_no_bit() -> None:
    """Not even if it is enormous: its probability is exactly 0."""
    q, keys, values = normal(2, 6, 10), normal(3, 2, 10, seed=1), normal(3, 2, 10, seed=2)
    mask = np.array([[True, False, True], [True, True, False]])
    y = attend(q, keys, values, mask)
    keys[1], values[1] = 1e100, -1e100
    np.testing.assert_array_equal(attend(q, keys, values, mask)[0], y[0], strict=True)
    assert np.abs(attend(q, keys, values, mask)[1] - y[1]).max() > 1


@given(attention_inputs(), st.randoms())
def test_the_order_of_what_is_seen_does_not_matter(inputs, random) -> None:
    q, keys, values, mask = inputs
    order = random.sample(range(len(keys)), len(keys))
    np.testing.assert_allclose(
        attend(q, keys[order], values[order], mask[:, order]), attend(q, keys, values, mask), **FLOAT64
    )


def test_a_row_that_sees_nothing_is_refused() -> None:
    with pytest.raises(FloatingPointError):
        attend(normal(2, 1, 2), normal(1, 1, 2), normal(1, 1, 2), np.array([[True], [False]]))


def test_attend_taps_scores_before_the_mask_and_probabilities_after() -> None:
    """[heads, rows, seen] all of them, head by head as the queries have them."""
    q, keys, values = normal(3, 6, 10), normal(4, 2, 10, seed=1), normal(4, 2, 10, seed=2)
    mask = np.tri(3, 4, 1, bool)
    taps = Recorder()
    attend(q, keys, values, mask, taps)
    scores = np.einsum("tnh,snh->nts", q, keys.repeat(3, 1)) / math.sqrt(10)
    np.testing.assert_allclose(taps["dots"], scores * math.sqrt(10), **FLOAT64)
    np.testing.assert_allclose(taps["scores"], scores, **FLOAT64)
    probs = oracle.softmax(np.where(mask, scores, -np.inf))
    np.testing.assert_allclose(taps["exp"], probs / probs.max(-1, keepdims=True), **FLOAT64)
    np.testing.assert_allclose(taps["probs"], probs, **FLOAT64)
    assert list(taps) == ["dots", "scores", "exp", "probs"]


@pytest.mark.parametrize("name", ["dots", "scores", "probs"])
def test_a_tap_that_replaces_changes_what_attend_returns(name: str) -> None:
    """Uniform scores, or uniform probabilities, make every row the mean of the values."""
    values = normal(4, 1, 10)

    def level(tapped: str, x: np.ndarray) -> np.ndarray:
        return np.full_like(x, 0.25) if tapped == name else x

    y = attend(normal(2, 1, 10), normal(4, 1, 10, seed=1), values, np.ones((2, 4), bool), level)
    np.testing.assert_allclose(y, np.stack([values.mean(0)] * 2), **FLOAT64)


def attention_of(key_heads: int, rows: int = 5, seen: int = 9, dtype: str = "float64") -> list[np.ndarray]:
    """Six query heads of width ten; every row sees itself and what the mask happens to let it see."""
    tensors = normal(rows, 6, 10), normal(seen, key_heads, 10, seed=1), normal(seen, key_heads, 10, seed=2)
    mask = normal(rows, seen, seed=3) > 0
    mask[np.arange(rows), np.arange(rows) % seen] = True
    return [*(x.astype(dtype) for x in tensors), mask]


def cut(patch: pytest.MonkeyPatch, scores: int) -> None:
    """From here on attention works on as many scores at once."""
    patch.setattr(ops, "MOST_SCORES", scores)
    patch.setattr(ops, "FEWEST_SCORES", scores)


# Below one row of scores, about a row, a key head, two of them, and all; 5 rows of 9 scores are 45 a query head.
SCORES = [1, 9, 20, 27, 45, 60, 90, 100, 135, 200, 270, 10**6]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("key_heads", [1, 2, 3, 6])
@pytest.mark.parametrize("scores", SCORES)
def test_attend_in_blocks_is_the_second_spelling(
    scores: int, key_heads: int, dtype: str, use_threads, monkeypatch
) -> None:
    """Some rows of a key head at a time, or some key heads: with one for all queries, one for each, and between."""
    use_threads(2)
    cut(monkeypatch, scores)
    *tensors, mask = attention_of(key_heads, dtype=dtype)
    expected = oracle.attend(*(x.astype(np.float64) for x in tensors), mask)
    oracle.assert_agrees(attend(*tensors, mask), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("scores", SCORES)
def test_a_recorder_changes_no_bit_of_attention_in_blocks(scores: int, key_heads: int, dtype: str, monkeypatch) -> None:
    """And records all scores and probabilities, those of every block in their place."""
    cut(monkeypatch, scores)
    q, keys, values, mask = attention_of(key_heads, dtype=dtype)
    taps = Recorder()
    y = attend(q, keys, values, mask, taps)
    np.testing.assert_array_equal(y, attend(q, keys, values, mask), strict=True)
    expected = np.einsum("tnh,snh->nts", q.astype(np.float64), keys.repeat(6 // key_heads, 1)) / math.sqrt(10)
    oracle.assert_agrees(taps["scores"], expected)
    oracle.assert_agrees(taps["probs"], oracle.softmax(np.where(mask, expected, -np.inf)))


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("scores", [20, 100])
def test_the_number_of_threads_changes_no_bit_of_attention(
    scores: int, key_heads: int, use_threads, monkeypatch
) -> None:
    cut(monkeypatch, scores)
    results = []
    for count in (1, 2, 3):
        use_threads(count)
        results.append(attend(*attention_of(key_heads, rows=50, seen=60, dtype="float32")))
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0], strict=True)


@given(*[st.integers(1, 8)] * 2, st.integers(1, 40), st.integers(1, 40), st.integers(1, 3000), st.integers(1, 3000))
def test_attention_blocks_cover_every_row_of_every_head_exactly_once(
    groups: int, per_group: int, rows: int, seen: int, one: int, other: int
) -> None:
    """None has more scores than it should, a single row of a key head aside, which is the least there is; and there are
    four for the cores to share, unless they would be too small.
    """
    fewest, most = sorted((one, other))
    covered = np.zeros((groups, per_group, rows), int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "MOST_SCORES", most)
        patch.setattr(ops, "FEWEST_SCORES", fewest)
        blocks = attention_blocks(groups, per_group, rows, seen)
    for block in blocks:
        covered[block] += 1
        assert covered[block].size * seen <= max(most, per_group * seen)
    assert np.all(covered == 1)
    assert len(blocks) >= 4 or covered.size * seen // 4 < max(fewest, per_group * seen)


def test_attention_to_many_rows_needs_little_memory(use_threads) -> None:
    """All 16 x 2048 x 2048 scores would be 256 MB in float32, and softmax makes more of them. A block has 4 MB; each of
    two threads has some four of it at a time.
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


# all of them


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_of_the_first_argument_is_kept(dtype: str) -> None:
    """Though vectors of weights are always float32, and positions whole numbers."""
    x, (weight, bias) = normal(2, 3, 4).astype(dtype), f32(normal(4), normal(4))
    results = [
        layer_norm(LayerNorm(weight, bias, 1e-6), x),
        rms_norm(RMSNorm(weight, 1e-6), x),
        gelu(x),
        geglu(x, x),
        softmax(x),
        rope(x, np.arange(2), 10000.0),
        attend(x, x, x, np.ones((2, 2), bool)),
    ]
    assert [y.dtype for y in results] == [x.dtype] * len(results)
