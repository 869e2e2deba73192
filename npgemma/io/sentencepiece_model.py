"""Read and write SentencePiece models: a protocol buffer of pieces, each with a text, a score and a type.

Source: src/sentencepiece_model.proto of google/sentencepiece.
"""

import struct
from collections.abc import Iterable, Iterator

import sentencepiece

from npgemma.io.foreign import parsing

# Types of piece: text never produces a control piece, and never splits a user-defined one.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
BPE = 2
VARINT, BYTES, FLOAT = 0, 2, 5  # wire types

PIECE = bytes([1 << 3 | BYTES])
LARGEST, MOST_PIECES = 32_000_000, 600_000  # Gemma 3 has 4,700,000 bytes and 262,144 pieces

Piece = tuple[str, float, int]  # text, score, type


SMALL = tuple(bytes([number]) for number in range(128))


def varint(number: int) -> bytes:
    """A whole number in base 128, the lowest digit first; each byte but the last has its top bit set."""
    return SMALL[number] if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def number(field: int, value: int) -> bytes:
    """A field with a whole number or a flag."""
    return varint(field << 3 | VARINT) + varint(value)


def message(field: int, content: bytes) -> bytes:
    """A field with text or a message in it."""
    return varint(field << 3 | BYTES) + varint(len(content)) + content


def serialised(pieces: Iterable[Piece]) -> bytes:
    """The pieces of a model: its repeated field 1, {1: text, 2: score, 3: type}."""
    tag, score_tag = varint(1 << 3 | BYTES), varint(2 << 3 | FLOAT)
    types = {kind: number(3, kind) for kind in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE)}
    written = []
    for text, score, kind in pieces:  # a quarter of a million times, so without `message`
        content = text.encode()
        body = tag + varint(len(content)) + content + score_tag + struct.pack("<f", score) + types[kind]
        written += [tag, varint(len(body)), body]
    return b"".join(written)


def append_pieces(model: bytes, pieces: Iterable[str], kind: int = USER_DEFINED) -> bytes:
    """A serialised model with `pieces` appended, each with score 0.

    Concatenated messages merge into one and their repeated fields append, so appending bytes appends pieces.
    """
    return model + serialised((text, 0.0, kind) for text in pieces)


def bpe_model(pieces: Iterable[Piece]) -> bytes:
    """A serialised model as Gemma's: BPE with bytes for what has no piece, and a space for nothing but a space."""
    trainer = number(3, BPE) + number(35, True)  # model_type, byte_fallback
    normalizer = message(1, b"identity") + number(3, False) + number(4, False) + number(5, True)
    return serialised(pieces) + message(2, trainer) + message(3, normalizer)


def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece's own reader of a model. Damaged if it is, or if it has more pieces than a tokenizer needs."""
    with parsing():
        if not model:
            raise ValueError("the file is empty")
        if len(model) > LARGEST or model.count(PIECE) > 3 * MOST_PIECES:  # the tag of a piece is also that of its text
            raise ValueError(f"it has more than {LARGEST:,} bytes or {MOST_PIECES:,} pieces")
        return sentencepiece.SentencePieceProcessor(model_proto=model)


def read_pieces(model: bytes) -> list[tuple[str, int]]:
    """Text and type of every piece of a model as SentencePiece serialises it. Damaged if one is not text."""
    with parsing():
        return list(pieces_of(model))


def pieces_of(model: bytes) -> Iterator[tuple[str, int]]:
    """As `read_pieces`. Raises anything for what SentencePiece did not write."""
    at = 0
    while at < len(model) and model[at] == 1 << 3 | BYTES:  # the pieces come first
        size, at = read_varint(model, at + 1)
        end = at + size
        length, start = read_varint(model, at + 1)  # the text comes first, the type last
        kind = model[end - 1] if model[end - 2] == 3 << 3 | VARINT else NORMAL
        yield model[start : start + length].decode(), kind
        at = end


def read_varint(content: bytes, at: int) -> tuple[int, int]:
    """The whole number at a place, and the place after it."""
    first = content[at]
    if first < 128:
        return first, at + 1
    rest, end = read_varint(content, at + 1)
    return first & 127 | rest << 7, end
