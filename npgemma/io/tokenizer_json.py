"""tokenizer.json, the one file of the `tokenizers` library: pieces, added tokens and, rebuilt, a SentencePiece model.

The file lists merges where SentencePiece has scores: "a b" or ["a", "b"], the first the most wanted. SentencePiece
merges any two neighbours that make a piece, and takes the piece with the best score first. So a file equals a model if
its merges are all the ways to make each piece of two others, and stand together piece by piece; any other is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from npgemma.errors import BadModel
from npgemma.io.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, bpe_model
from npgemma.io.strict_json import Section, read_json
from npgemma.io.token_matching import UNPLACED, AddedToken

TOKENIZER_JSON = "tokenizer.json"  # in a model folder
MAX_BYTES = 100_000_000  # PaliGemma's has 35 MB
MAX_ID = 1 << 24
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how pieces spell a space
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
TAB = BYTES[ord("\t")]  # files of 2024 have "\t" in its place

# What Gemma's files say; `None` stands for a part that is absent.
TO_PIECES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
TO_TEXT = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
NORMALIZERS: tuple[Any, ...] = (TO_PIECES, {"type": "Sequence", "normalizers": [TO_PIECES]})
LOWER_CASE = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, TO_PIECES]}  # of SigLIP 2
PARTS: Mapping[str, tuple[Any, ...]] = {
    "pre_tokenizer": (None, SPLIT),  # the normalizer leaves no space to split at
    "decoder": ({"type": "Sequence", "decoders": TO_TEXT},),
}
MODEL: Mapping[str, tuple[Any, ...]] = {
    "type": ("BPE", None),
    "byte_fallback": (True,),
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "ignore_merges": (None, False),
}


@dataclass(frozen=True)
class TokenizerJson:
    """What a tokenizer.json says: the pieces with their ids, 0 and up, the merges as they stand there, added tokens."""

    path: Path
    ids: Mapping[str, int]
    merges: list[Any]
    unknown: str
    added: list[AddedToken]

    def sentencepiece_model(self) -> bytes:
        """The SentencePiece model that splits text as this file does. BadModel if none does."""
        kinds = dict.fromkeys(BYTES, BYTE) | {self.unknown: UNKNOWN}
        for token in self.added:
            kinds.setdefault(token.content, CONTROL if token.special else USER_DEFINED)
        scores = self.scores(self.ids.keys() - kinds.keys())
        return bpe_model((text, scores.get(text, UNMERGED), kinds.get(text, NORMAL)) for text in self.ids)

    def scores(self, normal: set[str]) -> dict[str, float]:
        """Minus the place of each piece that merges make. BadModel if they are not those of a SentencePiece model."""
        try:
            pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in self.merges]
            wholes = [left + right for left, right in pairs]
            absent = set(wholes) - self.ids.keys()
        except (TypeError, ValueError):
            raise BadModel(f"{self.path}: model: merges contains something that is not two pieces") from None
        if absent:
            raise self.inconsistent(f"they make {min(map(str, absent))!r}, which the vocabulary lacks")
        # Other pieces are cut out of a text before anything is merged.
        parts = normal | (set("".join(normal)) - self.ids.keys())
        merges = [
            (whole, left)
            for whole, (left, right) in zip(wholes, pairs, strict=True)
            if whole in normal and left in parts and right in parts
        ]
        made = [whole for whole, _ in groupby(whole for whole, _ in merges)]
        if len(made) != len(set(made)):
            raise self.inconsistent("those that make the same piece do not stand together")
        ways = sum([text[:i] in parts and text[i:] in parts for text in normal for i in range(1, len(text))])
        if not len(merges) == len(set(merges)) == ways:
            raise self.inconsistent(f"{len(set(merges)):,} of them make a piece of two, and {ways:,} would")
        return {text: -float(place) for place, text in enumerate(made)}

    def inconsistent(self, why: str) -> BadModel:
        hint = "take the tokenizer.model of the base model instead"
        return BadModel(f"{self.path}: model: merges are not those of a SentencePiece model ({why}); {hint}")


UNMERGED = -1e9  # the score of a piece that no merge makes, such as a single character


def read_tokenizer_json(path: Path, normalizers: tuple[Any, ...] = NORMALIZERS) -> TokenizerJson:
    """Read and check a file. BadModel, with file and key, if it is damaged or does not split text as Gemma does."""
    s = Section(read_json(path, MAX_BYTES), str(path))
    model = s.section("model")
    for section, known in ((s, {"normalizer": normalizers, **PARTS}), (model, MODEL)):
        for key, values in known.items():
            if section.values.get(key) not in values:
                raise unknown_part(section, key, values)
    ids = vocabulary(model)
    merges, unknown = model.values.get("merges"), model.values.get("unk_token")
    if not isinstance(merges, list):
        raise BadModel(f"{model.where}: merges is {kind(merges)}, not a list")
    if not isinstance(unknown, str) or unknown not in ids:
        raise BadModel(f"{model.where}: unk_token is {unknown!r}, which is not a piece of the vocabulary")
    return TokenizerJson(path, ids, merges, unknown, added_tokens(s))


def unknown_part(section: Section, key: str, known: tuple[Any, ...], whose: str = "Gemma") -> BadModel:
    """The error for a part of the file that works otherwise than those of `whose` tokenizers, which are `known`."""
    value = section.values.get(key)
    named = value.get("type") if isinstance(value, dict) else value
    alike = any(isinstance(each, dict) and each["type"] == named for each in known)
    what = f"{section.where}: {key} is {repr(named)[:80]}{' with other settings' if alike else ''}"
    return BadModel(f"{what}, not {whose}'s; npgemma reads {whose}'s tokenizers only")


def pieces_in_order(model: Section) -> list[str]:
    """The pieces of a vocabulary in the order of their ids. BadModel if these are not 0, 1, 2 and so on."""
    vocab = model.values.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise BadModel(f"{model.where}: vocab is {kind(vocab)}, not an object that gives each piece its id")
    if not all(type(id_) is int for id_ in vocab.values()):
        raise BadModel(f"{model.where}: vocab contains an id that is not a whole number")
    pieces = sorted(vocab, key=vocab.__getitem__)
    wrong = next((place for place, text in enumerate(pieces) if vocab[text] != place), None)
    if wrong is not None:
        raise BadModel(f"{model.where}: vocab has {len(vocab):,} pieces, but none or several with the id {wrong}")
    return pieces


def vocabulary(model: Section) -> dict[str, int]:
    """The pieces with their ids, in order. BadModel if these are not 0, 1, 2 and so on, or bytes have no pieces."""
    pieces = pieces_in_order(model)
    if TAB not in pieces and "\t" in pieces:
        pieces[pieces.index("\t")] = TAB
    ids = {text: place for place, text in enumerate(pieces)}
    absent = [text for text in BYTES if text not in ids]
    if absent or "" in ids:
        what = f"lacks {absent[0]}, one of the 256 bytes" if absent else "contains an empty piece"
        raise BadModel(f"{model.where}: vocab {what}")
    return ids


def added_tokens(s: Section) -> list[AddedToken]:
    """The tokens under `added_tokens`, each with an id."""
    listed = s.values.get("added_tokens")
    if not isinstance(listed, list | None):
        raise BadModel(f"{s.where}: added_tokens is {kind(listed)}, not a list")
    tokens = [parse_token(each, s.where, f"added_tokens[{i}]") for i, each in enumerate(listed or [])]
    without = next((token for token in tokens if token.id == UNPLACED), None)
    if without:
        raise BadModel(f"{s.where}: added_tokens gives {without.content!r} no id")
    return tokens


def parse_token(value: Any, where: str, key: str, special: bool = False) -> AddedToken:
    """A token as the files spell it: text, or an object with its flags. BadModel, with the key, for anything else."""
    if isinstance(value, str):
        value = {"content": value}
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, str) or not content:
        raise BadModel(f"{where}: {key} is {str(value)[:80]!r}, not a token with its text under 'content'")
    section = Section(value, f"{where}: {key}")
    special = section.flag("special", special)
    flags = {name: section.flag(name, False) for name in ("lstrip", "rstrip", "single_word")}
    id_ = section.token("id", 0, MAX_ID) if "id" in value else UNPLACED
    return AddedToken(content, id_, special, section.flag("normalized", not special), **flags, source=where)


def kind(value: Any) -> str:
    """What a JSON value is, for an error."""
    return "missing" if value is None else f"a {type(value).__name__}"
