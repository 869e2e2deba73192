"""The masks of COCO's annotations: polygons, and runs of pixels down the columns, as numbers or packed in text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from npgemma.errors import shortened
from npgemma.layers.shapes import Array, Bool, Float

POINTS, FARTHEST = 3, 1e6  # a polygon has at least so many, none of them farther from the picture's corner
# A character of packed runs holds 5 bits of a number, lowest first, and above them whether the number goes on.
ZERO, BITS, GOES_ON, NEGATIVE = ord("0"), 5, 0x20, 0x10
MOST_BITS = 40  # of a number


def mask_of(segmentation: Any, height: int, width: int) -> Bool[Array, "Y X"]:
    """The mask of an annotation's `segmentation`. ValueError says what is wrong with it."""
    if isinstance(segmentation, Mapping):
        if segmentation.get("size") != [height, width]:
            size = shortened(repr(segmentation.get("size")), 60)
            raise ValueError(f"the size of its mask is {size}, and its picture has [{height}, {width}] (height, width)")
        return run_mask(counts_of(segmentation.get("counts")), height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"segmentation is {shortened(repr(segmentation), 60)}, neither polygons nor runs of pixels")
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        mask |= polygon_mask(points_of(polygon), height, width)
    return mask


def points_of(polygon: Any) -> Float[Array, "N 2"]:
    """The corners x y of a polygon. ValueError for anything but the numbers of three or more points."""
    numbers = polygon if isinstance(polygon, list) and all(type(x) in (int, float) for x in polygon) else []
    if len(numbers) % 2 or len(numbers) < 2 * POINTS or not all(abs(x) <= FARTHEST for x in numbers):
        raise ValueError(f"a polygon is {shortened(repr(polygon), 60)}, not x and y of {POINTS} or more points")
    return np.array(numbers, float).reshape(-1, 2)


def polygon_mask(points: Float[Array, "N 2"], height: int, width: int) -> Bool[Array, "Y X"]:
    """True where the centre of a pixel is inside: a ray to the left crosses the outline an odd number of times."""
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    centres = np.arange(height) + 0.5
    rows, edges = np.nonzero((y0 <= centres[:, None]) != (y1 <= centres[:, None]))
    along = (centres[rows] - y0[edges]) / (y1 - y0)[edges]
    columns = np.ceil(x0[edges] + along * (x1 - x0)[edges] - 0.5).clip(0, width).astype(int)
    crossed = np.zeros((height, width + 1), int)
    np.add.at(crossed, (rows, columns), 1)
    return crossed.cumsum(1)[:, :width] % 2 == 1


def counts_of(counts: Any) -> Sequence[int]:
    """The lengths of runs. ValueError if they are neither whole numbers nor packed text."""
    if isinstance(counts, str):
        return unpacked(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"the counts of its mask are {shortened(repr(counts), 60)}, not lengths of runs")
    return counts


def run_mask(counts: Sequence[int], height: int, width: int) -> Bool[Array, "Y X"]:
    """Runs of pixels down the columns, outside the mask and inside in turn. ValueError unless they fill the picture."""
    if sum(counts) != height * width:
        raise ValueError(f"the runs of its mask have {sum(counts):,} pixels, and its picture {height * width:,}")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, np.array(counts, int)).reshape(width, height).T


def unpacked(text: str) -> list[int]:
    """The lengths of runs in COCO's packed text; from the fourth on, it has the difference to the one two before.

    ValueError for other text. Source: rleFrString of pycocotools, maskApi.c.
    """
    counts: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - ZERO
        if not 0 <= bits < 2 * GOES_ON or shift > MOST_BITS:
            raise ValueError(f"the counts of its mask are {shortened(repr(text), 60)}, which is not COCO's packed text")
        number |= (bits & (GOES_ON - 1)) << shift
        shift += BITS
        if bits & GOES_ON:
            continue
        number -= (1 << shift) if bits & NEGATIVE else 0
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    if shift or any(count < 0 for count in counts):
        raise ValueError("the counts of its mask end within a number, or go below zero")
    return counts
