"""VisionLanguageModel: its methods, and generate, generate_ids and score on prompts with and without pictures."""

import dataclasses
import inspect

import numpy as np
import pytest
from answers import assert_same
from small_model import IMAGE, PICTURES, TOKENIZER, ids, pixels, write_folder

import npgemma
from npgemma.errors import BadPicture, BadPrompt

# Prompts of different lengths, with one, no and two pictures.
BATCH = [
    (PICTURES[0], "caption en"),
    ([], "hi"),
    ([PICTURES[1], PICTURES[2]], "answer en how many? é"),
    (PICTURES[2], ""),
]
IMAGES, PROMPTS = (list(each) for each in zip(*BATCH, strict=True))


def test_the_public_methods_are_these_six():
    methods = {name for name, _ in inspect.getmembers(npgemma.VisionLanguageModel, inspect.isfunction)}
    public = {name for name in methods if not name.startswith("_")}
    assert public == {"forward", "generate", "generate_ids", "stream", "score", "image_features"}


# ------------------------------------------------------------------------------------------------------------ generate


def test_one_prompt_gives_one_generation_and_a_list_gives_a_list(small):
    one = small.generate(PICTURES[0], "caption en", max_new_tokens=4)
    assert isinstance(one, npgemma.Generation)
    assert small.generate([PICTURES[0]], ["caption en"], max_new_tokens=4) == [one]
    assert small.generate([[PICTURES[0]]], ("caption en",), max_new_tokens=4) == [one]
    assert small.generate([], []) == []


def test_the_answer_is_the_text_of_its_ids(small):
    answer = small.generate(PICTURES[0], "caption en", max_new_tokens=12)
    assert len(answer.token_ids) == 12
    assert {type(each) for each in answer.token_ids} == {int}
    assert answer.text == TOKENIZER.decode(answer.token_ids)
    assert answer.finish_reason == "length"


def test_answers_depend_on_picture_and_prompt(small):
    """Otherwise the comparisons below would hold for a model that ignores its input."""
    asked = [*BATCH, (PICTURES[1], "caption en")]
    written = [tuple(small.generate(*each, max_new_tokens=8).token_ids) for each in asked]
    assert len(set(written)) == len(written)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "seed": 11}], ids=str)
def test_each_prompt_of_several_is_answered_as_it_is_alone(dtype, sampling, small_folder):
    """In either order, although lengths and numbers of pictures differ."""
    model, options = npgemma.load(small_folder, dtype=dtype), {"max_new_tokens": 10} | sampling
    alone = [model.generate(*each, **options) for each in BATCH]
    assert_same(model.generate(IMAGES, PROMPTS, **options), alone)
    assert_same(model.generate(IMAGES[::-1], PROMPTS[::-1], **options), alone[::-1])


def test_an_end_token_of_the_config_ends_its_own_answer_alone(tmp_path, small):
    free = [each.token_ids for each in small.generate(IMAGES, PROMPTS, max_new_tokens=8)]
    eos = [free[0][3], free[2][5]]
    stopped = npgemma.load(write_folder(tmp_path, eos=eos)).generate(IMAGES, PROMPTS, max_new_tokens=8)
    for row, answer in zip(free, stopped, strict=True):
        end = next((i for i, each in enumerate(row) if each in eos), None)
        assert answer.token_ids == (row if end is None else row[: end + 1])
        assert answer.finish_reason == ("length" if end is None else "stop")
    assert {answer.finish_reason for answer in stopped} == {"stop", "length"}


def test_rows_of_the_table_without_a_piece_are_never_chosen(small_folder):
    """The image token and the rows that fill the table may be likeliest, since they were never trained; here they are.

    `generate_ids` may choose them.
    """
    model, taps = npgemma.load(small_folder), npgemma.Recorder("text.norm")
    inputs = model.processor([PICTURES[0]], ["caption en"])
    model.forward(inputs.input_ids[0], inputs.pixel_values, tap=taps)
    head = np.array(model.weights.text.head)
    head[IMAGE:] = 100 * taps["text.norm"][-1]
    model.weights = dataclasses.replace(model.weights, text=dataclasses.replace(model.weights.text, head=head))
    assert model.generate_ids(inputs.input_ids[0], inputs.pixel_values, max_new_tokens=1) == [IMAGE]
    for sampling in ({}, {"temperature": 1.0}):
        assert max(model.generate(PICTURES[0], "caption en", max_new_tokens=8, **sampling).token_ids) < IMAGE


def test_the_same_seed_gives_the_same_answer_and_another_does_not(small):
    answers = [small.generate(PICTURES[0], "ocr", max_new_tokens=8, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -1}, "temperature is -1; it must be 0"),
        ({"num_beams": 2, "temperature": 1.0}, "beam search does not sample: set num_beams=1"),
        ({"num_beams": 2, "num_return_sequences": 3}, "2 beams cannot return 3 sequences; use more"),
        ({"num_return_sequences": 2}, "greedy decoding has one result: for several, set a temperature"),
    ],
    ids=str,
)
def test_invalid_options_are_refused_before_a_picture_is_read(options, says, small):
    """The ranges are tested in tests/decoding/test_options.py."""
    with pytest.raises(ValueError, match=says):
        small.generate("nowhere.png", "ocr", **options)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"temperature": 1.0, "num_return_sequences": 2}], ids=str)
def test_a_stream_has_one_answer(options, small):
    with pytest.raises(ValueError, match="only one answer is written at a time"):
        small.stream(PICTURES[0], "ocr", **options)


def test_a_misspelt_option_is_a_type_error(small):
    with pytest.raises(TypeError, match="temprature"):
        small.generate(PICTURES[0], "ocr", temprature=1.0)


def test_pictures_and_prompts_that_cannot_be_used_are_refused(small, tmp_path):
    with pytest.raises(BadPicture, match=r"nowhere\.png was not found"):
        small.generate(tmp_path / "nowhere.png", "ocr")
    with pytest.raises(BadPicture):
        small.generate(None, "ocr")
    for images, prompts in (([PICTURES[0]], ["ocr", "ocr"]), (PICTURES[0], ["ocr"])):
        with pytest.raises(BadPrompt, match="lists of equal length"):
            small.generate(images, prompts)
    with pytest.raises(BadPrompt, match="<image> 2 times"):
        small.generate(PICTURES[0], "<image><image>")
    with pytest.raises(BadPrompt, match="valid text"):
        small.generate(PICTURES[0], "\udcff")


def test_a_prompt_and_answer_longer_than_the_positions_of_the_model_are_refused(small):
    limit = small.config.text.max_position_embeddings
    length = len(small.processor([[]], ["ocr"]).input_ids[0])
    with pytest.raises(BadPrompt, match=f"max_new_tokens {limit} are more than the {limit} positions .* fewer tokens"):
        small.generate([], "ocr", max_new_tokens=limit)
    with pytest.raises(BadPrompt, match="use fewer pictures or words"):
        small.generate([], "ocr " * limit, max_new_tokens=1)
    small.guard.check_length([np.zeros(length, int)], limit - length)


# --------------------------------------------------------------------------------------------- generate_ids and score


def test_the_processors_ids_are_continued_as_generate_does(small):
    inputs = small.processor([PICTURES[0]], ["caption en"])
    written = small.generate_ids(inputs.input_ids[0], inputs.pixel_values, max_new_tokens=8)
    assert written == small.generate(PICTURES[0], "caption en", max_new_tokens=8).token_ids


def test_end_tokens_are_those_of_the_config_unless_others_are_given(small, tmp_path):
    free = small.generate_ids(ids(2, 9), pixels(), max_new_tokens=8)
    end = next(i for i, each in enumerate(free) if each not in free[:i] and i > 1)
    assert small.generate_ids(ids(2, 9), pixels(), 8, eos_ids=[free[end]]) == free[: end + 1]
    other = npgemma.load(write_folder(tmp_path, eos=free[end]))
    assert other.generate_ids(ids(2, 9), pixels(), 8) == free[: end + 1]
    assert other.generate_ids(ids(2, 9), pixels(), 8, eos_ids=[]) == free


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_an_error_and_never_an_answer(value, small):
    values = pixels()
    values[0, 1, 2, 3] = value
    with pytest.raises(npgemma.BadPrompt, match="pixel_values are not finite: picture 0 has NaN or infinity"):
        small.generate_ids(ids(2, 9), values)


def test_a_suffix_has_one_score_and_a_list_has_a_list(small):
    """Several suffixes of one prompt, and one suffix of each of several prompts, have the scores that each has alone.

    tests/decoding/test_scoring.py tests the numbers.
    """
    one = small.score(PICTURES[0], "ocr", "a")
    assert isinstance(one, npgemma.Score)
    alone = [small.score(*each, "cat") for each in BATCH]
    found = small.score(IMAGES, PROMPTS, ["cat"] * len(BATCH))
    many = small.score(PICTURES[0], "caption en", ["cat", "cat"])
    for score, expected in zip([*found, *many], [*alone, alone[0], alone[0]], strict=True):
        assert score.token_ids == expected.token_ids
        assert score.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert small.score(PICTURES[0], "ocr", []) == []


def test_prompts_and_suffixes_must_pair_up(small):
    with pytest.raises(BadPrompt, match="there are 2 prompts and 1 suffixes; pass one for each prompt"):
        small.score(PICTURES[:2], ["ocr", "ocr"], ["a"])
