"""detect and segment: boxes and masks of named things."""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from npgemma.checkpoints.mask_vqvae import CODEC, read_mask_codec
from npgemma.commands.flags import AddParser, add_num_beams, answer, answer_flags, load_model
from npgemma.commands.output import box_fields, print_json
from npgemma.decoding.text import Generation
from npgemma.errors import BadPicture
from npgemma.io.atomic_write import replace_file
from npgemma.io.picture import read_picture, write_picture, written_format
from npgemma.tasks.drawing import draw_boxes, draw_masks
from npgemma.tasks.masks import object_masks, soft_object_masks
from npgemma.tasks.objects import parse_objects
from npgemma.tasks.prompts import detect_prompt, segment_prompt


def add_objects(add_parser: AddParser, form: argparse.ArgumentParser) -> None:
    common = answer_flags(form)
    add_num_beams(common)
    detect = add_parser("detect", parents=[common], help="boxes of the named things: label, x0, y0, x1, y1 in pixels")
    detect.add_argument("image", metavar="IMAGE", help="a picture")
    detect.add_argument("objects", nargs="+", metavar="OBJECT", help="what to look for, one name each")
    detect.add_argument("--draw", type=Path, metavar="FILE", help="write the picture with the boxes drawn")
    detect.add_argument(
        "--bins",
        type=int,
        choices=(1024, 1023),
        default=1024,
        help="what locations divide a side by: 1024 as in PaliGemma's demo (default), 1023 as in its benchmarks",
    )
    detect.set_defaults(run=run_detect)

    segment = add_parser("segment", parents=[common], help="masks of the named things: a box, and the pixels in it")
    segment.add_argument("image", metavar="IMAGE", help="a picture")
    segment.add_argument("objects", nargs="+", metavar="OBJECT", help="what to look for, one name each")
    segment.add_argument("--draw", type=Path, metavar="FILE", help="write the picture with masks and boxes drawn")
    segment.add_argument("--masks", type=Path, metavar="FILE", help="write the masks: an .npz file of masks and labels")
    segment.add_argument(
        "--soft",
        action="store_true",
        help="masks with edges between 0 and 1, as PaliGemma's demo draws them (default: in or out, as its benchmarks "
        "count them)",
    )
    segment.add_argument(
        "--codec",
        type=Path,
        metavar="FILE",
        help=f"the mask decoder's weights (default: {CODEC} beside the model's)",
    )
    segment.set_defaults(run=run_segment)


def check_written(a: argparse.Namespace, masks: Path | None = None) -> None:
    """BadPicture, before the work and not after it, for files that cannot be written or would take another's place."""
    if a.draw:
        written_format(a.draw)
    real = [path.resolve() for path in (a.draw, masks) if path]
    for path in real:
        if path == Path(a.image).resolve() or real.count(path) > 1:
            raise BadPicture(f"{path} would be written over {'itself' if real.count(path) > 1 else 'the picture'}")
        if not os.access(path.parent, os.W_OK):
            why = "Permission denied" if path.parent.is_dir() else "No such file or directory"
            raise BadPicture(f"{path} cannot be written: {why}")


def run_detect(a: argparse.Namespace) -> int:
    """A line a box: label, x0, y0, x1, y1 in pixels, with tabs between."""
    check_written(a)
    model, image, prompt = load_model(a), read_picture(a.image), detect_prompt(a.objects)
    generation, status = answer(a, model, image, prompt)
    things = parse_objects(generation.text)
    boxes = [thing.box(*image.size, bins=a.bins) for thing in things]
    if a.format == "json":
        print_json(prompt, generation, boxes, things)
    else:
        for box in boxes:
            print(*box_fields(box), sep="\t")
        if not boxes:
            say_nothing_found(generation)
    if a.draw:
        write_picture(draw_boxes(image, boxes), a.draw)
    return status


def say_nothing_found(generation: Generation) -> None:
    cut = generation.finish_reason == "length"
    hint = f": the answer was cut off after {len(generation.token_ids)} tokens, see --max-new-tokens" if cut else ""
    print(f"npgemma: nothing found{hint}", file=sys.stderr)


def run_segment(a: argparse.Namespace) -> int:
    """A line an object: label, x0, y0, x1, y1 in pixels, and how many pixels its mask has."""
    check_written(a, a.masks)
    model, image, prompt = load_model(a), read_picture(a.image), segment_prompt(a.objects)
    codec = read_mask_codec(a.codec) if a.codec else model.mask_codec
    generation, status = answer(a, model, image, prompt)
    things = [thing for thing in parse_objects(generation.text) if thing.codes]
    boxes, labels = [thing.box(*image.size) for thing in things], [thing.label for thing in things]
    masks = (soft_object_masks if a.soft else object_masks)(codec, things, *image.size)
    if a.format == "json":
        print_json(prompt, generation, boxes, things)
    for box, mask in zip(boxes, masks, strict=True):
        if a.format == "text":
            print(*box_fields(box), round(float(mask.sum())), sep="\t")
    if not things:
        say_nothing_found(generation)
    if a.masks:
        stacked = np.array(masks, np.float32 if a.soft else bool).reshape(-1, image.height, image.width)
        with replace_file(a.masks) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, masks=stacked, labels=np.array(labels, str))
    if a.draw:
        write_picture(draw_boxes(draw_masks(image, masks, labels), boxes), a.draw)
    return status
