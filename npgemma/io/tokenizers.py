"""Gemma's SentencePiece tokenizer with PaliGemma's pieces: 1,024 locations, 128 segmentation codes and the image token.

Two kinds of tokenizer.model are about: the 256,000 pieces of Gemma, and PaliGemma's 257,152 with locations and codes
baked in. Both end up the same here: what is missing is appended, `<image>` always last.
"""

import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from npgemma.errors import BadModel, BadPrompt
from npgemma.io.model_folder import member

LOCATIONS = tuple(f"<loc{i:04d}>" for i in range(1024))
SEGMENTS = tuple(f"<seg{i:03d}>" for i in range(128))
IMAGE = "<image>"
MASK = "<mask>"
TOKENIZER = "tokenizer.model"  # in a model folder

CONTROL, USER_DEFINED = (
    3,
    4,
)  # SentencePiece's types of piece: the first is never read from text, the second always in one piece


def append_pieces(model: bytes, pieces: Iterable[str], kind: int = USER_DEFINED) -> bytes:
    """A serialised SentencePiece model with more pieces at its end, their score 0.

    The model is a protocol buffer whose field 1 repeats, a piece a time: {1: text, 2: score, 3: type}. In that format
    two messages written behind each other are one message, and repeated fields append; so a tail is all it takes.
    """

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def piece(text: str) -> bytes:
        return field(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", 0.0) + bytes([3 << 3, kind])

    return model + b"".join(field(1, piece(text)) for text in pieces)


class Tokenizer:
    """Text <-> token ids, equal to transformers' GemmaTokenizer as PaliGemmaProcessor sets it up.

    It differs where transformers' copy of the algorithm differs from SentencePiece, which the model was trained with:
    runs of more than 31 spaces, and a literal U+2581 beside spaces.
    """

    def __init__(self, model: bytes) -> None:
        """From the bytes of a tokenizer.model. RuntimeError or UnicodeDecodeError if they are damaged."""
        if not model:
            raise RuntimeError("it is empty")
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        absent = [piece for piece in LOCATIONS + SEGMENTS if pieces.piece_to_id(piece) == pieces.unk_id()]
        model = append_pieces(append_pieces(model, absent), [IMAGE], CONTROL)
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        # Pieces are looked at one by one, so that one which is no text is found now and not when a model writes it.
        named = [(self.pieces.id_to_piece(i), i) for i in range(len(self))]
        # <pad>, <bos>, <image> and their like: SentencePiece reads none of them from text, transformers does. <mask> is
        # an ordinary piece to the one and special to the other.
        self.specials = {
            piece: i for piece, i in named if self.pieces.is_control(i) or self.pieces.is_unknown(i) or piece == MASK
        }

    def __len__(self) -> int:
        """How many ids there are, the image token included."""
        return self.pieces.vocab_size()

    @property
    def image_id(self) -> int:
        return len(self) - 1

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, nothing added. A special piece written out in it, such as <bos>, becomes its id.

        Raises BadPrompt for text that is no Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadPrompt(f"the prompt is no valid text: {error.reason} at character {error.start}") from None
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, self.specials))})", text):
            ids += [self.specials[part]] if part in self.specials else self.pieces.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special pieces and ids beyond the last are left out, locations and codes are kept."""
        special = self.specials.values()
        return self.pieces.decode([i for i in ids if 0 <= i < len(self) and i not in special])


def read_tokenizer(folder: Path, image_id: int) -> Tokenizer:
    """The tokenizer of a model folder. BadModel if there is none, or one whose `<image>` is not `image_id`."""
    path = member(folder, TOKENIZER)
    try:
        tokenizer = Tokenizer(path.read_bytes())
    except FileNotFoundError:
        raise BadModel(f"{path} is missing: prompts cannot be read without it (ids can: see generate_ids)") from None
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise BadModel(f"{path} is not a usable SentencePiece model: {error}") from None
    if tokenizer.image_id != image_id:
        ids = f"<image> is token {tokenizer.image_id} by {path} and {image_id} by config.json"
        raise BadModel(f"{ids}: they do not belong together")
    return tokenizer
