"""Pictures to embed, and what a file of embeddings holds."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, count: int) -> list[str]:
    """Pictures of noise, whose sizes differ; returns their paths, sorted."""
    rng = np.random.default_rng(1)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (9 + i % 5, 12 - i % 7, 3), np.uint8)).save(path)
    return list(map(str, paths))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The rows of the pictures and of the texts, by name."""
    with np.load(path, allow_pickle=False) as file:
        images = dict(zip(file["image_names"].tolist(), file["images"], strict=True))
        return images, dict(zip(file["text_names"].tolist(), file["texts"], strict=True))
