"""The files of CLIP's tokenizer: tokenizer.json, vocab.json with merges.txt, or OpenAI's list of merges."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from gzip import GzipFile
from pathlib import Path
from typing import Any

from npgemma.errors import BadModel
from npgemma.io.added_tokens import Family, declared_tokens, placed_tokens
from npgemma.io.clip_tokenizer import ALPHABET, END, START, WORD_END, ClipTokenizer, Pair
from npgemma.io.file_kinds import EMPTY, first_bytes, foreign_kind
from npgemma.io.model_folder import member
from npgemma.io.strict_json import Section, read_json
from npgemma.io.token_matching import AddedToken
from npgemma.io.tokenizer_json import MAX_ID, TOKENIZER_JSON, added_tokens, kind, pieces_in_order, unknown_part
from npgemma.io.tokenizers import check_rows

VOCAB, MERGES, OPENAI = "vocab.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz"
FILES = (TOKENIZER_JSON, VOCAB, OPENAI)  # the first one in a model folder is read
CLIP = Family("openai/clip-vit-base-patch16")
MAX_BYTES = 50_000_000  # the largest of CLIP's files has 3 MB
OPENAI_MERGES = 48_894  # after the first line; OpenAI leaves the rest unused
GZIP = b"\x1f\x8b"

# What transformers makes of the model of a tokenizer.json; its other parts are replaced by those of CLIPTokenizer.
MODEL: Mapping[str, tuple[Any, ...]] = {
    "type": ("BPE", None),
    "end_of_word_suffix": (WORD_END,),
    "continuing_subword_prefix": (None, ""),
    "dropout": (None, 0),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}

Vocabulary = tuple[list[str], list[Pair], list[AddedToken]]  # pieces in the order of their ids, merges, added tokens


def read_clip_tokenizer(folder: Path, rows: int = MAX_ID, file: Path | None = None) -> ClipTokenizer:
    """The tokenizer of a model folder, or of `file`: a tokenizer.json, a vocab.json beside its merges.txt, or OpenAI's.

    The added tokens are those of the folder's JSON files in any case. BadModel if a file is missing, damaged or not of
    CLIP, or if an id is not below `rows`, the height of the embedding table.
    """
    path = file or tokenizer_of(folder)
    pieces, merges, listed = reader(path)(path)
    check_signs(pieces, path)
    check_merges(merges, pieces, path)
    ends = [AddedToken(text, special=True) for text in (START, END)]
    declared = declared_tokens(folder, listed)
    known = {token.content for token in declared}
    added = placed_tokens(pieces, [*(token for token in ends if token.content not in known), *declared], ())
    ids = {text: i for i, text in enumerate(pieces)} | {token.content: token.id for token in added}
    check_rows(ids, {token.content: token.source for token in declared}, path, CLIP, rows)
    return ClipTokenizer(ids, merges, added)


def tokenizer_of(folder: Path) -> Path:
    """The file that the tokenizer of a model folder is read from. BadModel if there is none."""
    for name in FILES:
        if (path := member(folder, name)).exists():
            return path
    needed = f"{folder / VOCAB} is missing, and so are {TOKENIZER_JSON} and {OPENAI}: texts need one of them"
    take = f"copy {VOCAB} and {MERGES} of the base model into the folder (hf download {CLIP.base} {VOCAB} {MERGES})"
    raise BadModel(f"{needed}; {take}, or name a file with --tokenizer (tokenizer= in Python)")


def reader(path: Path) -> Callable[[Path], Vocabulary]:
    """What reads a file, by its first bytes and, for JSON, by its content. BadModel for another kind of file."""
    begin = first_bytes(path) or b""
    if begin.startswith(GZIP):
        return read_openai
    if begin.strip() and not begin.lstrip().startswith((b"{", b"[")) and not foreign_kind(path):
        names = f"name a {TOKENIZER_JSON}, a {VOCAB} beside its {MERGES}, or a {OPENAI}"
        raise BadModel(f"{path} is not a tokenizer of CLIP; {names}")
    content = read_json(path, MAX_BYTES)
    is_vocabulary = type(content.get("model")) is int or "model" not in content  # "model" is a word, too
    return read_vocab_and_merges if is_vocabulary else read_tokenizer_json


def read_tokenizer_json(path: Path) -> Vocabulary:
    """BadModel, with file and key, if it is damaged or does not split text as CLIP does."""
    s = Section(read_json(path, MAX_BYTES), str(path))
    model = s.section("model")
    for key, values in MODEL.items():
        if model.values.get(key) not in values:
            raise unknown_part(model, key, values, "CLIP")
    merges = model.values.get("merges")
    if not isinstance(merges, list):
        raise BadModel(f"{model.where}: merges is {kind(merges)}, not a list")
    return pieces_in_order(model), pairs(merges, f"{model.where}: merges"), added_tokens(s)


def read_vocab_and_merges(path: Path) -> Vocabulary:
    """A vocab.json, and the merges.txt beside it, whose first line may be a comment."""
    pieces = pieces_in_order(Section({"vocab": read_json(path, MAX_BYTES)}, str(path)))
    beside = member(path.parent, MERGES)
    if not beside.exists():
        raise BadModel(f"{beside} is missing, which belongs to {path.name}; download it from the same model")
    if other := foreign_kind(beside):
        raise BadModel(f"{beside} is {other}")
    if beside.stat().st_size > MAX_BYTES:
        raise BadModel(f"{beside} is not a list of merges: it has {beside.stat().st_size:,} bytes")
    lines = decoded(beside.read_bytes(), beside).splitlines()
    return pieces, pairs((line for line in lines if line and not line.startswith("#version")), str(beside)), []


def read_openai(path: Path) -> Vocabulary:
    """OpenAI's list of merges, from which the ids follow: signs, merges, start token, end token."""
    try:
        with GzipFile(path) as file:
            content = file.read(MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise BadModel(f"{path} is damaged: {error}; download it again") from None
    lines = decoded(content, path).splitlines()[1 : OPENAI_MERGES + 1]
    if len(lines) < OPENAI_MERGES:
        raise BadModel(f"{path} has {len(lines):,} merges, fewer than the {OPENAI_MERGES:,} of CLIP; download it again")
    merges = pairs(lines, str(path))
    return [*ALPHABET, *map("".join, merges), START, END], merges, []


def decoded(content: bytes, path: Path) -> str:
    """The text of a file. BadModel if it is empty or not UTF-8."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BadModel(f"{path} cannot be read: byte {error.start} is not UTF-8 text; download it again") from None
    if not text.strip():
        raise BadModel(f"{path} is {EMPTY}")
    return text


def pairs(merges: Iterable[Any], where: str) -> list[Pair]:
    """Merges written "a b" or ["a", "b"]. BadModel for anything else."""
    found = []
    for number, merge in enumerate(merges, 1):
        match merge.split() if isinstance(merge, str) else merge:
            case [str(left), str(right)]:
                found.append((left, right))
            case _:
                raise BadModel(f"{where}: merge {number} is {str(merge)[:80]!r}, not two pieces")
    return found


def check_signs(pieces: list[str], path: Path) -> None:
    """BadModel unless each of the signs of bytes is a piece, alone and at the end of a word."""
    absent = set(ALPHABET) - set(pieces)
    if absent:
        what = f"lacks {min(absent)!r}, one of the {len(ALPHABET)} signs that CLIP spells text with"
        raise BadModel(f"{path} {what}; the file belongs to another model, or is damaged")


def check_merges(merges: list[Pair], pieces: list[str], path: Path) -> None:
    """BadModel if merges make what is not a piece."""
    known = set(pieces)
    for left, right in merges:
        if not {left, right, left + right} <= known:
            what = (
                f"the merges make {left + right!r} of {left!r} and {right!r}, and the vocabulary lacks one of the three"
            )
            raise BadModel(f"{path}: {what}; the files belong to different models, or one of them is damaged")
