"""Layers that see a window of the last tokens: caches that forget, and equal results with and without them."""

import numpy as np
import pytest
from agreement import normal
from hypothesis import given
from hypothesis import strategies as st

from npgemma.layers.norms import RMSNorm
from npgemma.models.gemma import (
    MLP,
    MOST_ROWS,
    Attention,
    Block,
    Cache,
    Decoder,
    Rows,
    Segment,
    cache_rows,
    decoder,
)
from npgemma.models.prefix_lm import within

F64 = np.dtype(np.float64)


@pytest.mark.parametrize(
    ("tokens", "window", "rows"), [(9, None, 9), (9, 9, 9), (99, 4, 11), (99, 32, 39), (500, 160, 170), (2, 4, 2)]
)
def test_a_cache_with_a_window_holds_little_more_than_the_window(tokens: int, window: int | None, rows: int) -> None:
    assert cache_rows(tokens, window) == rows
    assert len(Cache(tokens, 1, 1, F64, window).keys) == rows


@given(st.integers(1, 40), st.lists(st.integers(0, 25), max_size=12), st.data())
def test_a_cache_returns_the_rows_that_the_window_lets_the_new_ones_see(window: int, appended: list[int], data) -> None:
    """Whatever is appended, also after the cache was copied and the copy went another way."""
    cache, rows = Cache(sum(appended), 1, 1, F64, window), np.arange(float(sum(appended)))[:, None, None]
    end = 0
    for count in appended:
        new = rows[end : end + count]
        if data.draw(st.booleans()):
            other = Cache(sum(appended), 1, 1, F64, window)
            other.become(cache)
            cache.append(new - 1000, new)
            cache = other
        keys, values = cache.append(new, -new)
        expected = rows[max(0, end - window + 1) : end + count]
        np.testing.assert_array_equal(keys, expected, strict=True)
        np.testing.assert_array_equal(values, -expected, strict=True)
        end += count
        assert cache.length == end


@given(
    st.integers(1, 40),
    st.integers(1, 60),
    st.lists(st.integers(1, MOST_ROWS).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), max_size=12),
)
def test_a_cache_forgets_the_last_rows_of_a_step(window: int, prompt: int, steps: list[tuple[int, int]]) -> None:
    """A prompt, then steps of some rows, of which all but the first may be forgotten; others take their place."""
    total = prompt + sum(new - forgotten for new, forgotten in steps)
    cache, rows = Cache(total + MOST_ROWS, 1, 1, F64, window), np.arange(float(total + MOST_ROWS))[:, None, None]
    cache.append(rows[:prompt], -rows[:prompt])
    end = prompt
    for new, forgotten in steps:
        kept = new - forgotten
        added = np.concatenate([rows[end : end + kept], rows[:forgotten] - 1000])
        keys, values = cache.append(added, -added)
        first = max(0, end - window + 1)
        np.testing.assert_array_equal(keys, np.concatenate([rows[first:end], added]), strict=True)
        np.testing.assert_array_equal(values, -keys, strict=True)
        cache.forget(forgotten)
        end += kept
        assert cache.length == end
        cache.keys[cache.end :] = cache.values[cache.end :] = np.nan  # nothing reads what is forgotten
    assert cache.length == total


def test_what_a_cache_let_go_of_cannot_come_back() -> None:
    """After a prompt longer than the window it holds no more than new rows may look at."""
    cache, rows = Cache(40, 1, 1, F64, 5), np.zeros((30, 1, 1))
    cache.append(rows, rows)
    with pytest.raises(ValueError, match="a cache with a window of 5 rows cannot forget 1"):
        cache.forget(1)


def make_decoder(window: int | None) -> Decoder:
    """Four layers of a Gemma 2, of which the first and the third have a window."""

    def norm(size: int, seed: int) -> RMSNorm:
        return RMSNorm(normal(size, seed=seed), 1e-6)

    def block(i: int) -> Block:
        q, k, v, o = (
            normal(*shape, seed=9 * i + j) for j, shape in enumerate([(4, 6, 10), (2, 6, 10), (2, 6, 10), (10, 4, 6)])
        )
        mlp = MLP(normal(14, 10, seed=i), normal(14, 10, seed=i + 50), normal(10, 14, seed=i + 60))
        attn = Attention(q, k, v, 100.0, o, scale=0.3, cap=2.0, window=window if i % 2 == 0 else None)
        return Block(norm(10, i), attn, norm(10, i + 1), mlp, norm(10, i + 2), norm(10, i + 3))

    return Decoder(normal(8, 10), tuple(map(block, range(4))), norm(10, 7), cap=3.0)


class FullCache(Cache):
    """A cache that keeps all rows, and still returns those that the window lets the new ones see."""

    def __init__(self, capacity: int, window: int | None) -> None:
        super().__init__(capacity, 2, 6, np.dtype(np.float32))
        self.near = window

    def append(self, keys, values):
        before = self.length
        keys, values = super().append(keys, values)
        first = 0 if self.near is None else max(0, before - self.near + 1)
        return keys[first:], values[first:]


@pytest.mark.parametrize("prompt", [1, 5, 30])
@pytest.mark.parametrize("window", [3, 5, 20])
def test_forgetting_changes_not_a_bit(window: int, prompt: int) -> None:
    """A prompt and 45 steps, past the window many times over."""
    p, total = make_decoder(window), prompt + 45
    x = normal(total, 10).astype(np.float32)
    windows = [block.attn.window for block in p.blocks]
    forgetting = [Cache(total, 2, 6, x.dtype, w) for w in windows]
    full = [FullCache(total, w) for w in windows]
    ends = [(0, prompt), *((t, t + 1) for t in range(prompt, total))]
    for start, end in ends:
        t, s = np.arange(start, end), np.arange(end)
        rows = Rows(slice(None), t + 1, [Segment(slice(0, end - start), within(t, s, None), within(t, s, window))])
        y, expected = (decoder(p, x[start:end], rows, [caches]) for caches in (forgetting, full))
        np.testing.assert_array_equal(y, expected, strict=True)
    assert len(forgetting[0].keys) == cache_rows(total, window) < len(forgetting[1].keys)
