"""Gemma's SentencePiece tokenizer with PaliGemma's pieces: 1,024 locations, 128 segmentation codes and the image token.

Two kinds of tokenizer.model are about: the 256,000 pieces of Gemma, and PaliGemma's 257,152 with locations and codes
baked in. Both end up the same here: what is missing is appended, `<image>` always last.
"""

import re
import struct
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import sentencepiece

from npgemma.errors import BadModel, BadPrompt

LOCATIONS = tuple(f"<loc{i:04d}>" for i in range(1024))
SEGMENTS = tuple(f"<seg{i:03d}>" for i in range(128))
IMAGE = "<image>"
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
    """Text <-> token ids, equal to transformers' GemmaTokenizer as PaliGemmaProcessor sets it up."""

    def __init__(self, model: bytes) -> None:
        """From the bytes of a tokenizer.model. RuntimeError if they are none."""
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        absent = [piece for piece in LOCATIONS + SEGMENTS if pieces.piece_to_id(piece) == pieces.unk_id()]
        model = append_pieces(append_pieces(model, absent), [IMAGE], CONTROL)
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __len__(self) -> int:
        """How many ids there are, the image token included."""
        return self.pieces.vocab_size()

    @property
    def image_id(self) -> int:
        return len(self) - 1

    @cached_property
    def specials(self) -> dict[str, int]:
        """The control pieces (<pad>, <bos>, <image> ...): SentencePiece reads none from text, transformers does."""
        ids = [i for i in range(len(self)) if self.pieces.is_control(i) or self.pieces.is_unknown(i)]
        return {self.pieces.id_to_piece(i): i for i in ids}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, nothing added. A special piece written out in it, such as <bos>, becomes its id.

        Raises BadPrompt for text that is no Unicode (a lone surrogate).
        """
        ids: list[int] = []
        try:
            for part in re.split(f"({'|'.join(map(re.escape, self.specials))})", text):
                ids += [self.specials[part]] if part in self.specials else self.pieces.encode(part)
        except UnicodeEncodeError as error:
            raise BadPrompt(f"the prompt is no valid text: {error.reason} at character {error.start}") from None
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special pieces and ids beyond the last are left out, locations and codes are kept."""
        known = [i for i in ids if 0 <= i < len(self) and not self.pieces.is_control(i)]
        return self.pieces.decode(known)


def read_tokenizer(folder: Path, image_id: int) -> Tokenizer:
    """The tokenizer of a model folder. BadModel if there is none, or one whose `<image>` is not `image_id`."""
    path = folder / TOKENIZER
    try:
        tokenizer = Tokenizer(path.read_bytes())
    except FileNotFoundError:
        raise BadModel(f"{path} is missing: prompts cannot be read without it (ids can: see generate_ids)") from None
    except (OSError, RuntimeError) as error:
        raise BadModel(f"{path} is not a usable SentencePiece model: {error}") from None
    if tokenizer.image_id != image_id:
        ids = f"<image> is token {tokenizer.image_id} by {path} and {image_id} by config.json"
        raise BadModel(f"{ids}: they do not belong together")
    return tokenizer
