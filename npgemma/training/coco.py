"""COCO's annotations -> training examples: boxes and masks as the suffixes that a PaliGemma learns to answer.

Each object is read back from its suffix, so that what a location or a mask code loses is known before the training.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from npgemma.errors import BadData, BadPicture, BadPrompt, shortened
from npgemma.io.picture import read_picture
from npgemma.io.regular_files import read_argument
from npgemma.io.strict_json import parse_json, reason
from npgemma.layers.shapes import Array, Bool
from npgemma.models.mask_vqvae import MaskVQVAE
from npgemma.tasks.masks import encode_object, object_masks
from npgemma.tasks.objects import LAST_BIN, Box, DetectedObject, encode_box, parse_objects, write_objects
from npgemma.tasks.prompts import detect_prompt, segment_prompt
from npgemma.training.coco_masks import mask_of
from npgemma.training.evaluate import mask_iou
from npgemma.training.examples import Example, Problem

MOST_BYTES = 1 << 30  # COCO's own file for training has 450 MB
MOST_MARKS = {b"{": 10_000_000, b"[": 20_000_000, b",": 400_000_000}
LEAST_INSIDE = 0.5  # of a box must lie in its picture
CROWD, TINY, EMPTY = "crowds", "objects smaller than a location", "pictures without objects"

Size: TypeAlias = tuple[int, int]  # width and height
Entry: TypeAlias = Mapping[str, Any]


class Found(NamedTuple):
    """The object of an annotation, and what its suffix loses.

    `edge_error` is how far an edge of its box ends up from where it was, in pixels; `mask_iou` is that of its mask and
    what the codes decode to.
    """

    where: str
    object: DetectedObject
    edge_error: float
    mask_iou: float | None = None


class Prepared(NamedTuple):
    """The examples of a file and their objects, what is wrong with the rest, and how much is left out on purpose."""

    examples: tuple[Example, ...]
    objects: tuple[Found, ...]
    problems: tuple[Problem, ...]
    left_out: dict[str, int]


class Coco(NamedTuple):
    """A file of annotations: its images, the annotations of each by its id, and the names of categories by theirs."""

    path: Path
    images: Sequence[Entry]
    annotations: Mapping[int | str, Sequence[Entry]]
    labels: Mapping[int | str, str]


# ------------------------------------------------------------------------------------------------------------ the file


def read_coco(path: Path) -> Coco:
    """The content of a file. BadData if it is damaged or of another kind, and for names that an answer cannot hold."""
    try:
        content = parse_json(read_argument(path, MOST_BYTES), MOST_MARKS)
    except FileNotFoundError:
        raise BadData(f"{path} was not found") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{path} cannot be read as JSON: {reason(error)}") from None
    images, all_annotations, categories = (
        entries(content, part, path) for part in ("images", "annotations", "categories")
    )
    by_id(images, "image", path)
    labels = {id_: label_of(each, path) for id_, each in by_id(categories, "category", path).items()}
    annotations = defaultdict(list)
    for i, each in enumerate(all_annotations):
        annotations[identity(each, "image_id")].append({"id": f"number {i + 1}", **each})
    return Coco(path, images, annotations, labels)


def entries(content: Any, part: str, path: Path) -> Sequence[Entry]:
    """The objects in a part of the file. BadData if there is no list of them."""
    values = content.get(part) if isinstance(content, dict) else None
    if not isinstance(values, list) or not all(isinstance(each, dict) for each in values):
        raise BadData(f"{path} has no list of objects under {part!r}: it is not a file of COCO's annotations")
    return values


def by_id(values: Sequence[Entry], kind: str, path: Path) -> dict[int | str, Entry]:
    """The entries by their ids. BadData for one that has none, or that of another."""
    found: dict[int | str, Entry] = {}
    for each in values:
        id_ = identity(each, "id")
        if id_ == "" or id_ in found:
            what = "an id of its own" if id_ in found else "an id"
            raise BadData(f"{path}: the {kind} {shortened(repr(each), 60)} does not have {what}")
        found[id_] = each
    return found


def identity(entry: Entry, key: str) -> int | str:
    """The id under a key; an empty text for what is not an id."""
    id_ = entry.get(key)
    return id_ if isinstance(id_, int | str) else ""


def label_of(category: Entry, path: Path) -> str:
    """The name of a category. BadData for one that an answer cannot hold."""
    name = category.get("name")
    label = " ".join(name.split()) if isinstance(name, str) else ""
    example = DetectedObject(label, (0, 0, 1, 1))
    if not label or parse_objects(write_objects([example])) != [example]:
        what = f"the name of category {category['id']} is {shortened(repr(name), 60)}"
        raise BadData(f"{path}: {what}; a label is text without ';', '<' and '>'")
    return label


# -------------------------------------------------------------------------------------------------------- the examples


def prepared(path: Path, pictures: Path, codec: MaskVQVAE | None = None) -> Prepared:
    """An example for each picture with objects: with boxes, or with masks if there is a codec for them.

    The prefix lists all classes that the file has objects of. Crowds are left out: their box is not that of an object.
    BadData as for `read_coco`, and for a file without objects.
    """
    coco = read_coco(path)
    prefix, known = prefix_of(coco, codec), {image["id"] for image in coco.images}
    problems = [
        Problem(f"{path}: annotation {each['id']}", f"image_id is {shown(each.get('image_id'))}, which no image has")
        for image_id, annotations in coco.annotations.items()
        if image_id not in known
        for each in annotations
    ]
    examples, objects, left_out = [], [], Counter[str]()
    for image in coco.images:
        where = f"{path}: image {image['id']}"
        try:
            picture, size = picture_of(image, pictures)
        except (ValueError, BadPicture) as error:
            problems.append(Problem(where, str(error)))
            continue
        outcomes = [outcome(each, coco, size, codec) for each in coco.annotations.get(image["id"], ())]
        found = [each for each in outcomes if isinstance(each, Found)]
        problems += [each for each in outcomes if isinstance(each, Problem)]
        left_out.update(each for each in outcomes if isinstance(each, str))
        if found:
            objects += found
            examples.append(Example((picture,), prefix, write_objects([each.object for each in found]), where))
        else:
            left_out[EMPTY] += 1
    return Prepared(tuple(examples), tuple(objects), tuple(problems), dict(left_out))


def prefix_of(coco: Coco, codec: MaskVQVAE | None) -> str:
    """The prompt with all classes of objects, in the order of the categories. BadData if the file has no object."""
    every = (each for annotations in coco.annotations.values() for each in annotations)
    used = {identity(each, "category_id") for each in every if not each.get("iscrowd")}
    labels = list(dict.fromkeys(label for id_, label in coco.labels.items() if id_ in used))
    try:
        return (detect_prompt if codec is None else segment_prompt)(labels)
    except BadPrompt:
        raise BadData(f"{coco.path} has no object of any of its {len(coco.labels)} categories") from None


def picture_of(image: Entry, folder: Path) -> tuple[Path, Size]:
    """The file of an image, and its size. ValueError or BadPicture if it is not the picture that is described."""
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"file_name is {shown(name)}, not a path")
    path = folder / name
    if not path.exists():
        raise ValueError(f"{path} was not found; name the folder of the pictures with --pictures")
    width, height = size = read_picture(path).size
    stated = image.get("width", width), image.get("height", height)
    if stated != size:
        sizes = f"{path} has {width} x {height} pixels, not {shown(stated[0])} x {shown(stated[1])}"
        raise ValueError(f"{sizes}; its boxes are for a picture of another size, or for one that is not turned upright")
    return path, size


def outcome(annotation: Entry, coco: Coco, size: Size, codec: MaskVQVAE | None) -> Found | Problem | str:
    """The object of an annotation, or what is wrong with it, or as what it is left out."""
    where = f"annotation {annotation['id']}"
    if annotation.get("iscrowd"):
        return CROWD
    try:
        category = identity(annotation, "category_id")
        if category not in coco.labels:
            raise ValueError(f"category_id is {shown(annotation.get('category_id'))}, which no category has")
        label = coco.labels[category]
        found = boxed(annotation, label, size) if codec is None else masked(annotation, label, size, codec)
    except ValueError as error:
        return Problem(f"{coco.path}: {where}", str(error))
    y0, x0, y1, x1 = found.object.bins
    return found._replace(where=where) if y0 < y1 and x0 < x1 else TINY


def boxed(annotation: Entry, label: str, size: Size) -> Found:
    """The object of a `bbox`: x, y, width and height in pixels. ValueError for another one."""
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise ValueError(f"bbox is {shown(box)}, not x, y, width and height")
    left, top, width, height = box
    if width <= 0 or height <= 0:
        raise ValueError(f"bbox is {box}, whose width and height must be above 0")
    seen = Box(label, max(left, 0), max(top, 0), min(left + width, size[0]), min(top + height, size[1]))
    if max(0, seen.x1 - seen.x0) * max(0, seen.y1 - seen.y0) < LEAST_INSIDE * width * height:
        raise ValueError(f"bbox is {box}, of which less than half lies in the picture of {size[0]} x {size[1]} pixels")
    found = encode_box(seen, *size)
    return Found("", found, edge_error(found, seen, size))


def masked(annotation: Entry, label: str, size: Size, codec: MaskVQVAE) -> Found:
    """The object of a `segmentation`. ValueError if it has none, or a mask without a pixel."""
    if not annotation.get("segmentation"):
        raise ValueError("it has no segmentation; prepare boxes with --task detect")
    width, height = size
    mask = mask_of(annotation["segmentation"], height, width)
    if not mask.any():
        raise ValueError("its mask holds the centre of no pixel of the picture")
    found = encode_object(codec, label, mask)
    (again,) = object_masks(codec, [read_back(found)], width, height)
    return Found("", found, edge_error(found, bounds(mask), size), mask_iou(mask, again))


def bounds(mask: Bool[Array, "Y X"]) -> Box:
    """The box around a mask."""
    rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
    return Box("", columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def read_back(found: DetectedObject) -> DetectedObject:
    """An object as it is read from the suffix that it is written to."""
    return parse_objects(write_objects([found]))[0]


def edge_error(found: DetectedObject, box: Box, size: Size) -> float:
    """How far the farthest edge of an object that is read back is from that of its box, in pixels."""
    again = read_back(found).box(*size, bins=LAST_BIN)
    return max(abs(again.x0 - box.x0), abs(again.y0 - box.y0), abs(again.x1 - box.x1), abs(again.y1 - box.y1))


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def shown(value: Any) -> str:
    """A value as a message repeats it."""
    return shortened(repr(value), 60)
