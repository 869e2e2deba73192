"""Pictures read once: their pixel values, or what frozen towers make of these, never change while a model learns."""

import os
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from npgemma.errors import BadData, why
from npgemma.io.picture import Picture
from npgemma.layers.shapes import Array, Float
from npgemma.training.encoding import Encoded, Encoder


@dataclass
class KeepingEncoder:
    """An encoder whose `pixel_values` are the features of pictures: pixels, or what `features` makes of them.

    Each picture goes through the towers alone, so that its features are the same bits in every batch. Those of `kept`
    pictures, which are files, are computed once and wait in `store`, a row for each.
    """

    encoder: Encoder
    features: Callable[[Float[Array, "1 3 Y X"]], Float[Array, "*R"]]
    store: Float[Array, "*R"]
    kept: dict[Path, int]
    known: set[int] = field(default_factory=set)

    @property
    def most_tokens(self) -> int:
        return self.encoder.most_tokens

    @property
    def reads_pictures(self) -> bool:
        return self.encoder.reads_pictures

    @property
    def max_pixels(self) -> int:
        return self.encoder.max_pixels

    @property
    def forbidden(self) -> Collection[str]:
        return self.encoder.forbidden

    def encode(self, prefix: str, suffix: str, pictures: int) -> Encoded:
        return self.encoder.encode(prefix, suffix, pictures)

    def pixel_values(self, pictures: list[Picture]) -> Float[Array, "*R"]:
        """The features. BadPicture for a picture that cannot be read."""
        rows = np.empty((len(pictures), *self.store.shape[1:]), self.store.dtype)
        for row, picture in zip(rows, pictures, strict=True):
            row[...] = self.features_of(picture)
        return rows

    def features_of(self, picture: Picture) -> Float[Array, "*R"]:
        place = self.kept.get(picture) if isinstance(picture, Path) else None
        if place is None:
            return self.features(self.encoder.pixel_values([picture]))[0]
        if place not in self.known:
            self.store[place] = self.features(self.encoder.pixel_values([picture]))[0]
            self.known.add(place)
        return self.store[place]


def scratch(folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """An array in a nameless file in a folder, so that it needs no memory. BadData if the disk is too small."""
    size = int(np.prod(shape)) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise BadData(f"{folder} has no room for {size / 1e9:.2f} GB of picture features: {why(error)}") from None
