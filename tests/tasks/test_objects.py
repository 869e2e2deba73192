"""What is asked and what is answered: prompts to the letter, boxes there and back, boxes on a picture."""

import dataclasses
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import npgemma
from npgemma.errors import BadPrompt
from npgemma.tasks.drawing import draw_boxes
from npgemma.tasks.objects import Box, DetectedObject, parse_boxes, parse_objects, write_objects
from npgemma.tasks.prompts import OCR_PROMPT, answer_prompt, caption_prompt, detect_prompt

# ------------------------------------------------------------------------------------------------------------- prompts


def test_prompts_are_those_that_paligemma_was_trained_with():
    """Without the newline, which the processor adds."""
    assert caption_prompt() == "caption en"
    assert caption_prompt("de") == "caption de"
    assert answer_prompt("where is the cow?") == "answer en where is the cow?"
    assert answer_prompt("wo ist die Kuh?", "de") == "answer de wo ist die Kuh?"
    assert OCR_PROMPT == "ocr"
    assert detect_prompt(["cat"]) == "detect cat"
    assert detect_prompt(("cat", "big dog")) == "detect cat ; big dog"


@pytest.mark.parametrize("labels", [[], [""], [" "], ["cat", "\t\n"], ["cat;dog"], ["cat ; dog"], [";"]])
def test_things_to_detect_that_the_prompt_cannot_say_are_refused(labels):
    with pytest.raises(BadPrompt, match="things to detect are words"):
        detect_prompt(labels)


# --------------------------------------------------------------------------------------------------------------- boxes


def locations(*bins: int) -> str:
    return "".join(f"<loc{each:04d}>" for each in bins)


def test_the_four_locations_are_top_left_bottom_right():
    """y before x, in 1024ths of a side: on a picture of 1024 x 2048 pixels, x is the bin and y twice the bin."""
    assert parse_boxes(locations(10, 20, 30, 40) + " cat", 1024, 2048) == [Box("cat", 20.0, 20.0, 40.0, 60.0)]


def test_locations_are_1024ths_and_not_1023rds():
    assert parse_boxes(locations(0, 0, 1023, 512) + " x", 1000, 100) == [Box("x", 0.0, 0.0, 500.0, 99.90234375)]


def test_several_boxes_come_in_the_order_they_were_written():
    text = f"{locations(0, 0, 512, 512)} cat ; {locations(512, 0, 1023, 512)} big dog ; {locations(1, 2, 3, 4)} cat"
    assert [box.label for box in parse_boxes(text, 8, 8)] == ["cat", "big dog", "cat"]
    assert [box.y0 for box in parse_boxes(text, 1024, 1024)] == [0, 512, 1]


@pytest.mark.parametrize(
    ("after", "label"),
    [
        (" cat", "cat"),
        ("cat", "cat"),
        ("   cat   ", "cat"),
        ("\ncat\n", "cat"),
        (" a big, red cat-like thing's toy (2)", "a big, red cat-like thing's toy (2)"),
        (" café 猫", "café 猫"),
        (" cat ; ", "cat"),
        (" cat;dog", "cat"),
        (" cat<eos>", "cat"),
        (" cat <loc0001>", "cat"),
        ("", ""),
        (" ; ", ""),
    ],
)
def test_a_label_runs_to_the_next_separator_and_its_blanks_go(after, label):
    (box,) = parse_boxes(locations(1, 2, 3, 4) + after, 1024, 1024)
    assert box == Box(label, 2.0, 1.0, 4.0, 3.0)


def test_text_around_boxes_is_no_box():
    text = f"I see: {locations(1, 2, 3, 4)} cat ; and that is all"
    assert [box.label for box in parse_boxes(text, 1024, 1024)] == ["cat"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cat",
        "no <loc0001> here",
        "<loc0001><loc0002><loc0003>",
        "<loc0001><loc0002><loc0003> cat",
        "<loc0001><loc0002><loc0003><loc00",
        "<loc0001> <loc0002> <loc0003> <loc0004> cat",
        "<loc1><loc2><loc3><loc4> cat",
        "<loc00001><loc00002><loc00003><loc00004> cat",
        "<seg001><seg002><seg003><seg004> cat",
    ],
)
def test_what_is_no_whole_box_is_none(text):
    assert parse_boxes(text, 1024, 1024) == []


@pytest.mark.parametrize("last", ["1024", "9999", "\u0660\u0660\u0660\u0661"])
def test_what_is_no_location_token_is_none(last):
    """There are 1,024; a model can spell others out in letters, and they would lie outside of the picture."""
    assert parse_boxes(f"<loc0001><loc0002><loc0003><loc{last}> cat", 1024, 1024) == []


def test_an_answer_that_was_cut_off_gives_the_boxes_that_were_whole():
    first, second = f"{locations(1, 2, 3, 4)} cat", f" ; {locations(5, 6, 7, 8)}"
    text = first + second + " do"
    for length in range(len(text) + 1):
        found = parse_boxes(text[:length], 1024, 1024)
        assert len(found) == (length >= len(first) - len(" cat")) + (length >= len(first + second))
        assert [box.label for box in found if box.label == "cat"] == ["cat"] * (length >= len(first))


LABELS = st.text(string.ascii_letters + string.digits + " ,.-'éß猫", min_size=1, max_size=12).map(str.strip)
BINS = st.integers(0, 1023)


@given(
    boxes=st.lists(st.tuples(BINS, BINS, BINS, BINS, LABELS), max_size=5),
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
)
def test_boxes_that_are_written_out_are_read_back(boxes, width, height):
    """Exactly: bin times side is a whole number, and dividing it by 1024 rounds nothing."""
    text = " ; ".join(f"{locations(*bins)} {label}" for *bins, label in boxes)
    expected = [
        Box(label, x0 * width / 1024, y0 * height / 1024, x1 * width / 1024, y1 * height / 1024)
        for y0, x0, y1, x1, label in boxes
    ]
    assert parse_boxes(text, width, height) == expected


@given(text=st.text(st.sampled_from("<>loc0123456789; \nab"), max_size=80))
def test_no_text_makes_it_fail_and_no_label_holds_a_separator(text):
    for box in parse_boxes(text, 7, 9):
        assert not set(box.label) & set(";<")
        assert box.label == box.label.strip()


CODES = "".join(f"<seg{i:03d}>" for i in range(0, 128, 8))
SIXTEEN = tuple(range(0, 128, 8))


@pytest.mark.parametrize(
    ("between", "codes", "label"),
    [
        (CODES + " cat", SIXTEEN, "cat"),
        (" " + CODES + " cat", SIXTEEN, "cat"),
        (CODES, SIXTEEN, ""),
        (CODES + "cat", SIXTEEN, "cat"),
        (CODES + "<seg001> cat", SIXTEEN, "cat"),
        (CODES[:-8] + " cat", (), "cat"),
        (CODES[:-4], (), ""),
        (CODES.replace("<seg120>", "<seg128>") + " cat", (), "cat"),
        (" cat " + CODES, (), "cat"),
    ],
)
def test_an_object_has_sixteen_codes_or_none(between: str, codes: tuple[int, ...], label: str) -> None:
    """Before the label, and all there: fewer are an answer that was cut off."""
    (found,) = parse_objects(locations(1, 2, 3, 4) + between)
    assert found == DetectedObject(label, (1, 2, 3, 4), codes)


def test_the_bins_may_be_1023_to_a_side() -> None:
    """As big_vision writes them; 1023 is then the far edge itself."""
    text = locations(0, 0, 1023, 1023) + " x"
    assert parse_boxes(text, 640, 480, bins=1023) == [Box("x", 0, 0, 640, 480)]
    assert parse_boxes(text, 1024, 1024) == [Box("x", 0, 0, 1023, 1023)]


@given(
    objects=st.lists(
        st.builds(
            DetectedObject,
            LABELS,
            st.tuples(BINS, BINS, BINS, BINS),
            st.one_of(st.just(()), st.tuples(*[st.integers(0, 127)] * 16)),
        ),
        max_size=5,
    ),
    around=st.sampled_from(["", "I see: ", "\n", "<eos>", "<seg001>"]),
)
def test_objects_that_are_written_are_read_back(objects, around) -> None:
    """Also from ids: the tokenizer keeps locations and codes, and its words come back as they were."""
    text = write_objects(objects)
    assert parse_objects(around + text) == objects


def test_objects_are_read_from_ids_as_from_text() -> None:
    tokenizer = npgemma.load().tokenizer
    things = [DetectedObject("red circle", (1, 2, 3, 4), SIXTEEN), DetectedObject("blue star", (5, 6, 7, 8))]
    assert parse_objects(tokenizer.decode(tokenizer.encode(write_objects(things)))) == things


@given(text=st.text(st.sampled_from("<>locseg0123456789; \nab"), max_size=80))
def test_no_text_makes_parsing_fail(text: str) -> None:
    for found in parse_objects(text):
        assert all(0 <= each < 1024 for each in found.bins)
        assert len(found.codes) in (0, 16)


# ------------------------------------------------------------------------------------------------------------- drawing

WHITE = (255, 255, 255)


def canvas(width: int = 200, height: int = 160, color: tuple = WHITE) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def changed(image: Image.Image, boxes: list[Box]) -> np.ndarray:
    """Where drawing the boxes changed the picture."""
    return (np.asarray(draw_boxes(image, boxes)) != np.asarray(image)).any(-1)


def test_the_picture_that_is_handed_over_stays_as_it_was():
    image = canvas()
    drawn = draw_boxes(image, [Box("cat", 20, 60, 120, 140)])
    assert drawn is not image
    assert (np.asarray(image) == 255).all()
    assert (drawn.mode, drawn.size) == ("RGB", image.size)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_a_picture_of_another_mode_is_drawn_on_in_rgb(mode):
    drawn = draw_boxes(Image.new(mode, (50, 40)), [Box("cat", 5, 20, 45, 35)])
    assert (drawn.mode, drawn.size) == ("RGB", (50, 40))


def test_without_boxes_nothing_is_drawn():
    assert not changed(canvas(), []).any()


def test_the_outline_lies_on_the_box_and_its_inside_is_left():
    """On all four sides, a point in the middle of each; the label stands above, outside of the box."""
    drawn = changed(canvas(), [Box("cat", 20, 60, 120, 140)])
    assert drawn[60, 70]
    assert drawn[140, 70]
    assert drawn[100, 20]
    assert drawn[100, 120]
    assert not drawn[70:130, 30:110].any()
    assert not drawn[146:].any()
    assert not drawn[:, 126:].any()
    assert drawn[40:60, 20:30].any()


def test_corners_may_come_in_any_order():
    """A model may write them so; Pillow would refuse."""
    upright, turned = Box("cat", 20, 60, 120, 140), Box("cat", 120, 140, 20, 60)
    np.testing.assert_array_equal(changed(canvas(), [turned]), changed(canvas(), [upright]), strict=True)


def test_a_box_as_large_as_the_picture_shows_on_all_sides():
    drawn = changed(canvas(), [Box("cat", 0, 0, 200, 160)])
    assert drawn[80, 0]
    assert drawn[80, 199]
    assert drawn[0, 190]
    assert drawn[159, 100]


@pytest.mark.parametrize(
    "box",
    [
        Box("cat", 50, 50, 50, 50),
        Box("cat", 50, 50, 50, 90),
        Box("cat", 50, 50, 51, 50.5),
        Box("cat", 0, 0, 0, 0),
        Box("cat", 200, 160, 200, 160),
        Box("cat", 199.9, 159.9, 200, 160),
        Box("cat", -5, -5, 500, 500),
        Box("", 20, 60, 120, 140),
        Box("a label far longer than this little picture is wide, with éß猫 in it", 150, 10, 190, 20),
        Box("two\nlines", 20, 60, 120, 140),
    ],
    ids=str,
)
def test_boxes_without_an_inside_and_odd_labels_are_drawn_too(box):
    assert changed(canvas(), [box]).any()


@pytest.mark.parametrize("size", [(1, 1), (2, 50), (50, 2), (3000, 20)])
def test_a_picture_of_any_size_can_be_drawn_on(size):
    drawn = draw_boxes(canvas(*size), [Box("cat", 0, 0, *size)])
    assert drawn.size == size


@pytest.mark.parametrize("y0", [60, 0])
def test_a_label_is_moved_left_rather_than_cut_off_at_the_right_edge(y0):
    """On black, its white letters are as many at the right as further left, and they begin left of the box."""
    black = canvas(color=(0, 0, 0))
    left, right = (draw_boxes(black, [Box("a longer label", x, y0, x + 10, y0 + 60)]) for x in (60, 185))
    letters_left, letters_right = ((np.asarray(drawn) == 255).all(-1) for drawn in (left, right))
    assert letters_left.sum() == letters_right.sum() > 0
    assert letters_right[:, :185].any()


def test_a_label_at_the_top_stands_inside_its_box():
    drawn = changed(canvas(), [Box("cat", 20, 3, 120, 140)])
    assert drawn[5:18, 22:40].all()
    assert not drawn[:3].any()


def test_one_label_has_one_colour_and_two_have_two():
    boxes = [Box("cat", 10, 60, 60, 140), Box("dog", 75, 60, 125, 140), Box("cat", 140, 60, 190, 140)]
    drawn = draw_boxes(canvas(), boxes)
    cat, dog, other = (drawn.getpixel((round(box.x0), 100)) for box in boxes)
    assert cat == other != dog
    assert WHITE not in (cat, dog)


def test_there_may_be_more_labels_than_colours():
    boxes = [Box(str(i), 4 * i, 60, 4 * i + 30, 140) for i in range(40)]
    assert changed(canvas(), boxes).any()


def test_lines_grow_with_the_picture():
    """Two pixels at the least, and a 150th of the shorter side: to be seen when the picture is made small."""

    def thickness(side: int) -> int:
        box = Box("x", side * 0.25, side * 0.5, side * 0.75, side * 0.9)
        return int(changed(canvas(side, side), [box])[round(side * 0.7), : side // 2].sum())

    assert thickness(100) == 2
    assert thickness(1500) == 10


def test_a_box_is_a_value():
    assert Box("a", 1, 2, 3, 4) == Box("a", 1, 2, 3, 4)
    assert dataclasses.asdict(Box("a", 1, 2, 3, 4)) == {"label": "a", "x0": 1, "y0": 2, "x1": 3, "y1": 4}
    with pytest.raises(dataclasses.FrozenInstanceError):
        Box("a", 1, 2, 3, 4).label = "b"


def test_segmentation_codes_before_a_label_are_passed_over():
    codes = "".join(f"<seg{i:03d}>" for i in range(16))
    for text in (
        f"<loc0000><loc0000><loc0512><loc0512>{codes} cat",
        f"<loc0000><loc0000><loc0512><loc0512> {codes} cat",
    ):
        assert [box.label for box in parse_boxes(text, 10, 10)] == ["cat"]
