"""Pictures of any mode as RGB: 16 bits are scaled to 8, transparency is composited over white.

A mode of four bytes a pixel beside the RGB image would double the memory that a large picture takes, so what needs one
is converted in strips.
"""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from npgemma.errors import BadPicture
from npgemma.layers.shapes import Array

STRIP = 1 << 20  # pixels that are converted at a time


def from_array(array: Array) -> Image.Image:
    """A PIL image of a uint8 array. BadPicture for another dtype, whose range would be a guess, or another shape."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or not array.size:
        found = f"{array.dtype} {list(array.shape)}"
        raise BadPicture(f"a picture array must be uint8 [H W], [H W 1], [H W 3] or [H W 4], not {found}")
    return Image.fromarray(np.ascontiguousarray(array))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: 16-bit grays times 1/257, transparency over white, the rest as Pillow converts it."""
    if not image.width or not image.height:
        raise BadPicture(f"the picture has {image.width} x {image.height} pixels; it needs at least one")
    if image.mode.startswith("I") or image.mode == "F":
        return from_gray(image)
    return over_white(image) if image.has_transparency_data else image.convert("RGB")


def over_white(image: Image.Image) -> Image.Image:
    """An image with transparency over white."""
    found = Image.new("RGB", image.size)
    for top, bottom in strips(image):
        strip = image.crop((0, top, image.width, bottom)).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        found.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return found


def from_gray(image: Image.Image) -> Image.Image:
    """Grays of more than 8 bits; one of them may be transparent."""
    gray = np.asarray(image)
    scale, found = gray_scale(gray), np.empty(gray.shape, np.uint8)
    for top, bottom in strips(image):
        rows = gray[top:bottom]
        transparent = rows == image.info.get("transparency", np.nan)
        found[top:bottom] = np.where(transparent, np.uint8(255), np.rint(scale(rows)).astype(np.uint8))
    return Image.fromarray(found).convert("RGB")


def strips(image: Image.Image) -> Iterator[tuple[int, int]]:
    """The first and the last row, not included, of strips that are an image together."""
    rows = max(1, STRIP // image.width)
    yield from ((top, min(top + rows, image.height)) for top in range(0, image.height, rows))


def gray_scale(gray: Array) -> Callable[[Array], Array]:
    """What makes grays 0 .. 255: times 1/257 if they have 16 bits or any exceeds 255; floats in 0 .. 1 times 255.

    BadPicture for values outside 0 .. 65535.
    """
    low, high = gray.min(), gray.max()  # NaN if any is
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise BadPicture(f"the gray values range from {low} to {high}; npgemma reads 0 to 65535")
    if gray.dtype.kind == "f" and high <= 1:
        return lambda rows: rows * 255
    deep = gray.dtype.itemsize == 2 or high > 255
    return lambda rows: rows / 257 if deep else rows
