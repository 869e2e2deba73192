"""Boxes and masks drawn on a picture, one colour for each label."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from npgemma.layers.shapes import Array
from npgemma.tasks.objects import Box

COLORS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#9a6324", "#000080")


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of `image` with every box drawn and labelled: a colour a label, line and letters by the picture's size."""
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
        # above the box where there is room, else inside it; never off the right edge
        y = top - text_height - 2 * pad if top >= text_height + 2 * pad else top
        x = max(0, min(left, image.width - text_width - 2 * pad))
        draw.rectangle((x, y, x + text_width + 2 * pad, y + text_height + 2 * pad), fill=color)
        draw.text((x + pad, y + pad), box.label, fill="white", font=font)
    return drawn


def draw_masks(image: Image.Image, masks: Sequence[Array], labels: Sequence[str]) -> Image.Image:
    """A copy of `image` with every mask (True, or 1) laid over it, half transparent; the colours are `draw_boxes`'s."""
    drawn = np.asarray(image.convert("RGB")).astype(np.float32)
    names = list(dict.fromkeys(labels))
    for mask, label in zip(masks, labels, strict=True):
        color = np.array(ImageColor.getrgb(COLORS[names.index(label) % len(COLORS)]), np.float32)
        share = mask[:, :, None] * np.float32(0.5)
        drawn = drawn * (1 - share) + color * share
    return Image.fromarray(drawn.astype(np.uint8))
