"""Prompts, boxes read from answers, boxes drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from npgemma.errors import BadPrompt
from npgemma.tasks import OCR_PROMPT, Box, answer_prompt, caption_prompt, detect_prompt, draw_boxes, parse_boxes

# A box in bins and back is off by the rounding of one product.
EXACT = 1e-9


def test_prompts_are_those_of_the_prompt_page():
    assert caption_prompt() == "caption en"
    assert caption_prompt("de") == "caption de"
    assert answer_prompt("where is it?") == "answer en where is it?"
    assert detect_prompt(["cat"]) == "detect cat"
    assert detect_prompt(["red circle", "dog"]) == "detect red circle ; dog"
    assert OCR_PROMPT == "ocr"


@pytest.mark.parametrize("labels", [[], [""], ["  "], ["a;b"], ["a", ""]], ids=str)
def test_labels_that_would_break_the_prompt_are_refused(labels):
    with pytest.raises(BadPrompt):
        detect_prompt(labels)


def test_locations_are_top_left_bottom_right_in_1024ths():
    (box,) = parse_boxes("<loc0256><loc0128><loc0768><loc1023> cat", 1024, 512)
    assert box == Box("cat", 128.0, 128.0, 1023.0, 384.0)


def test_text_around_is_left_out_and_every_box_is_read():
    text = "here: <loc0000><loc0001><loc0002><loc0003> red circle ; <loc0004><loc0005><loc0006><loc0007> b-2 ; end"
    assert [box.label for box in parse_boxes(text, 10, 10)] == ["red circle", "b-2"]


@pytest.mark.parametrize("text", ["", "a cat", "<loc0001><loc0002><loc0003>", "<loc001><loc0002><loc0003><loc0004> a"])
def test_what_is_no_box_is_none(text):
    assert parse_boxes(text, 10, 10) == []


def test_an_answer_that_was_cut_off_keeps_its_whole_boxes():
    text = "<loc0000><loc0001><loc0002><loc0003> cat ; <loc0004><loc0005>"
    assert [box.label for box in parse_boxes(text, 10, 10)] == ["cat"]


def test_a_box_may_have_no_label():
    assert [box.label for box in parse_boxes("<loc0000><loc0001><loc0002><loc0003>", 10, 10)] == [""]


labels_of = st.text("abc xyz-.,'", min_size=1).map(str.strip).filter(bool)
bins_of = st.tuples(*[st.integers(0, 1023)] * 4)


@given(st.lists(st.tuples(bins_of, labels_of), max_size=5), st.integers(1, 5000), st.integers(1, 5000))
def test_what_is_written_is_read_back(things, width, height):
    text = " ; ".join("".join(f"<loc{b:04d}>" for b in bins) + " " + label for bins, label in things)
    read = parse_boxes(text, width, height)
    assert [box.label for box in read] == [label for _, label in things]
    for box, ((y0, x0, y1, x1), _) in zip(read, things, strict=True):
        expected = np.array([x0 * width, y0 * height, x1 * width, y1 * height]) / 1024
        np.testing.assert_allclose([box.x0, box.y0, box.x1, box.y1], expected, rtol=EXACT)


def test_boxes_are_drawn_on_a_copy_at_their_edges():
    image = Image.new("RGB", (200, 150), "white")
    drawn = np.asarray(draw_boxes(image, [Box("thing", 50, 60, 120, 110)]))
    assert np.asarray(image).min() == 255
    for y, x in ((60, 115), (110, 80), (85, 50), (85, 120)):
        assert drawn[y, x].tolist() != [255, 255, 255]
    assert drawn[85, 85].tolist() == [255, 255, 255]
    assert drawn[140, 10].tolist() == [255, 255, 255]


def test_labels_have_colours_of_their_own():
    image = Image.new("RGB", (200, 150), "white")
    boxes = [Box("a", 10, 60, 50, 100), Box("b", 80, 60, 120, 100), Box("a", 140, 60, 190, 100)]
    drawn = np.asarray(draw_boxes(image, boxes))
    first, second, third = (drawn[80, x].tolist() for x in (10, 80, 140))
    assert first == third != second


@pytest.mark.parametrize(
    "box",
    [
        Box("", 0, 0, 0, 0),
        Box("upside down", 90, 90, 5, 5),
        Box("long " * 30, 80, 2, 99, 9),
        Box("é 猫", -5, -5, 500, 500),
    ],
    ids=lambda box: box.label[:6],
)
def test_odd_boxes_are_drawn_without_complaint(box):
    assert draw_boxes(Image.new("L", (100, 80)), [box]).size == (100, 80)
