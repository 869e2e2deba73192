"""A small tokenizer of CLIP: 512 signs, a few merges, the start and the end token; and the files that hold it."""

import gzip
import json
from itertools import islice, product
from pathlib import Path
from typing import Any

from npgemma.io.clip_tokenizer import ALPHABET, END, SIGNS, START
from npgemma.io.clip_vocabulary import OPENAI_MERGES

MERGES = [("c", "a"), ("a", "t</w>"), ("ca", "t</w>"), ("'", "s</w>"), ("t", "h"), ("th", "e</w>"), ("!", "!</w>")]
PIECES = [*ALPHABET, *map("".join, MERGES), START, END]
IDS = {text: i for i, text in enumerate(PIECES)}
MERGES_TXT = "\n".join(["#version: 0.2", *map(" ".join, MERGES), ""])


def tokenizer_json(**model: Any) -> dict[str, Any]:
    """The content of a tokenizer.json, with other keys in its model."""
    ends = [{"id": IDS[text], "content": text, "special": True, "normalized": False} for text in (START, END)]
    return {
        "added_tokens": ends,
        "model": {
            "type": "BPE",
            "dropout": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "vocab": IDS,
            "merges": list(map(" ".join, MERGES)),
        }
        | model,
    }


def write(folder: Path, vocab: Any = IDS, merges: str = MERGES_TXT) -> Path:
    """A vocab.json and a merges.txt; returns the folder."""
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text(merges, "utf-8")
    return folder


def openai_file(path: Path, count: int = OPENAI_MERGES) -> Path:
    """As many merges as OpenAI's file has: those above, and then pairs of signs. A line that is not used follows."""
    others = (pair for pair in product(SIGNS, SIGNS) if pair not in MERGES)
    merges = [*MERGES, *islice(others, count - len(MERGES))]
    unused = ["unused line"] if count == OPENAI_MERGES else []
    path.write_bytes(gzip.compress("\n".join(["a comment", *map(" ".join, merges), *unused]).encode(), 1))
    return path
