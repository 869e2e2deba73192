"""Texts -> rows of ids of one length, as text towers read them: truncated with the end token kept, or padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from npgemma.layers.shapes import Array, Int


class TextTokenizer(Protocol):
    """What a text tower needs. `encode` gives every id of a text with the special tokens around it, the end last."""

    end_id: int
    pad_id: int

    def __len__(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class TextRows:
    """The ids of texts, and how many tokens each text has, special tokens included, before it is truncated."""

    ids: Int[Array, "B T"]
    lengths: tuple[int, ...]

    @property
    def truncated(self) -> list[int]:
        """The places of the texts that are longer than a row."""
        return [i for i, length in enumerate(self.lengths) if length > self.ids.shape[1]]


def text_rows(tokenizer: TextTokenizer, texts: Sequence[str], context: int) -> TextRows:
    """A row of `context` ids for each text. One that is longer keeps its first ids, and the end token is the last.

    BadPrompt for text that is not valid Unicode.
    """
    encoded = [tokenizer.encode(text) for text in texts]
    rows = np.full((len(encoded), context), tokenizer.pad_id, np.int64)
    for row, ids in zip(rows, encoded, strict=True):
        row[: len(ids)] = ids[:context]
        if len(ids) > context:
            row[-1] = tokenizer.end_id
    return TextRows(rows, tuple(map(len, encoded)))
