"""The tokens that a model folder adds to its tokenizer's pieces, as transformers reads them from up to four files.

tokenizer_config.json lists them with ids under `added_tokens_decoder`, tokenizer.json under `added_tokens`; flags of
the first win. Older folders have added_tokens.json, without flags. Tokens that tokenizer_config.json or
special_tokens_map.json only name take the ids that follow, and so do PaliGemma's own where they lack.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npgemma.errors import BadModel
from npgemma.io.model_folder import member
from npgemma.io.strict_json import Section, read_json
from npgemma.io.token_matching import UNPLACED, AddedToken, lower_case
from npgemma.io.tokenizer_json import LOWER_CASE, MAX_ID, NORMALIZERS, SPACE, parse_token

LOCATIONS = tuple(f"<loc{i:04d}>" for i in range(1024))
SEGMENTS = tuple(f"<seg{i:03d}>" for i in range(128))
IMAGE = "<image>"


def with_space_signs(text: str) -> str:
    """Spaces as pieces spell them."""
    return text.replace(" ", SPACE)


def in_lower_case(text: str) -> str:
    """The same, in lower case."""
    return with_space_signs(lower_case(text))


@dataclass(frozen=True)
class Family:
    """What a family of models needs beside the files of a folder.

    `base` is a model to copy a tokenizer from. `adds` are tokens that the family has even if no file declares them; the
    id of one that has an id comes from config.json. `rowless` tokens may have ids beyond the embedding table.
    `respell` writes text as the pieces do; `normalizers` are what a tokenizer.json may say about it.
    """

    base: str
    adds: tuple[AddedToken, ...] = ()
    rowless: frozenset[str] = frozenset()
    respell: Callable[[str], str] = with_space_signs
    normalizers: tuple[Any, ...] = NORMALIZERS


def paligemma_family(image_id: int = UNPLACED) -> Family:
    """PaliGemma: 1,024 locations, 128 segmentation codes, and `<image>`, whose id config.json gives."""
    plain = [AddedToken(text, normalized=True, source="PaliGemma") for text in (*LOCATIONS, *SEGMENTS)]
    image = AddedToken(IMAGE, image_id, special=True, source="PaliGemma")
    return Family("google/paligemma-3b-pt-224", (image, *plain), frozenset({IMAGE}))


PALIGEMMA = paligemma_family()
GEMMAS: Mapping[str, Family] = {  # by the model_type of config.json
    "gemma": Family("google/gemma-2b"),
    "gemma2": Family("google/gemma-2-2b"),
    # Gemma 3's files declare a token for pictures, which its models without vision have no row for.
    "gemma3_text": Family("google/gemma-3-1b-pt", rowless=frozenset({"<image_soft_token>"})),
}
SIGLIP_2 = Family("google/siglip2-base-patch16-224", respell=in_lower_case, normalizers=(*NORMALIZERS, LOWER_CASE))

TOKENIZER_CONFIG, ADDED_TOKENS = "tokenizer_config.json", "added_tokens.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
MAX_BYTES = 50_000_000  # Gemma 3's tokenizer_config.json has 1 MB
NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
LISTS = ("extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens")


def declared_tokens(folder: Path, listed: Sequence[AddedToken]) -> list[AddedToken]:
    """The tokens that the files of a folder declare: `listed`, those of its tokenizer.json, and of three more files.

    Each comes once; those without an id are last. BadModel if a file is damaged, or two give a token different ids.
    """
    config, legacy, specials = (optional(folder, name) for name in (TOKENIZER_CONFIG, ADDED_TOKENS, SPECIAL_TOKENS_MAP))
    in_config = [
        replace(parse_token(value, config.where, f"added_tokens_decoder: {id_}"), id=whole_number(id_, config))
        for id_, value in config.section("added_tokens_decoder").values.items()
    ]
    sections = [config] if in_config else [config, specials]
    named = [token for section in sections for token in named_tokens(section)]
    extra = [token for section in sections for token in extra_tokens(section, LISTS)]
    # transformers 5 does not look at the additional_special_tokens of special_tokens_map.json here
    told = [*named, *extra_tokens(config, LISTS), *extra_tokens(specials, LISTS[:1])]
    special = {token.content for token in told}
    old = [
        AddedToken(content, whole_number(id_, legacy), content in special, content not in special, source=legacy.where)
        for content, id_ in legacy.values.items()
    ]
    found: dict[str, AddedToken] = {}
    for token in (*in_config, *listed, *old, *named, *extra):
        known = found.setdefault(token.content, token)
        if token.id not in (UNPLACED, known.id):
            places = f"{known.id} in {known.source} and {token.id} in {token.source}"
            raise BadModel(f"the added token {token.content!r} is token {places}; remove the wrong entry")
    always = {token.content for token in named}
    return [replace(token, special=token.special or token.content in always) for token in found.values()]


def optional(folder: Path, name: str) -> Section:
    """The object in a file of the folder; an empty one if the file is missing."""
    path = member(folder, name)
    return Section(read_json(path, MAX_BYTES) if path.exists() else {}, str(path))


def whole_number(value: Any, section: Section) -> int:
    """An id, which a key of `added_tokens_decoder` spells in digits."""
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
    return Section({"id": number}, section.where).token("id", -1, MAX_ID)


def named_tokens(s: Section) -> Iterator[AddedToken]:
    """The tokens under keys such as pad_token, and under the names of `extra_special_tokens`: all special."""
    names = [*NAMES, *(key for key in s.values if key.endswith("_token") and key not in NAMES)]
    values = [(name, s.values.get(name)) for name in names]
    values += [pair for each in LISTS if isinstance(found := s.values.get(each), dict) for pair in found.items()]
    for key, value in values:
        if isinstance(value, str | dict):  # not add_bos_token, which is a flag
            yield parse_token(value, s.where, key, special=True)


def extra_tokens(s: Section, keys: Sequence[str]) -> Iterator[AddedToken]:
    """The tokens in the list of `extra_special_tokens`, or `additional_special_tokens` before 2025."""
    for key in keys:
        values = s.get(key, [])
        if not isinstance(values, list | dict):
            raise BadModel(f"{s.where}: {key} is {values!r}, not a list of tokens")
        for value in values if isinstance(values, list) else ():
            yield parse_token(value, s.where, key, special=True)


def placed_tokens(
    pieces: Sequence[str], declared: Iterable[AddedToken], adds: Iterable[AddedToken]
) -> list[AddedToken]:
    """`declared` and what a family `adds`, each with its id: that of a piece, or one of those that follow.

    Where Gemma's own 256,000 pieces lack locations and codes, these come before `<image>`, as in PaliGemma's files,
    unless the id of `<image>` says that they come after it, as PaliGemmaProcessor adds them.
    BadModel for an id that belongs to another piece or token, and for ids with a gap before them.
    """
    known = {token.content: token for token in declared}
    plain = {token.content for token in adds if not token.special}
    image_id = next((token.id for token in adds if token.content == IMAGE), UNPLACED)
    for added in adds:  # PaliGemmaProcessor adds them once more, with the family's flags
        token = known.get(added.content, replace(added, id=UNPLACED))
        known[added.content] = replace(added, id=token.id, source=token.source)
    ids = fixed_ids(pieces, known.values())
    used = set(ids.values())
    free = [i for i in range(len(pieces), len(pieces) + len(known)) if i not in used]
    absent = [text for text in known if text not in ids]
    late = [text for text in absent if text not in plain]
    if IMAGE in absent and len(late) < len(absent) and image_id != free[absent.index(IMAGE)]:
        absent = [*(text for text in absent if text in plain), IMAGE, *(text for text in late if text != IMAGE)]
    ids |= zip(absent, free, strict=False)
    placed = [replace(token, id=ids[token.content]) for token in known.values()]
    check_gaps(placed, len(pieces))
    return placed


def fixed_ids(pieces: Sequence[str], tokens: Iterable[AddedToken]) -> dict[str, int]:
    """The ids of the tokens that are pieces or have an id. BadModel for an id that belongs to two of them."""
    own = {text: i for i, text in enumerate(pieces)}
    owners: dict[int, str] = dict(enumerate(pieces))
    ids: dict[str, int] = {}
    for token in tokens:
        id_ = own.get(token.content, token.id)
        if id_ == UNPLACED:
            continue
        says = f"{token.source} says that {token.content!r} is token {token.id}"
        if token.id not in (UNPLACED, id_):
            raise BadModel(f"{says}, but among the tokenizer's pieces it is token {id_}; remove the wrong entry")
        if owners.setdefault(id_, token.content) != token.content:
            raise BadModel(f"{says}, but that is {owners[id_]!r}; remove the wrong entry")
        ids[token.content] = id_
    return ids


def check_gaps(placed: Iterable[AddedToken], first: int) -> None:
    """BadModel unless the ids of the tokens that are not pieces are `first` and those that follow."""
    outside = sorted((token for token in placed if token.id >= first), key=lambda token: token.id)
    for expected, token in enumerate(outside, first):
        if token.id != expected:
            says = f"{token.source} says that {token.content!r} is token {token.id}"
            raise BadModel(f"{says}, but no file says what token {expected} is; the files belong to different models")
