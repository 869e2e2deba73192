"""Gemma's SentencePiece tokenizer, with what PaliGemma adds: locations, segmentation codes and the image token.

A tokenizer.model has 256,000 pieces (Gemma 1 and 2), 262,144 (Gemma 3) or PaliGemma's 257,152, which include locations
and codes. For PaliGemma, the first and the last give the same tokenizer. A tokenizer.json takes its place if it is
missing. Where both are there, the pieces come from tokenizer.model, which the model was trained with, and must be those
of tokenizer.json; added tokens come from the JSON files.
"""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from npgemma.errors import BadModel, BadPrompt
from npgemma.io.added_tokens import (
    GEMMAS,
    IMAGE,
    LOCATIONS,
    PALIGEMMA,
    SEGMENTS,
    Family,
    declared_tokens,
    paligemma_family,
    placed_tokens,
)
from npgemma.io.file_kinds import foreign_kind
from npgemma.io.foreign import Damaged
from npgemma.io.model_folder import member
from npgemma.io.regular_files import read_regular
from npgemma.io.sentencepiece_model import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    append_pieces,
    processor,
    read_pieces,
    serialised,
)
from npgemma.io.token_matching import UNPLACED, AddedToken, Matcher
from npgemma.io.tokenizer_json import MAX_BYTES, MAX_ID, SPACE, TOKENIZER_JSON, TokenizerJson, read_tokenizer_json

__all__ = [
    "CONTROL",
    "GEMMAS",
    "IMAGE",
    "LOCATIONS",
    "SEGMENTS",
    "TOKENIZER",
    "Family",
    "Tokenizer",
    "append_pieces",
    "paligemma_family",
    "read_tokenizer",
]

MASK = "<mask>"
TOKENIZER = "tokenizer.model"  # in a model folder


class Tokenizer:
    """Text <-> token ids, equal to transformers' GemmaTokenizer, for PaliGemma as PaliGemmaProcessor configures it.

    The two differ where transformers differs from SentencePiece, which the model was trained with: runs of more than
    31 spaces, and, unless files declare added tokens, a literal U+2581 next to spaces.
    """

    def __init__(self, model: bytes, declared: Iterable[AddedToken] = (), family: Family = PALIGEMMA) -> None:
        """Parse the bytes of a tokenizer.model, and add the tokens that other files declare and the family has.

        Damaged if the bytes are, BadModel if the tokens do not fit.
        """
        # Read every piece now: one that is not valid text raises an error here, not in the middle of a generation.
        base = read_pieces(processor(model).serialized_model_proto())
        declared = list(declared)
        tokens = placed_tokens([text for text, _ in base], declared, family.adds)
        appended = sorted((token for token in tokens if token.id >= len(base)), key=lambda token: token.id)
        plain = {token.content for token in family.adds if not token.special}
        kinds = [USER_DEFINED if token.content in plain else CONTROL for token in appended]
        model += serialised((token.content, 0.0, kind) for token, kind in zip(appended, kinds, strict=True))
        self.pieces = processor(model)
        self.ids = {text: i for i, (text, _) in enumerate(base)} | {token.content: token.id for token in appended}
        cut = own_tokens(base, with_user_defined=bool(declared))
        for token in tokens if declared else ():
            special = token.special or (token.content in cut and cut[token.content].special)
            cut[token.content] = replace(token, special=special)
        cut |= {token.content: token for token in family.adds if token.special}
        self.specials = {text: self.ids[text] for text, token in cut.items() if token.special}
        self.skipped = frozenset(self.specials.values())
        self.written = {
            token.id: token.content.replace(SPACE, " ")
            for token, kind in zip(appended, kinds, strict=True)
            if kind == CONTROL
        }
        self.respell = family.respell
        self.raw = Matcher({text: token for text, token in cut.items() if not token.normalized})
        self.normalized = Matcher({self.respell(text): token for text, token in cut.items() if token.normalized})

    def __len__(self) -> int:
        """The number of ids: pieces and added tokens, the image token among them."""
        return self.pieces.vocab_size()

    @property
    def image_id(self) -> int:
        """The id of `<image>`: the last one, if no tokens were added after it."""
        return self.ids[IMAGE]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without a <bos>. A special piece in the text, such as <bos>, becomes its id.

        BadPrompt for text that is not valid Unicode (a lone surrogate).
        """
        check_unicode(text)
        ids: list[int] = []
        for part in self.parts(text):
            ids += [self.ids[part.content]] if isinstance(part, AddedToken) else self.pieces.encode(part)
        return ids

    def parts(self, text: str) -> Iterator[str | AddedToken]:
        """`text` cut at its added tokens, as pieces spell it between them."""
        for part in self.raw.cut(text):
            if isinstance(part, AddedToken):
                yield part
            else:
                yield from self.normalized.cut(self.respell(part))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special pieces and ids out of range; other added tokens are kept."""
        kept = [i for i in ids if 0 <= i < len(self) and i not in self.skipped]
        runs = groupby(kept, key=self.written.get)
        return "".join(self.pieces.decode(list(run)) if text is None else text * len(list(run)) for text, run in runs)


def check_unicode(text: str) -> None:
    """BadPrompt for text that is not valid Unicode (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadPrompt(f"the prompt is not valid text: {error.reason} at character {error.start}") from None


def own_tokens(base: Sequence[tuple[str, int]], with_user_defined: bool) -> dict[str, AddedToken]:
    """The pieces of a SentencePiece model that transformers cuts out of a text before it splits the rest.

    These are <pad>, <bos> and so on, which SentencePiece does not recognise in a text, and <mask>, which is special in
    transformers alone. If asked for, also those that SentencePiece does not split either.
    """
    special = [text for text, kind in base if kind in (CONTROL, UNKNOWN) or text == MASK]
    whole = [text for text, kind in base if kind == USER_DEFINED] if with_user_defined else []
    return {text: AddedToken(text) for text in whole} | {text: AddedToken(text, special=True) for text in special}


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Half a million merges, none of which is garbage, would cost the garbage collector a second."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def tokenizer_of(folder: Path) -> Path:
    """The file that the pieces of a model folder come from, which may be missing."""
    path, other = member(folder, TOKENIZER), member(folder, TOKENIZER_JSON)
    return other if other.exists() and not path.exists() else path


@no_garbage_collection()
def read_tokenizer(folder: Path, family: Family, rows: int = MAX_ID, file: Path | None = None) -> Tokenizer:
    """The tokenizer of a model folder, with the pieces of `file` if it is given, a tokenizer.model or tokenizer.json.

    The added tokens are those of the folder's JSON files in any case. BadModel if a file is missing or damaged, if
    `<image>` is not where the family has it, or if an id is not below `rows`, the height of the embedding table.
    """
    path = file or tokenizer_of(folder)
    if not path.exists():
        raise missing(folder, family.base)
    content = content_of(path)
    json_path = path if is_json(content) else member(folder, TOKENIZER_JSON)
    described = read_tokenizer_json(json_path, family.normalizers) if json_path.exists() else None
    declared = declared_tokens(folder, described.added if described else [])
    model = described.sentencepiece_model() if described and json_path == path else content
    try:
        tokenizer = Tokenizer(model, declared, family)
    except Damaged as error:
        raise BadModel(f"{path} is not a valid SentencePiece model: {error}") from None
    if described:
        check_same_pieces(tokenizer, described, path)
    sources = {token.content: token.source for token in declared}
    for token in family.adds:
        if token.id not in (UNPLACED, found := tokenizer.ids[token.content]):
            ids = (
                f"{token.content} is token {found} in {sources.get(token.content, path)} and {token.id} in config.json"
            )
            raise BadModel(f"{ids}; the two files belong to different models")
    check_rows(tokenizer.ids, sources, path, family, rows)
    return tokenizer


def missing(folder: Path, base: str) -> BadModel:
    """The error for a folder without a tokenizer, which says where to take one from."""
    take = f"copy that of the base model into the folder (hf download {base} {TOKENIZER})"
    name = "or name either file with --tokenizer (tokenizer= in Python)"
    needed = f"{folder / TOKENIZER} is missing, and so is {TOKENIZER_JSON}: prompts need one of them"
    return BadModel(f"{needed}; {take}, {name}; generate_ids works without one")


def content_of(path: Path) -> bytes:
    """The bytes of a tokenizer file. BadModel if it cannot be read, or is another kind of file."""
    kind = foreign_kind(path)
    if kind:
        raise BadModel(f"{path} is {kind}")
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        raise BadModel(f"{path} is not a valid SentencePiece model: {error.strerror or error}") from None


def is_json(content: bytes) -> bool:
    """Whether a tokenizer file is a tokenizer.json."""
    return content.lstrip().startswith(b"{")


def check_same_pieces(tokenizer: Tokenizer, described: TokenizerJson, path: Path) -> None:
    """BadModel unless the tokenizer has each piece of a tokenizer.json under the same id."""
    for text, id_ in described.ids.items():
        if tokenizer.ids.get(text) != id_:
            has = f"{tokenizer.pieces.id_to_piece(id_)!r}" if id_ < len(tokenizer) else "nothing"
            both = f"token {id_} is {text!r} in {described.path} and {has} in {path}"
            raise BadModel(f"{both}; delete the file that does not belong to the model")


def check_rows(ids: Mapping[str, int], sources: Mapping[str, str], path: Path, family: Family, rows: int) -> None:
    """BadModel if a token has no row in the embedding table, unless its family has none for it."""
    high = {text: id_ for text, id_ in ids.items() if id_ >= rows and text not in family.rowless}
    if high:
        text, id_ = min(high.items(), key=lambda each: each[1])
        says = f"{sources[text]} adds" if text in sources else f"{path} has"
        table = f"the embedding table has {rows} rows (config.json: vocab_size)"
        raise BadModel(f"{says} {text!r} as token {id_}, but {table}; the files belong to different models")
