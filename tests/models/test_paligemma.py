"""PaliGemma in one pass: features, prompts and logits; test_prefix_lm_cache holds decoding from a cache."""

from dataclasses import replace

import numpy as np
import one_page
import pytest
import tiny
from agreement import assert_agrees
from hypothesis import given
from hypothesis import strategies as st
from sequences import IDS, IMAGE, PREFIX, TYPES, C, pictures

from npgemma.layers.taps import Recorder
from npgemma.models.paligemma import forward, image_features, make_prompt
from npgemma.models.prefix_lm import embed_prompt

DTYPES = ["float32", "float64"]


# pictures


@pytest.mark.parametrize("dtype", DTYPES)
def test_image_features_agree_with_the_second_spelling(load, spelled, dtype: str) -> None:
    x = pictures(2, dtype)
    assert_agrees(image_features(load(), x), one_page.image_features(*spelled(), x))


def test_no_pictures_give_no_features(load) -> None:
    assert image_features(load(), pictures(0)).shape == (0, C.vision.num_patches, C.text.hidden_size)


# prompts


@given(st.lists(st.integers(0, C.text.vocab_size - 1), min_size=1, max_size=12))
def test_an_embedded_prompt_agrees_with_the_second_spelling(load, spelled, ids: list[int]) -> None:
    """Wherever the image tokens are, with none of them and with nothing else."""
    image_rows = np.random.default_rng(0).standard_normal((ids.count(C.image_token_index), C.text.hidden_size))
    prompt = make_prompt(load(), np.array(ids), np.zeros(len(ids), int), image_rows[:, None])
    x = embed_prompt(load().text, prompt)
    assert_agrees(x, one_page.embed_prompt(*spelled(), ids, image_rows))


# the whole forward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("types", [TYPES, np.zeros_like(TYPES), np.ones_like(TYPES)], ids=["both", "prefix", "causal"])
def test_forward_agrees_with_the_second_spelling(load, spelled, types: np.ndarray, dtype: str) -> None:
    x = pictures(1, dtype)
    assert_agrees(forward(load(), IDS, x, types), one_page.forward(*spelled(), IDS, x, types))


@pytest.mark.parametrize(
    ("side", "patch", "key_heads", "tied"),
    [
        pytest.param(38, 7, 2, True, id="three pixels left over"),
        pytest.param(9, 3, 6, False, id="3 x 3 patches, a key head each, a head of its own"),
        pytest.param(13, 5, 1, True, id="2 x 2 patches, one key head"),
    ],
)
def test_forward_of_other_sizes_agrees_with_the_second_spelling(
    load, spelled, side: int, patch: int, key_heads: int, tied: bool
) -> None:
    vision = replace(C.vision, image_size=side, patch_size=patch)
    config = replace(C, vision=vision, text=replace(C.text, num_key_value_heads=key_heads), tied=tied)
    ids = np.array([C.image_token_index] * config.vision.num_patches + [2, 5, 9, 3])
    types, x = np.array([0] * (len(ids) - 1) + [1]), pictures(1, side=side)
    assert_agrees(forward(load(config), ids, x, types), one_page.forward(*spelled(config), ids, x, types))


def test_several_pictures_in_one_prompt_agree_with_the_second_spelling(load, spelled) -> None:
    """Two at the start, and one in the middle of the text; in another order the logits differ."""
    ids, x = np.array([*IMAGE, *IMAGE, 2, 5, *IMAGE, 9, 3]), pictures(3)
    types = np.array([0] * (len(ids) - 1) + [1])
    scores = forward(load(), ids, x, types)
    assert_agrees(scores, one_page.forward(*spelled(), ids, x, types))
    assert np.abs(forward(load(), ids, x[::-1], types) - scores).max() > 0.1


def test_forward_without_pictures_agrees_with_the_second_spelling(load, spelled) -> None:
    ids, types = np.array([2, 5, 9, 3]), np.array([0, 0, 0, 1])
    assert_agrees(forward(load(), ids, pictures(0), types), one_page.forward(*spelled(), ids, None, types))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_the_stored_dtype_does_not_matter(load, stored: str, dtype: str) -> None:
    """bfloat16 and float16 hold the random tensors exactly; bfloat16 is summed in another order."""
    x = pictures(1, dtype)
    expected = forward(load(), IDS, x, TYPES)
    assert_agrees(forward(load(dtype=stored), IDS, x, TYPES), expected.astype(np.float64))
    if stored == "float16":
        np.testing.assert_array_equal(forward(load(dtype=stored), IDS, x, TYPES), expected, strict=True)


# which row sees which


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", range(len(PREFIX), len(IDS)))
def test_a_changed_suffix_token_changes_no_bit_before_it(load, t: int, dtype: str) -> None:
    changed = IDS.copy()
    changed[t] = 17
    before, after = (forward(load(), ids, pictures(1, dtype), TYPES) for ids in (IDS, changed))
    np.testing.assert_array_equal(after[:t], before[:t], strict=True)
    assert np.abs(after[t:] - before[t:]).max(-1).min() > 1e-3


def test_a_changed_last_prefix_token_changes_every_row(load) -> None:
    """The prefix sees all of itself, the pictures at its start included."""
    changed = IDS.copy()
    changed[len(PREFIX) - 1] = 17
    before, after = (forward(load(), ids, pictures(), TYPES) for ids in (IDS, changed))
    assert np.abs(after - before).max(-1).min() > 1e-4


def test_a_changed_pixel_changes_every_row(load) -> None:
    x = pictures()
    x[0, 0, -1, -1] += 1
    assert np.abs(forward(load(), IDS, x, TYPES) - forward(load(), IDS, pictures(), TYPES)).max(-1).min() > 1e-6


# taps


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_recorder_changes_no_bit_of_forward(load, dtype: str) -> None:
    x = pictures(1, dtype)
    expected = forward(load(), IDS, x, TYPES)
    np.testing.assert_array_equal(forward(load(), IDS, x, TYPES, tap=Recorder()), expected, strict=True)


def test_forward_taps_inputs_and_parts_with_their_axes(load) -> None:
    """Those of the tower and the decoder are held by their own tests."""
    taps = Recorder()
    forward(load(), IDS, pictures(), TYPES, tap=taps)
    rest = {name: axes for name, axes in taps.axes.items() if ".layers." not in name}
    assert list(rest.items()) == [
        ("pixel_values", "B C Y X"),
        ("vision.embedding.patches", "B P D"),
        ("vision.embedding", "B P D"),
        ("vision.norm", "B P D"),
        ("projector", "B P D"),
        ("prompts.0.input_ids", "T"),
        ("prompts.0.token_type_ids", "T"),
        ("prompts.0.mask", "T S"),
        ("text.scale", ""),
        ("text.embedding", "T D"),
        ("positions", "T"),
        ("text.norm", "T D"),
        ("logits", "T V"),
    ]
    assert all(len(axes.split()) == taps[name].ndim for name, axes in taps.axes.items())


def test_a_pattern_keeps_the_tensors_of_one_layer(load) -> None:
    taps = Recorder("text.layers.2.attn.?")
    forward(load(), IDS, pictures(), TYPES, tap=taps)
    assert list(taps) == [f"text.layers.2.attn.{name}" for name in "qkv"]


@pytest.mark.parametrize("name", ["projector", "text.embedding", "text.layers.1.mid", "text.norm", "logits"])
def test_a_tensor_of_another_run_can_be_patched_in(load, name: str) -> None:
    """Everything that follows depends on this tensor alone, so the logits of the other run result."""
    other = Recorder()
    expected = forward(load(), IDS, pictures(seed=1), TYPES, tap=other)

    def patch(tapped: str, x: np.ndarray, axes: str) -> np.ndarray:
        return other[name] if tapped == name else x

    assert np.abs(forward(load(), IDS, pictures(), TYPES) - expected).max() > 0.1
    np.testing.assert_array_equal(forward(load(), IDS, pictures(), TYPES, tap=patch), expected, strict=True)


def test_weights_of_a_tower_that_does_not_fit_the_decoder_are_refused(load) -> None:
    """Every weights class checks its fields against each other when it is made."""
    p, other = load(), replace(tiny.CONFIG, text=replace(C.text, hidden_size=13))
    with pytest.raises(AssertionError, match="D is"):
        replace(p.projector, bias=np.zeros(13, np.float32))
    with pytest.raises(AssertionError, match="D is"):
        forward(replace(p, projector=load(other).projector), IDS, pictures(), TYPES)
