"""A prefix language model from a cache: positions, prefill, start and step; PaliGemma, one prompt and several."""

from dataclasses import replace

import numpy as np
import one_page
import pytest
from agreement import assert_agrees
from sequences import IDS, IMAGE, PREFIX, SUFFIX, TYPES, C, counting_from, new_caches, pictures, prefill, prompt

from npgemma.layers.taps import Recorder
from npgemma.models import prefix_lm
from npgemma.models.paligemma import PaliGemma, forward
from npgemma.models.prefix_lm import Prompt, start, step

DTYPES = ["float32", "float64"]
F64 = np.dtype(np.float64)


def three_prompts(p: PaliGemma, dtype: str) -> list[Prompt]:
    """Of different lengths and numbers of pictures; the last one has a suffix."""
    return [
        prompt(p, PREFIX, pictures(1, dtype)),
        prompt(p, [2, 7], pictures(0, dtype)),
        prompt(p, [*IMAGE, *IMAGE, 2, 8, 10, 12, 3], pictures(2, dtype, seed=2), suffix=1),
    ]


# positions


@pytest.mark.parametrize("first", [0, 100])
def test_the_first_position_changes_the_cached_keys_and_nothing_else(load, first: int) -> None:
    p = load()
    made = prompt(p, [*PREFIX, *SUFFIX], pictures(), len(SUFFIX))
    scores, (caches,) = prefill(p, [made])
    other = counting_from(p, first)
    moved_scores, (moved,) = prefill(other, [made])
    assert_agrees(moved_scores, scores)
    assert_agrees(forward(other, IDS, pictures(), TYPES), scores)
    rows = len(IDS)
    assert all(np.abs(a.keys[:rows] - b.keys[:rows]).max() > 0.1 for a, b in zip(caches, moved, strict=True))
    np.testing.assert_array_equal(moved[0].values[:rows], caches[0].values[:rows], strict=True)


@pytest.mark.parametrize("first", [0, 1, 100])
def test_positions_count_from_the_first_in_every_prompt(load, first: int) -> None:
    """Pictures and text alike; a step continues where its prompt ended."""
    p, taps = counting_from(load(), first), Recorder("text.layers.0.attn.k", "text.layers.0.attn.k_rope", "positions")
    prompts = three_prompts(p, "float64")
    caches, lengths = new_caches(p, prompts), [len(made.input_ids) for made in prompts]
    for run, expected in (
        (
            lambda: prefix_lm.prefill(p.text, prompts, caches, taps),
            [first + t for n in lengths for t in range(n)],
        ),
        (lambda: step(p.text, np.array([3, 4, 5]), caches, taps), [first + n for n in lengths]),
    ):
        run()
        np.testing.assert_array_equal(taps["positions"], expected)
        k, rotated = taps["text.layers.0.attn.k"], taps["text.layers.0.attn.k_rope"]
        assert_agrees(rotated, one_page.rope(k, expected, C.text.rope_theta))


def test_positions_count_from_one_by_default(load) -> None:
    """As in transformers. The keys differ between 0 and 1, so the default can be told apart."""
    p, made = load(), prompt(load(), PREFIX, pictures())
    by_default, by_start = new_caches(p, [made]), new_caches(p, [made])
    prefix_lm.prefill(p.text, [made], by_default)
    start(p.text, [made], by_start)
    _, from_one = prefill(counting_from(p, 1), [made])
    _, from_zero = prefill(counting_from(p, 0), [made])
    tokens = np.array([3])
    for caches, model in (
        (by_default, p),
        (by_start, p),
        (from_one, counting_from(p, 1)),
        (from_zero, counting_from(p, 0)),
    ):
        step(model.text, tokens, caches)
    rows = len(PREFIX) + 1
    for caches in (by_default, by_start):
        assert_agrees(caches[0][0].keys[:rows], from_one[0][0].keys[:rows])
    assert np.abs(by_default[0][0].keys[:rows] - from_zero[0][0].keys[:rows]).max() > 0.1


# steps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_the_prompt", range(len(SUFFIX)))
@pytest.mark.parametrize("first", [0, 1, 100])
def test_cached_steps_equal_the_full_pass(load, first: int, in_the_prompt: int, dtype: str) -> None:
    """Part of the suffix prefilled with the prefix, the rest one token at a time: each row as in one full pass."""
    p, x = counting_from(load(), first), pictures(1, dtype)
    whole = forward(p, IDS, pictures(1), TYPES)
    end = len(PREFIX) + in_the_prompt
    scores, caches = prefill(p, [prompt(p, IDS[:end].tolist(), x, in_the_prompt)], len(IDS))
    assert_agrees(scores, whole[:end])
    for t in range(end, len(IDS)):
        assert_agrees(step(p.text, IDS[t : t + 1], caches), whole[t : t + 1])


def test_a_step_beyond_the_capacity_is_refused(load) -> None:
    p = load()
    _, caches = prefill(p, [prompt(p, PREFIX, pictures())], capacity=len(PREFIX))
    with pytest.raises(ValueError, match=f"cache of {len(PREFIX)} rows"):
        step(p.text, np.array([3]), caches)


def test_greedy_steps_choose_what_the_second_spelling_chooses_without_a_cache(load, spelled) -> None:
    """With a head of its own: if the table is the head, a random model repeats its last token for ever."""
    tensors, config = spelled()
    head = np.random.default_rng(3).standard_normal(tensors["language_model.model.embed_tokens.weight"].shape)
    p, x, count = load(), pictures(), 6
    p = replace(p, text=replace(p.text, head=head))
    scores, caches = prefill(p, [prompt(p, PREFIX, x)])
    chosen = [int(scores[-1].argmax())]
    while len(chosen) < count:
        chosen.append(int(step(p.text, np.array(chosen[-1:]), caches)[0].argmax()))
    assert chosen == one_page.generate({**tensors, "lm_head.weight": head}, config, PREFIX, x, count)
    assert len(set(chosen)) > 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_prompts_together_are_what_each_is_alone(load, dtype: str) -> None:
    """Prefilled and stepped in one run."""
    p = load()
    prompts, tokens = three_prompts(p, dtype), np.array([3, 4, 60])
    together, caches = prefill(p, prompts)
    stepped = [step(p.text, ids, caches) for ids in (tokens, tokens[::-1])]
    starts = np.cumsum([0, *(len(made.input_ids) for made in prompts)])
    for i, made in enumerate(prompts):
        alone, own = prefill(p, [made])
        assert_agrees(together[starts[i] : starts[i + 1]], alone.astype(np.float64))
        for ids, rows in zip((tokens, tokens[::-1]), stepped, strict=True):
            expected = step(p.text, ids[i : i + 1], own)
            assert_agrees(rows[i : i + 1], expected.astype(np.float64))


def test_a_step_of_some_sequences_leaves_the_caches_of_the_others_unchanged(load) -> None:
    p = load()
    prompts = [prompt(p, PREFIX, pictures()), prompt(p, [*IMAGE, 2], pictures(seed=1))]
    _, caches = prefill(p, prompts)
    scores = step(p.text, np.array([3]), caches[1:])
    assert [sequence[0].length for sequence in caches] == [len(PREFIX), len(IMAGE) + 2]
    _, alone = prefill(p, prompts[1:])
    assert_agrees(scores, step(p.text, np.array([3]), alone))


# start


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, 100])
@pytest.mark.parametrize("count", [1, 3])
def test_a_start_gives_the_logits_of_the_last_row_of_each_prompt(load, count: int, first: int, dtype: str) -> None:
    """Those of the full prefill to rounding, and its caches."""
    p = counting_from(load(), first)
    prompts = three_prompts(p, dtype)[:count]
    whole, expected_caches = prefill(p, prompts)
    ends = np.cumsum([len(made.input_ids) for made in prompts])
    caches = new_caches(p, prompts)
    y = start(p.text, prompts, caches)
    assert y.dtype == dtype
    assert_agrees(y, whole[ends - 1].astype(np.float64))
    for made, layers, expected_layers in zip(prompts, caches, expected_caches, strict=True):
        for cache, expected in zip(layers, expected_layers, strict=True):
            assert cache.length == expected.length == len(made.input_ids)
            for kept, wanted in ((cache.keys, expected.keys), (cache.values, expected.values)):
                assert_agrees(kept[: cache.length], wanted[: cache.length].astype(np.float64))


def test_a_start_continues_with_what_a_tap_returns(load) -> None:
    """In the last layer only the last row of the prompt is left to change."""
    p, made = load(), prompt(load(), PREFIX, pictures())
    plain, taps = start(p.text, [made], new_caches(p, [made])), Recorder("text.layers.2.mid")
    start(p.text, [made], new_caches(p, [made]), tap=taps)
    assert len(taps["text.layers.2.mid"]) == 1
    doubled = start(p.text, [made], new_caches(p, [made]), tap=lambda name, x, axes: x * 2 if name in taps else x)
    assert np.abs(doubled - plain).max() > 1e-3


# taps


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_recorder_changes_no_bit_of_prefill_start_or_step(load, dtype: str) -> None:
    p, tokens = load(), np.array([3, 4, 60])
    prompts = three_prompts(p, dtype)
    for run in (prefix_lm.prefill, start):
        caches, observed, taps = new_caches(p, prompts), new_caches(p, prompts), Recorder()
        expected = run(p.text, prompts, caches)
        np.testing.assert_array_equal(run(p.text, prompts, observed, tap=taps), expected, strict=True)
        y = step(p.text, tokens, observed, tap=taps)
        np.testing.assert_array_equal(y, step(p.text, tokens, caches), strict=True)
        np.testing.assert_array_equal(taps["logits"], y, strict=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tap_has_the_dtype_of_the_run(load, dtype: str) -> None:
    """In a whole forward and in a step: a float64 scalar in the mathematics would show here, and so would a float32
    vector that a float64 run did not widen. Ids, mask and positions are not floats, and angles are always float64.
    """
    p, whole, stepped = load(), Recorder(), Recorder()
    forward(p, IDS, pictures(1, dtype), TYPES, tap=whole)
    _, caches = prefill(p, [prompt(p, PREFIX, pictures(1, dtype))])
    step(p.text, np.array([3]), caches, tap=stepped)
    for taps in (whole, stepped):
        found = {name: x.dtype for name, x in taps.items() if np.issubdtype(x.dtype, np.floating)}
        angles = [name for name in found if name.endswith((".frequencies", ".angle"))]
        assert found == dict.fromkeys(found, np.dtype(dtype)) | dict.fromkeys(angles, F64)
    assert set(stepped) == {name for name in whole if name.startswith("text.")} | {"input_ids", "positions", "logits"}
