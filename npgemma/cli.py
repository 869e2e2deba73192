"""The command line. stdout carries the result alone, everything else goes to stderr.

Exit status: 0, 1 for an error, 2 for wrong usage, 130 when interrupted, 141 when nobody reads stdout any more; those of
`compare` stand in golden.commands.
"""

import argparse
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from npgemma.errors import NpgemmaError
from npgemma.flags import Version, answer_flags, model_flags
from npgemma.golden.commands import add_compare, add_golden
from npgemma.io.checkpoint import read_tensors
from npgemma.io.config import read_config
from npgemma.io.mask_codec import CODEC, read_mask_codec
from npgemma.io.picture import read_picture, write_picture, written_format
from npgemma.io.tokenizer import TOKENIZER, read_tokenizer
from npgemma.io.writing import beside
from npgemma.masks import draw_masks, object_masks
from npgemma.model import EMBEDDED, Generation, find_folder, load
from npgemma.tasks import (
    OCR_PROMPT,
    Box,
    answer_prompt,
    caption_prompt,
    detect_prompt,
    draw_boxes,
    parse_boxes,
    parse_objects,
    segment_prompt,
)

SAMPLE = EMBEDDED.parent / "sample.png"
SAMPLE_LABELS = ("blue star", "orange ring", "green circle")
SAMPLE_QUESTIONS = ("how many shapes are there?", "what color is the star?", "what is on the right?")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    a = build_parser().parse_args(arguments)
    try:
        if sys.stdout is None:
            raise OSError("stdout is closed")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII terminal gets escapes, not an error
        status = a.run(a) or 0
        sys.stdout.flush()
    except NpgemmaError as error:
        print(f"npgemma: {printable(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read stdout, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, MemoryError) as error:  # a full disk, a closed stdout, a machine too small
        print(f"npgemma: {str(error) or 'out of memory'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("npgemma: interrupted", file=sys.stderr)
        return 130
    return int(status)


# --------------------------------------------------------------------------------------------------------- commands


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


def run_prompt(a: argparse.Namespace) -> None:
    """generate, caption, answer, ocr: the text that the model writes, streamed."""
    model, prompt = load(a.model, a.dtype, a.resident), a.prompt(a)
    if a.format == "json":
        with working("reading the picture"):
            generation = model.generate(a.images, prompt, **sampling(a))
        print_json(prompt, generation)
        return
    wrote = False
    with working("reading the picture") as done:
        for piece in model.stream(a.images, prompt, **sampling(a)):
            done()
            print(printable(piece), end="", flush=sys.stdout.isatty())
            wrote = True
    print()
    if not wrote:
        print("npgemma: the model answered with nothing", file=sys.stderr)


def run_detect(a: argparse.Namespace) -> None:
    """A line a box: label, x0, y0, x1, y1 in pixels, with tabs between."""
    if a.draw:
        written_format(a.draw)  # before the work, not after it
    model, image, prompt = load(a.model, a.dtype, a.resident), read_picture(a.image), detect_prompt(a.objects)
    with working("reading the picture"):
        generation = model.generate(image, prompt, **sampling(a))
    boxes = parse_boxes(generation.text, *image.size)
    if a.format == "json":
        print_json(prompt, generation, boxes)
    else:
        for box in boxes:
            print(*box_fields(box), sep="\t")
        if not boxes:
            print("npgemma: nothing found", file=sys.stderr)
    if a.draw:
        write_picture(draw_boxes(image, boxes), a.draw)


def run_segment(a: argparse.Namespace) -> None:
    """A line an object: label, x0, y0, x1, y1 in pixels, and how many pixels its mask has."""
    if a.draw:
        written_format(a.draw)
    model, image, prompt = load(a.model, a.dtype, a.resident), read_picture(a.image), segment_prompt(a.objects)
    codec = read_mask_codec(a.codec or model.folder / CODEC)
    with working("reading the picture"):
        generation = model.generate(image, prompt, **sampling(a))
    things = [thing for thing in parse_objects(generation.text) if thing.codes]
    boxes, labels = [thing.box(*image.size) for thing in things], [thing.label for thing in things]
    masks = object_masks(codec, things, *image.size)
    if a.format == "json":
        print_json(prompt, generation, boxes)
    for box, mask in zip(boxes, masks, strict=True):
        if a.format == "text":
            print(*box_fields(box), int(mask.sum()), sep="\t")
    if not things:
        print("npgemma: nothing found", file=sys.stderr)
    if a.masks:
        stacked = np.array(masks, bool).reshape(-1, image.height, image.width)
        with beside(a.masks) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, masks=stacked, labels=np.array(labels, str))
    if a.draw:
        write_picture(draw_boxes(draw_masks(image, masks, labels), boxes), a.draw)


def run_score(a: argparse.Namespace) -> None:
    """A line a suffix, the likeliest first: log-probability, perplexity, suffix."""
    model = load(a.model, a.dtype, a.resident)
    with working("reading the picture"):
        scores = model.score([a.image] * len(a.suffixes), [a.prompt] * len(a.suffixes), a.suffixes)
    ranked = sorted(zip(a.suffixes, scores, strict=True), key=lambda pair: -pair[1].total)
    for suffix, score in ranked:
        if a.format == "json":
            facts = {"total": score.total, "loss": score.loss, "perplexity": score.perplexity}
            print(json.dumps({"prompt": a.prompt, "suffix": suffix, **asdict(score), **facts}))
        else:
            print(f"{score.total:.4f}", f"{score.perplexity:.4g}", printable(suffix), sep="\t")


def run_inspect(a: argparse.Namespace) -> None:
    """What a model folder holds; its weights are mapped and checked, not read."""
    folder = find_folder(a.model)
    config = read_config(folder)
    tensors = read_tensors(folder, config)
    stored = Counter[str]()
    for tensor in tensors.values():
        stored["bfloat16" if tensor.dtype == "uint16" else tensor.dtype.name] += tensor.size
    v, t = config.vision, config.text
    has_tokenizer = (folder / TOKENIZER).exists()
    facts = {
        "folder": str(folder),
        "parameters": stored.total(),
        "stored_as": dict(stored),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "tokens_per_image": v.num_patches,
        "cache_bytes_per_token": 2 * 4 * t.num_hidden_layers * t.num_key_value_heads * t.head_dim,
        "tokenizer_pieces": len(read_tokenizer(folder, config.image_token_index)) if has_tokenizer else 0,
        "config": asdict(config),
    }
    if a.format == "json":
        print(json.dumps(facts, indent=2))
        return
    print(
        f"{printable(str(folder))}",
        f"weights    {facts['parameters']:,} parameters, {facts['bytes']:,} bytes in {', '.join(stored)}",
        f"picture    {v.image_size} x {v.image_size} pixels, {v.num_patches} tokens",
        f"vision     {v.num_hidden_layers} layers, width {v.hidden_size}, "
        f"{v.num_attention_heads} heads of {v.head_dim}",
        f"text       {t.num_hidden_layers} layers, width {t.hidden_size}, {t.num_attention_heads} query and "
        f"{t.num_key_value_heads} key heads of {t.head_dim}",
        f"cache      {facts['cache_bytes_per_token']:,} bytes a token in float32",
        f"tokenizer  {facts['tokenizer_pieces']:,} pieces, embedding of {t.vocab_size:,} rows",
        sep="\n",
    )


# ------------------------------------------------------------------------------------------------------------ parts


def sampling(a: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `generate` and `stream` that flags set."""
    names = ("max_new_tokens", "stop", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    return {name: getattr(a, name) for name in names}


def box_fields(box: Box) -> tuple[object, ...]:
    """A box as fields of a line: its label, and its edges in whole pixels."""
    return printable(" ".join(box.label.split())), *(round(side) for side in (box.x0, box.y0, box.x1, box.y1))


def print_json(prompt: str, generation: Generation, boxes: list[Box] | None = None) -> None:
    """One object on one line."""
    result = {"prompt": prompt, **asdict(generation)}
    if boxes is not None:
        result["boxes"] = [asdict(box) for box in boxes]
    # ASCII throughout, so that no encoding and no terminal can trip over it; DEL alone is left to be escaped
    print(json.dumps(result).replace("\x7f", "\\u007f"))


def printable(text: str) -> str:
    """`text` with control characters written out: what comes from files must not steer a terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


@contextmanager
def working(what: str) -> Iterator[Callable[[], None]]:
    """Says on a terminal's stderr that `what` is going on; wiped when `done` is first called, or at the end."""
    shown = sys.stderr.isatty()

    def done() -> None:
        nonlocal shown
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        shown = False

    if shown:
        print(f"{what} ...", end="", file=sys.stderr, flush=True)
    try:
        yield done
    finally:
        done()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="npgemma", description="PaliGemma in plain NumPy: ask a picture, on a CPU. Nothing is ever downloaded."
    )
    parser.add_argument("--version", action=Version, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    form = argparse.ArgumentParser(add_help=False)
    form.add_argument("--format", choices=("text", "json"), default="text", help="what stdout gets (default: text)")
    common = answer_flags(form)

    demo = commands.add_parser(
        "demo", help="caption, questions and boxes on a sample picture, with the model inside npgemma"
    )
    demo.add_argument(
        "--draw", type=Path, default=Path("npgemma-demo.png"), metavar="FILE", help="default: npgemma-demo.png"
    )
    demo.set_defaults(run=run_demo)

    generate = commands.add_parser("generate", parents=[common], help="any prompt, about one or several pictures")
    generate.add_argument("images", nargs="+", metavar="IMAGE")
    generate.add_argument("text", metavar="PROMPT")
    generate.set_defaults(run=run_prompt, prompt=lambda a: a.text)

    caption = commands.add_parser("caption", parents=[common], help="what is on the picture")
    caption.add_argument("images", nargs=1, metavar="IMAGE")
    caption.add_argument("--language", default="en", help="default: en")
    caption.set_defaults(run=run_prompt, prompt=lambda a: caption_prompt(a.language))

    answer = commands.add_parser("answer", parents=[common], help="the answer to a question about the picture")
    answer.add_argument("images", nargs=1, metavar="IMAGE")
    answer.add_argument("question", metavar="QUESTION")
    answer.add_argument("--language", default="en", help="default: en")
    answer.set_defaults(run=run_prompt, prompt=lambda a: answer_prompt(a.question, a.language))

    ocr = commands.add_parser("ocr", parents=[common], help="the text on the picture")
    ocr.add_argument("images", nargs=1, metavar="IMAGE")
    ocr.set_defaults(run=run_prompt, prompt=lambda a: OCR_PROMPT)

    detect = commands.add_parser(
        "detect", parents=[common], help="boxes of the named things: label, x0, y0, x1, y1 in pixels"
    )
    detect.add_argument("image", metavar="IMAGE")
    detect.add_argument("objects", nargs="+", metavar="OBJECT")
    detect.add_argument("--draw", type=Path, metavar="FILE", help="write the picture with the boxes drawn")
    detect.set_defaults(run=run_detect)

    segment = commands.add_parser(
        "segment", parents=[common], help="masks of the named things, for models that have mask codes"
    )
    segment.add_argument("image", metavar="IMAGE")
    segment.add_argument("objects", nargs="+", metavar="OBJECT")
    segment.add_argument("--draw", type=Path, metavar="FILE", help="write the picture with masks and boxes drawn")
    segment.add_argument("--masks", type=Path, metavar="FILE", help="write the masks: an .npz file of masks and labels")
    segment.add_argument(
        "--codec",
        type=Path,
        metavar="FILE",
        help=f"the mask decoder's weights (default: {CODEC} beside the model's)",
    )
    segment.set_defaults(run=run_segment)

    score = commands.add_parser(
        "score", parents=[form, model_flags()], help="how likely the model finds given answers: log P, perplexity"
    )
    score.add_argument("image", metavar="IMAGE")
    score.add_argument("prompt", metavar="PROMPT")
    score.add_argument("suffixes", nargs="+", metavar="ANSWER", help="several are ranked")
    score.set_defaults(run=run_score)

    inspect = commands.add_parser("inspect", parents=[form], help="what a model folder holds")
    inspect.add_argument("model", nargs="?", metavar="FOLDER")
    inspect.set_defaults(run=run_inspect)
    add_golden(commands.add_parser)
    add_compare(commands.add_parser)
    return parser
