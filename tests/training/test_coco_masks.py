"""Masks of COCO: polygons, runs, and runs packed in text."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgemma.training.coco_masks import mask_of, polygon_mask, unpacked


def drawing(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


@pytest.mark.parametrize(
    ("polygons", "rows"),
    [
        ([[1, 1, 4, 1, 4, 3, 1, 3]], (".....", ".###.", ".###.", ".....")),
        # edges through the middle of pixels: of two polygons that share an edge, one has its pixels
        ([[0, 0, 2.5, 0, 2.5, 4, 0, 4]], ("##...", "##...", "##...", "##...")),
        ([[2.5, 0, 5, 0, 5, 4, 2.5, 4]], ("..###", "..###", "..###", "..###")),
        # the diagonal runs through centres, which lie right of it
        ([[0, 0, 4, 4, 0, 4]], (".....", "#....", "##...", "###..")),
        # two parts, beyond the picture, and a figure of eight
        ([[0, 0, 1, 0, 1, 1, 0, 1], [3, 2, 9, 2, 9, 9, 3, 9]], ("#....", ".....", "...##", "...##")),
        ([[-3, -3, 2, -3, 2, 2, -3, 2]], ("##...", "##...", ".....", ".....")),
        ([[0, 0, 4, 4, 4, 0, 0, 4]], ("...#.", "#.##.", "#.##.", "...#.")),
        ([[1.1, 1.1, 1.4, 1.1, 1.4, 1.4]], (".....",) * 4),
    ],
)
def test_a_polygon_covers_the_pixels_whose_centres_are_inside(polygons: list, rows: tuple[str, ...]) -> None:
    np.testing.assert_array_equal(mask_of(polygons, 4, 5), drawing(*rows), strict=True)


@settings(max_examples=50)
@given(
    points=st.lists(st.tuples(st.integers(-2, 9), st.integers(-2, 9)), min_size=3, max_size=6),
    start=st.integers(0, 5),
)
def test_a_polygon_may_begin_at_any_corner_and_run_either_way(points: list[tuple[int, int]], start: int) -> None:
    corners = np.array(points) + np.array([0.25, 0.137])  # no edge runs through a centre
    mask = polygon_mask(corners, 7, 8)
    np.testing.assert_array_equal(polygon_mask(np.roll(corners, start, axis=0), 7, 8), mask)
    np.testing.assert_array_equal(polygon_mask(corners[::-1], 7, 8), mask)


@pytest.mark.parametrize(
    ("counts", "rows"),
    [
        ([1, 2, 3], (".#.", "#..")),  # down the columns
        ("123", (".#.", "#..")),
        ([0, 6], ("###", "###")),
        ([6], ("...", "...")),
        ([0, 1, 0, 1, 4], ("#..", "#..")),
        # the example of pycocotools' mask.py, and its text: 1 - 3 = -2 is the last number, 30 of 32, so chr(48 + 30)
        ([2, 3, 1, 1], ("..###.#",)),
        ("231N", ("..###.#",)),
    ],
)
def test_runs_of_pixels(counts: list[int] | str, rows: tuple[str, ...]) -> None:
    expected = drawing(*rows)
    mask = mask_of({"size": list(expected.shape), "counts": counts}, *expected.shape)
    np.testing.assert_array_equal(mask, expected, strict=True)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", []),
        ("0", [0]),
        ("?", [15]),
        ("`0", [16]),  # 16 has the bit of a sign, so a zero follows
        ("o0", [31]),
        ("P1", [32]),
        ("PP1", [1024]),
        ("5?0", [5, 15, 0]),
        ("12345", [1, 2, 3, 6, 8]),
        ("12P1o0O", [1, 2, 32, 33, 31]),
    ],
)
def test_packed_runs(text: str, counts: list[int]) -> None:
    assert unpacked(text) == counts


SQUARE = [0, 0, 2, 0, 2, 2]


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        (7, "segmentation is 7, neither polygons nor runs of pixels"),
        ([], r"segmentation is \[\], neither"),
        ([[0, 0, 2, 0]], r"a polygon is \[0, 0, 2, 0\], not x and y of 3 or more points"),
        ([SQUARE, [*SQUARE, 1]], "not x and y of 3 or more points"),
        ([[0, 0, 2, 0, 2, "2"]], "not x and y of 3 or more points"),
        ([[0, 0, 2, 0, 2, True]], "not x and y of 3 or more points"),
        ([[0, 0, 2, 0, 2, 1e308]], "not x and y of 3 or more points"),
        (SQUARE, "a polygon is 0, not x and y"),
        ({"counts": [20]}, r"the size of its mask is None, and its picture has \[4, 5\] \(height, width\)"),
        ({"size": [5, 4], "counts": [20]}, r"the size of its mask is \[5, 4\], and its picture has \[4, 5\]"),
        ({"size": [4, 5]}, "the counts of its mask are None, not lengths of runs"),
        ({"size": [4, 5], "counts": [21, -1]}, "not lengths of runs"),
        ({"size": [4, 5], "counts": [19.0, 1]}, "not lengths of runs"),
        ({"size": [4, 5], "counts": [19]}, "the runs of its mask have 19 pixels, and its picture 20"),
        ({"size": [4, 5], "counts": [10**30, 20]}, "pixels, and its picture 20"),
        ({"size": [4, 5], "counts": "13"}, "the runs of its mask have 4 pixels, and its picture 20"),
        ({"size": [4, 5], "counts": "1 3"}, "which is not COCO's packed text"),
        ({"size": [4, 5], "counts": "é"}, "which is not COCO's packed text"),
        ({"size": [4, 5], "counts": "o" * 99}, "which is not COCO's packed text"),
        ({"size": [4, 5], "counts": "12P"}, "end within a number, or go below zero"),
        ({"size": [4, 5], "counts": "113N"}, "end within a number, or go below zero"),
    ],
)
def test_another_mask_is_refused(segmentation: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mask_of(segmentation, 4, 5)
