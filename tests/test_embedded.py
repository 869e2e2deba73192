"""The embedded model does what its card says: with a wrong mask, rotation or resize these scores fall to nothing."""

from itertools import islice
from random import Random

import numpy as np
import pytest
from evaluate_tiny import box_ious, iou, unseen
from PIL import Image
from shape_world import COLORS, draw_scene

import npgemma
from npgemma.tasks import detect_prompt

PICTURES = 60

# Lower bounds on 60 pictures for a model that scores what its card says on 500: three standard errors of a share of 60
# below.
CAPTIONS, ANSWERS, IOU = 0.85, 0.92, 0.80


@pytest.fixture(scope="module")
def model():
    return npgemma.load()


def test_it_describes_answers_and_finds(model):
    captions, answers, ious = [], [], []
    for scene, questions in islice(unseen(PICTURES), PICTURES):
        prompts = [detect_prompt([thing.label for thing in scene.things]), *(q.prompt for q in questions)]
        said = model.generate([scene.image] * len(prompts), prompts, max_new_tokens=64)
        ious += box_ious(scene, said[0].text)
        for question, generation in zip(questions, said[1:], strict=True):
            if question.family == "caption":
                captions.append(generation.text == question.suffix)
            elif question.family == "answer":
                answers.append(generation.text == question.suffix)
    assert np.mean(captions) >= CAPTIONS
    assert np.mean(answers) >= ANSWERS
    assert np.mean(ious) >= IOU


def test_what_it_says_depends_on_the_picture(model):
    scene = draw_scene(Random("unseen 0"))
    blank = Image.new("RGB", scene.image.size, "white")
    seen, nothing = model.generate([scene.image, blank], ["caption en", "caption en"])
    assert any(color in seen.text for color in COLORS)
    assert seen.text != nothing.text


def test_iou_is_one_for_a_box_itself_and_zero_apart():
    box = npgemma.Box("a", 0, 0, 4, 2)
    assert iou(box, box) == 1
    assert iou(box, npgemma.Box("a", 4, 0, 8, 2)) == 0
    assert iou(box, npgemma.Box("a", 2, 0, 6, 2)) == pytest.approx(1 / 3)
