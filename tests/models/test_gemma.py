"""Gemma against hand-sized literals and the second spelling; caches; heads that share keys; sequences side by side."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
import tiny

from npgemma.layers.rope import rope
from npgemma.layers.taps import Recorder
from npgemma.models import gemma
from npgemma.models.gemma import MLP, Attention, Cache, Decoder, RMSNorm, Segment

DTYPES = ["float32", "float64"]
F64 = np.dtype(np.float64)
C = tiny.CONFIG.text
POSITIONS = np.array([3, 4, 5, 6, 7])
MASK = oracle.prefix_lm_mask([0, 0, 0, 1, 1])

ROPE_TAPS = ("frequencies", "angle", "cos", "sin", "x_cos", "x_sin")
BLOCK_TAPS = [
    *["attn_norm", "attn.q", *(f"attn.q_rope.{name}" for name in ROPE_TAPS), "attn.q_rope"],
    *["attn.k", "attn.v", *(f"attn.k_rope.{name}" for name in ROPE_TAPS), "attn.k_rope"],
    *(f"attn.segments.0.{name}" for name in ("keys", "values", "dots", "scores", "exp", "probs")),
    *["attn.heads", "attn.out"],
    *["mid", "mlp_norm", "mlp.gate", "mlp.up", "mlp.act", "mlp.hidden", "mlp.out", "out"],
]


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, C.hidden_size))


def caches(p: Decoder, capacity: int = 5, dtype: np.dtype = F64) -> list[Cache]:
    return gemma.new_caches(p, capacity, dtype)


def decode(p: Decoder, x: np.ndarray, tap=gemma.silent) -> np.ndarray:
    """One sequence of five rows, nothing kept."""
    return gemma.decoder(p, x, POSITIONS, [Segment(slice(0, 5), MASK)], [caches(p, 5, x.dtype)], tap)


# Cache


def test_a_cache_hands_back_all_that_it_was_given_in_order() -> None:
    cache = Cache(5, 2, 3, F64)
    keys, values = np.arange(30.0).reshape(5, 2, 3), -np.arange(30.0).reshape(5, 2, 3)
    for start, end in ((0, 2), (2, 3), (3, 3), (3, 5)):
        seen = cache.append(keys[start:end], values[start:end])
        np.testing.assert_array_equal(seen[0], keys[:end], strict=True)
        np.testing.assert_array_equal(seen[1], values[:end], strict=True)
        assert cache.length == end


def test_a_cache_keeps_its_own_dtype_and_its_own_copy() -> None:
    cache, row = Cache(2, 1, 1, np.dtype(np.float32)), np.ones((1, 1, 1))
    keys, _ = cache.append(row, row)
    row += 1
    np.testing.assert_array_equal(keys, np.ones((1, 1, 1), np.float32), strict=True)


def test_a_cache_refuses_more_rows_than_it_has_and_stays_as_it_was() -> None:
    cache = Cache(3, 1, 1, F64)
    cache.append(np.ones((2, 1, 1)), np.ones((2, 1, 1)))
    with pytest.raises(ValueError, match="cache of 3 rows cannot hold 4"):
        cache.append(np.zeros((2, 1, 1)), np.zeros((2, 1, 1)))
    assert cache.length == 2
    keys, _ = cache.append(np.full((1, 1, 1), 2.0), np.zeros((1, 1, 1)))
    np.testing.assert_array_equal(keys, np.array([[[1.0]], [[1.0]], [[2.0]]]), strict=True)


def test_new_caches_are_empty_one_a_layer_and_as_wide_as_its_keys(load) -> None:
    made = caches(load().text, 7, np.dtype(np.float32))
    assert len({id(cache) for cache in made}) == C.num_hidden_layers
    for cache in made:
        assert cache.length == 0
        assert cache.keys.shape == cache.values.shape == (7, C.num_key_value_heads, C.head_dim)
        assert cache.keys.dtype == cache.values.dtype == np.float32


# attention


def test_attention_without_queries_is_the_mean_of_what_may_be_seen() -> None:
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
    segment = Segment(slice(0, 2), np.array([[True, False], [True, True]]))
    y = gemma.attention(p, np.array([[1.0], [5.0]]), np.arange(2), [segment], [Cache(2, 1, 2, F64)])
    np.testing.assert_array_equal(y, np.array([[12.0], [36.0]]), strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("key_heads", [1, 2, 3, 6])
def test_attention_is_the_second_spelling(load, key_heads: int, dtype: str) -> None:
    """With one key head for all queries, one for each, and between."""
    config = replace(tiny.CONFIG, text=replace(C, num_key_value_heads=key_heads))
    p, x = load(config).text.blocks[1].attn, rows(5).astype(dtype)
    layer = oracle.under(tiny.random_tensors(config), "text.layers.1")
    cache = Cache(5, key_heads, C.head_dim, x.dtype)
    y = gemma.attention(p, x, POSITIONS, [Segment(slice(0, 5), MASK)], [cache])
    oracle.assert_agrees(y, oracle.text_attention(layer, x.astype(np.float64), POSITIONS, MASK, config))


def test_attention_caches_turned_keys_and_plain_values(load) -> None:
    """So that a key is turned once, by its own position, and never again."""
    p, x, taps = load().text.blocks[0].attn, rows(5), Recorder()
    cache = Cache(9, C.num_key_value_heads, C.head_dim, F64)
    gemma.attention(p, x, POSITIONS, [Segment(slice(0, 5), MASK)], [cache], taps)
    np.testing.assert_array_equal(cache.keys[:5], rope(taps["k"], POSITIONS, C.rope_theta), strict=True)
    np.testing.assert_array_equal(cache.values[:5], taps["v"], strict=True)
    assert cache.length == 5


def test_key_heads_repeated_for_each_query_change_nothing(load) -> None:
    """A grouped model is the multi-head model whose key heads are copies."""
    p, x = load().text, rows(5)
    shared = C.num_attention_heads // C.num_key_value_heads

    def repeated(block: gemma.Block) -> gemma.Block:
        a = block.attn
        return replace(block, attn=replace(a, k=np.repeat(a.k, shared, 0), v=np.repeat(a.v, shared, 0)))

    multi_head = replace(p, blocks=tuple(map(repeated, p.blocks)))
    oracle.assert_agrees(decode(multi_head, x), decode(p, x))


def test_segments_without_a_cache_each_are_refused(load) -> None:
    p, x = load().text, rows(5)
    segments = [Segment(slice(0, 3), np.ones((3, 3), bool)), Segment(slice(3, 5), np.ones((2, 2), bool))]
    with pytest.raises(ValueError, match="zip"):
        gemma.attention(p.blocks[0].attn, x, POSITIONS, segments, caches(p)[:1])
    with pytest.raises(ValueError, match="zip"):
        gemma.decoder(p, x, POSITIONS, segments[:1], [caches(p)[:-1]])


# mlp


def test_mlp_of_a_literal() -> None:
    """gelu goes over the gate alone: gelu(2) = 1.954598, times up -3, times down 10."""
    p = MLP(gate=np.array([[2.0]]), up=np.array([[-3.0]]), down=np.array([[10.0]]))
    np.testing.assert_allclose(gemma.mlp(p, np.ones((1, 1))), np.array([[-58.63793]]), rtol=0, atol=1e-4, strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mlp_is_the_second_spelling(load, tensors, dtype: str) -> None:
    x = rows(4).astype(dtype)
    layer = oracle.under(tensors, "text.layers.2")
    oracle.assert_agrees(gemma.mlp(load().text.blocks[2].mlp, x), oracle.text_mlp(layer, x.astype(np.float64)))


# block and decoder


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_block_is_the_second_spelling(load, tensors, dtype: str) -> None:
    p, x = load().text.blocks[2], rows(5).astype(dtype)
    cache = Cache(5, C.num_key_value_heads, C.head_dim, x.dtype)
    y = gemma.block(p, x, POSITIONS, [Segment(slice(0, 5), MASK)], [cache])
    layer = oracle.under(tensors, "text.layers.2")
    oracle.assert_agrees(y, oracle.text_block(layer, x.astype(np.float64), POSITIONS, MASK, tiny.CONFIG))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"rms_norm_eps": 1e-2}, {"rope_theta": 100.0}, {"head_dim": 2}, {"num_hidden_layers": 1}],
    ids=lambda changes: " ".join(changes) or "as it is",
)
def test_the_decoder_is_the_second_spelling(load, changes: dict, dtype: str) -> None:
    config = replace(tiny.CONFIG, text=replace(C, **changes))
    x = rows(5).astype(dtype)
    expected = oracle.text_decoder(tiny.random_tensors(config), config, x.astype(np.float64), POSITIONS, MASK)
    oracle.assert_agrees(decode(load(config).text, x), expected)


def test_sequences_side_by_side_are_each_what_they_are_alone(load) -> None:
    """Their rows mixed with the others' weights, norms and MLP, but not with the others' rows: not a bit of one changes
    with the other.
    """
    p, x = load().text, rows(8)
    positions = np.array([1, 2, 3, 7, 8, 9, 10, 11])
    segments = [Segment(slice(0, 3), np.tri(3, dtype=bool)), Segment(slice(3, 8), np.ones((5, 5), bool))]
    together = gemma.decoder(p, x, positions, segments, [caches(p), caches(p)])
    for rows_, mask in segments:
        own = Segment(slice(0, len(mask)), mask)
        oracle.assert_agrees(gemma.decoder(p, x[rows_], positions[rows_], [own], [caches(p)]), together[rows_])
    x[3:] = -x[3:]
    changed = gemma.decoder(p, x, positions, segments, [caches(p), caches(p)])
    np.testing.assert_array_equal(changed[:3], together[:3], strict=True)
    assert np.abs(changed[3:] - together[3:]).max() > 0.1


def test_rows_that_come_one_at_a_time_are_what_they_are_at_once(load) -> None:
    """A causal sequence, cached row by row, against the same rows in one go."""
    p, x = load().text, rows(5)
    at_once = gemma.decoder(p, x, POSITIONS, [Segment(slice(0, 5), np.tri(5, dtype=bool))], [caches(p)])
    kept = caches(p)
    for t in range(5):
        segment = Segment(slice(0, 1), np.ones((1, t + 1), bool))
        y = gemma.decoder(p, x[t : t + 1], POSITIONS[t : t + 1], [segment], [kept])
        oracle.assert_agrees(y, at_once[t : t + 1])


# Rows of sequences side by side: how many each has of its own, and how many are cached already.
SIDE_BY_SIDE = [
    pytest.param([(5, 0)], id="one sequence"),
    pytest.param([(1, 0)], id="one row"),
    pytest.param([(3, 0), (5, 0)], id="two"),
    pytest.param([(1, 0), (4, 0), (2, 0)], id="three"),
    pytest.param([(2, 3), (4, 1)], id="two that go on"),
    pytest.param([(1, 4), (1, 2), (1, 0)], id="a step of three"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIDE_BY_SIDE)
def test_the_last_rows_alone_are_the_decoders_last_rows(load, sizes: list[tuple[int, int]], dtype: str) -> None:
    """And the caches are left as it leaves them, in every layer: what comes next must not notice."""
    p, random = load().text, np.random.default_rng(7)
    whole, alone = ([caches(p, 9, np.dtype(dtype)) for _ in sizes] for _ in range(2))
    for i, (_, cached) in enumerate(sizes):
        for kept in (whole[i], alone[i]):
            segment = Segment(slice(0, cached), np.tri(cached, dtype=bool))
            if cached:
                gemma.decoder(p, rows(cached, i).astype(dtype), np.arange(cached), [segment], [kept])
    ends = np.cumsum([own for own, _ in sizes]).tolist()
    segments, positions = [], []
    for (own, cached), end in zip(sizes, ends, strict=True):
        mask = random.random((own, cached + own)) < 0.5
        mask[np.arange(own), cached + np.arange(own)] = True
        segments.append(Segment(slice(end - own, end), mask))
        positions.append(np.arange(cached, cached + own))
    x, positions = rows(ends[-1], 9).astype(dtype), np.concatenate(positions)
    expected = gemma.decoder(p, x, positions, segments, whole)[[end - 1 for end in ends]]
    y = gemma.decoder_last_rows(p, x, positions, segments, alone)
    assert y.dtype == dtype
    oracle.assert_agrees(y, expected.astype(np.float64))
    for one, other in zip(whole, alone, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.length == b.length
            oracle.assert_agrees(b.keys[: b.length], a.keys[: a.length].astype(np.float64))
            oracle.assert_agrees(b.values[: b.length], a.values[: a.length].astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_last_row_alone_is_the_second_spellings(load, layers: int, dtype: str) -> None:
    """With one layer it is the last and the first at once."""
    config = replace(tiny.CONFIG, text=replace(C, num_hidden_layers=layers))
    p, x = load(config).text, rows(5).astype(dtype)
    expected = oracle.text_decoder(tiny.random_tensors(config), config, x.astype(np.float64), POSITIONS, MASK)
    y = gemma.decoder_last_rows(p, x, POSITIONS, [Segment(slice(0, 5), MASK)], [caches(p, 5, x.dtype)])
    oracle.assert_agrees(y, expected[-1:])


def test_the_last_rows_are_taken_without_a_change_to_any(load) -> None:
    p, x = load().text, rows(5)
    gemma.decoder_last_rows(p, x, POSITIONS, [Segment(slice(0, 5), MASK)], [caches(p)])
    np.testing.assert_array_equal(x, rows(5), strict=True)


def test_the_decoder_taps_every_step(load) -> None:
    taps = Recorder()
    y = decode(load().text, rows(5), taps)
    layers = [f"layers.{i}.{name}" for i in range(C.num_hidden_layers) for name in BLOCK_TAPS]
    assert list(taps) == [*layers, "norm"]
    np.testing.assert_array_equal(taps["norm"], y, strict=True)
    assert taps["layers.0.attn.segments.0.scores"].shape == (C.num_attention_heads, 5, 5)
    assert taps["layers.0.attn.k_rope"].shape == (5, C.num_key_value_heads, C.head_dim)


@pytest.mark.parametrize("name", [*(f"layers.0.{name}" for name in BLOCK_TAPS), "norm"])
def test_what_a_tap_returns_is_what_the_decoder_goes_on_with(load, name: str) -> None:
    def halve(tapped: str, x: np.ndarray) -> np.ndarray:
        return x / 2 if tapped == name else x

    p, x = load().text, rows(5)
    assert np.abs(decode(p, x, halve) - decode(p, x)).max() > 1e-3


# in and out


def test_embedded_tokens_are_rows_of_the_table_times_the_root_of_its_width() -> None:
    """A width of 4: times 2, in either dtype."""
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    p = Decoder(table, (), RMSNorm(np.zeros(4, np.float32), 1e-6), table)
    for dtype in DTYPES:
        expected = np.array([[16, 18, 20, 22], [0, 2, 4, 6]], dtype)
        np.testing.assert_array_equal(gemma.embed_tokens(p, np.array([2, 0]), np.dtype(dtype)), expected, strict=True)


def test_the_root_is_rounded_to_the_dtype_before_it_multiplies(load) -> None:
    """A width of 11: in float32 the factor is a float32 number, as transformers has it."""
    p = load().text
    ids = np.arange(C.vocab_size)
    expected = p.embedding * np.float32(11**0.5)
    np.testing.assert_array_equal(gemma.embed_tokens(p, ids, np.dtype(np.float32)), expected, strict=True)


@pytest.mark.parametrize("token", [-1, C.vocab_size])
def test_a_token_without_a_row_is_refused(load, token: int) -> None:
    with pytest.raises(IndexError, match=f"{token}"):
        gemma.embed_tokens(load().text, np.array([2, token]), F64)


def test_logits_are_products_with_the_rows_of_the_head(load) -> None:
    """Unscaled, and the head's, not the table's, where a model has both."""
    p, x = load().text, rows(4)
    oracle.assert_agrees(gemma.logits(p, x), oracle.linear(x, p.embedding.astype(np.float64)))
    untied = replace(p, head=p.embedding[::-1])
    oracle.assert_agrees(gemma.logits(untied, x), oracle.linear(x, p.embedding[::-1].astype(np.float64)))
