"""Draw boxes and masks on a picture, one colour per label."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from npgemma.layers.shapes import Array
from npgemma.tasks.masks import read_mask
from npgemma.tasks.objects import Box

COLORS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#9a6324", "#000080")


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """Draw labelled boxes on a copy of a picture.

    Lines and letters scale with the picture. A label is above its box if there is space, and inside it otherwise.

    Parameters
    ----------
    image : PIL.Image.Image
        The picture, in any mode.
    boxes : sequence of Box
        Boxes in pixels of `image`, from `parse_boxes`.

    Returns
    -------
    PIL.Image.Image
        A new RGB image.

    Examples
    --------
    >>> from PIL import Image
    >>> import npgemma
    >>> drawn = npgemma.draw_boxes(Image.new("RGB", (200, 160), "white"), [npgemma.Box("cat", 20, 60, 120, 140)])
    >>> drawn.getpixel((20, 100))
    (230, 25, 75)
    """
    drawn = image.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    line = max(2, round(min(image.size) / 150))
    font = ImageFont.load_default(max(11, min(image.size) / 24))
    labels = list(dict.fromkeys(box.label for box in boxes))
    for box in boxes:
        color = COLORS[labels.index(box.label) % len(COLORS)]
        left, right = sorted((box.x0, box.x1))
        top, bottom = sorted((box.y0, box.y1))
        draw.rectangle((left, top, right, bottom), outline=color, width=line)
        *_, text_width, text_height = draw.textbbox((0, 0), box.label, font=font)
        pad = line * 2
        # above the box if there is space, else inside it; moved left at the right edge of the picture
        y = top - text_height - 2 * pad if top >= text_height + 2 * pad else top
        x = max(0, min(left, image.width - text_width - 2 * pad))
        draw.rectangle((x, y, x + text_width + 2 * pad, y + text_height + 2 * pad), fill=color)
        draw.text((x + pad, y + pad), box.label, fill="white", font=font)
    return drawn


def draw_masks(image: Image.Image, masks: Sequence[Array], labels: Sequence[str]) -> Image.Image:
    """Draw masks, half transparent, on a copy of a picture.

    Parameters
    ----------
    image : PIL.Image.Image
        The picture, in any mode.
    masks : sequence of arrays [height width]
        Masks in the size of the picture, such as those of `object_masks` and `soft_object_masks`: booleans, 0 and 1, 0
        and 255, or floats between 0 and 1.
    labels : sequence of str
        The label of each mask; a label has the same colour as in `draw_boxes`.

    Returns
    -------
    PIL.Image.Image
        A new RGB image.

    Raises
    ------
    ValueError
        If a mask has another shape or other numbers, or there is not one label for each mask.

    Examples
    --------
    >>> import numpy as np
    >>> from PIL import Image
    >>> import npgemma
    >>> mask = np.zeros((160, 200), bool)
    >>> mask[60:140, 20:120] = True
    >>> drawn = npgemma.draw_masks(Image.new("RGB", (200, 160), "white"), [mask], ["cat"])
    >>> drawn.getpixel((0, 0)), drawn.getpixel((70, 100))
    ((255, 255, 255), (242, 140, 165))
    """
    drawn = np.asarray(image.convert("RGB")).astype(np.float32)
    names, read = list(dict.fromkeys(labels)), [read_mask(mask) for mask in masks]
    if len(read) != len(labels):
        raise ValueError(f"there are {len(read)} masks and {len(labels)} labels; pass one label for each mask")
    for mask, label in zip(read, labels, strict=True):
        if mask.shape != drawn.shape[:2]:
            raise ValueError(
                f"a mask has the size {list(mask.shape)}, the picture {list(drawn.shape[:2])} (both [H W])"
            )
        color = np.array(ImageColor.getrgb(COLORS[names.index(label) % len(COLORS)]), np.float32)
        share = mask[:, :, None].astype(np.float32) * np.float32(0.5)
        drawn = drawn * (1 - share) + color * share
    return Image.fromarray(drawn.astype(np.uint8))
