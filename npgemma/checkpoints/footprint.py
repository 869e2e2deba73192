"""How much memory a run will need, computed from the config alone, before any of it is allocated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from npgemma.io.system_memory import size

# Python, NumPy and Pillow, the tokenizer, and the blocks of weights and scores that are worked on.
BASE = 150_000_000


class Run(NamedTuple):
    """What a run does: `samples` answers of `new_tokens` to prompts of so many tokens, about so many pictures.

    `weights` are the bytes of the weights, `itemsize` the bytes of a number that is computed with, and `logit_rows` how
    many rows of logits are held at once, if that is more than one a sample.
    """

    weights: int
    itemsize: int
    pictures: int
    prompts: Sequence[int]
    new_tokens: int = 1
    samples: int = 1
    logit_rows: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes of the weights (as the file has them where they are mapped), of all caches, and of all activations."""

    weights: int
    caches: int
    activations: int

    @property
    def total(self) -> int:
        return BASE + self.weights + self.caches + self.activations

    def __str__(self) -> str:
        parts = ((self.weights, "weights"), (self.caches, "caches"), (self.activations, "activations"))
        return f"{size(self.total)} ({', '.join(f'{size(number)} of {name}' for number, name in parts)})"
