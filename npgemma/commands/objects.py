"""detect and segment: boxes and masks of named things."""

import argparse
from pathlib import Path

import numpy as np

from npgemma.checkpoints.mask_vqvae import CODEC, read_mask_codec
from npgemma.commands.flags import AddParser, generate, load_vision_language_model, options, search_flags
from npgemma.commands.notes import note_answers, note_embedded
from npgemma.commands.output import box_fields, model_name, print_json, say
from npgemma.commands.streams import PICTURE
from npgemma.io.atomic_write import replace_file
from npgemma.io.picture import write_picture, written_format
from npgemma.tasks.drawing import draw_boxes, draw_masks
from npgemma.tasks.masks import object_masks, soft_object_masks
from npgemma.tasks.objects import parse_objects
from npgemma.tasks.prompts import detect_prompt, segment_prompt


def add_objects(add_parser: AddParser, form: argparse.ArgumentParser) -> None:
    common = search_flags(form)
    detect = add_parser("detect", parents=[common], help="find named objects: label, x0, y0, x1, y1 in pixels")
    detect.add_argument("image", metavar="IMAGE", help="a picture")
    detect.add_argument("objects", nargs="+", metavar="OBJECT", help="what to look for, one name each")
    detect.add_argument("--draw", type=Path, metavar="FILE", help="write the picture with the boxes drawn")
    detect.add_argument(
        "--bins",
        type=int,
        choices=(1024, 1023),
        default=1024,
        help="how many bins divide a side: 1024 as in PaliGemma's demo (default), 1023 as in its benchmarks",
    )
    detect.set_defaults(
        run=run_detect, stdin={"image": (PICTURE,)}, stdout={"draw": ".png"}, reads={"image": "the picture"}
    )

    segment = add_parser(
        "segment",
        parents=[common],
        help="find named objects and their masks: box, pixels in the mask",
    )
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
    segment.set_defaults(
        run=run_segment,
        stdin={"image": (PICTURE,)},
        stdout={"draw": ".png", "masks": ".npz"},
        reads={"image": "the picture", "codec": "the mask decoder"},
    )


def run_detect(a: argparse.Namespace) -> int:
    """A line a box: label, x0, y0, x1, y1 in pixels, with tabs between."""
    chosen = options(a)
    if a.draw:
        written_format(a.draw)
    model, prompt = load_vision_language_model(a), detect_prompt(a.objects)
    image = model.processor.read(a.image)
    (answer,), status = generate(model, image, prompt, chosen)
    objects = parse_objects(answer.text)
    boxes = [each.box(*image.size, bins=a.bins) for each in objects]
    if a.format == "json":
        print_json(model_name(a), prompt, answer, boxes, objects)
    else:
        for box in boxes:
            say(*box_fields(box), sep="\t")
    if a.draw:
        write_picture(draw_boxes(image, boxes), a.draw)
    if status == 0:
        note_answers(a, model, [answer], bool(boxes))
    note_embedded(model, [a.image])
    return status


def run_segment(a: argparse.Namespace) -> int:
    """A line an object: label, x0, y0, x1, y1 in pixels, and how many pixels its mask has."""
    chosen = options(a)
    if a.draw:
        written_format(a.draw)
    model, prompt = load_vision_language_model(a), segment_prompt(a.objects)
    image = model.processor.read(a.image)
    codec = read_mask_codec(a.codec) if a.codec else model.mask_codec
    (answer,), status = generate(model, image, prompt, chosen)
    objects = [each for each in parse_objects(answer.text) if each.codes]
    boxes, labels = [each.box(*image.size) for each in objects], [each.label for each in objects]
    masks = (soft_object_masks if a.soft else object_masks)(codec, objects, *image.size)
    if a.format == "json":
        print_json(model_name(a), prompt, answer, boxes, objects)
    for box, mask in zip(boxes, masks, strict=True):
        if a.format == "text":
            say(*box_fields(box), round(float(mask.sum())), sep="\t")
    if a.masks:
        stacked = np.array(masks, np.float32 if a.soft else bool).reshape(-1, image.height, image.width)
        with replace_file(a.masks) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, masks=stacked, labels=np.array(labels, str))
    if a.draw:
        write_picture(draw_boxes(draw_masks(image, masks, labels), boxes), a.draw)
    if status == 0:
        note_answers(a, model, [answer], bool(objects))
    note_embedded(model, [a.image])
    return status
