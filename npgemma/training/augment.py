"""Random crops and flips of pictures that move the boxes of their suffixes along.

What a crop or a flip of an example does is a function of (seed, its number in the run). An example stays as it is where
the text would become wrong: see `is_movable`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

from PIL import Image

from npgemma.io.picture import Picture, read_picture
from npgemma.tasks.objects import LAST_BIN, OBJECT, Box, DetectedObject, encode_box, parse_objects, write_objects
from npgemma.training.draws import uniform
from npgemma.training.examples import Example

TRIES = 10  # crops that are drawn for an example before it is left whole
STRETCH = 4 / 3  # how much wider or narrower than its picture a crop may be
# A box of which a crop leaves less is dropped, with its label. Edges in pixels are quotients, so a half may come out
# smaller in the last digits.
LEAST_LEFT = 0.5 - 1e-9
SIDES = re.compile(
    r"\b(?:(?:left|right)\w*|links|rechts|(?:linke|rechte)[nrs]?|gauche|droite|(?:izquierd|derech|sinistr|destr|esquerd"
    r"|direit)[ao])\b",
    re.IGNORECASE,
)
READS = re.compile(r"\s*ocr\b", re.IGNORECASE)  # a prefix whose suffix is all the text in the picture


@dataclass(frozen=True)
class Augmentation:
    """How pictures may change: a crop keeps at least the share `least` of the area, and every second one is flipped."""

    least: float = 1.0
    flip: bool = False


class Window(NamedTuple):
    """The part of a picture that is left, in pixels, and whether it is flipped from left to right."""

    left: int
    top: int
    width: int
    height: int
    flipped: bool = False


def augmented(
    example: Example,
    augmentation: Augmentation,
    seed: int,
    number: int,
    read: Callable[[Picture], Image.Image] = read_picture,
) -> Example:
    """The example with its picture cropped and flipped at random, and its boxes moved; `number` is that of `places`.

    `read` reads the picture. A crop is drawn again if it leaves no box, or cuts a mask. BadPicture for a picture that
    cannot be read.
    """
    if augmentation == Augmentation() or not is_movable(example):
        return example
    image = read(example.images[0])
    flip = augmentation.flip and "<seg" not in example.suffix
    for attempt in range(TRIES):
        window = drawn(image.size, augmentation.least, flip, uniform(5, "augment", seed, number, attempt).tolist())
        suffix = moved_suffix(example.suffix, window, image.size)
        if suffix is not None:
            return replace(example, images=(cut_out(image, window),), suffix=suffix)
    return example


def is_movable(example: Example) -> bool:
    """Whether the text stays true if its picture is cropped, or if it is flipped and the text has no mask codes.

    It does not for several pictures, words such as left and right, an answer that reads all text, locations in a
    prefix, and locations in a suffix that does not consist of objects.
    """
    text, one_picture = f"{example.prefix} {example.suffix}", len(example.images) == 1
    others = OBJECT.sub("", example.suffix) if "<loc" in example.suffix else ""
    speaks_of_places = SIDES.search(text) or READS.match(example.prefix) or "<loc" in example.prefix
    return one_picture and not speaks_of_places and not others.strip(" ;\n")


def drawn(size: tuple[int, int], least: float, flip: bool, draws: list[float]) -> Window:
    """A window of at least the share `least` of a picture's area, by five numbers in [0, 1)."""
    (width, height), (area, stretch, x, y, turn) = size, draws
    share = least + (1 - least) * area
    ratio = min(STRETCH, 1 / share) ** (2 * stretch - 1)
    columns = min(width, ceil(width * (share * ratio) ** 0.5))
    rows = min(height, ceil(height * (share / ratio) ** 0.5))
    return Window(int(x * (width - columns + 1)), int(y * (height - rows + 1)), columns, rows, flip and turn < 0.5)


def cut_out(image: Image.Image, window: Window) -> Image.Image:
    """What is left of a picture."""
    left, top, width, height, flipped = window
    part = image.crop((left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else part


def moved_suffix(suffix: str, window: Window, size: tuple[int, int]) -> str | None:
    """The suffix for what is left of a picture of this size; None if no object is left, or one cannot be moved."""
    objects = parse_objects(suffix)
    if not objects:
        return suffix
    moved = [(each, moved_object(each, window, size)) for each in objects]
    kept = [after for _, after in moved if after is not None]
    whole = all(after is None or not before.codes or is_inside(before, window, size) for before, after in moved)
    return write_objects(kept) if kept and whole else None


def moved_object(found: DetectedObject, window: Window, size: tuple[int, int]) -> DetectedObject | None:
    """The object in what is left of a picture; None if less than half of its box is, or less than one bin."""
    box = found.box(*size, bins=LAST_BIN)
    seen = Box(
        box.label,
        min(max(box.x0 - window.left, 0), window.width),
        min(max(box.y0 - window.top, 0), window.height),
        min(max(box.x1 - window.left, 0), window.width),
        min(max(box.y1 - window.top, 0), window.height),
    )
    if area(seen) < LEAST_LEFT * area(box):
        return None
    if window.flipped:
        seen = replace(seen, x0=window.width - seen.x1, x1=window.width - seen.x0)
    y0, x0, y1, x1 = bins = encode_box(seen, window.width, window.height).bins
    return replace(found, bins=bins) if y1 > y0 and x1 > x0 else None


def is_inside(found: DetectedObject, window: Window, size: tuple[int, int]) -> bool:
    """Whether a window has all of an object's box, up to half a bin."""
    box = found.box(*size, bins=LAST_BIN)
    x, y = size[0] / LAST_BIN / 2, size[1] / LAST_BIN / 2
    columns = window.left - x <= box.x0 and box.x1 <= window.left + window.width + x
    return columns and window.top - y <= box.y0 and box.y1 <= window.top + window.height + y


def area(box: Box) -> float:
    """Width times height."""
    return (box.x1 - box.x0) * (box.y1 - box.y0)
