"""Gemma as a prefix language model: prompts, masks, a plain language model; test_prefix_lm_cache holds PaliGemma."""

import numpy as np
import pytest
from agreement import assert_agrees
from hypothesis import given
from hypothesis import strategies as st
from language_models import FAMILIES, IDS, weights, whole

from npgemma.layers.norms import RMSNorm
from npgemma.layers.taps import Recorder
from npgemma.models.gemma import Decoder, logits, new_caches
from npgemma.models.prefix_lm import (
    Prompt,
    causal_prompt,
    embed_prompt,
    followed_by,
    prefill,
    prefix_lm_mask,
    start,
    step,
)

F64 = np.dtype(np.float64)
every_family = pytest.mark.parametrize("family", FAMILIES)


# prompts


def test_text_is_scaled_and_soft_rows_are_not() -> None:
    """Width 4, so text counts twice; soft rows replace the soft tokens in order, whatever their ids are."""
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    p = Decoder(table, (), RMSNorm(np.zeros(4, np.float32), 1e-6))
    soft_rows = np.array([[0.5] * 4, [0.25] * 4], np.float32)
    prompt = Prompt(np.array([2, 9, 0, 2, 1]), np.zeros(5, int), np.array([0, 1, 0, 1, 0], bool), soft_rows)
    expected = np.array([[16, 18, 20, 22], [0.5] * 4, [0, 2, 4, 6], [0.25] * 4, [8, 10, 12, 14]], np.float32)
    np.testing.assert_array_equal(embed_prompt(p, prompt), expected, strict=True)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_soft_rows_than_soft_tokens_is_refused(count: int) -> None:
    p = weights("Gemma 1")
    rows = np.zeros((count, p.embedding.shape[1]))
    prompt = Prompt(IDS[:3], np.zeros(3, int), np.array([True, False, True]), rows)
    with pytest.raises(ValueError, match=f"2 soft tokens and {count} soft rows"):
        embed_prompt(p, prompt)


def test_an_answer_is_more_suffix_without_soft_tokens() -> None:
    rows = np.ones((1, 4))
    prompt = Prompt(np.array([9, 2, 5]), np.array([0, 0, 1]), np.array([True, False, False]), rows)
    ids, types, is_soft, kept = followed_by(prompt, np.array([9, 3]))
    np.testing.assert_array_equal(ids, [9, 2, 5, 9, 3])
    np.testing.assert_array_equal(types, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(is_soft, np.array([1, 0, 0, 0, 0], bool), strict=True)
    assert kept is rows


# the mask


def test_the_mask_of_a_literal() -> None:
    """Three rows of prefix see each other; two of suffix see the prefix, themselves and the suffix before them."""
    expected = [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(prefix_lm_mask(np.array([0, 0, 0, 1, 1])), np.array(expected, bool), strict=True)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=9))
def test_the_mask_agrees_with_its_definition(types: list[int]) -> None:
    """In whatever order the types come."""
    expected = [[s <= t or (types[t] == 0 and types[s] == 0) for s in range(len(types))] for t in range(len(types))]
    np.testing.assert_array_equal(prefix_lm_mask(np.array(types)), np.array(expected), strict=True)


@given(st.integers(0, 6), st.integers(0, 6))
def test_the_mask_is_that_of_big_vision_if_the_prefix_comes_first(prefix: int, suffix: int) -> None:
    """big_vision: t sees s if the count of suffix tokens up to s is at most the count up to t."""
    types = np.array([0] * prefix + [1] * suffix, int)
    count = np.cumsum(types)
    np.testing.assert_array_equal(prefix_lm_mask(types), count <= count[:, None], strict=True)


def test_a_window_counts_the_row_itself() -> None:
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(prefix_lm_mask(np.ones(4, int), 2), np.array(expected, bool), strict=True)


def test_the_prefix_overrides_the_window() -> None:
    """Rows 0 to 2 are the prefix. Row 4, of the suffix, has lost row 0 to 2 to its window of two."""
    expected = [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]
    types = np.array([0, 0, 0, 1, 1])
    np.testing.assert_array_equal(prefix_lm_mask(types, 2), np.array(expected, bool), strict=True)


# a plain language model


@every_family
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 5])
def test_a_causal_prompt_and_steps_equal_one_pass(family: str, count: int, dtype: str) -> None:
    """Prompts within the window and beyond it."""
    p = weights(family)
    prompt = causal_prompt(p, IDS[:count], np.dtype(dtype))
    caches = [new_caches(p, len(IDS), prompt.dtype)]
    found = [start(p, [prompt], caches), *(step(p, IDS[t : t + 1], caches) for t in range(count, len(IDS)))]
    assert_agrees(np.concatenate(found), whole(p, IDS, dtype)[count - 1 :].astype(np.float64))


@every_family
@pytest.mark.parametrize("counts", [[4, 1, 2], [1, 3, 4]], ids=str)
def test_several_tokens_of_a_sequence_in_one_step_are_what_they_are_one_by_one(family: str, counts: list[int]) -> None:
    """Sequences beyond the window of three tokens and within it, each with a number of its own; and a step after."""
    p, starts = weights(family), (1, 7, 2)
    caches = [new_caches(p, len(IDS) + 1, F64) for _ in starts]
    start(p, [causal_prompt(p, IDS[:n], F64) for n in starts], caches)
    pieces = [IDS[n : n + count] for n, count in zip(starts, counts, strict=True)]
    found = step(p, np.concatenate(pieces), caches, counts=counts)
    rows = [n + t for n, count in zip(starts, counts, strict=True) for t in range(count)]
    assert_agrees(found, whole(p, IDS)[rows])
    ends = [n + count for n, count in zip(starts, counts, strict=True)]
    assert [sequence[0].length for sequence in caches] == ends
    assert_agrees(step(p, IDS[[end % len(IDS) for end in ends]], caches)[[0, 2]], whole(p, IDS)[[ends[0], ends[2]]])


@every_family
def test_causal_prompts_together_are_what_each_is_alone(family: str) -> None:
    p = weights(family)
    rows = [IDS, IDS[::-1][:4]]
    caches = [new_caches(p, len(ids), F64) for ids in rows]
    hidden = prefill(p, [causal_prompt(p, ids, F64) for ids in rows], caches)
    assert_agrees(logits(p, hidden), np.concatenate([whole(p, ids) for ids in rows]))


@every_family
def test_a_changed_last_token_changes_the_rows_before_it_in_a_prefix_only(family: str) -> None:
    p = weights(family)
    for type_, expected in ((0, True), (1, False)):
        changed = []
        for last in (5, 6):
            prompt = causal_prompt(p, np.array([*IDS, last]), F64)._replace(token_type_ids=np.full(len(IDS) + 1, type_))
            changed.append(prefill(p, [prompt], [new_caches(p, len(IDS) + 1, F64)])[:-1])
        assert (np.abs(changed[0] - changed[1]).max(-1) > 0).tolist() == [expected] * len(IDS)


@every_family
def test_a_language_model_has_the_taps_of_text(family: str) -> None:
    """By the same names as a decoder that reads pictures; `near` is the mask of layers with a window."""
    p, taps = weights(family), Recorder()
    start(p, [causal_prompt(p, IDS, F64)], [new_caches(p, len(IDS), F64)], tap=taps)
    outer = [name for name in taps if ".layers." not in name]
    prompt = [f"prompts.0.{name}" for name in ("input_ids", "token_type_ids", "mask", *["near"][: bool(p.window)])]
    cap = [f"logits.{name}" for name in ("uncapped", "over_cap", "tanh") if p.cap]
    assert outer == [*prompt, "text.scale", "text.embedding", "positions", "text.norm", *cap, "logits"]
