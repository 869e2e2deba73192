"""Masks on pictures: the codes of an answer -> a mask, and a mask -> the codes that a model is trained to say.

Two rules are about for laying the 64 x 64 mask of an object onto its box, and they differ at the edges: PaliGemma's
demo gives grays between 0 and 1, big_vision's evaluators cut at 0. Both are here.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from npgemma.layers.shapes import Array, Bool, Float
from npgemma.models.mask_vqvae import SIDE, MaskVQVAE, decode_mask, encode_mask
from npgemma.tasks.objects import Box, DetectedObject


def object_masks(p: MaskVQVAE, objects: Sequence[DetectedObject], width: int, height: int) -> list[Bool[Array, "Y X"]]:
    """For each object that has codes, where it is on a picture of `width` x `height` pixels, by `paste_hard`."""
    coded = [thing for thing in objects if thing.codes]
    boxes = [thing.box(width, height, bins=1023) for thing in coded]  # as big_vision's evaluators read them
    return [paste_hard(mask, box, width, height) for mask, box in zip(decoded(p, coded), boxes, strict=True)]


def soft_object_masks(
    p: MaskVQVAE, objects: Sequence[DetectedObject], width: int, height: int
) -> list[Float[Array, "Y X"]]:
    """For each object that has codes, how much of each pixel it covers, by `paste_soft`."""
    coded = [thing for thing in objects if thing.codes]
    boxes = [thing.box(width, height) for thing in coded]
    return [paste_soft(mask, box, width, height) for mask, box in zip(decoded(p, coded), boxes, strict=True)]


def decoded(p: MaskVQVAE, objects: Sequence[DetectedObject]) -> Float[Array, "B 64 64"]:
    return decode_mask(p, np.array([thing.codes for thing in objects], np.int64).reshape(-1, 16))


def paste_hard(mask: Float[Array, "64 64"], box: Box, width: int, height: int) -> Bool[Array, "Y X"]:
    """True where the mask, resized to the box (bilinear), is above 0; box edges are cut down to whole pixels.

    Source: big_vision, evaluators/proj/paligemma/transfers/segmentation.py.
    """
    x0, y0, x1, y1 = (int(edge) for edge in (box.x0, box.y0, box.x1, box.y1))
    canvas = np.zeros((height, width), bool)
    if x1 > x0 and y1 > y0:
        resized = Image.fromarray(mask.astype(np.float32)).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
        canvas[y0:y1, x0:x1] = np.asarray(resized) > 0
    return canvas


def paste_soft(mask: Float[Array, "64 64"], box: Box, width: int, height: int) -> Float[Array, "Y X"]:
    """0 .. 1: the mask as 8-bit grays, resized to the box (bicubic); box edges are rounded.

    Source: the demo of PaliGemma, big_vision's paligemma_parse.py.
    """
    x0, y0, x1, y1 = (round(edge) for edge in (box.x0, box.y0, box.x1, box.y1))
    canvas = np.zeros((height, width), np.float32)
    if x1 > x0 and y1 > y0:
        grays = (np.clip(mask * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8)
        resized = Image.fromarray(grays).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)
        canvas[y0:y1, x0:x1] = np.asarray(resized) / 255
    return canvas


def encode_object(p: MaskVQVAE, label: str, mask: Array) -> DetectedObject:
    """What a model is trained to say of an object: the bins of its bounding box, and the 16 codes of what is in it.

    bin = round(edge / side * 1023). In the object is what is not 0: truth values, 0 and 1, 0 and 255. ValueError for a
    mask of nothing. Source: big_vision, pp/proj/paligemma/segmentation.py.
    """
    mask = np.asarray(mask) != 0
    (y0, x0, y1, x1), small = cut_out(mask)
    codes = encode_mask(p, small[None])[0]
    height, width = mask.shape
    edges = ((y0, height), (x0, width), (y1, height), (x1, width))
    y0, x0, y1, x1 = (min(1023, round(edge / side * 1023)) for edge, side in edges)
    return DetectedObject(label, (y0, x0, y1, x1), tuple(codes.tolist()))


def cut_out(mask: Bool[Array, "Y X"]) -> tuple[tuple[int, int, int, int], Float[Array, "64 64"]]:
    """The pixels y0 x0 y1 x1 that bound a mask, and what is in them as the encoder takes it: 64 x 64, in -1 .. 1."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        raise ValueError("a mask without a pixel in it is no object")
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    crop = Image.fromarray(mask[y0:y1, x0:x1].astype(np.float32))
    small = np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return (y0, x0, y1, x1), 2 * (small - 0.5)
