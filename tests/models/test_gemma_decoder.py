"""Gemma's decoder against the second spelling: caches, several sequences in one run, and the last rows alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import one_page
import pytest
import tiny
from agreement import assert_agrees, normal
from tap_axes import gemma_block, under

from npgemma.layers.taps import Recorder, silent
from npgemma.models.gemma import Block, Cache, Decoder, Rows, Segment, decoder, last_rows, new_caches

DTYPES = ["float32", "float64"]
F64 = np.dtype(np.float64)
C = tiny.CONFIG.text
POSITIONS = np.array([3, 4, 5, 6, 7])
MASK = one_page.prefix_lm_mask([0, 0, 0, 1, 1])
ROWS = Rows(slice(None), POSITIONS, [Segment(slice(0, 5), MASK)])


def rows(count: int, seed: int = 0) -> np.ndarray:
    return normal(count, C.hidden_size, seed=seed)


def caches(p: Decoder, capacity: int = 5, dtype: np.dtype = F64) -> list[Cache]:
    return new_caches(p, capacity, dtype)


def decode(p: Decoder, x: np.ndarray, tap=silent) -> np.ndarray:
    """One sequence of five rows; its caches are dropped."""
    return decoder(p, x, ROWS, [caches(p, 5, x.dtype)], tap=tap)


def assert_same_caches(actual: Sequence[Cache], expected: Sequence[Cache]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert one.length == other.length
        assert_agrees(one.keys[: one.length], other.keys[: one.length].astype(np.float64))
        assert_agrees(one.values[: one.length], other.values[: one.length].astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rms_norm_eps": 1e-2},
        {"rope_theta": 100.0},
        {"head_dim": 2},
        {"num_hidden_layers": 1},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": 6},
    ],
    ids=str,
)
def test_the_decoder_agrees_with_the_second_spelling(load, spelled, changes: dict, dtype: str) -> None:
    config = replace(tiny.CONFIG, text=replace(C, **changes))
    x = rows(5).astype(dtype)
    expected = one_page.decoder(*spelled(config), x.astype(np.float64), POSITIONS, MASK)
    assert_agrees(decode(load(config).text, x), expected)


def test_key_heads_repeated_for_each_query_head_change_nothing(load) -> None:
    """A grouped model equals the multi-head model whose key heads are copies."""
    p, x = load().text, rows(5)
    shared = C.num_attention_heads // C.num_key_value_heads

    def repeated(block: Block) -> Block:
        a = block.attn
        return replace(block, attn=replace(a, k=np.repeat(a.k, shared, 0), v=np.repeat(a.v, shared, 0)))

    assert_agrees(decode(replace(p, blocks=tuple(map(repeated, p.blocks))), x), decode(p, x))


def test_caches_that_do_not_fit_the_layers_are_refused(load) -> None:
    p = load().text
    with pytest.raises(ValueError, match="zip"):
        decoder(p, rows(5), ROWS, [caches(p)[:-1]])


def test_sequences_in_one_run_do_not_depend_on_each_other(load) -> None:
    """Each is what it is alone, and not a bit of one changes with the other."""
    p, x = load().text, rows(8)
    positions = np.array([1, 2, 3, 7, 8, 9, 10, 11])
    segments = [Segment(slice(0, 3), np.tri(3, dtype=bool)), Segment(slice(3, 8), np.ones((5, 5), bool))]
    both = Rows(slice(None), positions, segments)
    together = decoder(p, x, both, [caches(p), caches(p)])
    for of, mask, _ in segments:
        own = Rows(slice(None), positions[of], [Segment(slice(0, len(mask)), mask)])
        assert_agrees(decoder(p, x[of], own, [caches(p)]), together[of])
    x[3:] = -x[3:]
    changed = decoder(p, x, both, [caches(p), caches(p)])
    np.testing.assert_array_equal(changed[:3], together[:3], strict=True)
    assert np.abs(changed[3:] - together[3:]).max() > 0.1


def test_cached_rows_one_at_a_time_equal_all_rows_at_once(load) -> None:
    p, x = load().text, rows(5)
    causal = Rows(slice(None), POSITIONS, [Segment(slice(0, 5), np.tri(5, dtype=bool))])
    at_once = decoder(p, x, causal, [caches(p)])
    kept = caches(p)
    for t in range(5):
        row = Rows(slice(None), POSITIONS[t : t + 1], [Segment(slice(0, 1), np.ones((1, t + 1), bool))])
        assert_agrees(decoder(p, x[t : t + 1], row, [kept]), at_once[t : t + 1])


# the last rows alone

# For each sequence: how many new rows it has, and how many are cached already.
SEQUENCES = [
    pytest.param([(5, 0)], id="one sequence"),
    pytest.param([(1, 0)], id="one row"),
    pytest.param([(1, 0), (4, 0), (2, 0)], id="three sequences"),
    pytest.param([(2, 3), (4, 1)], id="two with cached rows"),
    pytest.param([(1, 4), (1, 2), (1, 0)], id="a step of three"),
]


def prepared(p: Decoder, sizes: list[tuple[int, int]], dtype: str) -> tuple[np.ndarray, Rows, list[list[Cache]]]:
    """New rows of several sequences under random masks, and the caches of their earlier rows."""
    random, kept, segments, positions, end = np.random.default_rng(7), [], [], [], 0
    for i, (new, cached) in enumerate(sizes):
        kept.append(caches(p, 9, np.dtype(dtype)))
        if cached:
            earlier = Rows(slice(None), np.arange(cached), [Segment(slice(0, cached), np.tri(cached, dtype=bool))])
            decoder(p, rows(cached, i).astype(dtype), earlier, kept[-1:])
        mask = random.random((new, cached + new)) < 0.5
        mask[np.arange(new), cached + np.arange(new)] = True
        segments.append(Segment(slice(end, end + new), mask))
        positions.append(np.arange(cached, cached + new))
        end += new
    return rows(end, 9).astype(dtype), Rows(slice(None), np.concatenate(positions), segments), kept


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SEQUENCES)
def test_the_last_rows_alone_equal_the_last_rows_of_all(load, sizes: list[tuple[int, int]], dtype: str) -> None:
    """To rounding; and the caches of every layer are equal, so no later step can differ."""
    p = load().text
    x, all_rows, whole = prepared(p, sizes, dtype)
    _, _, alone = prepared(p, sizes, dtype)
    expected = decoder(p, x, all_rows, whole)[last_rows(all_rows).which]
    y = decoder(p, x, all_rows, alone, last_rows(all_rows))
    assert y.dtype == dtype
    assert_agrees(y, expected.astype(np.float64))
    for one, other in zip(alone, whole, strict=True):
        assert_same_caches(one, other)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_last_row_alone_agrees_with_the_second_spelling(load, spelled, layers: int) -> None:
    """With one layer, that is the first and the last at once."""
    config = replace(tiny.CONFIG, text=replace(C, num_hidden_layers=layers))
    p, x = load(config).text, rows(5)
    expected = one_page.decoder(*spelled(config), x, POSITIONS, MASK)
    assert_agrees(decoder(p, x, ROWS, [caches(p)], last_rows(ROWS)), expected[-1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_recorder_changes_no_bit_of_the_last_rows(load, dtype: str) -> None:
    """It gets all rows of every layer but the last, and of that one only the last rows of each sequence."""
    p, taps = load().text, Recorder()
    x, all_rows, kept = prepared(p, [(3, 1), (4, 0)], dtype)
    _, _, observed = prepared(p, [(3, 1), (4, 0)], dtype)
    expected = decoder(p, x, all_rows, kept, last_rows(all_rows))
    y = decoder(p, x, all_rows, observed, last_rows(all_rows), taps)
    np.testing.assert_array_equal(y, expected, strict=True)
    for one, other in zip(observed, kept, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.keys[: a.length], b.keys[: b.length], strict=True)
    last = f"layers.{C.num_hidden_layers - 1}"
    assert [len(taps[name]) for name in (f"{last}.attn.k", f"{last}.attn.q", f"{last}.mid", "norm")] == [7, 2, 2, 2]
    assert len(taps["layers.0.mid"]) == 7


def test_the_decoder_does_not_write_to_its_rows(load) -> None:
    p, x = load().text, rows(5)
    x.setflags(write=False)
    decode(p, x)
    decoder(p, x, ROWS, [caches(p)], last_rows(ROWS))


# taps


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_recorder_changes_no_bit_of_the_decoder(load, dtype: str) -> None:
    p, x = load().text, rows(5).astype(dtype)
    np.testing.assert_array_equal(decode(p, x, Recorder()), decode(p, x), strict=True)


def test_the_decoder_taps_every_step_with_its_axes(load) -> None:
    taps, expected = Recorder(), {}
    y = decode(load().text, rows(5), taps)
    for i in range(C.num_hidden_layers):
        expected |= under(f"layers.{i}", gemma_block(sequences=1))
    assert list(taps.axes.items()) == [*expected.items(), ("norm", "T D")]
    np.testing.assert_array_equal(taps["norm"], y, strict=True)
    assert taps["layers.0.attn.segments.0.scores"].shape == (C.num_attention_heads, 5, 5)
    assert taps["layers.0.attn.k_rope"].shape == (5, C.num_key_value_heads, C.head_dim)


@pytest.mark.parametrize("name", [*under("layers.0", gemma_block(sequences=1)), "norm"])
def test_the_decoder_continues_with_what_a_tap_returns(load, name: str) -> None:
    p, x = load().text, rows(5)
    squared = decode(p, x, lambda tapped, x, axes: x * x if tapped == name else x)
    assert np.abs(squared - decode(p, x)).max() > 1e-3
