"""COCO's boxes and masks as training examples."""

import json
from pathlib import Path

import numpy as np
import pytest
from coco_files import POLYGON, RUNS, annotation, write_coco
from mask_codecs import random_codec
from PIL import Image

from npgemma.errors import BadData
from npgemma.tasks.masks import encode_object
from npgemma.tasks.objects import DetectedObject, write_objects
from npgemma.training.coco import prepared
from npgemma.training.encoding import PictureEncoder
from npgemma.training.examples import read_examples, required

# bin = round(edge / side * 1023) of x0 = 10, x1 = 30 of 60 and y0 = 5, y1 = 25 of 30, as y0 x0 y1 x1
BINS = (170, 170, 852, 512)
CAT = write_objects([DetectedObject("cat", BINS)])


def test_boxes_become_suffixes_and_the_prefix_lists_the_classes(tmp_path: Path) -> None:
    """In the order of the file, for each picture with an object; the classes are those with objects anywhere."""
    dog = annotation(2, image_id=2, category_id=7, bbox=[0, 0, 31, 33])
    path = write_coco(tmp_path, annotation(1), dog, annotation(3, bbox=[0, 0, 60, 30]))
    done = prepared(path, tmp_path)
    whole = DetectedObject("cat", (0, 0, 1023, 1023))
    assert [(each.images, each.prefix, each.suffix) for each in done.examples] == [
        ((tmp_path / "a.png",), "detect dog ; cat", write_objects([DetectedObject("cat", BINS), whole])),
        ((tmp_path / "b.png",), "detect dog ; cat", write_objects([DetectedObject("dog", (0, 0, 1023, 1023))])),
    ]
    assert (done.problems, done.left_out) == ((), {})


def test_what_is_prepared_can_be_trained_on(tmp_path: Path, encoder: PictureEncoder) -> None:
    done = prepared(write_coco(tmp_path, annotation(1)), tmp_path)
    lines = [{"image": each.images[0].name, "prefix": each.prefix, "suffix": each.suffix} for each in done.examples]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (example,) = required(read_examples(tmp_path / "data.jsonl", encoder))
    assert example.suffix == CAT


@pytest.mark.parametrize(
    ("bbox", "bins"),
    [
        ([0, 0, 60, 30], (0, 0, 1023, 1023)),
        ([10.5, 5.25, 20, 20], (179, 179, 861, 520)),
        ([-2, -1, 30, 15], (0, 0, 477, 477)),  # beyond the picture, and clipped
        ([50, 20, 10.01, 10.01], (682, 852, 1023, 1023)),
    ],
)
def test_a_box_is_encoded_as_the_task_does(bbox: list[float], bins: tuple[int, ...], tmp_path: Path) -> None:
    (example,) = prepared(write_coco(tmp_path, annotation(1, bbox=bbox)), tmp_path).examples
    assert example.suffix == write_objects([DetectedObject("cat", bins)])


def test_the_error_of_the_edges_is_at_most_half_a_location(tmp_path: Path) -> None:
    """1 / 1023 of 60 pixels, halved. A box on whole locations has none."""
    boxes = [annotation(i, bbox=[i / 7, i / 11, 20, 10]) for i in range(1, 50)]
    errors = [each.edge_error for each in prepared(write_coco(tmp_path, *boxes), tmp_path).objects]
    assert 0.02 < max(errors) <= 60 / 1023 / 2
    (exact,) = prepared(write_coco(tmp_path, annotation(1, image_id=2, bbox=[1, 2, 20, 30])), tmp_path).objects
    assert exact.edge_error < 1e-12


HALVES = [[10, 5, 20, 5, 20, 25, 10, 25], [20, 5, 30, 5, 30, 25, 20, 25]]


@pytest.mark.parametrize("segmentation", [[POLYGON], RUNS, HALVES])
def test_masks_become_codes(segmentation: object, tmp_path: Path) -> None:
    """Polygons and runs of the same pixels give the same codes; the box is that of the mask."""
    codec, mask = random_codec(), np.zeros((30, 60), bool)
    mask[5:25, 10:30] = True
    done = prepared(write_coco(tmp_path, annotation(1, segmentation=segmentation, bbox=None)), tmp_path, codec)
    (example,) = done.examples
    assert example.prefix == "segment cat"
    assert example.suffix == write_objects([encode_object(codec, "cat", mask)])
    (found,) = done.objects
    assert 0 <= found.mask_iou <= 1
    assert found.edge_error < 60 / 1023  # a location


def test_crowds_tiny_objects_and_pictures_without_objects_are_left_out(tmp_path: Path) -> None:
    crowd = annotation(2, iscrowd=1, segmentation=RUNS, category_id=7)
    tiny = annotation(3, bbox=[10.1, 5, 0.01, 5])
    done = prepared(write_coco(tmp_path, annotation(1), crowd, tiny), tmp_path)
    assert [(each.prefix, each.suffix) for each in done.examples] == [("detect cat", CAT)]
    assert done.left_out == {"crowds": 1, "objects smaller than a location": 1, "pictures without objects": 1}
    assert done.problems == ()


PROBLEMS = {
    "no box": ({"bbox": None}, "bbox is None, not x, y, width and height"),
    "three numbers": ({"bbox": [1, 2, 3]}, "bbox is [1, 2, 3], not x, y, width and height"),
    "text": ({"bbox": [1, 2, 3, "4"]}, "not x, y, width and height"),
    "no width": ({"bbox": [10, 5, 0, 20]}, "bbox is [10, 5, 0, 20], whose width and height must be above 0"),
    "negative height": ({"bbox": [10, 5, 20, -1]}, "whose width and height must be above 0"),
    "corners": ({"bbox": [30, 15, 60, 30]}, "of which less than half lies in the picture of 60 x 30 pixels"),
    "outside": ({"bbox": [70, 5, 20, 20]}, "of which less than half lies in the picture of 60 x 30 pixels"),
    "mostly outside": ({"bbox": [-40, 5, 50, 20]}, "of which less than half lies in the picture of 60 x 30 pixels"),
    "unknown category": ({"category_id": 5}, "category_id is 5, which no category has"),
    "no category": ({"category_id": None}, "category_id is None, which no category has"),
    "a list of categories": ({"category_id": [3]}, "category_id is [3], which no category has"),
    "unknown image": ({"image_id": 9}, "image_id is 9, which no image has"),
    "a list of images": ({"image_id": [1]}, "image_id is [1], which no image has"),
}
MASK_PROBLEMS = {
    "no mask": ({"segmentation": []}, "it has no segmentation; prepare boxes with --task detect"),
    "an empty mask": ({"segmentation": {"size": [30, 60], "counts": [1800]}}, "its mask holds the centre of no pixel"),
    "another size": ({"segmentation": {"size": [60, 30], "counts": [1800]}}, "the size of its mask is [60, 30]"),
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, "a polygon is [1, 2, 3, 4], not x and y of 3 or more points"),
}


@pytest.mark.parametrize("name", [*PROBLEMS, *MASK_PROBLEMS])
def test_a_wrong_annotation_is_a_problem(name: str, tmp_path: Path) -> None:
    """It names the file and the annotation, and the others are prepared all the same."""
    changes, says = (PROBLEMS | MASK_PROBLEMS)[name]
    path = write_coco(tmp_path, annotation(1), annotation(44, **changes))
    done = prepared(path, tmp_path, random_codec() if name in MASK_PROBLEMS else None)
    (problem,) = done.problems
    assert str(problem).startswith(f"{path}: annotation 44: ")
    assert says in problem.what
    assert len(done.examples) == len(done.objects) == 1


def test_an_annotation_without_an_id_is_named_by_its_number(tmp_path: Path) -> None:
    nameless = {key: value for key, value in annotation(0, bbox=None).items() if key != "id"}
    (problem,) = prepared(write_coco(tmp_path, annotation(1), nameless), tmp_path).problems
    assert problem.where.endswith("coco.json: annotation number 2")


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ({"file_name": "c.png"}, "c.png was not found; name the folder of the pictures with --pictures"),
        ({"file_name": "coco.json"}, "coco.json is not a picture: it is JSON"),
        ({"file_name": None}, "file_name is None, not a path"),
        ({"file_name": "a.png", "width": 30, "height": 60}, "a.png has 60 x 30 pixels, not 30 x 60; its boxes are for"),
    ],
)
def test_a_wrong_image_is_a_problem(image: dict[str, object], says: str, tmp_path: Path) -> None:
    images = [{"id": 1} | image, {"id": 2, "file_name": "b.png"}]
    path = write_coco(tmp_path, annotation(1), annotation(2, image_id=2), images=images)
    done = prepared(path, tmp_path)
    (problem,) = done.problems
    assert problem.where == f"{path}: image 1"
    assert says in problem.what
    assert [each.images for each in done.examples] == [(tmp_path / "b.png",)]


def test_a_picture_that_is_turned_upright_when_it_is_read_is_a_problem(tmp_path: Path) -> None:
    """Its boxes are for the pixels as they are stored."""
    path = write_coco(tmp_path, annotation(1), annotation(2, image_id=2))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 30)).save(tmp_path / "a.png", exif=exif)
    (problem,) = prepared(path, tmp_path).problems
    assert "a.png has 30 x 60 pixels, not 60 x 30" in problem.what


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"images": None}, "coco.json has no list of objects under 'images': it is not a file of COCO's annotations"),
        ({"annotations": [1]}, "coco.json has no list of objects under 'annotations'"),
        ({"categories": {}}, "coco.json has no list of objects under 'categories'"),
        ({"images": [{"id": 1}, {"id": 1}]}, "the image {'id': 1} does not have an id of its own"),
        ({"images": [{"id": None}]}, "the image {'id': None} does not have an id"),
        ({"categories": [{"id": 3, "name": "a"}] * 2}, "does not have an id of its own"),
        ({"categories": [{"id": 3}]}, "the name of category 3 is None; a label is text without ';', '<' and '>'"),
        (
            {"categories": [{"id": 3, "name": "cat;dog"}]},
            "the name of category 3 is 'cat;dog'; a label is",
        ),
        ({"categories": [{"id": 3, "name": "<cat>"}]}, "the name of category 3 is '<cat>'; a label is text without"),
        ({"categories": [{"id": 5, "name": "a"}]}, "has no object of any of its 1 categories"),
        ({"annotations": []}, "has no object of any of its 3 categories"),
    ],
)
def test_a_file_of_another_kind_is_refused(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadData) as caught:
        prepared(write_coco(tmp_path, annotation(1), **changes), tmp_path)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "has no list of objects under 'images'"),
        ('{"images": [', "cannot be read as JSON: line 1, column 13 is not valid JSON"),
        ('{"images": [], "images": []}', "cannot be read as JSON: a key appears twice"),
        (None, "coco.json was not found"),
    ],
)
def test_a_damaged_file_is_refused(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "coco.json").write_text(content)
    with pytest.raises(BadData, match=says):
        prepared(tmp_path / "coco.json", tmp_path)
