"""Small files of examples, and folders of runs."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = ("a blue star", "<loc0100><loc0200><loc0500><loc0600> ring", "FNY", "2")
PREFIXES = ("caption en", "detect ring", "ocr", "answer en how many?")


def write_data(folder: Path, name: str = "data.jsonl", lines: int = 4, bad: str = "") -> Path:
    """A file with a line for each of so many pictures, which are beside it, and a line that cannot be read."""
    folder.mkdir(exist_ok=True)
    made = []
    for i in range(lines):
        noise = np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        made.append(json.dumps({"image": f"{i}.png", "prefix": PREFIXES[i % 4], "suffix": SUFFIXES[i % 4]}))
    path = folder / name
    path.write_text("\n".join([*made, bad] if bad else made))
    return path


def write_texts(path: Path) -> Path:
    """A file of examples without pictures."""
    pairs = [("one two", " three"), ("a b", " c"), ("x", " y z")]
    path.write_text("\n".join(json.dumps({"prefix": prefix, "suffix": suffix}) for prefix, suffix in pairs))
    return path


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def losses(folder: Path) -> list[float]:
    """The loss of each step of a run."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]
