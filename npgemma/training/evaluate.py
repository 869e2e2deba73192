"""How good answers are, by what the suffix that is wanted holds: masks, boxes or other text.

    text     exact match; F1 of the words, normalised as SQuAD's evaluation does
    boxes    IoU of each box that is wanted; precision and recall at IoU 0.5
    masks    the same, and the IoU of the masks that the codes decode to

Objects are matched one to one, among those of the same label, the pairs with the highest IoU first. There is no mAP:
an answer has no scores to sort its boxes by.
"""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from npgemma.layers.shapes import Array, Bool, Float
from npgemma.models.mask_vqvae import MaskVQVAE
from npgemma.tasks.masks import object_masks
from npgemma.tasks.objects import DetectedObject, parse_objects
from npgemma.training.examples import Example

RIGHT = 0.5  # the IoU from which on a box counts as right
CANVAS = 256  # pixels on a side of the square on which masks are compared; a label's locations are relative to it
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Scores:
    """The scores of some answers. What the wanted suffixes do not hold, such as masks, has no score: None.

    `iou` and `mask_iou` are means over the objects that are wanted, 0 for one that was not found; `precision` and
    `recall` count boxes of IoU 0.5 or more.
    """

    answers: int
    exact: float
    f1: float | None = None
    iou: float | None = None
    precision: float | None = None
    recall: float | None = None
    mask_iou: float | None = None


def evaluated(examples: Sequence[Example], answers: Sequence[str], codec: MaskVQVAE | None = None) -> dict[str, Scores]:
    """The scores by task: the first word of the prefix. Masks are scored if there is a codec to decode them."""
    tasks = defaultdict(list)
    for example, answer in zip(examples, answers, strict=True):
        tasks[task_of(example.prefix)].append((example.suffix, answer))
    return {task: scored(pairs, codec) for task, pairs in sorted(tasks.items())}


def task_of(prefix: str) -> str:
    """The first word of a prefix, such as 'caption' or 'detect'; empty if it has none."""
    return next(iter(prefix.split()), "")


def scored(pairs: Sequence[tuple[str, str]], codec: MaskVQVAE | None = None) -> Scores:
    """The scores of pairs of a wanted suffix and the answer given. There must be at least one."""
    exact = mean([float(exact_match(*pair)) for pair in pairs])
    finds = [(objects, parse_objects(answer)) for wanted, answer in pairs if (objects := parse_objects(wanted))]
    texts = [token_f1(*pair) for pair in pairs if not parse_objects(pair[0])]
    f1 = mean(texts) if texts else None
    if not finds:
        return Scores(len(pairs), exact, f1)
    ious = [iou for wanted, found in finds for iou in matched(wanted, found, box_ious(wanted, found))]
    right, given = sum(iou >= RIGHT for iou in ious), sum(len(found) for _, found in finds)
    masks = None
    if codec is not None and any(each.codes for wanted, _ in finds for each in wanted):
        masks = mean([iou for wanted, found in finds for iou in mask_ious(codec, wanted, found)])
    return Scores(len(pairs), exact, f1, mean(ious), right / given if given else 0.0, right / len(ious), masks)


def mean(values: Sequence[float]) -> float:
    """The mean of at least one number."""
    return sum(values) / len(values)


# ----------------------------------------------------------------------------------------------------------------- text


def exact_match(wanted: str, answer: str) -> bool:
    """Whether the two are equal, but for white space at their ends."""
    return wanted.strip() == answer.strip()


def token_f1(wanted: str, answer: str) -> float:
    """The harmonic mean of precision and recall of the words in an answer; 1 if neither text has any.

    Words are in lower case, without punctuation and without a, an, the. Source: Rajpurkar et al. 2016
    (arXiv:1606.05250), section 6.1, and SQuAD's evaluate-v1.1.py.
    """
    words, given = words_of(wanted), words_of(answer)
    common = (Counter(words) & Counter(given)).total()
    if not words or not given:
        return float(words == given)
    return 2 * common / (len(words) + len(given))


def words_of(text: str) -> list[str]:
    """The words that count."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


# -------------------------------------------------------------------------------------------------------------- objects


def box_ious(wanted: Sequence[DetectedObject], found: Sequence[DetectedObject]) -> Float[Array, "A B"]:
    """The intersection over union of every box with every other, in locations."""
    ours, theirs = edges(wanted)[:, None], edges(found)[None]
    low, high = np.maximum(ours[..., :2], theirs[..., :2]), np.minimum(ours[..., 2:], theirs[..., 2:])
    shared = np.maximum(high - low, 0).prod(-1)
    union = area(ours) + area(theirs) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def edges(objects: Sequence[DetectedObject]) -> Float[Array, "A 4"]:
    """The edges y0 x0 y1 x1 of boxes."""
    return np.array([each.bins for each in objects], float).reshape(-1, 4)


def area(boxes: Float[Array, "*R 4"]) -> Float[Array, "*R"]:
    """Height times width; 0 for a box that ends before it begins."""
    return np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(-1)


def matched(
    wanted: Sequence[DetectedObject], found: Sequence[DetectedObject], ious: Float[Array, "A B"]
) -> list[float]:
    """For each object that is wanted, the IoU of the object found that it is matched with, or 0."""
    best = [0.0] * len(wanted)
    free, taken = set(range(len(wanted))), set[int]()
    pairs = [(i, j) for i, j in product(range(len(wanted)), range(len(found))) if wanted[i].label == found[j].label]
    for i, j in sorted(pairs, key=lambda pair: -ious[pair]):
        if i in free and j not in taken:
            best[i] = float(ious[i, j])
            free.remove(i)
            taken.add(j)
    return best


def mask_ious(codec: MaskVQVAE, wanted: Sequence[DetectedObject], found: Sequence[DetectedObject]) -> list[float]:
    """For each mask that is wanted, the IoU of the mask found that it is matched with, or 0."""
    ours, theirs = ([each for each in objects if each.codes] for objects in (wanted, found))
    masks, others = (object_masks(codec, objects, CANVAS, CANVAS) for objects in (ours, theirs))
    ious = np.array([[mask_iou(a, b) for b in others] for a in masks]).reshape(len(ours), len(theirs))
    return matched(ours, theirs, ious)


def mask_iou(a: Bool[Array, "Y X"], b: Bool[Array, "Y X"]) -> float:
    """The intersection over union of two masks; 0 if both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0


# ---------------------------------------------------------------------------------------------------------------- table

COLUMNS = ("answers", "exact", "f1", "iou", "precision", "recall", "mask_iou")


def score_table(scores: Mapping[str, Scores]) -> str:
    """A row for each task, and a column for each score that any of them has; shares in percent."""
    columns = [name for name in COLUMNS if any(getattr(each, name) is not None for each in scores.values())]
    rows = [["task", *(name.replace("_", " ") for name in columns)]]
    rows += [[task or "-", *(shown(getattr(each, name)) for name in columns)] for task, each in scores.items()]
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return "\n".join(
        "  ".join([row[0].ljust(first), *(cell.rjust(n) for cell, n in zip(row[1:], others, strict=True))]).rstrip()
        for row in rows
    )


def shown(value: float | None) -> str:
    """A count as it is, a share in percent, and nothing for what has no score."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{100 * value:.1f}%"
