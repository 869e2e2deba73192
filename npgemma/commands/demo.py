"""demo: the model inside npgemma on a picture inside npgemma."""

import argparse
import sys
from pathlib import Path

from npgemma.commands.ask import AddParser
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.picture import read_picture, write_picture, written_format
from npgemma.loading import load
from npgemma.tasks import OCR_PROMPT, answer_prompt, caption_prompt, detect_prompt, draw_boxes, parse_boxes

SAMPLE = EMBEDDED.parent / "sample.png"
SAMPLE_LABELS = ("blue star", "orange ring", "green circle")
SAMPLE_QUESTIONS = ("how many shapes are there?", "what color is the star?", "what is on the right?")


def add_demo(add_parser: AddParser) -> None:
    demo = add_parser("demo", help="caption, questions and boxes on a sample picture, with the model inside npgemma")
    demo.add_argument(
        "--draw", type=Path, default=Path("npgemma-demo.png"), metavar="FILE", help="default: npgemma-demo.png"
    )
    demo.set_defaults(run=run_demo)


def run_demo(a: argparse.Namespace) -> None:
    """Caption, questions and boxes on the sample picture with the embedded model."""
    written_format(a.draw)
    model, image = load(), read_picture(SAMPLE)
    prompts = [caption_prompt(), *map(answer_prompt, SAMPLE_QUESTIONS), OCR_PROMPT, detect_prompt(SAMPLE_LABELS)]
    answers = model.generate([image] * len(prompts), prompts)
    boxes = parse_boxes(answers[-1].text, *image.size)
    for prompt, answer in zip(prompts[:-1], answers[:-1], strict=True):
        print(f"{prompt}\n    {answer.text}")
    print(prompts[-1])
    for box in boxes:
        print(f"    {box.label:<14} x {box.x0:3.0f} to {box.x1:3.0f}   y {box.y0:3.0f} to {box.y1:3.0f}")
    write_picture(draw_boxes(image, boxes), a.draw)
    print(f"wrote {a.draw}, the sample picture with the boxes drawn", file=sys.stderr)
