"""demo: the embedded model on the sample picture."""

import argparse
import sys
from pathlib import Path

from npgemma.api.load import load, sample_picture
from npgemma.commands.flags import AddParser
from npgemma.commands.output import say
from npgemma.commands.streams import shown
from npgemma.io.picture import read_picture, write_picture, written_format
from npgemma.tasks.drawing import draw_boxes, draw_masks
from npgemma.tasks.masks import object_masks
from npgemma.tasks.objects import parse_boxes, parse_objects
from npgemma.tasks.prompts import OCR_PROMPT, answer_prompt, caption_prompt, detect_prompt, segment_prompt

SAMPLE_LABELS = ("blue star", "orange ring", "green circle")
SAMPLE_QUESTIONS = ("how many shapes are there?", "what color is the star?", "what is on the right?")


def add_demo(add_parser: AddParser) -> None:
    demo = add_parser("demo", help="caption, answers, boxes and masks on a sample picture, with the embedded model")
    demo.add_argument(
        "--draw", type=Path, default=Path("npgemma-demo.png"), metavar="FILE", help="default: npgemma-demo.png"
    )
    demo.set_defaults(run=run_demo, stdout={"draw": ".png"})


def run_demo(a: argparse.Namespace) -> None:
    """Caption, questions, boxes and masks on the sample picture with the embedded model."""
    written_format(a.draw)
    model, image = load(), read_picture(sample_picture())
    detect, segment = detect_prompt(SAMPLE_LABELS), segment_prompt(SAMPLE_LABELS)
    prompts = [caption_prompt(), *map(answer_prompt, SAMPLE_QUESTIONS), OCR_PROMPT, detect, segment]
    *texts, detected, segmented = (answer.text for answer in model.generate([image] * len(prompts), prompts))
    for prompt, text in zip(prompts, texts, strict=False):
        say(f"{prompt}\n    {text}")
    boxes = parse_boxes(detected, *image.size)
    say(detect)
    for box in boxes:
        say(f"    {box.label:<14} x {box.x0:3.0f} to {box.x1:3.0f}   y {box.y0:3.0f} to {box.y1:3.0f}")
    objects = [each for each in parse_objects(segmented) if each.codes]
    masks = object_masks(model.mask_codec, objects, *image.size)
    say(segment)
    for each, mask in zip(objects, masks, strict=True):
        say(f"    {each.label:<14} {mask.sum()} pixels")
    drawn = draw_masks(image, masks, [each.label for each in objects])
    write_picture(draw_boxes(drawn, boxes), a.draw)
    say(f"wrote {shown(a.draw)}, the sample picture with masks and boxes drawn", file=sys.stderr)
