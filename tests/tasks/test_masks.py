"""Masks: the two rules that paste a mask into its box, and encoding a mask as an object."""

import numpy as np
import pytest
from mask_codecs import random_codec

from npgemma.models.mask_vqvae import decode_mask
from npgemma.tasks.masks import encode_object, object_masks, paste_hard, paste_soft
from npgemma.tasks.objects import Box, DetectedObject

INSIDE, OUTSIDE = np.ones((64, 64), np.float32), -np.ones((64, 64), np.float32)


def test_a_full_mask_fills_exactly_its_box() -> None:
    """The hard rule rounds edges down, the soft rule to the nearest pixel."""
    box = Box("x", 2.7, 1.2, 6.6, 5.0)
    hard, soft = paste_hard(INSIDE, box, 10, 8), paste_soft(INSIDE, box, 10, 8)
    assert hard.shape == soft.shape == (8, 10)
    expected = np.zeros((8, 10), bool)
    expected[1:5, 2:6] = True
    np.testing.assert_array_equal(hard, expected)
    expected = np.zeros((8, 10), np.float32)
    expected[1:5, 3:7] = 1
    np.testing.assert_array_equal(soft, expected, strict=True)


def test_an_empty_mask_pastes_nothing() -> None:
    box = Box("x", 0, 0, 10, 8)
    assert not paste_hard(OUTSIDE, box, 10, 8).any()
    assert not paste_soft(OUTSIDE, box, 10, 8).any()


@pytest.mark.parametrize("box", [Box("x", 5, 5, 5, 9), Box("x", 9, 2, 3, 6), Box("x", 4, 7, 8, 7)])
def test_an_empty_box_pastes_nothing(box: Box) -> None:
    assert not paste_hard(INSIDE, box, 10, 10).any()
    assert not paste_soft(INSIDE, box, 10, 10).any()


def test_half_a_mask_fills_half_of_its_box() -> None:
    left = np.where(np.arange(64) < 32, 1, -1).astype(np.float32) * np.ones((64, 1), np.float32)
    hard = paste_hard(left, Box("x", 0, 0, 20, 10), 20, 10)
    assert hard[:, :9].all()
    assert not hard[:, 11:].any()
    soft = paste_soft(left, Box("x", 0, 0, 20, 10), 20, 10)
    assert (soft[:, :8] == 1).all()
    assert (soft[:, 12:] == 0).all()
    assert ((soft > 0) & (soft < 1)).any()


def test_mask_values_out_of_range_are_clipped() -> None:
    assert paste_soft(INSIDE * 7, Box("x", 0, 0, 4, 4), 4, 4).max() == 1
    assert paste_soft(OUTSIDE * 7, Box("x", 0, 0, 4, 4), 4, 4).min() == 0


def test_objects_without_codes_have_no_mask() -> None:
    p, codes = random_codec(), tuple(range(16))
    objects = [DetectedObject("a", (0, 0, 1023, 1023)), DetectedObject("b", (0, 0, 1023, 511), codes)]
    (mask,) = object_masks(p, objects, 30, 20)
    box = Box("b", 0, 0, 511 / 1023 * 30, 20)
    np.testing.assert_array_equal(mask, paste_hard(decode_mask(p, np.array([codes]))[0], box, 30, 20))
    assert object_masks(p, objects[:1], 30, 20) == []


def test_an_encoded_object_has_the_bounding_box_of_its_mask() -> None:
    mask = np.zeros((50, 100), bool)
    mask[10:25, 40:100] = True
    found = encode_object(random_codec(), "cat", mask)
    assert found.label == "cat"
    assert found.bins == (round(10 / 50 * 1023), round(40 / 100 * 1023), round(25 / 50 * 1023), 1023)
    assert len(found.codes) == 16


def test_codes_depend_on_the_shape_of_a_mask_and_not_on_its_position() -> None:
    p = random_codec()
    disc = (np.add.outer(np.arange(-10, 10) ** 2, np.arange(-10, 10) ** 2) < 90).astype(bool)
    codes = []
    for y, x, shape in ((0, 0, disc), (30, 17, disc), (0, 0, np.triu(disc))):
        mask = np.zeros((60, 60), bool)
        mask[y : y + 20, x : x + 20] = shape
        codes.append(encode_object(p, "", mask).codes)
    assert codes[0] == codes[1]
    assert codes[0] != codes[2]


def test_a_mask_of_zeros_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="0 everywhere"):
        encode_object(random_codec(), "cat", np.zeros((5, 5), bool))
