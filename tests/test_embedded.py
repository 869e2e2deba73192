"""The embedded model is as good as its card says. With a wrong mask, rotation or resize, these scores fall to zero."""

from itertools import islice
from random import Random

import numpy as np
import pytest
from evaluate_tiny import MAX_NEW_TOKENS, box_ious, encoded, iou, mask_ious, unseen
from PIL import Image
from shape_world import COLORS, draw_mask, draw_scene

import npgemma
from npgemma.tasks.prompts import detect_prompt, segment_prompt

PICTURES = 20

# Lower bounds on 20 pictures, for a model with the scores that its card gives on 500. Shares are three standard errors
# below 0.99, for 20 captions and about 100 answers. A missing one of about 40 boxes lowers a mean IoU by 0.02: these
# allow three of 0.93 and four of 0.90.
CAPTIONS, ANSWERS, IOU, MASK_IOU = 0.92, 0.96, 0.86, 0.80


@pytest.fixture(scope="module")
def model():
    return npgemma.load()


def test_captions_answers_boxes_and_masks_are_right(model):
    right, ious, masks = {"caption": [], "answer": [], "ocr": []}, [], []
    for scene, questions in islice(unseen(PICTURES), PICTURES):
        labels = [thing.label for thing in scene.things]
        prompts = [detect_prompt(labels), segment_prompt(labels), *(q.prompt for q in questions)]
        found = model.generate([scene.image] * len(prompts), prompts, max_new_tokens=MAX_NEW_TOKENS)
        ious += box_ious(scene, found[0].text)
        masks += mask_ious(scene, model.mask_codec, npgemma.parse_objects(found[1].text))
        for question, answer in zip(questions, found[2:], strict=True):
            right[question.family].append(answer.text == question.suffix)
    assert np.mean(right["caption"]) >= CAPTIONS
    assert np.mean(right["answer"]) >= ANSWERS
    assert np.mean(ious) >= IOU
    assert np.mean(masks) >= MASK_IOU


def test_encoded_masks_decode_to_nearly_the_same_masks(model):
    """The encoder prepares training data."""
    found = []
    for scene, _ in unseen(PICTURES):
        found += mask_ious(scene, model.mask_codec, encoded(scene, model.mask_codec))
    assert np.mean(found) >= 0.9
    assert min(found) >= 0.8


def test_the_masks_of_two_objects_do_not_overlap():
    scene = draw_scene(Random("unseen 0"), count=2)
    first, second = (np.asarray(draw_mask(thing)) > 0 for thing in scene.things)
    assert first.any()
    assert second.any()
    assert not (first & second).any()


def test_the_caption_depends_on_the_picture(model):
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
