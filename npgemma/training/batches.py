"""Which examples a step learns from, and how the model reads them.

The order of examples is a function of (seed, step): there is no state to save, and a run that is resumed goes on with
the batch that it would have had.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from npgemma.io.picture import Picture
from npgemma.layers.shapes import Array, Float, Int
from npgemma.models.paligemma_grad import Labelled
from npgemma.training.draws import permutation
from npgemma.training.encoding import Encoded, Encoder
from npgemma.training.examples import Example

Mean: TypeAlias = Literal["token", "example"]


class Batch(NamedTuple):
    """What a step learns from: each distinct picture once, and the sequences that use them.

    Pictures are pixel values [B 3 Y X], or features [B P D] from an encoder that makes these; see `features`.
    """

    pixel_values: Float[Array, "*R"]
    prompts: tuple[Labelled, ...]


class Place(NamedTuple):
    """The index of an example, and its number in the endless sequence of examples that a run sees."""

    example: int
    number: int


def places(seed: int, step: int, size: int, batch: int) -> list[Place]:
    """The `batch` examples of a step, of data of so many examples: every epoch has each of them once, in a new order.

    Steps count from 0. A batch at the end of an epoch is filled up from the next one.
    """
    numbers = range(step * batch, (step + 1) * batch)
    return [Place(int(order(seed, number // size, size)[number % size]), number) for number in numbers]


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, size: int) -> Int[Array, "size"]:
    """The order of the examples in an epoch."""
    return permutation(size, "order", seed, epoch)


def steps_of(epochs: float, size: int, batch: int) -> int:
    """How many steps see every example `epochs` times."""
    return -int(-epochs * size // batch)


def batch_of(examples: Sequence[Example], encoder: Encoder, mean: Mean = "token") -> Batch:
    """The examples as a model is trained on them.

    With the mean by token, every learned token of the batch has the same weight; by example, every example, and within
    it every token. BadPicture for a picture that cannot be read.
    """
    rows: dict[Path | int, int] = {}
    pictures: list[Picture] = []
    for picture in chain.from_iterable(each.images for each in examples):
        if identity(picture) not in rows:
            rows[identity(picture)] = len(pictures)
            pictures.append(picture)
    encoded = [encoder.encode(each.prefix, each.suffix, len(each.images)) for each in examples]
    prompts = [
        Labelled(read.input_ids, read.token_type_ids, tuple(rows[identity(each)] for each in example.images), weights)
        for example, read, weights in zip(examples, encoded, WEIGHTS[mean](encoded), strict=True)
    ]
    return Batch(encoder.pixel_values(pictures), tuple(prompts))


def identity(picture: Picture) -> Path | int:
    """What is equal for equal paths, and for the same image."""
    return Path(picture) if isinstance(picture, str | Path) else id(picture)


def parts_of(batch: Batch, most: int) -> list[Batch]:
    """The batch in parts of at most so many sequences, whose losses and gradients add up to those of the batch."""
    parts = []
    for start in range(0, len(batch.prompts), most):
        prompts = batch.prompts[start : start + most]
        rows = sorted({row for prompt in prompts for row in prompt.pictures})
        own = [each._replace(pictures=tuple(rows.index(row) for row in each.pictures)) for each in prompts]
        parts.append(Batch(batch.pixel_values[rows], tuple(own)))
    return parts


def by_token(encoded: Sequence[Encoded]) -> list[Float[Array, "T"]]:
    """1 / (learned tokens of all sequences) for each learned token: the mean of transformers."""
    total = sum(len(each.input_ids) - each.learned_from for each in encoded)
    return [weighted(each, 1 / total) for each in encoded]


def by_example(encoded: Sequence[Encoded]) -> list[Float[Array, "T"]]:
    """1 / (sequences x learned tokens of this one) for each learned token: the mean of big_vision."""
    return [weighted(each, 1 / len(encoded) / (len(each.input_ids) - each.learned_from)) for each in encoded]


def weighted(encoded: Encoded, weight: float) -> Float[Array, "T"]:
    """The weight for each learned token, and 0 for the others."""
    weights = np.zeros(len(encoded.input_ids))
    weights[encoded.learned_from :] = weight
    return weights


WEIGHTS: dict[Mean, Callable[[Sequence[Encoded]], list[Array]]] = {"token": by_token, "example": by_example}
