"""Small pictures for tests, their files and their pixels."""

import io

import numpy as np
from PIL import Image


def noise(*shape: int) -> np.ndarray:
    """Random bytes, the same ones for the same shape."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


NOISE = Image.fromarray(noise(5, 7, 3))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The content of a file in the format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an image, whose mode must be RGB."""
    assert image.mode == "RGB"
    return np.asarray(image)
