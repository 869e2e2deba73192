"""Gemma's parts: caches, attention, MLP, token embeddings and logits; test_gemma_decoder holds the whole decoder."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from agreement import assert_agrees, normal

from npgemma.layers.norms import RMSNorm
from npgemma.layers.rope import rope
from npgemma.layers.taps import Recorder
from npgemma.models.gemma import (
    MLP,
    Attention,
    Cache,
    Decoder,
    Rows,
    Segment,
    attention,
    embed_tokens,
    last_rows,
    logits,
    mlp,
    new_caches,
)

F64 = np.dtype(np.float64)
C = tiny.CONFIG.text
ROWS = Rows(slice(None), np.array([3, 4, 5, 6, 7]), [Segment(slice(0, 5), np.tri(5, dtype=bool))])


def rows(count: int) -> np.ndarray:
    return normal(count, C.hidden_size)


# caches


def test_a_cache_returns_everything_appended_in_order() -> None:
    cache = Cache(5, 2, 3, F64)
    keys, values = np.arange(30.0).reshape(5, 2, 3), -np.arange(30.0).reshape(5, 2, 3)
    for start, end in ((0, 2), (2, 3), (3, 3), (3, 5)):
        seen = cache.append(keys[start:end], values[start:end])
        np.testing.assert_array_equal(seen[0], keys[:end], strict=True)
        np.testing.assert_array_equal(seen[1], values[:end], strict=True)
        assert cache.length == end


def test_a_cache_keeps_its_dtype_and_copies_what_is_appended() -> None:
    cache, row = Cache(2, 1, 1, np.dtype(np.float32)), np.ones((1, 1, 1))
    keys, _ = cache.append(row, row)
    row += 1
    np.testing.assert_array_equal(keys, np.ones((1, 1, 1), np.float32), strict=True)


def test_a_full_cache_refuses_more_rows_and_stays_unchanged() -> None:
    cache = Cache(3, 1, 1, F64)
    cache.append(np.ones((2, 1, 1)), np.ones((2, 1, 1)))
    with pytest.raises(ValueError, match="cache of 3 rows cannot hold 4"):
        cache.append(np.zeros((2, 1, 1)), np.zeros((2, 1, 1)))
    assert cache.length == 2
    keys, _ = cache.append(np.full((1, 1, 1), 2.0), np.zeros((1, 1, 1)))
    np.testing.assert_array_equal(keys, np.array([[[1.0]], [[1.0]], [[2.0]]]), strict=True)


def test_a_copied_cache_grows_separately() -> None:
    cache = Cache(3, 1, 1, F64)
    cache.append(np.ones((1, 1, 1)), np.ones((1, 1, 1)))
    twin = cache.copy()
    twin.append(np.full((1, 1, 1), 2.0), np.zeros((1, 1, 1)))
    keys, _ = cache.append(np.full((2, 1, 1), 3.0), np.zeros((2, 1, 1)))
    np.testing.assert_array_equal(keys.ravel(), np.array([1.0, 3, 3]), strict=True)
    np.testing.assert_array_equal(twin.keys[:2].ravel(), np.array([1.0, 2]), strict=True)


def test_a_cache_that_becomes_another_holds_the_same_rows_and_no_others() -> None:
    cache, other = Cache(3, 1, 1, F64), Cache(5, 1, 1, F64)
    cache.append(np.ones((3, 1, 1)), np.ones((3, 1, 1)))
    other.append(np.full((2, 1, 1), 2.0), np.full((2, 1, 1), 4.0))
    cache.become(other)
    keys, values = cache.append(np.zeros((0, 1, 1)), np.zeros((0, 1, 1)))
    np.testing.assert_array_equal(keys.ravel(), np.array([2.0, 2]), strict=True)
    np.testing.assert_array_equal(values.ravel(), np.array([4.0, 4]), strict=True)


def test_new_caches_are_empty_one_for_each_layer_and_as_wide_as_its_keys(load) -> None:
    made = new_caches(load().text, 7, np.dtype(np.float32))
    assert len({id(cache) for cache in made}) == C.num_hidden_layers
    for cache in made:
        assert cache.length == 0
        assert cache.keys.shape == cache.values.shape == (7, C.num_key_value_heads, C.head_dim)
        assert cache.keys.dtype == cache.values.dtype == np.float32


# rows


def test_last_rows_are_the_last_row_of_each_sequence() -> None:
    """Two new rows of a sequence with one cached, and three of another: rows 1 and 4, each a segment of its own."""
    masks = np.array([[1, 1, 0], [1, 0, 1]], bool), np.tri(3, dtype=bool)
    segments = [Segment(slice(0, 2), masks[0]), Segment(slice(2, 5), masks[1])]
    last = last_rows(Rows(slice(None), np.array([7, 8, 0, 1, 2]), segments))
    np.testing.assert_array_equal(last.which, [1, 4])
    np.testing.assert_array_equal(last.positions, [8, 2])
    assert [segment.rows for segment in last.segments] == [slice(0, 1), slice(1, 2)]
    for segment, mask in zip(last.segments, masks, strict=True):
        np.testing.assert_array_equal(segment.mask, mask[-1:], strict=True)


# attention


def test_attention_without_queries_gives_the_mean_of_what_may_be_seen() -> None:
    """One head of two numbers: values are (x, 2x), written as 10 times the first and once the second, so 12 x.

    Row 0 sees itself, row 1 both.
    """
    p = Attention(
        q=np.zeros((1, 2, 1)),
        k=np.ones((1, 2, 1)),
        v=np.array([[[1.0], [2.0]]]),
        theta=10000.0,
        o=np.array([[[10.0, 1.0]]]),
    )
    two = Rows(slice(None), np.arange(2), [Segment(slice(0, 2), np.array([[True, False], [True, True]]))])
    y = attention(p, np.array([[1.0], [5.0]]), two, two, [Cache(2, 1, 2, F64)])
    np.testing.assert_array_equal(y, np.array([[12.0], [36.0]]), strict=True)


def test_attention_caches_rotated_keys_and_plain_values(load) -> None:
    """So a key is rotated once, by its own position."""
    p, x, taps = load().text.blocks[0].attn, rows(5), Recorder()
    cache = Cache(9, C.num_key_value_heads, C.head_dim, F64)
    attention(p, x, ROWS, ROWS, [cache], taps)
    np.testing.assert_array_equal(cache.keys[:5], rope(taps["k"], ROWS.positions, C.rope_theta), strict=True)
    np.testing.assert_array_equal(cache.values[:5], taps["v"], strict=True)
    assert cache.length == 5


def test_only_the_asking_rows_attend_but_all_rows_are_cached(load) -> None:
    p, x = load().text.blocks[0].attn, rows(5)
    full, alone = (Cache(5, C.num_key_value_heads, C.head_dim, F64) for _ in range(2))
    expected = attention(p, x, ROWS, ROWS, [full])
    assert_agrees(attention(p, x, ROWS, last_rows(ROWS), [alone]), expected[-1:])
    np.testing.assert_array_equal(alone.keys, full.keys, strict=True)
    np.testing.assert_array_equal(alone.values, full.values, strict=True)


def test_segments_without_a_cache_each_are_refused(load) -> None:
    segments = [Segment(slice(0, 3), np.ones((3, 3), bool)), Segment(slice(3, 5), np.ones((2, 2), bool))]
    two, cache = ROWS._replace(segments=segments), Cache(5, C.num_key_value_heads, C.head_dim, F64)
    with pytest.raises(ValueError, match="zip"):
        attention(load().text.blocks[0].attn, rows(5), two, two, [cache])


# mlp


def test_mlp_of_a_literal_applies_gelu_to_the_gate_alone() -> None:
    """gelu(2) = 1.954598, times up -3, times down 10."""
    p = MLP(gate=np.array([[2.0]]), up=np.array([[-3.0]]), down=np.array([[10.0]]))
    np.testing.assert_allclose(mlp(p, np.ones((1, 1))), np.array([[-58.63793]]), rtol=0, atol=1e-4, strict=True)


def test_mlp_treats_every_row_alike(load) -> None:
    p, x = load().text.blocks[0].mlp, rows(4)
    assert_agrees(mlp(p, x[::-1]), mlp(p, x)[::-1])


# embeddings and logits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_embedded_tokens_are_rows_of_the_table_times_the_root_of_its_width(dtype: str) -> None:
    """A width of 4: times 2."""
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    p = Decoder(table, (), RMSNorm(np.zeros(4, np.float32), 1e-6))
    expected = np.array([[16, 18, 20, 22], [0, 2, 4, 6]], dtype)
    np.testing.assert_array_equal(embed_tokens(p, np.array([2, 0]), np.dtype(dtype)), expected, strict=True)


def test_the_root_is_rounded_to_the_dtype_before_it_multiplies(load) -> None:
    """A width of 11: in float32 the factor is a float32 number, as in transformers. It passes through the tap."""
    p, taps = load().text, Recorder()
    expected = p.embedding * np.float32(11**0.5)
    y = embed_tokens(p, np.arange(C.vocab_size), np.dtype(np.float32), taps)
    np.testing.assert_array_equal(y, expected, strict=True)
    np.testing.assert_array_equal(taps["scale"], np.array(11**0.5, np.float32), strict=True)
    assert taps.axes == {"scale": ""}


@pytest.mark.parametrize("token", [-1, C.vocab_size])
def test_a_token_without_a_row_is_refused(load, token: int) -> None:
    with pytest.raises(IndexError, match=f"{token}"):
        embed_tokens(load().text, np.array([2, token]), F64)


def test_logits_are_products_with_the_head_or_else_the_table(load) -> None:
    p, x = load().text, rows(4)
    assert p.head is None
    assert_agrees(logits(p, x), x @ p.embedding.T.astype(np.float64))
    assert_agrees(logits(replace(p, head=p.embedding[::-1]), x), x @ p.embedding[::-1].T.astype(np.float64))
