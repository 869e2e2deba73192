"""Contact sheets: where pictures, scores and names are."""

import numpy as np
import pytest
from PIL import Image

from npgemma.tasks.contact_sheet import LINE, MARGIN, SIDE, TILE, contact_sheet, tile

RED = (200, 0, 0)


def where(image: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The first and last column, and the first and last row, of a colour."""
    rows, columns = np.nonzero((np.asarray(image) == color).all(-1))
    return columns.min(), columns.max(), rows.min(), rows.max()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((10, 10), (0, SIDE - 1, 0, SIDE - 1)),
        ((40, 20), (0, SIDE - 1, SIDE // 4, 3 * SIDE // 4 - 1)),
        ((300, 900), (74, 148, 0, SIDE - 1)),
        ((1, 5000), (111, 111, 0, SIDE - 1)),
    ],
    ids=str,
)
def test_a_picture_is_whole_and_in_the_middle(size, expected):
    drawn = tile(Image.new("RGB", size, RED), "", "")
    assert drawn.size == TILE
    assert where(drawn, RED) == tuple(MARGIN + each for each in expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_the_result_is_rgb_for_every_mode(mode):
    assert tile(Image.new(mode, (5, 4)), "a.png", "0.5").mode == "RGB"


def test_a_missing_picture_is_a_grey_square_with_a_word_in_the_middle():
    drawn = tile(None, "", "")
    assert where(drawn, (0xD8, 0xD8, 0xD8)) == (MARGIN, MARGIN + SIDE - 1, MARGIN, MARGIN + SIDE - 1)
    left, right, top, bottom = where(drawn, (0x60, 0x60, 0x60))
    middle = 2 * MARGIN + SIDE
    assert abs(top + bottom - middle) < LINE
    assert abs(left + right - middle) < 4  # about a pixel on either side


def inked(drawn: Image.Image) -> np.ndarray:
    """Which rows and columns have something on them, below the picture."""
    return (np.asarray(drawn)[MARGIN + SIDE :] != 255).any(-1)


def test_score_and_name_have_a_line_each_below_the_picture():
    score, name, both = (
        inked(tile(None, *texts)) for texts in (("", "0.1234"), ("cat.png", ""), ("cat.png", "0.1234"))
    )
    np.testing.assert_array_equal(both, score | name)
    assert score.any()
    assert not score[LINE + LINE // 4 :].any()
    assert name.any()
    assert not name[:LINE].any()


def test_a_long_name_shows_its_end_within_the_tile():
    drawn = [inked(tile(None, "/".join(["folder"] * 100 + [name]), "")) for name in ("a.png", "b.png")]
    assert not np.array_equal(*drawn)
    assert not any(each[:, : MARGIN - 1].any() or each[:, MARGIN + SIDE :].any() for each in drawn)


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2)])
def test_tiles_are_in_rows_from_left_to_right(count, columns, rows):
    colors = [(10 * i, 7, 7) for i in range(count)]
    sheet = contact_sheet([tile(Image.new("RGB", (4, 4), color), "", "") for color in colors])
    assert sheet.size == (columns * TILE[0], rows * TILE[1])
    for i, color in enumerate(colors):
        left, _, top, _ = where(sheet, color)
        assert (left, top) == (i % columns * TILE[0] + MARGIN, i // columns * TILE[1] + MARGIN)
