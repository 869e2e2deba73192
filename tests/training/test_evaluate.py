"""Scores of answers, with values that are small enough to check by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_codecs import random_codec

from npgemma.tasks.objects import DetectedObject, write_objects
from npgemma.training.evaluate import (
    Scores,
    box_ious,
    evaluated,
    exact_match,
    mask_iou,
    score_table,
    scored,
    task_of,
    token_f1,
)
from npgemma.training.examples import Example

CODES = tuple(range(16))


def objects(*written: tuple) -> str:
    """An answer: (label, y0, x0, y1, x1) each, or with codes at the end."""
    return write_objects([DetectedObject(label, tuple(rest[:4]), tuple(rest[4:])) for label, *rest in written])


@pytest.mark.parametrize(
    ("wanted", "answer", "f1", "exact"),
    [
        ("a red ring", "a red ring", 1, True),
        ("a red ring", " a red ring\n", 1, True),
        ("a red ring", "The Red, ring!", 1, False),
        ("red ring", "red star", 1 / 2, False),
        ("red red ring", "red", 2 / 4, False),
        ("red", "red red red", 2 / 4, False),
        ("red ring", "blue star", 0, False),
        ("red", "", 0, False),
        ("the", "a", 1, False),
        ("theatre", "atre", 0, False),
        ("3.5", "35", 1, False),
    ],
)
def test_text_is_scored_as_squad_does(wanted: str, answer: str, f1: float, exact: bool) -> None:
    assert token_f1(wanted, answer) == f1
    assert exact_match(wanted, answer) is exact


@pytest.mark.parametrize(
    ("other", "iou"),
    [
        ((0, 0, 10, 20), 1),
        ((0, 10, 10, 30), 1 / 3),
        ((5, 0, 10, 20), 1 / 2),
        ((0, 20, 10, 40), 0),
        ((20, 0, 30, 20), 0),
        ((10, 20, 0, 0), 0),
    ],
)
def test_the_iou_of_two_boxes(other: tuple[int, ...], iou: float) -> None:
    (found,) = box_ious([DetectedObject("", (0, 0, 10, 20))], [DetectedObject("", other)])
    assert found.tolist() == [iou]


def test_two_boxes_without_an_area_have_no_iou() -> None:
    empty = DetectedObject("", (3, 4, 3, 9))
    assert box_ious([empty], [empty]).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("wanted", "answer", "iou", "precision", "recall"),
    [
        # found, and found twice
        ([("cat", 0, 0, 10, 20)], [("cat", 0, 0, 10, 20)], 1, 1, 1),
        ([("cat", 0, 0, 10, 20)], [("cat", 0, 0, 10, 20), ("cat", 0, 0, 10, 20)], 1, 1 / 2, 1),
        # one box found stands for one that is wanted
        ([("cat", 0, 0, 10, 20), ("cat", 0, 0, 10, 25)], [("cat", 0, 0, 10, 20)], 1 / 2, 1, 1 / 2),
        # another label, nothing, and no box at all
        ([("cat", 0, 0, 10, 20)], [("dog", 0, 0, 10, 20)], 0, 0, 0),
        ([("cat", 0, 0, 10, 20)], [], 0, 0, 0),
        # IoU of exactly a half counts, a third does not
        ([("cat", 0, 0, 10, 20)], [("cat", 5, 0, 10, 20)], 1 / 2, 1, 1),
        ([("cat", 0, 0, 10, 20)], [("cat", 0, 10, 10, 30)], 1 / 3, 0, 0),
        # the second box found is the better one for the first that is wanted, and the order does not matter
        (
            [("cat", 0, 0, 10, 20), ("cat", 0, 20, 10, 40)],
            [("cat", 0, 10, 10, 30), ("cat", 0, 0, 10, 20)],
            (1 + 1 / 3) / 2,
            1 / 2,
            1 / 2,
        ),
        # labels are matched apart
        (
            [("cat", 0, 0, 10, 20), ("dog", 0, 0, 10, 20)],
            [("dog", 0, 0, 10, 20), ("cat", 5, 0, 10, 20)],
            3 / 4,
            1,
            1,
        ),
    ],
)
def test_boxes_are_matched_by_label(wanted: list, answer: list, iou: float, precision: float, recall: float) -> None:
    assert scored([(objects(*wanted), objects(*answer))]) == Scores(
        1, float(wanted == answer), None, iou, precision, recall
    )


def test_counts_of_all_answers_are_put_together() -> None:
    """Three boxes are wanted and four found, of which one is right."""
    cat, dog, pig = ("cat", 0, 0, 10, 20), ("dog", 0, 0, 10, 20), ("pig", 0, 0, 10, 20)
    pairs = [(objects(cat), objects(cat, dog, pig)), (objects(dog, pig), objects(cat))]
    assert scored(pairs) == Scores(2, 0.0, None, 1 / 3, 1 / 4, 1 / 3)


def test_masks_are_scored_through_the_codec() -> None:
    """Equal codes are equal masks; an object without codes, or with another label, was not found."""
    codec = random_codec()
    cat, dog = ("cat", 0, 0, 1023, 1023, *CODES), ("dog", 0, 0, 1023, 1023, *CODES)
    half = ("cat", 0, 0, 1023, 511, *CODES)
    assert scored([(objects(cat), objects(cat))], codec).mask_iou == 1
    assert scored([(objects(cat, dog), objects(cat))], codec).mask_iou == 1 / 2
    assert scored([(objects(cat), objects(cat[:5]))], codec).mask_iou == 0
    assert scored([(objects(cat), "")], codec).mask_iou == 0
    assert 0 < scored([(objects(cat), objects(half))], codec).mask_iou < 1
    assert scored([(objects(cat), objects(cat))]).mask_iou is None
    assert scored([(objects(cat[:5]), objects(cat))], codec).mask_iou is None


def test_the_iou_of_two_masks() -> None:
    a, b = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    assert mask_iou(a, b) == 0
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == 1 / 3


boxes = st.tuples(*[st.integers(0, 1023)] * 4)
detections = st.lists(st.builds(DetectedObject, st.sampled_from(["cat", "dog"]), boxes), max_size=5)


@settings(max_examples=40)
@given(wanted=detections, found=detections)
def test_scores_are_shares_and_do_not_depend_on_the_order(wanted: list, found: list) -> None:
    scores = scored([(write_objects(wanted), write_objects(found))])
    assert all(0 <= each <= 1 for each in (scores.iou, scores.precision, scores.recall) if each is not None)
    ious = box_ious(wanted, found)
    np.testing.assert_array_equal(ious, box_ious(found, wanted).T)
    if wanted and found:
        swapped = scored([(write_objects(found), write_objects(wanted))])
        assert (scores.precision, scores.recall) == (swapped.recall, swapped.precision)


def test_answers_are_scored_by_task() -> None:
    cat = objects(("cat", 0, 0, 10, 20))
    examples = [
        Example((), "caption en", "a cat"),
        Example((), "detect cat", cat),
        Example((), "caption de", "eine Katze"),
        Example((), "", "text"),
    ]
    scores = evaluated(examples, ["a cat", cat, "ein Hund", "no"])
    assert scores == {
        "": Scores(1, 0.0, 0.0),
        "caption": Scores(2, 0.5, 0.5),
        "detect": Scores(1, 1.0, None, 1.0, 1.0, 1.0),
    }
    assert score_table(scores).splitlines() == [
        "task     answers   exact     f1     iou  precision  recall",
        "-              1    0.0%   0.0%",
        "caption        2   50.0%  50.0%",
        "detect         1  100.0%         100.0%     100.0%  100.0%",
    ]


@pytest.mark.parametrize(("prefix", "task"), [("detect cat ; dog", "detect"), (" caption en\n", "caption"), ("", "")])
def test_the_first_word_of_a_prefix_is_its_task(prefix: str, task: str) -> None:
    assert task_of(prefix) == task
