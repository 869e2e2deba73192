"""Objects in an answer: labels, boxes and mask codes.

Source: the location tokens of PaliGemma, section 3.2.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

BINS = 1024  # location tokens divide each side of the picture into this many bins
LAST_BIN = BINS - 1


@dataclass(frozen=True)
class Box:
    """A labelled rectangle in pixels of the original picture.

    Parameters
    ----------
    label : str
        What the model calls the object.
    x0, y0, x1, y1 : float
        The left, top, right and bottom edge; x points right, y down.

    Examples
    --------
    >>> import npgemma
    >>> box = npgemma.Box("cat", x0=10, y0=20, x1=110, y1=80)
    >>> box.x1 - box.x0, box.y1 - box.y0
    (100, 60)
    """

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class DetectedObject:
    """One object of an answer, in the units of the answer.

    Parameters
    ----------
    label : str
        What the model calls the object; may be empty.
    bins : tuple of 4 int
        The edges y0 x0 y1 x1 as location tokens, 0 .. 1023.
    codes : tuple of int, optional
        16 mask codes of 0 .. 127, or none.

    Examples
    --------
    >>> import npgemma
    >>> npgemma.DetectedObject("cat", (0, 256, 512, 1023)).box(width=1024, height=2048)
    Box(label='cat', x0=256.0, y0=0.0, x1=1023.0, y1=1024.0)
    """

    label: str
    bins: tuple[int, int, int, int]
    codes: tuple[int, ...] = ()

    def box(self, width: int, height: int, bins: int = BINS) -> Box:
        """The box on a picture of `width` x `height` pixels: edge = bin / bins * side.

        Parameters
        ----------
        width, height : int
            The size of the picture in pixels.
        bins : int, optional
            1024, or 1023 as in big_vision's evaluators.

        Returns
        -------
        Box
            The box in pixels.
        """
        y0, x0, y1, x1 = self.bins
        return Box(self.label, x0 / bins * width, y0 / bins * height, x1 / bins * width, y1 / bins * height)


LOCATION = r"<loc(0\d{3}|10[01]\d|102[0-3])>"
CODES = r"((?:<seg(?:0\d\d|1[01]\d|12[0-7])>){16})"
OBJECT = re.compile(rf"{LOCATION * 4}\s*{CODES}?(?:<seg\d+>)*\s*([^;<>]*)", re.ASCII)


def parse_objects(text: str) -> list[DetectedObject]:
    """Find every object in an answer: '<loc....> x 4 [<seg...> x 16] label'.

    The grammar is that of PaliGemma's demo (big_vision's paligemma_parse.py). To parse ids, decode them first:
    `tokenizer.decode` keeps locations and codes.

    Parameters
    ----------
    text : str
        The answer to a prompt "detect ..." or "segment ...". Other text in it is ignored.

    Returns
    -------
    list of DetectedObject
        The objects in the order of the text. A label ends at ';', '<' or '>' and may be empty. An object has codes only
        if all 16 are present.

    Examples
    --------
    >>> import npgemma
    >>> npgemma.parse_objects("<loc0001><loc0002><loc0003><loc0004> cat ; and more")
    [DetectedObject(label='cat', bins=(1, 2, 3, 4), codes=())]
    """
    found = []
    for *bins, codes, label in OBJECT.findall(text):
        y0, x0, y1, x1 = map(int, bins)
        found.append(DetectedObject(label.strip(), (y0, x0, y1, x1), tuple(map(int, re.findall(r"\d+", codes)))))
    return found


def write_objects(objects: Sequence[DetectedObject]) -> str:
    """Write objects as an answer, such as a model is trained on; the inverse of `parse_objects`.

    Parameters
    ----------
    objects : sequence of DetectedObject
        The objects to write.

    Returns
    -------
    str
        The answer.

    Examples
    --------
    >>> import npgemma
    >>> cat, dog = npgemma.DetectedObject("cat", (1, 2, 3, 4)), npgemma.DetectedObject("dog", (5, 6, 7, 8))
    >>> npgemma.write_objects([cat, dog])
    '<loc0001><loc0002><loc0003><loc0004> cat ; <loc0005><loc0006><loc0007><loc0008> dog'
    """

    def written(each: DetectedObject) -> str:
        locations = "".join(f"<loc{number:04d}>" for number in each.bins)
        codes = "".join(f"<seg{code:03d}>" for code in each.codes)
        return f"{locations}{codes} {each.label}"

    return " ; ".join(map(written, objects))


def encode_box(box: Box, width: int, height: int) -> DetectedObject:
    """Encode a box as the object that a model is trained to answer: its edges in bins.

    bin = round(edge / side * 1023), as for `encode_object`; so `box(bins=1023)` gives the box back, up to half a bin.

    Parameters
    ----------
    box : Box
        The box in pixels. What lies outside the picture is cut off.
    width, height : int
        The size of the picture in pixels.

    Returns
    -------
    DetectedObject
        The object, for `write_objects`.

    Examples
    --------
    >>> import npgemma
    >>> npgemma.encode_box(npgemma.Box("cat", x0=20, y0=10, x1=50, y1=30), width=60, height=40)
    DetectedObject(label='cat', bins=(256, 341, 767, 852), codes=())
    """
    y0, x0, y1, x1 = (
        min(LAST_BIN, max(0, round(edge / side * LAST_BIN)))
        for edge, side in ((box.y0, height), (box.x0, width), (box.y1, height), (box.x1, width))
    )
    return DetectedObject(box.label, (y0, x0, y1, x1))


def parse_boxes(text: str, width: int, height: int, bins: int = BINS) -> list[Box]:
    """Find the boxes in an answer, in pixels of the picture.

    For the supervision library: sv.Detections(xyxy=np.array([[b.x0, b.y0, b.x1, b.y1] for b in boxes])).

    Parameters
    ----------
    text : str
        The answer to a prompt "detect ..." or "segment ...".
    width, height : int
        The size of the picture in pixels.
    bins : int, optional
        1024, or 1023 as in big_vision's evaluators.

    Returns
    -------
    list of Box
        The boxes in the order of the text.

    Examples
    --------
    >>> import npgemma
    >>> npgemma.parse_boxes("<loc0000><loc0256><loc0512><loc0768> cat", width=400, height=200)
    [Box(label='cat', x0=100.0, y0=0.0, x1=300.0, y1=100.0)]
    """
    return [each.box(width, height, bins) for each in parse_objects(text)]
