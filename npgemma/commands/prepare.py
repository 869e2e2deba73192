"""prepare: COCO's annotations as lines to train on."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from npgemma.checkpoints.mask_vqvae import CODEC, read_mask_codec
from npgemma.commands.flags import AddParser
from npgemma.commands.output import say, tell
from npgemma.commands.streams import shown
from npgemma.io.atomic_write import replace_file
from npgemma.io.model_folder import find_model, folder_of, member
from npgemma.training.coco import Prepared, prepared
from npgemma.training.examples import Data, Example, required

TASKS = ("detect", "segment")
GOOD = 0.5  # the IoU of a mask and what its codes decode to, below which it is reported


def add_prepare(add_parser: AddParser) -> None:
    parser = add_parser("prepare", help="write COCO's boxes or masks as lines to train on")
    parser.add_argument("annotations", type=Path, metavar="COCO.json", help="a file of COCO's annotations of objects")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help='the lines to write, {"image": ..., "prefix": ..., "suffix": ...}; - for stdout',
    )
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="where the pictures are (default: beside COCO.json)"
    )
    parser.add_argument("--task", choices=TASKS, default=TASKS[0], help="boxes, or boxes with masks (default: detect)")
    parser.add_argument(
        "-m", "--model", metavar="MODEL", help="for masks: the model to train, whose codes they are written in"
    )
    parser.add_argument(
        "--codec",
        type=Path,
        metavar="FILE",
        help=f"for masks: the weights that encode them (default: {CODEC} beside the model's, else the embedded one)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out what has problems (default: stop at it)")
    parser.set_defaults(
        run=run_prepare,
        stdout={"output": ".jsonl"},
        reads={"annotations": "the file of annotations", "codec": "the mask encoder"},
    )


def run_prepare(a: argparse.Namespace) -> None:
    """Write a line for each picture with objects, and say what is left out and what is lost."""
    codec = None
    if a.task == "segment":
        codec = read_mask_codec(a.codec or member(folder_of(find_model(a.model)), CODEC))
    done = prepared(a.annotations, a.pictures or a.annotations.parent, codec)
    examples = required(Data(done.examples, done.problems), a.skip_bad)
    base = Path.cwd() if shown(a.output) == "stdout" else a.output.parent
    with replace_file(a.output) as temporary:
        temporary.write_text("".join(json.dumps(line_of(each, base)) + "\n" for each in examples))
    objects = counted(len(done.objects), "object")
    say(f"wrote {shown(a.output)}: {counted(len(examples), 'example')} with {objects}", file=sys.stderr)
    for note in notes(done):
        tell(note)


def line_of(example: Example, base: Path) -> dict[str, str]:
    """An example of one picture as a line of a file in the folder `base`."""
    (picture,) = map(str, example.images)
    image = Path(os.path.relpath(picture, str(base))).as_posix()
    return {"image": image, "prefix": example.prefix, "suffix": example.suffix}


def counted(count: int, noun: str) -> str:
    """'1 object', '2 objects'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def notes(done: Prepared) -> Iterator[str]:
    """What is left out, and how far the suffixes are from the annotations."""
    counts = done.left_out | ({"problems": len(done.problems)} if done.problems else {})
    if counts:
        yield "left out: " + ", ".join(f"{what} ({count:,})" for what, count in sorted(counts.items()))
    yield f"read back, the edges of boxes are at most {max(each.edge_error for each in done.objects):.2f} pixels off"
    masks = [(each.mask_iou, each.where) for each in done.objects if each.mask_iou is not None]
    if masks:
        mean, (lowest, where) = sum(iou for iou, _ in masks) / len(masks), min(masks)
        low = sum(iou < GOOD for iou, _ in masks)
        count = f"{low:,} are below {GOOD}, and " if low else ""
        yield f"read back, masks have an IoU of {mean:.2f} on average; {count}the lowest is {lowest:.2f} ({where})"
