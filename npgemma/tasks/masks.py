"""Masks: the codes in an answer -> a mask on the picture, and a mask -> the codes that a model is trained on.

Two rules paste the 64 x 64 mask of an object into its box, and differ at the edges: PaliGemma's demo gives grays
between 0 and 1, big_vision's evaluators threshold at 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from npgemma.layers.shapes import Array, Bool, Float
from npgemma.models.mask_vqvae import SIDE, MaskVQVAE, decode_mask, encode_mask
from npgemma.tasks.objects import BINS, LAST_BIN, Box, DetectedObject, encode_box

Paste: TypeAlias = Callable[[Array, Box, int, int], Array]


def object_masks(p: MaskVQVAE, objects: Sequence[DetectedObject], width: int, height: int) -> list[Bool[Array, "Y X"]]:
    """Decode the masks of objects as big_vision's evaluators do: True or False for each pixel.

    Parameters
    ----------
    p : MaskVQVAE
        The mask codec, from `read_mask_codec`.
    objects : sequence of DetectedObject
        Objects from `parse_objects`. Those without codes are skipped.
    width, height : int
        The size of the picture in pixels.

    Returns
    -------
    list of bool arrays [height width]
        The mask of each object that has codes.

    Examples
    --------
    >>> import numpy as np
    >>> import npgemma
    >>> codec = npgemma.read_mask_codec(npgemma.load().folder / "vae-oid.npz")
    >>> square = np.zeros((40, 60), bool)
    >>> square[10:30, 20:50] = True
    >>> found = npgemma.encode_object(codec, "blue square", square)
    >>> (mask,) = npgemma.object_masks(codec, [found], width=60, height=40)
    >>> mask.shape, mask.dtype
    ((40, 60), dtype('bool'))
    >>> bool((mask & square).sum() > 0.9 * (mask | square).sum())
    True
    """
    return pasted(p, objects, width, height, LAST_BIN, paste_hard)


def soft_object_masks(
    p: MaskVQVAE, objects: Sequence[DetectedObject], width: int, height: int
) -> list[Float[Array, "Y X"]]:
    """Decode the masks of objects as PaliGemma's demo does: a gray in 0 .. 1 for each pixel.

    Parameters
    ----------
    p : MaskVQVAE
        The mask codec, from `read_mask_codec`.
    objects : sequence of DetectedObject
        Objects from `parse_objects`. Those without codes are skipped.
    width, height : int
        The size of the picture in pixels.

    Returns
    -------
    list of float32 arrays [height width]
        The mask of each object that has codes.

    Examples
    --------
    >>> import npgemma
    >>> codec = npgemma.read_mask_codec(npgemma.load().folder / "vae-oid.npz")
    >>> found = npgemma.DetectedObject("cat", (0, 0, 511, 511), codes=(5,) * 16)
    >>> (mask,) = npgemma.soft_object_masks(codec, [found], width=60, height=40)
    >>> mask.shape, mask.dtype
    ((40, 60), dtype('float32'))
    """
    return pasted(p, objects, width, height, BINS, paste_soft)


def pasted(
    p: MaskVQVAE, objects: Sequence[DetectedObject], width: int, height: int, bins: int, paste: Paste
) -> list[Array]:
    """The decoded mask of each object that has codes, pasted into its box by a rule."""
    coded = [each for each in objects if each.codes]
    masks = decode_mask(p, np.array([each.codes for each in coded], np.int64).reshape(-1, 16))
    return [paste(mask, each.box(width, height, bins), width, height) for mask, each in zip(masks, coded, strict=True)]


def paste_hard(mask: Float[Array, "64 64"], box: Box, width: int, height: int) -> Bool[Array, "Y X"]:
    """True where the mask, resized to the box (bilinear), is above 0; box edges are rounded down.

    Source: big_vision, evaluators/proj/paligemma/transfers/segmentation.py.
    """
    x0, y0, x1, y1 = (int(edge) for edge in (box.x0, box.y0, box.x1, box.y1))
    canvas = np.zeros((height, width), bool)
    if x1 > x0 and y1 > y0:
        resized = Image.fromarray(mask.astype(np.float32)).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
        canvas[y0:y1, x0:x1] = np.asarray(resized) > 0
    return canvas


def paste_soft(mask: Float[Array, "64 64"], box: Box, width: int, height: int) -> Float[Array, "Y X"]:
    """0 .. 1: the mask as 8-bit grays, resized to the box (bicubic); box edges are rounded to the nearest pixel.

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
    """Encode a mask as the object that a model is trained to answer: its bounding box in bins, and 16 codes.

    bin = round(edge / side * 1023). Source: big_vision, pp/proj/paligemma/segmentation.py.

    Parameters
    ----------
    p : MaskVQVAE
        The mask codec, from `read_mask_codec`.
    label : str
        What the object is called.
    mask : array [height width]
        True on the object: booleans, 0 and 1, or 0 and 255.

    Returns
    -------
    DetectedObject
        The object, for `write_objects`.

    Raises
    ------
    ValueError
        If the mask has another shape or other numbers, or is 0 everywhere.

    Examples
    --------
    >>> import numpy as np
    >>> import npgemma
    >>> codec = npgemma.read_mask_codec(npgemma.load().folder / "vae-oid.npz")
    >>> mask = np.zeros((40, 60), bool)
    >>> mask[10:30, 20:50] = True
    >>> found = npgemma.encode_object(codec, "blue square", mask)
    >>> found.bins, len(found.codes)
    ((256, 341, 767, 852), 16)
    """
    mask = read_mask(mask)
    if mask.dtype != bool:
        raise ValueError("the mask has grays between 0 and 1; say which pixels are the object, such as mask > 0.5")
    (y0, x0, y1, x1), small = cut_out(mask)
    codes = encode_mask(p, small[None])[0]
    height, width = mask.shape
    return replace(encode_box(Box(label, x0, y0, x1, y1), width, height), codes=tuple(codes.tolist()))


def read_mask(mask: Any) -> Array:
    """A mask [H W]: booleans, also for 0 and 1 or 0 and 255; or floats, if they are between 0 and 1.

    ValueError for another shape, and for other numbers, whose meaning would be a guess.
    """
    try:
        x = np.asarray(mask)
    except ValueError:
        raise ValueError("a mask must be an array [H W], not rows of different lengths") from None
    if x.ndim != 2 or not x.size:
        raise ValueError(f"a mask must be an array [H W], not {x.dtype} {list(x.shape)}{remedy(x.shape)}")
    if x.dtype.kind not in "bfiu":
        raise ValueError(f"a mask must hold booleans or numbers, not {x.dtype}")
    if np.isin(x, (0, 1)).all() or np.isin(x, (0, 255)).all():
        return x != 0
    if x.dtype.kind == "f" and ((x >= 0) & (x <= 1)).all():
        return x
    numbers = f"{x.dtype} from {x.min()} to {x.max()}"
    raise ValueError(f"a mask must hold booleans, 0 and 1, or 0 and 255, not {numbers}; threshold it, as in mask > 127")


def remedy(shape: tuple[int, ...]) -> str:
    """What makes a mask [H W] of an array of this shape."""
    if len(shape) == 3 and 1 in (shape[0], shape[2]):
        return "; drop the axis of size 1, as in mask.squeeze()"
    if len(shape) == 3 and shape[2] in (2, 3, 4):
        return "; take one channel, as in mask[:, :, 0]"
    return "; pass one mask at a time" if len(shape) > 2 else ""


def cut_out(mask: Bool[Array, "Y X"]) -> tuple[tuple[int, int, int, int], Float[Array, "64 64"]]:
    """The bounding box y0 x0 y1 x1 of a mask in pixels, and its inside as the encoder takes it: 64 x 64, in -1 .. 1."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        raise ValueError("the mask is 0 everywhere: an object needs at least one pixel")
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    crop = Image.fromarray(mask[y0:y1, x0:x1].astype(np.float32))
    small = np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return (y0, x0, y1, x1), 2 * (small - 0.5)
