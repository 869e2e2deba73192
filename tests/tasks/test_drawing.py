"""Boxes drawn on pictures."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from npgemma.tasks.drawing import draw_boxes
from npgemma.tasks.objects import Box, parse_boxes

WHITE = (255, 255, 255)


def canvas(width: int = 200, height: int = 160, color: tuple = WHITE) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def changed(image: Image.Image, boxes: list[Box]) -> np.ndarray:
    """Where drawing the boxes changed the picture."""
    return (np.asarray(draw_boxes(image, boxes)) != np.asarray(image)).any(-1)


def test_drawing_does_not_change_the_given_picture():
    image = canvas()
    drawn = draw_boxes(image, [Box("cat", 20, 60, 120, 140)])
    assert drawn is not image
    assert (np.asarray(image) == 255).all()
    assert (drawn.mode, drawn.size) == ("RGB", image.size)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_the_result_is_rgb_for_every_mode(mode):
    drawn = draw_boxes(Image.new(mode, (50, 40)), [Box("cat", 5, 20, 45, 35)])
    assert (drawn.mode, drawn.size) == ("RGB", (50, 40))


def test_without_boxes_nothing_is_drawn():
    assert not changed(canvas(), []).any()


def test_the_outline_is_on_the_edges_of_the_box_and_the_label_above_it():
    """The middle of each edge is drawn, the inside is not."""
    drawn = changed(canvas(), [Box("cat", 20, 60, 120, 140)])
    assert drawn[60, 70]
    assert drawn[140, 70]
    assert drawn[100, 20]
    assert drawn[100, 120]
    assert not drawn[70:130, 30:110].any()
    assert not drawn[146:].any()
    assert not drawn[:, 126:].any()
    assert drawn[40:60, 20:30].any()


def test_corners_may_be_in_any_order():
    """A model may generate them in any order, but Pillow requires x0 <= x1 and y0 <= y1."""
    upright, turned = Box("cat", 20, 60, 120, 140), Box("cat", 120, 140, 20, 60)
    np.testing.assert_array_equal(changed(canvas(), [turned]), changed(canvas(), [upright]), strict=True)


def test_a_box_as_large_as_the_picture_is_visible_on_all_sides():
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
def test_empty_boxes_and_unusual_labels_are_drawn(box):
    assert changed(canvas(), [box]).any()


@pytest.mark.parametrize("size", [(1, 1), (2, 50), (50, 2), (3000, 20)])
def test_boxes_are_drawn_on_pictures_of_any_size(size):
    drawn = draw_boxes(canvas(*size), [Box("cat", 0, 0, *size)])
    assert drawn.size == size


@pytest.mark.parametrize("y0", [60, 0])
def test_a_label_at_the_right_edge_is_moved_left(y0):
    """As many white pixels are drawn as for the same label further left, so none are cut off."""
    black = canvas(color=(0, 0, 0))
    left, right = (draw_boxes(black, [Box("a longer label", x, y0, x + 10, y0 + 60)]) for x in (60, 185))
    letters_left, letters_right = ((np.asarray(drawn) == 255).all(-1) for drawn in (left, right))
    assert letters_left.sum() == letters_right.sum() > 0
    assert letters_right[:, :185].any()


def test_a_label_at_the_top_is_inside_its_box():
    drawn = changed(canvas(), [Box("cat", 20, 3, 120, 140)])
    assert drawn[5:18, 22:40].all()
    assert not drawn[:3].any()


def test_each_label_has_its_own_colour():
    boxes = [Box("cat", 10, 60, 60, 140), Box("dog", 75, 60, 125, 140), Box("cat", 140, 60, 190, 140)]
    drawn = draw_boxes(canvas(), boxes)
    cat, dog, other = (drawn.getpixel((round(box.x0), 100)) for box in boxes)
    assert cat == other != dog
    assert WHITE not in (cat, dog)


def test_there_may_be_more_labels_than_colours():
    boxes = [Box(str(i), 4 * i, 60, 4 * i + 30, 140) for i in range(40)]
    assert changed(canvas(), boxes).any()


def test_lines_are_thicker_in_a_larger_picture():
    """A 150th of the shorter side and at least two pixels, to be visible when the picture is reduced."""

    def thickness(side: int) -> int:
        box = Box("x", side * 0.25, side * 0.5, side * 0.75, side * 0.9)
        return int(changed(canvas(side, side), [box])[round(side * 0.7), : side // 2].sum())

    assert thickness(100) == 2
    assert thickness(1500) == 10


def test_boxes_are_compared_by_value_and_immutable():
    assert Box("a", 1, 2, 3, 4) == Box("a", 1, 2, 3, 4)
    assert dataclasses.asdict(Box("a", 1, 2, 3, 4)) == {"label": "a", "x0": 1, "y0": 2, "x1": 3, "y1": 4}
    with pytest.raises(dataclasses.FrozenInstanceError):
        Box("a", 1, 2, 3, 4).label = "b"


def test_segmentation_codes_before_a_label_are_not_part_of_it():
    codes = "".join(f"<seg{i:03d}>" for i in range(16))
    for text in (
        f"<loc0000><loc0000><loc0512><loc0512>{codes} cat",
        f"<loc0000><loc0000><loc0512><loc0512> {codes} cat",
    ):
        assert [box.label for box in parse_boxes(text, 10, 10)] == ["cat"]
