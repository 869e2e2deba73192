"""Masks on pictures: the codes of an answer -> a mask, and a mask -> the codes that a model is trained to say.

Two rules are about for laying the 64 x 64 mask of an object onto its box, and they differ at the edges: PaliGemma's
demo gives grays between 0 and 1, big_vision's evaluators cut at 0. Both are here.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor

from npgemma.layers.shapes import Array, Bool, Float
from npgemma.models.mask_vqvae import SIDE, MaskVQVAE, decode_mask, encode_mask
from npgemma.tasks import COLORS, Box, DetectedObject


def object_masks(p: MaskVQVAE, objects: Sequence[DetectedObject], width: int, height: int) -> list[Bool[Array, "Y X"]]:
    """For each object that has codes, where it is on a picture of `width` x `height` pixels, by `paste_hard`."""
    coded = [thing for thing in objects if thing.codes]
    decoded = decode_mask(p, np.array([thing.codes for thing in coded], np.int64).reshape(-1, 16))
    boxes = [thing.box(width, height, bins=1023) for thing in coded]
    return [paste_hard(mask, box, width, height) for mask, box in zip(decoded, boxes, strict=True)]


def draw_masks(image: Image.Image, masks: Sequence[Bool[Array, "Y X"]], labels: Sequence[str]) -> Image.Image:
    """A copy of `image` with every mask laid over it, half transparent: the colours are those of `draw_boxes`."""
    drawn = np.asarray(image.convert("RGB")).astype(np.float32)
    names = list(dict.fromkeys(labels))
    for mask, label in zip(masks, labels, strict=True):
        color = np.array(ImageColor.getrgb(COLORS[names.index(label) % len(COLORS)]), np.float32)
        drawn[mask] = (drawn[mask] + color) / 2
    return Image.fromarray(drawn.astype(np.uint8))


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


def encode_object(p: MaskVQVAE, label: str, mask: Bool[Array, "Y X"]) -> DetectedObject:
    """What a model is trained to say of an object: the bins of its bounding box, and the 16 codes of what is in it.

    bin = round(edge / side * 1023). ValueError for a mask of nothing. Source: big_vision,
    pp/proj/paligemma/segmentation.py.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        raise ValueError("a mask without a pixel in it is no object")
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    crop = Image.fromarray(mask[y0:y1, x0:x1].astype(np.float32))
    small = np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    codes = encode_mask(p, (2 * (small - 0.5))[None])[0]
    height, width = mask.shape
    edges = ((y0, height), (x0, width), (y1, height), (x1, width))
    y0, x0, y1, x1 = (min(1023, round(float(edge) / side * 1023)) for edge, side in edges)
    return DetectedObject(label, (y0, x0, y1, x1), tuple(codes.tolist()))
