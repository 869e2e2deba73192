"""The embedded tokenizer in the form of a tokenizer.json, written from its SentencePiece model."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece

from npgemma.io.added_tokens import LOCATIONS
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, read_pieces

MODEL = (EMBEDDED / "tokenizer.model").read_bytes()
# MODEL without locations and codes, which are at its end. The text of the first one follows two tags and two lengths.
BASE = MODEL[: MODEL.index(LOCATIONS[0].encode()) - 4]
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}


@cache
def tokenizer_json(as_text: bool = False) -> dict[str, Any]:
    """The content of the file; merges as "a b" or as ["a", "b"]. <image> is its last added token."""
    read = sentencepiece.SentencePieceProcessor(model_proto=MODEL)
    pieces = read_pieces(read.serialized_model_proto())
    ids = {text: i for i, (text, _) in enumerate(pieces)}
    normal = sorted((text for text, kind in pieces if kind == NORMAL), key=lambda text: -read.get_score(ids[text]))
    known = set(normal)
    merges = [[w[:i], w[i:]] for w in normal for i in range(1, len(w)) if w[:i] in known and w[i:] in known]
    added = [
        token(text, i, kind in (CONTROL, UNKNOWN), normalized=False)
        for i, (text, kind) in enumerate(pieces)
        if kind not in (NORMAL, BYTE)
    ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*added, token("<image>", len(pieces), True)],
        "normalizer": replace,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": [" ".join(each) for each in merges] if as_text else merges,
        },
    }


def token(content: str, id_: int, special: bool = False, **flags: bool) -> dict[str, Any]:
    """An entry of `added_tokens`."""
    return {"id": id_, "content": content, **FLAGS, "normalized": not special, "special": special} | flags


def write(folder: Path, **files: Any) -> Path:
    """Write JSON files, each under its name without the ending; returns the folder."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), "utf-8")
    return folder
