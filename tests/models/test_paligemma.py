"""PaliGemma whole: against the second spelling, and against itself where two ways must lead to one place."""

from dataclasses import replace

import numpy as np
import oracle
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from npgemma.layers.taps import Recorder
from npgemma.models import gemma, paligemma
from npgemma.models.paligemma import (
    PaliGemma,
    Prompt,
    embed_prompt,
    forward,
    image_features,
    prefix_lm_mask,
    start,
    step,
)

DTYPES = ["float32", "float64"]
C = tiny.CONFIG
IMAGE = [C.image_token_index] * C.vision.num_patches
PREFIX = [*IMAGE, 2, 5, 9, 11]
SUFFIX = [3, 4, 60, 3]
IDS = np.array(PREFIX + SUFFIX)
TYPES = np.array([0] * len(PREFIX) + [1] * len(SUFFIX))
LAST = len(PREFIX) - 1


def pictures(count: int = 1, dtype: str = "float64", side: int = C.vision.image_size, seed: int = 0) -> np.ndarray:
    # on the grid of float32, so that a run in float32 sees the very same
    numbers = np.random.default_rng(seed).uniform(-1, 1, (count, 3, side, side))
    return numbers.astype(np.float32).astype(dtype)


def prompt(p: PaliGemma, ids: list[int], pixel_values: np.ndarray, suffix: int = 0) -> Prompt:
    """The last `suffix` ids are suffix, the others prefix."""
    features = image_features(p, pixel_values)
    types = [0] * (len(ids) - suffix) + [1] * suffix
    return Prompt(np.array(ids), np.array(types), features.reshape(-1, features.shape[-1]))


def prefill(p: PaliGemma, prompts: list[Prompt], capacity: int = 40, first_position: int = 1):
    """The logits of every row, and the caches."""
    caches = [gemma.new_caches(p.text, capacity, prompts[0].image_rows.dtype) for _ in prompts]
    return gemma.logits(p.text, paligemma.prefill(p, prompts, caches, first_position)), caches


# pictures


@pytest.mark.parametrize("dtype", DTYPES)
def test_image_features_are_the_second_spelling(load, tensors, dtype: str) -> None:
    x = pictures(2, dtype)
    oracle.assert_agrees(image_features(load(), x), oracle.image_features(tensors, C, x))


def test_no_picture_gives_no_features(load) -> None:
    """And a prompt of text alone has logits."""
    assert image_features(load(), pictures(0)).shape == (0, C.vision.num_patches, C.text.hidden_size)


# prompts


def test_text_is_scaled_and_pictures_are_not(load) -> None:
    """Width 4, so text counts twice; image rows stand where the image tokens are, in order."""
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    text = gemma.Decoder(table, (), gemma.RMSNorm(np.zeros(4, np.float32), 1e-6), table)
    projector = paligemma.Projector(np.zeros((4, 12), np.float32), np.zeros(4, np.float32))
    p = replace(load(), projector=projector, text=text, image_token=9)
    image_rows = np.array([[0.5] * 4, [0.25] * 4], np.float32)
    expected = np.array([[16, 18, 20, 22], [0.5] * 4, [0, 2, 4, 6], [0.25] * 4, [8, 10, 12, 14]], np.float32)
    x = embed_prompt(p, np.array([2, 9, 0, 9, 1]), image_rows)
    np.testing.assert_array_equal(x, expected, strict=True)


@given(st.lists(st.integers(0, C.text.vocab_size - 1), min_size=1, max_size=12))
def test_an_embedded_prompt_is_the_second_spelling(load, tensors, ids: list[int]) -> None:
    """Wherever the image tokens stand, and where there are none, or nothing else."""
    image_rows = np.random.default_rng(0).standard_normal((ids.count(C.image_token_index), C.text.hidden_size))
    x = embed_prompt(load(), np.array(ids), image_rows)
    oracle.assert_agrees(x, oracle.embed_prompt(tensors, C, ids, image_rows))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_image_tokens_and_image_rows_must_be_as_many(load, count: int) -> None:
    ids = np.array([C.image_token_index, 2, C.image_token_index])
    with pytest.raises(ValueError, match=f"2 image tokens, the pictures give {count} rows"):
        embed_prompt(load(), ids, np.zeros((count, C.text.hidden_size)))


# the mask


def test_the_mask_of_a_literal() -> None:
    """Three of the prefix see each other; two of the suffix see the prefix, themselves and what came before."""
    expected = [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(prefix_lm_mask(np.array([0, 0, 0, 1, 1])), np.array(expected, bool), strict=True)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=9))
def test_the_mask_is_the_second_spelling(types: list[int]) -> None:
    """In whatever order the types come."""
    np.testing.assert_array_equal(prefix_lm_mask(np.array(types)), oracle.prefix_lm_mask(types), strict=True)


@given(st.integers(0, 6), st.integers(0, 6))
def test_the_mask_is_big_visions_where_the_prefix_comes_first(prefix: int, suffix: int) -> None:
    """big_vision: t sees s where the count of suffix tokens up to s is at most the count up to t."""
    types = np.array([0] * prefix + [1] * suffix, int)
    count = np.cumsum(types)
    np.testing.assert_array_equal(prefix_lm_mask(types), count <= count[:, None], strict=True)


# the whole forward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("types", [TYPES, np.zeros_like(TYPES), np.ones_like(TYPES)], ids=["both", "prefix", "causal"])
def test_forward_is_the_second_spelling(load, tensors, types: np.ndarray, dtype: str) -> None:
    """In float64 to some 1e-14 of the largest logit, in float32 to some 1e-5."""
    x = pictures(1, dtype)
    oracle.assert_agrees(forward(load(), IDS, x, types), oracle.forward(tensors, C, IDS, x, types))


@pytest.mark.parametrize(
    ("side", "patch", "key_heads"),
    [
        pytest.param(38, 7, 2, id="three pixels left over"),
        pytest.param(9, 3, 6, id="3 x 3 patches, a key head each"),
        pytest.param(13, 5, 1, id="2 x 2 patches, one key head"),
    ],
)
def test_forward_of_other_sizes_is_the_second_spelling(load, side: int, patch: int, key_heads: int) -> None:
    config = replace(
        C,
        vision=replace(C.vision, image_size=side, patch_size=patch),
        text=replace(C.text, num_key_value_heads=key_heads),
    )
    ids = np.array([C.image_token_index] * config.vision.num_patches + [2, 5, 9, 3])
    types, x = np.array([0] * (len(ids) - 1) + [1]), pictures(1, side=side)
    expected = oracle.forward(tiny.random_tensors(config), config, ids, x, types)
    oracle.assert_agrees(forward(load(config), ids, x, types), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_pictures_in_one_prompt_are_the_second_spelling(load, tensors, dtype: str) -> None:
    """Two in front, and one in the middle of the text; in another order they say something else."""
    ids, x = np.array([*IMAGE, *IMAGE, 2, 5, *IMAGE, 9, 3]), pictures(3, dtype)
    types = np.array([0] * (len(ids) - 1) + [1])
    scores = forward(load(), ids, x, types)
    oracle.assert_agrees(scores, oracle.forward(tensors, C, ids, x, types))
    assert np.abs(forward(load(), ids, x[::-1], types) - scores).max() > 0.1


def test_forward_without_a_picture_is_the_second_spelling(load, tensors) -> None:
    ids, types = np.array([2, 5, 9, 3]), np.array([0, 0, 0, 1])
    scores = forward(load(), ids, pictures(0), types)
    oracle.assert_agrees(scores, oracle.forward(tensors, C, ids, pictures(0), types))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_the_same_numbers_stored_otherwise_change_nothing(load, stored: str, dtype: str) -> None:
    """The random tensors are on the grid of bfloat16, and of float16 too; bfloat16 is summed in another order."""
    x = pictures(1, dtype)
    expected = forward(load(), IDS, x, TYPES)
    oracle.assert_agrees(forward(load(dtype=stored), IDS, x, TYPES), expected.astype(np.float64))
    if stored == "float16":
        np.testing.assert_array_equal(forward(load(dtype=stored), IDS, x, TYPES), expected, strict=True)


# who sees whom


@pytest.mark.parametrize("t", range(len(PREFIX), len(IDS)))
def test_a_changed_suffix_token_changes_no_bit_before_it(load, t: int) -> None:
    changed = IDS.copy()
    changed[t] = 17
    for dtype in DTYPES:
        before, after = (forward(load(), ids, pictures(1, dtype), TYPES) for ids in (IDS, changed))
        np.testing.assert_array_equal(after[:t], before[:t], strict=True)
        assert np.abs(after[t:] - before[t:]).max(-1).min() > 1e-3


def test_a_changed_last_prefix_token_changes_the_first_row(load) -> None:
    """The prefix sees all of itself, the pictures included, which come first."""
    changed = IDS.copy()
    changed[LAST] = 17
    before, after = (forward(load(), ids, pictures(), TYPES) for ids in (IDS, changed))
    assert np.abs(after - before).max(-1).min() > 1e-4


def test_a_changed_pixel_changes_every_row(load) -> None:
    x = pictures()
    x[0, 0, -1, -1] += 1
    assert np.abs(forward(load(), IDS, x, TYPES) - forward(load(), IDS, pictures(), TYPES)).max(-1).min() > 1e-6


# positions


@pytest.mark.parametrize("first", [0, 100])
def test_the_first_position_moves_the_cached_keys_and_nothing_else(load, tensors, first: int) -> None:
    p = load()
    made = prompt(p, [*PREFIX, *SUFFIX], pictures(), len(SUFFIX))
    scores, (caches,) = prefill(p, [made])
    moved_scores, (moved,) = prefill(p, [made], first_position=first)
    oracle.assert_agrees(moved_scores, scores)
    oracle.assert_agrees(forward(p, IDS, pictures(), TYPES, first), scores)
    rows = len(IDS)
    assert all(np.abs(a.keys[:rows] - b.keys[:rows]).max() > 0.1 for a, b in zip(caches, moved, strict=True))
    np.testing.assert_array_equal(moved[0].values[:rows], caches[0].values[:rows], strict=True)


@pytest.mark.parametrize("first", [0, 1, 100])
def test_keys_are_turned_by_positions_that_count_from_the_first(load, first: int) -> None:
    """Each prompt's from the same, pictures and text alike, and a step goes on where the prompt stopped."""
    p, taps = load(), Recorder("text.layers.0.attn.k*")
    prompts = [prompt(p, PREFIX, pictures()), prompt(p, [*IMAGE, 2], pictures(seed=1))]
    caches = [gemma.new_caches(p.text, 40, np.dtype(np.float64)) for _ in prompts]
    theta = C.text.rope_theta
    paligemma.prefill(p, prompts, caches, first, taps)
    positions = [first + t for made in prompts for t in range(len(made.input_ids))]
    oracle.assert_agrees(taps["text.layers.0.attn.k_rope"], oracle.rope(taps["text.layers.0.attn.k"], positions, theta))
    step(p, np.array([3, 4]), caches, np.dtype(np.float64), first, taps)
    positions = [first + len(made.input_ids) for made in prompts]
    oracle.assert_agrees(taps["text.layers.0.attn.k_rope"], oracle.rope(taps["text.layers.0.attn.k"], positions, theta))


def test_positions_count_from_one_unless_told(load) -> None:
    """transformers' convention; the last bits differ between 0 and 1, so the default can be told apart."""
    p, made = load(), prompt(load(), PREFIX, pictures())
    caches = gemma.new_caches(p.text, 40, np.dtype(np.float64))
    paligemma.prefill(p, [made], [caches])
    _, (from_one,) = prefill(p, [made], first_position=1)
    np.testing.assert_array_equal(caches[0].keys[: len(PREFIX)], from_one[0].keys[: len(PREFIX)], strict=True)
    _, (from_nought,) = prefill(p, [made], first_position=0)
    assert np.abs(caches[0].keys[: len(PREFIX)] - from_nought[0].keys[: len(PREFIX)]).max() > 0.1
    default, one = Recorder("*.k_rope"), Recorder("*.k_rope")
    step(p, np.array([3]), [caches], np.dtype(np.float64), tap=default)
    step(p, np.array([3]), [from_one], np.dtype(np.float64), 1, one)
    for name in default:
        np.testing.assert_array_equal(default[name], one[name], strict=True)


# cached decoding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_the_prompt", range(len(SUFFIX)))
@pytest.mark.parametrize("first", [0, 1, 100])
def test_steps_from_a_cache_give_the_logits_of_the_whole(load, first: int, in_the_prompt: int, dtype: str) -> None:
    """Some of the suffix prefilled with the prefix, the rest one token at a time: each row as in one full pass."""
    p, x = load(), pictures(1, dtype)
    whole = forward(p, IDS, pictures(1), TYPES, first)
    start = len(PREFIX) + in_the_prompt
    scores, caches = prefill(p, [prompt(p, IDS[:start].tolist(), x, in_the_prompt)], len(IDS), first)
    oracle.assert_agrees(scores, whole[:start])
    for t in range(start, len(IDS)):
        oracle.assert_agrees(step(p, IDS[t : t + 1], caches, x.dtype, first), whole[t : t + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [0, 1, 100])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_start_gives_the_logits_of_the_last_row_of_each_prompt(load, count: int, first: int, dtype: str) -> None:
    """Those of the whole, computed with no other row in the last layer; a tap, which is shown all rows, changes no more
    than the order of sums.
    """
    p, taps = load(), Recorder()
    prompts = [
        prompt(p, PREFIX, pictures(1, dtype)),
        prompt(p, [2, 7], pictures(0, dtype)),
        prompt(p, [*IMAGE, 2, 8, 10, 12, 3], pictures(1, dtype, seed=2), suffix=1),
    ][:count]
    whole, expected_caches = prefill(p, prompts, 60, first)
    ends = np.cumsum([len(made.input_ids) for made in prompts])
    expected = whole[ends - 1].astype(np.float64)
    quiet, tapped = ([gemma.new_caches(p.text, 60, np.dtype(dtype)) for _ in prompts] for _ in range(2))
    y, seen = start(p, prompts, quiet, first), start(p, prompts, tapped, first, taps)
    assert y.dtype == seen.dtype == dtype
    oracle.assert_agrees(y, expected)
    oracle.assert_agrees(seen, expected)
    assert y.shape == taps["logits"].shape == (count, C.text.vocab_size)
    assert len(taps["text.norm"]) == len(taps["text.layers.2.out"]) == ends[-1]
    np.testing.assert_array_equal(taps["logits"], seen, strict=True)
    for made, *layers in zip(prompts, *map(list, (expected_caches, quiet, tapped)), strict=True):
        for expected_cache, *others in zip(*layers, strict=True):
            for cache in others:
                assert cache.length == expected_cache.length == len(made.input_ids)
                for kept, wanted in ((cache.keys, expected_cache.keys), (cache.values, expected_cache.values)):
                    oracle.assert_agrees(kept[: cache.length], wanted[: cache.length].astype(np.float64))


def test_a_start_counts_positions_from_one_unless_told(load) -> None:
    p, made = load(), prompt(load(), PREFIX, pictures())
    default, one = (gemma.new_caches(p.text, 40, np.dtype(np.float64)) for _ in range(2))
    start(p, [made], [default])
    start(p, [made], [one], 1)
    np.testing.assert_array_equal(default[0].keys[: len(PREFIX)], one[0].keys[: len(PREFIX)], strict=True)


def test_what_a_tap_puts_into_a_start_is_what_it_goes_on_with(load) -> None:
    """Also the rows of a prompt that are not its last, in the last layer: they reach no logits, its last one does."""
    p, made = load(), prompt(load(), PREFIX, pictures())

    def logits_with(row: int) -> np.ndarray:
        def louder(name: str, x: np.ndarray) -> np.ndarray:
            if name == "text.layers.2.mid":
                x = x.copy()
                x[row] *= 2
            return x

        return start(p, [made], [gemma.new_caches(p.text, 40, np.dtype(np.float64))], tap=louder)

    plain = start(p, [made], [gemma.new_caches(p.text, 40, np.dtype(np.float64))], tap=Recorder())
    np.testing.assert_array_equal(logits_with(0), plain, strict=True)
    assert np.abs(logits_with(-1) - plain).max() > 1e-3


def test_a_step_beyond_the_capacity_is_refused(load) -> None:
    p = load()
    _, caches = prefill(p, [prompt(p, PREFIX, pictures())], capacity=len(PREFIX))
    with pytest.raises(ValueError, match=f"cache of {len(PREFIX)} rows"):
        step(p, np.array([3]), caches, np.dtype(np.float64))


def test_greedy_steps_choose_what_the_second_spelling_chooses_without_a_cache(load, tensors) -> None:
    """With a head of its own: where the table is the head, a random model says its last token again and again."""
    head = np.random.default_rng(0).standard_normal(tensors["text.embed_tokens.weight"].shape)
    p, x, count = load(), pictures(), 6
    p = replace(p, text=replace(p.text, head=head))
    scores, caches = prefill(p, [prompt(p, PREFIX, x)])
    chosen = [int(scores[-1].argmax())]
    while len(chosen) < count:
        chosen.append(int(step(p, np.array(chosen[-1:]), caches, x.dtype)[0].argmax()))
    assert chosen == oracle.generate({**tensors, "text.lm_head.weight": head}, C, PREFIX, x, count)
    assert len(set(chosen)) > 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_prompts_together_are_each_what_they_are_alone(load, dtype: str) -> None:
    """Of different lengths and numbers of pictures, prefilled and stepped side by side."""
    p = load()
    prompts = [
        prompt(p, PREFIX, pictures(1, dtype)),
        prompt(p, [*IMAGE, *IMAGE, 2, 7], pictures(2, dtype, seed=1)),
        prompt(p, [*IMAGE, 2, 8, 10, 12, 3], pictures(1, dtype, seed=2), suffix=1),
    ]
    tokens = np.array([3, 4, 60])
    dtype_ = np.dtype(dtype)
    together, caches = prefill(p, prompts, 60)
    stepped = [step(p, tokens, caches, dtype_), step(p, tokens[::-1], caches, dtype_)]
    starts = np.cumsum([0, *(len(made.input_ids) for made in prompts)])
    for i, made in enumerate(prompts):
        alone, own = prefill(p, [made], 60)
        oracle.assert_agrees(together[starts[i] : starts[i + 1]], alone.astype(np.float64))
        for ids, rows in zip((tokens, tokens[::-1]), stepped, strict=True):
            oracle.assert_agrees(rows[i : i + 1], step(p, ids[i : i + 1], own, dtype_).astype(np.float64))


def test_a_sequence_that_ends_leaves_the_others_as_they_were(load) -> None:
    """A step of some of the sequences touches no cache but theirs."""
    p = load()
    prompts = [prompt(p, PREFIX, pictures()), prompt(p, [*IMAGE, 2], pictures(seed=1))]
    _, caches = prefill(p, prompts)
    scores = step(p, np.array([3]), caches[1:], np.dtype(np.float64))
    assert [sequence[0].length for sequence in caches] == [len(PREFIX), len(IMAGE) + 2]
    _, (alone,) = prefill(p, prompts[1:])
    oracle.assert_agrees(scores, step(p, np.array([3]), [alone], np.dtype(np.float64)))


# taps


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tap_has_the_compute_dtype(load, dtype: str) -> None:
    """In a whole forward and in a step: a float64 scalar in the maths would show here first, and so would a float32
    vector that a float64 run forgot to widen. Ids, mask and positions are no floats, and angles are float64 in all.
    """
    p, whole, stepped = load(), Recorder(), Recorder()
    forward(p, IDS, pictures(1, dtype), TYPES, tap=whole)
    _, caches = prefill(p, [prompt(p, PREFIX, pictures(1, dtype))])
    step(p, np.array([3]), caches, np.dtype(dtype), tap=stepped)
    for taps in (whole, stepped):
        found = {name: x.dtype for name, x in taps.items() if np.issubdtype(x.dtype, np.floating)}
        angles = [name for name in found if name.endswith((".frequencies", ".angle"))]
        assert found == dict.fromkeys(found, np.dtype(dtype)) | dict.fromkeys(angles, np.dtype(np.float64))
    assert {"vision.embedding", "vision.layers.1.mlp.out", "projector", "text.embedding", "logits"} <= set(whole)
    assert set(stepped) == {name for name in whole if name.startswith("text.")} | {"input_ids", "positions", "logits"}


def test_a_recorder_with_a_pattern_keeps_that_layer_alone(load) -> None:
    taps = Recorder("text.layers.2.attn.?")
    forward(load(), IDS, pictures(), TYPES, tap=taps)
    assert list(taps) == [f"text.layers.2.attn.{name}" for name in "qkv"]


def test_recording_changes_no_bit(load) -> None:
    expected = forward(load(), IDS, pictures(), TYPES)
    np.testing.assert_array_equal(forward(load(), IDS, pictures(), TYPES, tap=Recorder()), expected, strict=True)


@pytest.mark.parametrize("name", ["projector", "text.embedding", "text.layers.1.mid", "text.norm", "logits"])
def test_a_tensor_of_somebody_elses_can_be_patched_in(load, name: str) -> None:
    """All that follows hangs on this one tensor: with another run's in its place, the other run's logits come out."""
    other = Recorder()
    expected = forward(load(), IDS, pictures(seed=1), TYPES, tap=other)

    def patch(tapped: str, x: np.ndarray) -> np.ndarray:
        return other[name] if tapped == name else x

    assert np.abs(forward(load(), IDS, pictures(), TYPES) - expected).max() > 0.1
    np.testing.assert_array_equal(forward(load(), IDS, pictures(), TYPES, tap=patch), expected, strict=True)
