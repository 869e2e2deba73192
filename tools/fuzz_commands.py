"""Command lines of tools/fuzz.py: good ones with words replaced, added, repeated and left out.

Whatever is asked for, a command ends with a status that its documentation has; if it fails, it says so in one sentence
or with argparse's usage; no traceback, no control character; no input changes, and no temporary file stays.
"""

import contextlib
import io
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from fuzz_changes import Files
from fuzz_files import adapters, dumps, encoded, lines, mappings
from PIL import Image
from safetensors.numpy import save

import npgemma
from npgemma.commands import cli
from npgemma.golden.file import EMBEDDED_GOLDEN
from npgemma.io.model_folder import EMBEDDED

GOOD = (
    "caption P.png",
    "generate P.png P.jpg 'caption en' --max-new-tokens 2",
    "generate 'The capital of France is' --max-new-tokens 2 --format json",
    "answer P.png what --samples 2 --temperature 1 --seed 3 --max-new-tokens 3",
    "ocr P.png --num-beams 2 -m tiny",
    "score P.png x a b",
    "detect P.png 'red square' --draw new.png --bins 1023",
    "segment P.png 'red square' --masks new.npz --draw new2.png --codec vae.npz",
    "classify P.png 'a cat' dog -m tiny-siglip --top 1",
    "embed P.png P.jpg --text text.txt -o new.npz --batch-size 2",
    "search e.npz cat --top 2 --contact-sheet new.png",
    "chat -m tiny-gemma --max-new-tokens 2",
    "batch jobs.jsonl -o new.jsonl --in-flight 2 --max-new-tokens 2",
    "batch folder caption -o results.jsonl --max-new-tokens 2",
    "inspect tiny --format json",
    "verify tiny-gemma",
    "convert dump.npz newfolder --tokenizer text.txt",
    "golden P.png 'caption en' -o new.safetensors --level io --steps 0",
    "golden --list",
    "compare embedded dump.safetensors --map map.json",
    "compare g.safetensors dump.npz --suggest-map new.json --format json",
    "compare embedded dump.safetensors --chart new.png --allow-missing '*'",
    "caption P.png --adapter adapter --max-memory 1GB --max-pixels 1000000",
    "demo --draw new.png",
    "prepare coco.json -o new.jsonl --pictures folder",
    "train lines.jsonl -o newfolder --plan --lora 2 --words heart --eval lines.jsonl --batch 1",
    "train lines.jsonl -o newfolder --plan --full --augment crop,flip --curve new.png --keep lines.jsonl",
    "--version",
)
LINE = b'{"image": "P.png", "prefix": "caption en", "suffix": "a heart"}\n'
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}],
    "categories": [{"id": 3, "name": "cat"}],
    "annotations": [{"id": 7, "image_id": 1, "category_id": 3, "bbox": [2, 3, 20, 10], "iscrowd": 0}],
}
PLACES = ("missing.png", "folder", "pipe", "loop", "/dev/zero", "/dev/full", "/dev/null", "-", "", ".", "text.txt", "/")
NUMBERS = ("0", "-1", "2", "1e400", "nan", "0x10", "10000000000000000000000", "1e-300", "0.5", "³")
TEXTS = (
    "\x1b[2J",
    "a\nb",
    "é猫",
    "a" * 3000,
    "\udcff",
    "<image>",
    "<loc0001>;",
    "--",
    "caption",
    "null",
    "*",
    "[",
    "%s",
)
FLAGS = (
    "--format",
    "-m",
    "-o",
    "--draw",
    "--masks",
    "--max-memory",
    "--seed",
    "--top-k",
    "--help",
    "--adapter",
    "--stop",
)
STDIN = b"a red square\n"
STATUSES = {0, 1, 2, 3, 4}  # 3 and 4 are verdicts of compare


@cache
def inputs() -> Files:
    """What the commands read; a name that a command writes begins with 'new'."""
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8))
    dump, _, packed = dumps()[:3]
    jobs, results = lines()
    rows = {"0": np.ones(8, "f4")}
    with tempfile.TemporaryDirectory() as folder, standard_streams():
        path = Path(folder) / "e.npz"
        cli.main(["embed", str(npgemma.sample_picture()), "-o", str(path)])
        embeddings = path.read_bytes()
    found = {"P.png": encoded(image, "PNG"), "P.jpg": encoded(image, "JPEG"), "folder/a.png": encoded(image, "PNG")}
    found |= {"dump.safetensors": dump["dump.safetensors"], "dump.npz": packed["dump.npz"], "e.npz": embeddings}
    found |= {"jobs.jsonl": jobs["lines.jsonl"].replace(b"x.png", b"P.png"), "results.jsonl": results["lines.jsonl"]}
    found |= {"map.json": mappings()[0]["map.json"], "g.safetensors": EMBEDDED_GOLDEN.read_bytes()}
    found |= {"vae.npz": (EMBEDDED / "vae-oid.npz").read_bytes(), "text.txt": b"a cat\n", "x.safetensors": save(rows)}
    found |= {"lines.jsonl": 2 * LINE, "coco.json": json.dumps(COCO).encode()}
    return found | {f"adapter/{name}": content for name, content in adapters()[0].items()}


def make(rng: random.Random) -> Files:
    """A command line, and what it reads."""
    words = [word.strip("'") for word in re.findall(r"'[^']*'|\S+", rng.choice(GOOD))]
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        at = rng.randrange(len(words))
        other = rng.choice((*PLACES, *inputs(), rng.choice(NUMBERS), rng.choice(TEXTS)))
        match rng.randrange(5):
            case 0 | 1:
                words[at] = other
            case 2:
                words.insert(at, other)
            case 3:
                words += [rng.choice(FLAGS), other]
            case _:
                words[at:] = words[at + 1 :] or words[at:] * 2
    return inputs() | {"argv.json": json.dumps(words).encode()}


def run(folder: Path) -> str:
    """Run the command line of a case: 'refused' if its status is not 0."""
    words = json.loads((folder / "argv.json").read_text())
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    before = contents(folder)
    with standard_streams() as (out, err), contextlib.chdir(folder):
        try:
            status = cli.main(words)
        except SystemExit as end:  # of argparse
            status = int(end.code or 0)
    said, printed = err.getvalue().decode(), out.getvalue()
    assert status in STATUSES, f"{words} ends with status {status}"
    assert not re.search(r"Traceback|[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]", said), f"{words} says {said!r}"
    sentences = [line for line in said.splitlines() if line.startswith("npgemma")]
    assert status in (0, 1, 3, 4) or len(sentences) == 1, f"{words} says {said!r}"
    assert status != 1 or sentences or printed, f"{words} fails in silence"
    after = contents(folder)
    changed = [name for name in before if after.get(name) != before[name] and not may_change(words, name)]
    assert not changed, f"{words} changes {changed}"
    left = [name for name in after if ".npgemma-" in name]
    assert not left, f"{words} leaves {left}"
    return "refused" if status else ""


def may_change(words: list[str], name: str) -> bool:
    """Whether a file is an output alone: a command names it once, or as an output each time, and not its folder."""
    folders = [str(parent) for parent in Path(name).parents]
    outputs = [word for flag, word in pairwise(words) if flag in ("-o", "--output")]
    alone = words.count(name) in (1, outputs.count(name))
    return alone and not any(str(Path(word)) in folders for word in words)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@contextlib.contextmanager
def standard_streams() -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Three streams in memory in place of the process's own; what was written is in the two."""
    before, out, err = (sys.stdin, sys.stdout, sys.stderr), io.BytesIO(), io.BytesIO()
    made = [io.TextIOWrapper(file, "utf-8", "backslashreplace", write_through=True) for file in (out, err)]
    sys.stdin, sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO(STDIN), "utf-8"), *made
    try:
        yield out, err
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        for stream in made:
            stream.detach()  # or it closes the file that it belongs to
