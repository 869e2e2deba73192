"""What files of embeddings need of a DualEncoder: rows of many pictures, and a hash that tells models apart."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial

import numpy as np

from npgemma.api.dual_encoder import DualEncoder, run_pixels
from npgemma.api.encoding import encoded
from npgemma.errors import BadPicture
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import silent
from npgemma.layers.tree import leaves


def digest(model: DualEncoder) -> str:
    """A hash of a model's config, of the shapes of its weights, and of its vectors: norms, biases, the scale.

    Matrices are not read, since that takes long: models that differ in them alone have the same hash. Training changes
    vectors, too.
    """
    found = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    for leaf in leaves(model.weights):
        found.update(f"{leaf.path} {list(leaf.value.shape)}".encode())
        if leaf.value.ndim < 2:
            found.update(np.asarray(leaf.value, "<f4").tobytes())
    return found.hexdigest()


def image_rows(
    model: DualEncoder, names: Sequence[str], batch_size: int
) -> Iterator[tuple[list[str], Float[Array, "B E"], list[BadPicture]]]:
    """Batch by batch: the pictures that can be read, their rows, and the errors of the others.

    A picture is no larger in memory than the model reads it once the next is opened. BadModel and TooLittleMemory as
    for `DualEncoder.encode_images`.
    """
    for start in range(0, len(names), batch_size):
        read: list[str] = []
        errors: list[BadPicture] = []
        pixels = []
        for name in names[start : start + batch_size]:
            try:
                pixels += [*model.processor(name)]
                read.append(name)
            except BadPicture as error:
                errors.append(error)
        side = model.config.vision.image_size
        stacked = np.stack(pixels) if pixels else np.empty((0, 3, side, side), np.float32)
        run, width = partial(run_pixels, model), model.config.embedding_size
        yield read, encoded(model, run, stacked, width, batch_size, silent), errors
