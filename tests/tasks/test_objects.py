"""Objects and boxes: parsing and writing answers."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

import npgemma
from npgemma.tasks.objects import Box, DetectedObject, parse_boxes, parse_objects, write_objects


def locations(*bins: int) -> str:
    return "".join(f"<loc{each:04d}>" for each in bins)


def test_the_four_locations_are_top_left_bottom_right():
    """y before x, in 1024ths of a side: on a picture of 1024 x 2048 pixels, x is the bin and y twice the bin."""
    assert parse_boxes(locations(10, 20, 30, 40) + " cat", 1024, 2048) == [Box("cat", 20.0, 20.0, 40.0, 60.0)]


def test_locations_are_1024ths_and_not_1023rds():
    assert parse_boxes(locations(0, 0, 1023, 512) + " x", 1000, 100) == [Box("x", 0.0, 0.0, 500.0, 99.90234375)]


def test_boxes_are_in_the_order_of_the_text():
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
def test_a_label_ends_at_a_separator_and_is_stripped(after, label):
    (box,) = parse_boxes(locations(1, 2, 3, 4) + after, 1024, 1024)
    assert box == Box(label, 2.0, 1.0, 4.0, 3.0)


def test_text_around_boxes_is_ignored():
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
def test_an_incomplete_or_malformed_box_is_ignored(text):
    assert parse_boxes(text, 1024, 1024) == []


@pytest.mark.parametrize("last", ["1024", "9999", "\u0660\u0660\u0660\u0661"])
def test_a_number_that_is_not_a_location_token_is_ignored(last):
    """There are 1,024 tokens, but a model can generate other numbers character by character."""
    assert parse_boxes(f"<loc0001><loc0002><loc0003><loc{last}> cat", 1024, 1024) == []


def test_a_truncated_answer_gives_its_complete_boxes():
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
def test_boxes_in_a_text_are_parsed_exactly(boxes, width, height):
    """bin * side is a whole number, and dividing it by 1024 is exact."""
    text = " ; ".join(f"{locations(*bins)} {label}" for *bins, label in boxes)
    expected = [
        Box(label, x0 * width / 1024, y0 * height / 1024, x1 * width / 1024, y1 * height / 1024)
        for y0, x0, y1, x1, label in boxes
    ]
    assert parse_boxes(text, width, height) == expected


@given(text=st.text(st.sampled_from("<>loc0123456789; \nab"), max_size=80))
def test_parse_boxes_accepts_any_text_and_labels_contain_no_separator(text):
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
    """The codes precede the label. Fewer than sixteen are the end of a truncated answer."""
    (found,) = parse_objects(locations(1, 2, 3, 4) + between)
    assert found == DetectedObject(label, (1, 2, 3, 4), codes)


def test_a_side_may_be_divided_into_1023_bins() -> None:
    """As in big_vision, where bin 1023 is the right or bottom edge."""
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
def test_written_objects_are_parsed_back(objects, around) -> None:
    text = write_objects(objects)
    assert parse_objects(around + text) == objects


def test_objects_are_parsed_from_decoded_ids() -> None:
    tokenizer = npgemma.load().tokenizer
    objects = [DetectedObject("red circle", (1, 2, 3, 4), SIXTEEN), DetectedObject("blue star", (5, 6, 7, 8))]
    assert parse_objects(tokenizer.decode(tokenizer.encode(write_objects(objects)))) == objects


@given(text=st.text(st.sampled_from("<>locseg0123456789; \nab"), max_size=80))
def test_parse_objects_accepts_any_text(text: str) -> None:
    for found in parse_objects(text):
        assert all(0 <= each < 1024 for each in found.bins)
        assert len(found.codes) in (0, 16)
