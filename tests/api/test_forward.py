"""VisionLanguageModel.forward and image_features: the model on given rows, what a tap may do, and refused inputs."""

import numpy as np
import pytest
from small_model import CONFIG, EACH, PICTURES, SIDE, ids, pixels

import npgemma
from npgemma.errors import BadPrompt
from npgemma.io.pixels import pixel_values
from npgemma.models.paligemma import forward


def test_forward_is_the_model_on_the_given_rows(small):
    row, values = ids(2, 9, 33), pixels()
    for types in (None, np.array([0] * (EACH + 1) + [1, 1])):
        expected = forward(small.weights, row, values, np.zeros_like(row) if types is None else types)
        np.testing.assert_array_equal(small.forward(row, values, types), expected, strict=True)
    assert (small.forward(row, values) != expected).any()


def test_text_without_pictures_needs_no_pixels(small):
    row = np.array([2, 9, 33])
    found = small.forward(row)
    assert found.shape == (3, CONFIG.text.vocab_size)
    np.testing.assert_array_equal(found, small.forward(row, np.zeros((0, 3, SIDE, SIDE))), strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, None])
def test_ids_and_types_may_be_lists_or_of_any_integer_dtype(dtype, small):
    row, types = [2, 9, 33], [0, 0, 1]
    expected = small.forward(np.array(row), None, np.array(types))
    found = small.forward(*((row, None, types) if dtype is None else (np.array(row, dtype), None, types)))
    np.testing.assert_array_equal(found, expected, strict=True)


def test_float64_pixels_do_not_make_a_float32_model_compute_in_float64(small):
    values = pixels(dtype=np.float64)
    expected = small.forward(ids(2, 9), values.astype(np.float32))
    np.testing.assert_array_equal(small.forward(ids(2, 9), values), expected, strict=True)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_image_features_are_the_rows_that_the_decoder_gets(count, small):
    taps = npgemma.Recorder("image_features", "projector")
    small.forward(ids(2, pictures=count), pixel_values(PICTURES[:count], SIDE), tap=taps)
    found = small.image_features(PICTURES[:count])
    assert found.shape == (count, EACH, CONFIG.text.hidden_size)
    if count:
        np.testing.assert_array_equal(found, taps["projector"], strict=True)
        np.testing.assert_array_equal(small.image_features(PICTURES[0]), small.image_features(PICTURES[:1]))


# ---------------------------------------------------------------------------------------------------------------- taps


def test_a_tap_with_axes_and_one_without_see_the_same_tensors(small):
    with_axes, without = [], []

    def tap(name, x, axes):
        assert x.ndim == len(axes.split())
        with_axes.append(name)
        return x

    def old_tap(name, x):
        without.append(name)
        return x

    plain = small.forward(ids(2, 9), pixels())
    for each in (tap, old_tap):
        np.testing.assert_array_equal(small.forward(ids(2, 9), pixels(), tap=each), plain, strict=True)
    assert with_axes == without
    assert with_axes[-1] == "logits"


def test_the_model_continues_with_what_a_tap_returns(small):
    found = small.forward(ids(2, 9), pixels(), tap=lambda name, x: x * 0 if name == "logits" else x)
    assert not found.any()


@pytest.mark.parametrize("tap", [lambda: None, lambda name: name, lambda name, x, axes, more: x, 7], ids=str)
def test_a_tap_with_other_parameters_is_refused_before_anything_runs(tap, small):
    with pytest.raises(TypeError, match="is not a tap: it must take"):
        small.forward(ids(2, 9), None, tap=tap)  # without pixels: those ids would be refused next


RESULTS = {
    "nothing": (lambda x: None, "NoneType"),
    "another dtype": (lambda x: x.astype(np.float64), "float64"),
    "another shape": (lambda x: x[:1], r"float32 \[1, "),
    "a list": (lambda x: x.tolist(), "list"),
}


@pytest.mark.parametrize(("result", "found"), RESULTS.values(), ids=RESULTS)
def test_a_tap_that_returns_another_kind_of_value_fails_with_the_name(result, found, small):
    name = "text.layers.1.mlp.out"
    with pytest.raises(TypeError, match=rf"the tap returned {found}.* for text\.layers\.1\.mlp\.out, which is float32"):
        small.forward(ids(2, 9), pixels(), tap=lambda each, x: result(x) if each == name else x)


# -------------------------------------------------------------------------------------------------------- refused input


IDS = {
    "none": [],
    "floats": [2.0, 9.0],
    "bools": [True, False],
    "text": "hello",
    "nothing": None,
    "two rows": [[2, 9], [2, 9]],
    "rows of different lengths": [[2, 9], [2]],
    "a number": 7,
    "negative": [2, -1],
    "beyond the table": [2, CONFIG.text.vocab_size],
    "far beyond": [2, 2**62],
    "objects": [2, 2**70],
}


@pytest.mark.parametrize("row", IDS.values(), ids=IDS)
def test_invalid_ids_are_refused(row, small):
    for ask in (small.forward, small.generate_ids):
        with pytest.raises(BadPrompt, match="input_ids"):
            ask(row)


PIXELS = {
    "another side": np.zeros((1, 3, SIDE + 1, SIDE)),
    "one picture without a stack": np.zeros((3, SIDE, SIDE)),
    "channels last": np.zeros((1, SIDE, SIDE, 3)),
    "four channels": np.zeros((1, 4, SIDE, SIDE)),
    "five axes": np.zeros((1, 1, 3, SIDE, SIDE)),
    "bytes": np.zeros((1, 3, SIDE, SIDE), np.uint8),  # which would be far outside of -1 .. 1
    "complex": np.zeros((1, 3, SIDE, SIDE), complex),
    "a number": np.float32(1),
    "text": "cat.png",
}


@pytest.mark.parametrize("values", PIXELS.values(), ids=PIXELS)
def test_invalid_pixels_are_refused(values, small):
    for ask in (small.forward, small.generate_ids):
        with pytest.raises(BadPrompt, match="pixel_values must be floats of shape"):
            ask(ids(2, 9), values)


def test_pixels_of_rows_of_different_lengths_are_refused(small):
    with pytest.raises(BadPrompt, match="pixel_values has rows of different lengths"):
        small.forward([2, 9], [[2, 9], [2]])


@pytest.mark.parametrize("types", [[0], [0, 0, 0, 0], [[0, 0, 0]], [0, 0, 2], [0, -1, 0], ["a"] * 3, 7], ids=str)
def test_types_must_be_0_or_1_for_each_id(types, small):
    with pytest.raises(BadPrompt, match=r"token_type_ids must be 0 \(prefix\) or 1 \(suffix\) for each of 3"):
        small.forward([2, 2, 2], None, types)


def test_types_of_rows_of_different_lengths_are_refused(small):
    with pytest.raises(BadPrompt, match="token_type_ids has rows of different lengths"):
        small.forward([2, 9], None, [[2, 9], [2]])


@pytest.mark.parametrize(("tokens", "pictures"), [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_image_tokens_must_be_those_of_the_pictures(tokens, pictures, small):
    for ask in (small.forward, small.generate_ids):
        with pytest.raises(BadPrompt, match=f"hold {tokens * EACH} image tokens; {pictures} pictures need"):
            ask(ids(2, 9, pictures=tokens), pixels(pictures))
    with pytest.raises(BadPrompt, match=f"hold {EACH - 1} image tokens; 1 pictures need {EACH}"):
        small.forward(ids(2, 9)[1:], pixels())
