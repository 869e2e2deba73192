"""What PaliGemma is asked and what it answers: prompts by task, boxes in the answer, boxes on the picture.

Source: the prompt page of ai.google.dev/gemma/docs/paligemma; the location tokens of PaliGemma, section 3.2.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from npgemma.errors import BadPrompt

BINS = 1024  # location tokens divide a side of the picture into so many parts


def caption_prompt(language: str = "en") -> str:
    return f"caption {language}"


def answer_prompt(question: str, language: str = "en") -> str:
    return f"answer {language} {question}"


def detect_prompt(labels: Sequence[str]) -> str:
    """BadPrompt for an empty label or one that holds the separator."""
    if not labels or any(not label.strip() or ";" in label for label in labels):
        raise BadPrompt(f"things to detect are words without ';', one argument each; these are {list(labels)}")
    return "detect " + " ; ".join(labels)


OCR_PROMPT = "ocr"


@dataclass(frozen=True)
class Box:
    """A labelled rectangle in pixels of the original picture, x to the right, y down; x1 and y1 are the far edges."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


def parse_boxes(text: str, width: int, height: int) -> list[Box]:
    """Every '<loc....><loc....><loc....><loc....> label' of a detection, for a picture of `width` x `height` pixels.

    The four locations are y0 x0 y1 x1, in 1024ths of the side. A label runs to the next ';', '<' or the end;
    segmentation codes before it are passed over.
    """
    loc = r"<loc(0\d{3}|10[01]\d|102[0-3])>"
    found = re.findall(loc * 4 + r"\s*(?:<seg\d{3}>)*\s*([^;<>]*)", text, re.ASCII)
    return [
        Box(
            label.strip(),
            int(x0) / BINS * width,
            int(y0) / BINS * height,
            int(x1) / BINS * width,
            int(y1) / BINS * height,
        )
        for y0, x0, y1, x1, label in found
    ]


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
