"""The processor: the order of image tokens, bos, prompt and newline, and pictures that pair up with prompts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from npgemma.api.processor import PictureProcessor
from npgemma.errors import BadPicture, BadPrompt
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.picture import read_picture
from npgemma.io.pixels import pixel_values
from npgemma.io.tokenizers import Tokenizer

TOKENIZER = Tokenizer((EMBEDDED / "tokenizer.model").read_bytes())
SIDE, EACH, BOS = 6, 4, 2
EOS = 1
PROCESSOR = PictureProcessor(TOKENIZER, SIDE, EACH, BOS, EOS)
PICTURE = [TOKENIZER.image_id] * EACH
WHITE, BLACK, RED = (Image.new("RGB", (5, 3), color) for color in ("white", "black", "red"))


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


# ----------------------------------------------------------------------------------------------------------------- ids


def test_a_prompt_is_image_tokens_bos_text_and_newline():
    assert PROCESSOR.encode("caption en", 1).tolist() == [*PICTURE, BOS, *ids("caption en\n")]
    assert ids("caption en\n") == [*ids("caption en"), *ids("\n")]


def test_ids_are_one_row_of_int64():
    row = PROCESSOR.encode("caption en", 1)
    assert (row.ndim, row.dtype) == (1, np.int64)


def test_prompt_and_newline_are_tokenised_as_one_string():
    """A prompt that ends in a newline ends in the one piece for two of them, as in transformers."""
    (two,) = ids("\n\n")
    assert PROCESSOR.encode("ocr\n", 1).tolist() == [*PICTURE, BOS, *ids("ocr"), two]


def test_an_empty_prompt_becomes_a_newline():
    assert PROCESSOR.encode("", 1).tolist() == [*PICTURE, BOS, *ids("\n")]


def test_spaces_around_a_prompt_are_kept():
    """A trailing space is a piece of its own and changes the answer."""
    assert PROCESSOR.encode(" ocr ", 1).tolist() == [*PICTURE, BOS, *ids(" ocr \n")]


@pytest.mark.parametrize("images", [0, 1, 2, 5])
def test_all_image_tokens_come_before_one_bos(images):
    assert PROCESSOR.encode("ocr", images).tolist() == [*PICTURE * images, BOS, *ids("ocr\n")]


def test_image_at_the_start_of_a_prompt_changes_nothing():
    assert PROCESSOR.encode("<image>ocr", 1).tolist() == PROCESSOR.encode("ocr", 1).tolist()
    assert PROCESSOR.encode("<image><image>ocr", 2).tolist() == PROCESSOR.encode("ocr", 2).tolist()


def test_image_tokens_take_the_place_of_image_and_bos_follows_the_last():
    row = PROCESSOR.encode("what is on <image>?", 1)
    assert row.tolist() == [*ids("what is on "), *PICTURE, BOS, *ids("?\n")]
    row = PROCESSOR.encode("is <image> or <image> red", 2)
    assert row.tolist() == [*ids("is "), *PICTURE, *ids(" or "), *PICTURE, BOS, *ids(" red\n")]


def test_a_special_piece_in_a_prompt_is_one_token():
    assert PROCESSOR.encode("a<bos><eos>b", 1).tolist() == [*PICTURE, BOS, *ids("a"), 2, 1, *ids("b\n")]


@pytest.mark.parametrize(
    ("prompt", "images"), [("<image>", 0), ("<image>", 2), ("<image><image>", 1), ("a<image>b<image>c<image>", 2)]
)
def test_a_prompt_with_another_number_of_images_than_pictures_is_refused(prompt, images):
    with pytest.raises(BadPrompt, match=rf"says <image> {prompt.count('<image>')} times"):
        PROCESSOR.encode(prompt, images)


@given(prompt=st.text(max_size=20), images=st.integers(0, 3))
@settings(max_examples=40)
def test_any_prompt_keeps_its_text_and_gets_the_image_tokens_of_its_pictures(prompt, images):
    row = PROCESSOR.encode(prompt.replace("\N{LOWER ONE EIGHTH BLOCK}", " "), images)
    assert (row == TOKENIZER.image_id).sum() == images * EACH
    assert row[images * EACH] == BOS
    assert TOKENIZER.decode(row.tolist()) == prompt.replace("\N{LOWER ONE EIGHTH BLOCK}", " ") + "\n"


# ------------------------------------------------------------------------------------------------ pictures and prompts


def test_rows_types_and_pictures_are_in_the_order_of_the_prompts():
    inputs = PROCESSOR([WHITE, [], [BLACK, RED]], ["ocr", "hello", "caption en"])
    rows = [PROCESSOR.encode("ocr", 1), PROCESSOR.encode("hello", 0), PROCESSOR.encode("caption en", 2)]
    for found, expected in zip(inputs.input_ids, rows, strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)
    for found, expected in zip(inputs.token_type_ids, rows, strict=True):
        np.testing.assert_array_equal(found, np.zeros(len(expected), np.int64), strict=True)
    assert inputs.images == [1, 0, 2]
    np.testing.assert_array_equal(inputs.pixel_values, pixel_values([WHITE, BLACK, RED], SIDE), strict=True)


def test_a_prompt_may_have_no_picture():
    inputs = PROCESSOR([[]], ["hello"])
    assert inputs.input_ids[0].tolist() == [BOS, *ids("hello\n")]
    assert inputs.images == [0]
    assert inputs.pixel_values.shape == (0, 3, SIDE, SIDE)


def test_no_prompts_have_no_rows():
    inputs = PROCESSOR([], [])
    assert (inputs.input_ids, inputs.token_type_ids, inputs.images) == ([], [], [])


def test_a_picture_may_be_a_path_an_image_or_an_array(tmp_path):
    RED.save(tmp_path / "red.png")
    for picture in (RED, np.asarray(RED), tmp_path / "red.png", str(tmp_path / "red.png")):
        for images in ([picture], [[picture]], ((picture,),)):
            found = PROCESSOR(images, ["ocr"]).pixel_values
            np.testing.assert_array_equal(found, pixel_values([RED], SIDE), strict=True)


def test_pictures_are_converted_to_rgb_first():
    clear = Image.new("RGBA", (5, 3), (0, 0, 0, 0))
    found = PROCESSOR([clear], ["ocr"]).pixel_values
    np.testing.assert_array_equal(found, pixel_values([read_picture(clear)], SIDE), strict=True)
    np.testing.assert_array_equal(found, pixel_values([WHITE], SIDE), strict=True)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        ([WHITE], []),
        ([], ["ocr"]),
        ([WHITE], ["ocr", "ocr"]),
        ([WHITE, BLACK], ["ocr"]),
        ([WHITE], "ocr"),
        ([WHITE, WHITE, WHITE], "ocr"),
        (WHITE, ["ocr"]),
        (np.asarray(WHITE), ["ocr"] * 3),
        (None, ["ocr"]),
    ],
)
def test_pictures_and_prompts_that_do_not_pair_up_are_refused(images, text):
    """A string is not taken as a list of letters, nor an array as a list of rows."""
    with pytest.raises(BadPrompt, match="lists of equal length"):
        PROCESSOR(images, text)


def test_a_picture_that_cannot_be_read_is_refused(tmp_path):
    for picture in (tmp_path / "nowhere.png", None, np.zeros((2, 2)), b"x"):
        for images in ([WHITE, picture], [WHITE, [picture]]):
            with pytest.raises(BadPicture):
                PROCESSOR(images, ["ocr", "ocr"])
