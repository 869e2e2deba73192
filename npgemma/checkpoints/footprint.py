"""How much memory a run needs, computed from the config before any of it is allocated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from npgemma.io.system_memory import size

# Python, NumPy and Pillow, the tokenizer, and the blocks of weights and scores in use at one time.
BASE = 150_000_000


class Run(NamedTuple):
    """What a run computes: `samples` answers of up to `new_tokens` tokens to each prompt.

    `weights` is the number of bytes of the weights, `itemsize` that of one number of an activation, `prompts` the
    number of tokens of each prompt, and `logit_rows` how many rows of logits are held at a time, if more than one per
    answer.
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
    """The bytes of the weights (as stored where they are mapped), of all caches, and of the activations."""

    weights: int
    caches: int
    activations: int

    @property
    def total(self) -> int:
        return BASE + self.weights + self.caches + self.activations

    def __str__(self) -> str:
        parts = ((self.weights, "weights"), (self.caches, "caches"), (self.activations, "activations"))
        return f"{size(self.total)} ({', '.join(f'{size(number)} of {name}' for number, name in parts)})"
