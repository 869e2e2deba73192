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


def segment_prompt(labels: Sequence[str]) -> str:
    """The same for masks; BadPrompt likewise."""
    return detect_prompt(labels).replace("detect", "segment", 1)


OCR_PROMPT = "ocr"


@dataclass(frozen=True)
class Box:
    """A labelled rectangle in pixels of the original picture, x to the right, y down; x1 and y1 are the far edges."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class DetectedObject:
    """One object as an answer says it: its label, bins y0 x0 y1 x1 of 0 .. 1023, and 16 mask codes or none."""

    label: str
    bins: tuple[int, int, int, int]
    codes: tuple[int, ...] = ()

    def box(self, width: int, height: int, bins: int = BINS) -> Box:
        """Its box on a picture of `width` x `height` pixels. `bins` is 1024, or 1023 as in big_vision's evaluators."""
        y0, x0, y1, x1 = self.bins
        return Box(self.label, x0 / bins * width, y0 / bins * height, x1 / bins * width, y1 / bins * height)


LOCATION = r"<loc(0\d{3}|10[01]\d|102[0-3])>"
CODES = r"((?:<seg(?:0\d\d|1[01]\d|12[0-7])>){16})"
OBJECT = re.compile(rf"{LOCATION * 4}\s*{CODES}?(?:<seg\d+>)*\s*([^;<>]*)", re.ASCII)


def parse_objects(text: str) -> list[DetectedObject]:
    """Every '<loc....> x 4 [<seg...> x 16] label' in an answer, in its order; text around them is passed over.

    A label has no ';', '<' or '>' and may be missing. Codes count where all 16 are there, as in an answer that was not
    cut off. Of ids, parse `tokenizer.decode(ids)`: it keeps locations and codes. The grammar is that of PaliGemma's
    demo (big_vision's paligemma_parse.py).
    """
    found = []
    for *bins, codes, label in OBJECT.findall(text):
        y0, x0, y1, x1 = map(int, bins)
        found.append(DetectedObject(label.strip(), (y0, x0, y1, x1), tuple(map(int, re.findall(r"\d+", codes)))))
    return found


def write_objects(objects: Sequence[DetectedObject]) -> str:
    """The answer that says so: what a model is trained to write. `parse_objects` reads it back."""

    def written(thing: DetectedObject) -> str:
        locations = "".join(f"<loc{each:04d}>" for each in thing.bins)
        return f"{locations}{''.join(f'<seg{each:03d}>' for each in thing.codes)} {thing.label}"

    return " ; ".join(map(written, objects))


def parse_boxes(text: str, width: int, height: int, bins: int = BINS) -> list[Box]:
    """The boxes of `parse_objects`, in pixels of a picture of `width` x `height`.

    For the supervision library: sv.Detections(xyxy=np.array([[b.x0, b.y0, b.x1, b.y1] for b in boxes])).
    """
    return [thing.box(width, height, bins) for thing in parse_objects(text)]


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
