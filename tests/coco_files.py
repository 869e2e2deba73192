"""Files of COCO's annotations for tests, and the pictures that they describe."""

import json
from pathlib import Path

from PIL import Image

POLYGON = [10, 5, 30, 5, 30, 25, 10, 25]  # the box x0 = 10, y0 = 5, x1 = 30, y1 = 25
RUNS = {"size": [30, 60], "counts": [10 * 30 + 5, *[20, 10] * 19, 20, 30 * 30 + 5]}  # the same pixels


def annotation(id_: int, **changes: object) -> dict[str, object]:
    """A cat in the picture a.png, whose box is that of POLYGON."""
    cat = {"id": id_, "image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 20], "segmentation": [POLYGON]}
    return cat | {"area": 400, "iscrowd": 0} | changes


def coco(*annotations: dict[str, object], **changes: object) -> dict[str, object]:
    """The pictures a.png (60 x 30) and b.png (31 x 33), and the categories dog, cat and, without objects, animals."""
    images = [
        {"id": 1, "file_name": "a.png", "width": 60, "height": 30, "license": 1},
        {"id": 2, "file_name": "b.png", "width": 31, "height": 33},
    ]
    categories = [{"id": 0, "name": "animals"}, {"id": 7, "name": "dog"}, {"id": 3, "name": " cat "}]
    parts = {"info": {}, "images": images, "annotations": list(annotations), "categories": categories}
    return parts | changes


def write_coco(folder: Path, *annotations: dict[str, object], **changes: object) -> Path:
    """The file coco.json beside its pictures."""
    Image.new("RGB", (60, 30)).save(folder / "a.png")
    Image.new("RGB", (31, 33)).save(folder / "b.png")
    (folder / "coco.json").write_text(json.dumps(coco(*annotations, **changes)))
    return folder / "coco.json"
