"""The tokenizers of SigLIP and SigLIP 2, equal to transformers' SiglipTokenizer and Siglip2Tokenizer.

SigLIP has 32,000 pieces of T5 (a unigram model, spiece.model) and reads text in lower case without punctuation; its end
token also pads. SigLIP 2 has Gemma's 256,000 pieces, keeps punctuation, and pads with <pad>. big_vision, which trained
SigLIP, kept punctuation, too.
"""

import string
from collections.abc import Iterable, Iterator
from pathlib import Path

from npgemma.errors import BadModel
from npgemma.io.added_tokens import SIGLIP_2, TOKENIZER_CONFIG, Family, declared_tokens, optional, placed_tokens
from npgemma.io.foreign import Damaged
from npgemma.io.model_folder import member
from npgemma.io.sentencepiece_model import processor, read_pieces
from npgemma.io.text_rows import TextTokenizer
from npgemma.io.token_matching import AddedToken, Matcher
from npgemma.io.tokenizer_json import MAX_ID, SPACE, TOKENIZER_JSON
from npgemma.io.tokenizers import (
    TOKENIZER,
    Tokenizer,
    check_rows,
    check_unicode,
    content_of,
    is_json,
    read_tokenizer,
)

SPIECE = "spiece.model"
FILES = (SPIECE, TOKENIZER, TOKENIZER_JSON)  # the first one in a model folder is read
SIGLIP = Family("google/siglip-base-patch16-224")
END, UNKNOWN = "</s>", "<unk>"
GEMMA_END, GEMMA_PAD = "<eos>", "<pad>"
PUNCTUATION = str.maketrans("", "", string.punctuation)


class SiglipTokenizer:
    """Text -> ids: words in lower case without punctuation, then the end token, which also pads."""

    def __init__(self, model: bytes, declared: Iterable[AddedToken] = ()) -> None:
        """Parse the bytes of a spiece.model, and add the tokens that other files declare.

        Damaged if the bytes are, KeyError if a piece named </s> is missing, BadModel if the tokens do not fit.
        """
        self.pieces = processor(model)
        self.skipped = len(self.pieces.encode(UNKNOWN))
        base = [text for text, _ in read_pieces(self.pieces.serialized_model_proto())]
        ends = {text: AddedToken(text, special=True, lstrip=True, rstrip=True) for text in (END, UNKNOWN)}
        tokens = placed_tokens(base, (ends | {token.content: token for token in declared}).values(), ())
        self.ids = {text: i for i, text in enumerate(base)}
        self.end_id = self.pad_id = self.ids[END]
        self.ids |= {token.content: token.id for token in tokens}
        self.added = Matcher({token.content: token for token in tokens})

    def __len__(self) -> int:
        """The number of ids."""
        return len(self.ids)

    def encode(self, text: str) -> list[int]:
        """The ids of `text` and the end token, once if the text ends with it. An added token in it becomes its id.

        BadPrompt for text that is not valid Unicode (a lone surrogate).
        """
        check_unicode(text)
        ids = [i for part in self.parts(text) for i in part]
        return ids if ids[-1:] == [self.end_id] else [*ids, self.end_id]

    def parts(self, text: str) -> Iterator[list[int]]:
        """The ids of added tokens, and of what lies between them. Only the beginning of the text begins a word.

        SentencePiece begins a word with whatever it is given, so, as in transformers, it is given <unk> before a part.
        """
        for part in self.added.cut(SPACE + text.replace(SPACE, " ")):
            if isinstance(part, AddedToken):
                yield [self.ids[part.content]]
            else:
                yield self.pieces.encode(UNKNOWN + canonical(part))[self.skipped :]


class Siglip2Tokenizer:
    """Text -> ids: Gemma's, of text in lower case, then the end token.

    Tokens that are no text, such as <bos>, are cut out before the text is in lower case. Of a piece that SentencePiece
    never splits, such as <h1>, transformers recognises only the lower case.
    """

    def __init__(self, pieces: Tokenizer) -> None:
        """KeyError if the pieces are not Gemma's."""
        self.pieces = pieces
        self.end_id, self.pad_id = pieces.ids[GEMMA_END], pieces.ids[GEMMA_PAD]

    def __len__(self) -> int:
        """The number of ids."""
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """The ids of `text` and the end token. BadPrompt as for `Tokenizer.encode`."""
        return [*self.pieces.encode(text), self.end_id]


def canonical(text: str) -> str:
    """Lower case by the rules of the whole Unicode, no ASCII punctuation, single spaces."""
    return " ".join(text.lower().translate(PUNCTUATION).split())


def read_siglip_tokenizer(folder: Path, rows: int = MAX_ID, file: Path | None = None) -> TextTokenizer:
    """The tokenizer of a model folder, or of `file`: SigLIP's if it is a spiece.model, SigLIP 2's if it is Gemma's.

    The added tokens are those of the folder's JSON files in any case. BadModel if a file is missing, damaged or of
    another model, or if an id is not below `rows`, the height of the embedding table.
    """
    path = file or tokenizer_of(folder)
    optional(folder, TOKENIZER_CONFIG).require("do_lower_case", True)
    content = content_of(path)
    try:
        if is_json(content) or GEMMA_END.encode() in content:
            return Siglip2Tokenizer(read_tokenizer(folder, SIGLIP_2, rows, path))
        declared = declared_tokens(folder, [])
        tokenizer = SiglipTokenizer(content, declared)
    except KeyError as error:
        raise BadModel(f"{path} has no piece {error}; it belongs to another model than SigLIP") from None
    except Damaged as error:
        raise BadModel(f"{path} is not a valid SentencePiece model: {error}") from None
    check_rows(tokenizer.ids, {token.content: token.source for token in declared}, path, SIGLIP, rows)
    return tokenizer


def tokenizer_of(folder: Path) -> Path:
    """The file that the tokenizer of a model folder is read from. BadModel if there is none."""
    for name in FILES:
        if (path := member(folder, name)).exists():
            return path
    needed = f"{folder / SPIECE} is missing, and so are {TOKENIZER} and {TOKENIZER_JSON}: texts need one of them"
    takes = [f"hf download {base} {name}" for base, name in ((SIGLIP.base, SPIECE), (SIGLIP_2.base, TOKENIZER_JSON))]
    take = f"copy that of the base model into the folder ({takes[0]}; for SigLIP 2 {takes[1]})"
    raise BadModel(f"{needed}; {take}, or name a file with --tokenizer (tokenizer= in Python)")
