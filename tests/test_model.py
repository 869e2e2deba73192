"""`load` and `Model`, as a library is used."""

import numpy as np
import pytest
import tiny
from PIL import Image

import npgemma
from npgemma import BadModel, BadPicture, BadPrompt

SIDE = 84
IMAGE_TOKENS = 36


@pytest.fixture(scope="module")
def model():
    return npgemma.load()


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (50, 70, 3), np.uint8)


def test_the_embedded_model_is_what_its_card_says(model):
    assert model.config.vision.image_size == SIDE
    assert model.config.vision.num_patches == IMAGE_TOKENS
    assert model.tokenizer.image_id == model.config.image_token_index < model.config.text.vocab_size
    assert model.dtype == np.float32


def test_inputs_are_rows_of_ids_and_types_and_pixels(model, picture):
    inputs = model.processor(images=[picture, [picture, picture]], text=["caption en", "ocr"])
    assert [len(row) for row in inputs.input_ids] == [IMAGE_TOKENS + 4, 2 * IMAGE_TOKENS + 3]
    assert all((types == 0).all() for types in inputs.token_type_ids)
    assert inputs.pixel_values.shape == (3, 3, SIDE, SIDE)
    assert inputs.images == [1, 2]


def test_one_prompt_gives_one_generation_and_a_list_a_list(model, picture):
    one = model.generate(picture, "caption en", max_new_tokens=5)
    assert isinstance(one, npgemma.Generation)
    assert model.generate([picture], ["caption en"], max_new_tokens=5) == [one]
    assert model.generate([], []) == []


def test_a_generation_is_its_tokens_as_text(model, picture):
    generation = model.generate(picture, "caption en")
    assert generation.text == model.tokenizer.decode(generation.token_ids)
    assert generation.finish_reason == "stop"
    assert generation.token_ids[-1] == 1
    cut = model.generate(picture, "caption en", max_new_tokens=2)
    assert (cut.token_ids, cut.finish_reason) == (generation.token_ids[:2], "length")


def test_generate_equals_generate_ids_on_the_processors_ids(model, picture):
    inputs = model.processor([picture], ["caption en"])
    assert model.generate(picture, "caption en").token_ids == model.generate_ids(
        inputs.input_ids[0], inputs.pixel_values
    )


def test_a_prompt_in_a_batch_says_what_it_says_alone(model, picture):
    prompts = ["caption en", "ocr", "answer en how many shapes are there?", "detect ring ; red star"]
    together = model.generate([picture] * 4, prompts)
    assert together == [model.generate(picture, prompt) for prompt in prompts]


@pytest.mark.parametrize("options", [{}, {"temperature": 3.0, "seed": 5}], ids=str)
def test_a_stream_is_the_text_in_pieces(model, picture, options):
    pieces = list(model.stream(picture, "caption en", max_new_tokens=40, **options))
    assert "".join(pieces) == model.generate(picture, "caption en", max_new_tokens=40, **options).text
    assert all(pieces)


def test_a_character_of_several_tokens_is_never_sent_in_parts(model, picture, monkeypatch):
    """é is two byte pieces; between them the text so far ends in half a character."""
    from npgemma.generate import Token

    first, second = (model.tokenizer.pieces.piece_to_id(piece) for piece in ("<0xC3>", "<0xA9>"))
    a = model.tokenizer.encode("a")[0]
    tokens = [Token(0, a, None), Token(0, first, None), Token(0, second, None), Token(0, a, None), Token(0, 1, "stop")]
    monkeypatch.setattr(model, "tokens", lambda *_: iter(tokens))
    assert list(model.stream(picture, "x")) == ["a", "é", "a"]


def test_a_character_that_stays_half_comes_at_the_end(model, picture, monkeypatch):
    from npgemma.generate import Token

    first = model.tokenizer.pieces.piece_to_id("<0xC3>")
    monkeypatch.setattr(model, "tokens", lambda *_: iter([Token(0, first, "length")]))
    assert list(model.stream(picture, "x")) == ["\N{REPLACEMENT CHARACTER}"]


def test_what_has_no_text_is_never_written(model, picture):
    generation = model.generate(picture, "caption en", max_new_tokens=200, temperature=50.0)
    assert max(generation.token_ids) < model.tokenizer.image_id


def test_float64_is_the_same_model(model, picture):
    exact = npgemma.load(dtype="float64")
    inputs = model.processor([picture], ["caption en"])
    logits = exact.forward(inputs.input_ids[0], inputs.pixel_values)
    assert logits.dtype == np.float64
    # a hundred roundings of float32 on logits of about 30
    np.testing.assert_allclose(model.forward(inputs.input_ids[0], inputs.pixel_values), logits, atol=1e-3)


def test_text_alone_needs_no_picture(model):
    assert model.generate([], "caption en", max_new_tokens=3).token_ids
    ids = np.array([2, *model.tokenizer.encode("caption en\n")])
    assert model.forward(ids).shape == (len(ids), model.config.text.vocab_size)


BAD_IDS = {
    "two rows": np.zeros((2, 3), int),
    "none": np.zeros(0, int),
    "floats": np.zeros(3),
    "negative": np.array([5, -1]),
    "beyond": np.array([5, 1792]),
    "image tokens without pictures": np.full(IMAGE_TOKENS, 1744),
}


@pytest.mark.parametrize("ids", BAD_IDS.values(), ids=BAD_IDS.keys())
def test_bad_ids_are_refused(model, ids):
    for use in (model.forward, model.generate_ids):
        with pytest.raises(BadPrompt):
            use(ids)


@pytest.mark.parametrize("shape", [(3, SIDE, SIDE), (1, 3, SIDE, 83), (1, 1, SIDE, SIDE), (2, 3, SIDE, SIDE)], ids=str)
def test_pixels_of_another_shape_or_number_are_refused(model, shape):
    ids = np.append(np.full(IMAGE_TOKENS, 1744), 5)
    with pytest.raises(BadPrompt):
        model.forward(ids, np.zeros(shape, np.float32))


def test_pixels_that_are_whole_numbers_are_refused(model):
    ids = np.append(np.full(IMAGE_TOKENS, 1744), 5)
    with pytest.raises(BadPrompt, match="floats"):
        model.forward(ids, np.zeros((1, 3, SIDE, SIDE), np.uint8))


@pytest.mark.parametrize("types", [[0], [0, 2], [[0, 1]]], ids=str)
def test_token_types_that_do_not_fit_are_refused(model, types):
    with pytest.raises(BadPrompt, match="token_type_ids"):
        model.forward(np.array([5, 6]), None, np.array(types))


def test_pictures_and_prompts_must_pair_up(model, picture):
    for images, prompts in (([picture], ["a", "b"]), ([], ["a"]), (picture, ["a"])):
        with pytest.raises(BadPrompt):
            model.generate(images, prompts)


def test_a_picture_that_is_none_is_refused(model):
    with pytest.raises(BadPicture):
        model.generate("nowhere.png", "caption en")
    with pytest.raises(BadPicture):
        model.generate(5, "caption en")


def test_an_unknown_option_is_a_type_error(model, picture):
    with pytest.raises(TypeError, match="temprature"):
        model.generate(picture, "caption en", temprature=1.0)


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(BadModel, match="is no folder"):
        npgemma.load(tmp_path / "nowhere")
    with pytest.raises(BadModel, match=r"config\.json is missing"):
        npgemma.load(tmp_path)
    with pytest.raises(ValueError, match="float16"):
        npgemma.load(dtype="float16")


def test_a_folder_without_tokenizer_works_with_ids(tmp_path):
    folder = tiny.write_folder(tmp_path)
    model = npgemma.load(folder)
    assert len(model.generate_ids(np.array([2, 5]), max_new_tokens=3, eos_ids=())) == 3
    with pytest.raises(BadModel, match=r"tokenizer\.model is missing"):
        model.generate([], "caption en")


def test_an_image_and_its_path_are_one_picture(model, picture, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    inputs = model.processor([picture, path, str(path), Image.fromarray(picture)], ["a"] * 4)
    assert all(np.array_equal(pixels, inputs.pixel_values[0]) for pixels in inputs.pixel_values)
