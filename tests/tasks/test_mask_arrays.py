"""What is a mask, and what is refused: another shape, and numbers whose meaning would be a guess."""

import numpy as np
import pytest
from mask_codecs import random_codec
from PIL import Image

import npgemma
from npgemma.models.mask_vqvae import encode_mask
from npgemma.tasks.masks import read_mask

MASK = np.zeros((40, 60), bool)
MASK[10:30, 20:50] = True
BITS = MASK.astype(np.uint8)
CODEC = random_codec()
WHITE = Image.new("RGB", (60, 40), "white")

USES = {
    "encode_object": lambda mask: npgemma.encode_object(CODEC, "cat", mask),
    "draw_masks": lambda mask: np.asarray(npgemma.draw_masks(WHITE, [mask], ["cat"])).tolist(),
}
SAME = {
    "bool": MASK,
    **{f"{dtype} 0 and 1": MASK.astype(dtype) for dtype in ("uint8", "int8", "int64", "float16", "float32", "float64")},
    **{f"{dtype} 0 and 255": MASK.astype(dtype) * 255 for dtype in ("uint8", "uint16", "int32", "float32")},
    "lists": MASK.tolist(),
    "columns first": np.asfortranarray(MASK),
    "a 1-bit picture": Image.fromarray(BITS * 255).convert("1"),
    "an 8-bit picture": Image.fromarray(BITS * 255),
}
SHAPES = {
    "[1 H W]": (MASK[None], "bool [1, 40, 60]; drop the axis of size 1, as in mask.squeeze()"),
    "[H W 1]": (MASK[:, :, None], "bool [40, 60, 1]; drop the axis of size 1, as in mask.squeeze()"),
    "[H W 3]": (np.dstack([BITS] * 3), "uint8 [40, 60, 3]; take one channel, as in mask[:, :, 0]"),
    "[H W 4]": (np.dstack([BITS] * 4), "uint8 [40, 60, 4]; take one channel, as in mask[:, :, 0]"),
    "an RGB picture": (Image.new("RGB", (60, 40)), "uint8 [40, 60, 3]; take one channel, as in mask[:, :, 0]"),
    "[N H W]": (np.stack([MASK] * 5), "bool [5, 40, 60]; pass one mask at a time"),
    "[N 1 H W]": (np.stack([MASK[None]] * 5), "bool [5, 1, 40, 60]; pass one mask at a time"),
    "[W]": (MASK[0], "bool [60]"),
    "a number": (1, "int64 []"),
    "no rows": (MASK[:0], "bool [0, 60]"),
    "no columns": (MASK[:, :0], "bool [40, 0]"),
    "ragged": ([[True], [True, False]], "rows of different lengths"),
}
NUMBERS = {
    "grays of 8 bits": (np.linspace(0, 255, 2400).reshape(40, 60).astype(np.uint8), "uint8 from 0 to 255"),
    "labels": (BITS * 7, "uint8 from 0 to 7"),
    "0, 1 and 255": (BITS * 255 + np.eye(40, 60, dtype=np.uint8), "uint8 from 0 to"),
    "logits": (np.where(MASK, 3.5, -2.0), "float64 from -2.0 to 3.5"),
    "-1 and 1": (np.where(MASK, 1, -1), "int64 from -1 to 1"),
    "NaN": (np.where(MASK, np.nan, 0), "float64 from nan to nan"),
    "infinity": (np.where(MASK, np.inf, 0), "float64 from 0.0 to inf"),
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("use", USES)
def test_every_way_to_write_a_mask_gives_the_same(use, kind):
    assert USES[use](SAME[kind]) == USES[use](MASK)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("use", USES)
def test_another_shape_is_refused(use, kind):
    mask, says = SHAPES[kind]
    with pytest.raises(ValueError, match=r"a mask must be an array \[H W\], not ") as error:
        USES[use](mask)
    assert str(error.value).endswith(f", not {says}")


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("use", USES)
def test_other_numbers_are_refused(use, kind):
    mask, says = NUMBERS[kind]
    with pytest.raises(ValueError, match="a mask must hold booleans, 0 and 1, or 0 and 255, not ") as error:
        USES[use](mask)
    assert says in str(error.value)


@pytest.mark.parametrize("mask", [MASK.astype(complex), MASK.astype(str), MASK.astype(object)], ids=lambda m: m.dtype)
@pytest.mark.parametrize("use", USES)
def test_what_holds_no_numbers_is_refused(use, mask):
    with pytest.raises(ValueError, match=f"a mask must hold booleans or numbers, not {mask.dtype}"):
        USES[use](mask)


def test_soft_masks_are_drawn_and_not_encoded():
    """`soft_object_masks` gives them: half transparent times the gray."""
    soft = MASK.astype(np.float32) * np.float32(0.5)
    drawn = np.asarray(npgemma.draw_masks(WHITE, [soft], ["cat"]))
    full = np.asarray(npgemma.draw_masks(WHITE, [MASK], ["cat"]))
    assert read_mask(soft) is soft
    np.testing.assert_allclose(drawn[20, 30], (255 + full[20, 30].astype(int)) / 2, atol=1)
    with pytest.raises(ValueError, match=r"grays between 0 and 1; say which pixels are the object, such as mask > 0.5"):
        npgemma.encode_object(CODEC, "cat", soft)


def test_a_mask_of_another_size_than_the_picture_is_refused():
    with pytest.raises(ValueError, match=r"a mask has the size \[60, 40\], the picture \[40, 60\]"):
        npgemma.draw_masks(WHITE, [MASK.T], ["cat"])


def test_masks_and_labels_pair_up():
    with pytest.raises(ValueError, match="there are 2 masks and 1 labels; pass one label for each mask"):
        npgemma.draw_masks(WHITE, [MASK, MASK], ["cat"])
    stacked = npgemma.draw_masks(WHITE, np.stack([MASK, MASK]), ["cat", "dog"])
    assert stacked == npgemma.draw_masks(WHITE, [MASK, MASK], ["cat", "dog"])


@pytest.mark.parametrize(
    "masks",
    [
        np.zeros((64, 64), np.float32),
        np.zeros((2, 1, 64, 64), np.float32),
        np.zeros((2, 40, 60), np.float32),
        np.zeros((2, 64, 64), bool),
        np.zeros((2, 64, 64), np.uint8),
        np.full((2, 64, 64), 255.0),
        np.full((2, 64, 64), np.nan),
    ],
    ids=lambda x: f"{x.dtype} {x.shape}",
)
def test_the_encoder_takes_small_masks_around_zero(masks):
    unchecked = getattr(encode_mask, "__wrapped__", encode_mask)  # the tests check annotations, too
    with pytest.raises(ValueError, match=r"masks must be floats \[B 64 64\] in -1 .. 1, not "):
        unchecked(CODEC, masks)
