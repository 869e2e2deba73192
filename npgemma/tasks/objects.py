"""Objects in an answer: labels, boxes and mask codes.

Source: the location tokens of PaliGemma, section 3.2.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 1024  # location tokens divide a side of the picture into so many parts


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
