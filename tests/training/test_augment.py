"""Crops and flips: a box that is moved is the box of the picture that is moved."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import NOISE
from PIL import Image

from npgemma.tasks.objects import Box, DetectedObject, encode_box, parse_objects, write_objects
from npgemma.training.augment import Augmentation, Window, augmented, cut_out, drawn, moved_suffix
from npgemma.training.examples import Example

CODES = tuple(range(16))
FLIP, CROP = Augmentation(flip=True), Augmentation(least=0.5)
NUMBERS = range(30)  # so many examples of a run

# Divisors of 1023: every pixel edge is a whole bin.
sides = st.sampled_from([31, 33, 93])


@st.composite
def windows(draw: st.DrawFn, width: int, height: int) -> Window:
    """Of odd sides, so that no edge lies between two bins."""
    columns = 2 * draw(st.integers(0, (width - 1) // 2)) + 1
    rows = 2 * draw(st.integers(0, (height - 1) // 2)) + 1
    left, top = draw(st.integers(0, width - columns)), draw(st.integers(0, height - rows))
    return Window(left, top, columns, rows, draw(st.booleans()))


@st.composite
def painted(draw: st.DrawFn) -> tuple[Image.Image, Window]:
    """A black picture with a white rectangle, and a part of it."""
    width, height = draw(sides), draw(sides)
    x0, x1 = sorted(draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    y0, y1 = sorted(draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    pixels = np.zeros((height, width), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    return Image.fromarray(pixels), draw(windows(width, height))


def box_of(image: Image.Image) -> DetectedObject:
    """The white rectangle of a picture."""
    x0, y0, x1, y1 = image.getbbox()
    return encode_box(Box("cat", x0, y0, x1, y1), *image.size)


@given(painted())
def test_a_moved_box_is_the_box_of_the_moved_picture(case: tuple[Image.Image, Window]) -> None:
    """It is dropped exactly where less than half of its pixels are left."""
    image, window = case
    part = cut_out(image, window)
    whole, left = (np.count_nonzero(np.asarray(each)) for each in (image, part))
    suffix = moved_suffix(write_objects([box_of(image)]), window, image.size)
    assert suffix == (write_objects([box_of(part)]) if 2 * left >= whole else None)


edges = st.lists(st.integers(0, 1023), min_size=2, max_size=2, unique=True).map(sorted)


@settings(max_examples=50)
@given(y=edges, x=edges, size=st.tuples(sides, sides))
def test_flipping_twice_gives_any_box_back(y: list[int], x: list[int], size: tuple[int, int]) -> None:
    (y0, y1), (x0, x1) = y, x
    bins = (y0, x0, y1, x1)
    suffix, window = write_objects([DetectedObject("cat", bins)]), Window(0, 0, *size, flipped=True)
    flipped = moved_suffix(suffix, window, size)
    assert flipped == write_objects([DetectedObject("cat", (y0, 1023 - x1, y1, 1023 - x0))])
    assert moved_suffix(flipped, window, size) == suffix


@settings(max_examples=50)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    least=st.floats(0.1, 1),
    draws=st.lists(st.floats(0, 1, exclude_max=True), min_size=5, max_size=5),
)
def test_a_window_lies_in_its_picture_and_is_large_enough(
    size: tuple[int, int], least: float, draws: list[float]
) -> None:
    window = drawn(size, least, True, draws)
    assert 0 <= window.left <= size[0] - window.width
    assert 0 <= window.top <= size[1] - window.height
    # the product of two roots may be smaller than the number in the last digits
    assert window.width * window.height >= least * size[0] * size[1] * (1 - 1e-12)
    assert drawn(size, 1.0, False, draws) == Window(0, 0, *size)


def test_objects_are_moved_clipped_and_dropped_with_their_labels() -> None:
    """In a picture of 1023 x 1023, a pixel is a bin; its right half is left."""
    objects = [
        DetectedObject("inside", (0, 600, 100, 700)),
        DetectedObject("more than half left", (0, 411, 1023, 711)),
        DetectedObject("less than half left", (0, 311, 1023, 611)),
        DetectedObject("outside", (0, 0, 1023, 300)),
    ]
    moved = parse_objects(moved_suffix(write_objects(objects), Window(511, 0, 512, 1023), (1023, 1023)))
    assert [(each.label, each.bins) for each in moved] == [
        ("inside", (0, round(89 / 512 * 1023), 100, round(189 / 512 * 1023))),
        ("more than half left", (0, 0, 1023, round(200 / 512 * 1023))),
    ]


@pytest.mark.parametrize(
    ("left", "moved"),
    [
        (100, (0, round(100 / 923 * 1023), 1023, round(300 / 923 * 1023))),  # all of it is left
        (300, None),  # a part is: its codes would be others
        (500, None),  # nothing is
    ],
)
def test_a_mask_is_moved_whole_or_not_at_all(left: int, moved: tuple[int, ...] | None) -> None:
    suffix = write_objects([DetectedObject("cat", (0, 200, 1023, 400), CODES)])
    found = moved_suffix(suffix, Window(left, 0, 1023 - left, 1023), (1023, 1023))
    assert found == (moved and write_objects([DetectedObject("cat", moved, CODES)]))


# ------------------------------------------------------------------------------------------------------------- examples

CAT = write_objects([DetectedObject("cat", (100, 200, 700, 600))])


def example(prefix: str, suffix: str, images: int = 1) -> Example:
    return Example((NOISE.resize((62, 33)),) * images, prefix, suffix, "data.jsonl: line 1", "digest")


def is_changed(before: Example, augmentation: Augmentation) -> bool:
    return any(augmented(before, augmentation, 0, number) != before for number in NUMBERS)


@pytest.mark.parametrize("augmentation", [FLIP, CROP])
@pytest.mark.parametrize(
    ("prefix", "suffix", "changes"),
    [
        ("detect cat", CAT, True),
        ("detect cat ; dog", f"{CAT};{CAT} ;\n", True),
        ("detect cat", "no cat", True),
        ("caption en", "a bright cat, upright", True),
        ("caption en", "a cat on the Left", False),
        ("answer en which is the rightmost?", "a cat", False),
        ("caption de", "eine Katze links", False),
        ("caption fr", "un chat à gauche", False),
        ("ocr", "CAT", False),
        ("what is at <loc0001><loc0002><loc0003><loc0004>?", "a cat", False),
        ("point", "<loc0001><loc0002>", False),
        ("describe", f"here is {CAT}", False),
    ],
)
def test_an_example_is_changed_where_its_text_stays_true(
    prefix: str, suffix: str, changes: bool, augmentation: Augmentation
) -> None:
    assert is_changed(example(prefix, suffix), augmentation) is changes


def test_an_example_of_two_pictures_or_of_none_stays_as_it_is() -> None:
    assert not is_changed(example("caption en", "cats", images=2), Augmentation(0.5, flip=True))
    assert not is_changed(example("caption en", "cats", images=0), Augmentation(0.5, flip=True))


def test_a_mask_is_cropped_and_never_flipped() -> None:
    masked = example("segment cat", write_objects([DetectedObject("cat", (400, 400, 600, 600), CODES)]))
    assert not is_changed(masked, FLIP)
    assert is_changed(masked, CROP)
    for number in NUMBERS:
        (found,) = parse_objects(augmented(masked, Augmentation(0.5, flip=True), 0, number).suffix)
        assert found.codes == CODES


def test_no_augmentation_gives_the_example_itself() -> None:
    before = example("detect cat", CAT)
    assert augmented(before, Augmentation(), 0, 1) is before


def test_half_of_the_pictures_are_flipped_with_their_boxes(folder: Path) -> None:
    """Of 30 with even chances, fewer than 6 or more than 24 have a probability of 0.0003. The picture is a file."""
    before = Example((folder / "a.png",), "detect cat", CAT)
    turned = Image.open(folder / "a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flips = 0
    for number in NUMBERS:
        after = augmented(before, FLIP, 0, number)
        (image,), (found,) = after.images, parse_objects(after.suffix)
        flipped = found.bins == (100, 1023 - 600, 700, 1023 - 200)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(turned if flipped else NOISE))
        flips += flipped
    assert 6 <= flips <= 24


def test_what_happens_is_a_function_of_the_seed_and_the_number() -> None:
    def views(seed: int) -> list[str]:
        both = Augmentation(0.5, flip=True)
        return [augmented(example("detect cat", CAT), both, seed, number).suffix for number in NUMBERS]

    assert views(1) == views(1)
    assert len({*views(1), *views(2)}) > 55  # of 60


def test_a_crop_is_drawn_again_until_an_object_is_left() -> None:
    """A small object in a corner is missing from nearly all crops of a tenth, and the whole picture has it."""
    corner = example("detect cat", write_objects([DetectedObject("cat", (0, 0, 40, 40))]))
    views = [augmented(corner, Augmentation(0.1), 0, number) for number in NUMBERS]
    assert all(len(parse_objects(each.suffix)) == 1 for each in views)
    assert sum(each.images != corner.images for each in views) > 0
    assert all(each.where == "data.jsonl: line 1" for each in views)
