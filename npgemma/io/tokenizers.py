"""Gemma's SentencePiece tokenizer with PaliGemma's pieces: 1,024 locations, 128 segmentation codes and the image token.

A tokenizer.model has either the 256,000 pieces of Gemma, or PaliGemma's 257,152, which include locations and codes.
Both give the same tokenizer here: missing pieces are appended, and `<image>` is always the last.
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

# SentencePiece's types of piece: text never produces a control piece, and never splits a user-defined one.
CONTROL, USER_DEFINED = 3, 4


def append_pieces(model: bytes, pieces: Iterable[str], kind: int = USER_DEFINED) -> bytes:
    """A serialised SentencePiece model with `pieces` appended, each with score 0.

    The model is a protocol buffer whose repeated field 1 holds the pieces, {1: text, 2: score, 3: type}. Concatenated
    messages merge into one and their repeated fields append, so appending bytes appends pieces.
    """

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    def piece(text: str) -> bytes:
        return field(1, text.encode()) + bytes([2 << 3 | 5]) + struct.pack("<f", 0.0) + bytes([3 << 3, kind])

    return model + b"".join(field(1, piece(text)) for text in pieces)


class Tokenizer:
    """Text <-> token ids, equal to transformers' GemmaTokenizer as PaliGemmaProcessor configures it.

    The two differ where transformers differs from SentencePiece, which the model was trained with: runs of more than
    31 spaces, and a literal U+2581 next to spaces.
    """

    def __init__(self, model: bytes) -> None:
        """Parse the bytes of a tokenizer.model. RuntimeError or UnicodeDecodeError if they are damaged."""
        if not model:
            raise RuntimeError("the file is empty")
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        absent = [piece for piece in LOCATIONS + SEGMENTS if pieces.piece_to_id(piece) == pieces.unk_id()]
        model = append_pieces(append_pieces(model, absent), [IMAGE], CONTROL)
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        # Read every piece now: one that is not valid text raises an error here, not in the middle of a generation.
        named = [(self.pieces.id_to_piece(i), i) for i in range(len(self))]
        # <pad>, <bos>, <image> and so on: transformers recognises them in text, SentencePiece does not. <mask> is an
        # ordinary piece in SentencePiece and special in transformers.
        self.specials = {
            piece: i for piece, i in named if self.pieces.is_control(i) or self.pieces.is_unknown(i) or piece == MASK
        }

    def __len__(self) -> int:
        """The number of ids, including the image token."""
        return self.pieces.vocab_size()

    @property
    def image_id(self) -> int:
        """The id of `<image>`: the last one."""
        return len(self) - 1

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without a <bos>. A special piece in the text, such as <bos>, becomes its id.

        BadPrompt for text that is not valid Unicode (a lone surrogate).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadPrompt(f"the prompt is not valid text: {error.reason} at character {error.start}") from None
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, self.specials))})", text):
            ids += [self.specials[part]] if part in self.specials else self.pieces.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special pieces and ids out of range; locations and codes are kept."""
        special = self.specials.values()
        return self.pieces.decode([i for i in ids if 0 <= i < len(self) and i not in special])


def read_tokenizer(folder: Path, image_id: int) -> Tokenizer:
    """The tokenizer of a model folder. BadModel if it is missing, damaged, or its `<image>` is not `image_id`."""
    path = member(folder, TOKENIZER)
    try:
        tokenizer = Tokenizer(path.read_bytes())
    except FileNotFoundError:
        raise BadModel(f"{path} is missing: prompts need it; generate_ids works without it") from None
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise BadModel(f"{path} is not a valid SentencePiece model: {error}") from None
    if tokenizer.image_id != image_id:
        ids = f"<image> is token {tokenizer.image_id} in {path} and {image_id} in config.json"
        raise BadModel(f"{ids}; the two files belong to different models")
    return tokenizer
