"""Mask auto-encoders with random weights: the layout of big_vision's file in small, sizes pairwise distinct."""

from pathlib import Path

import numpy as np

from npgemma.checkpoints.mask_vqvae import CODEBOOK, mask_codec
from npgemma.models.mask_vqvae import MaskVQVAE

WIDTH = 13  # of a codebook row


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """By the file's names; scaled by fan-in, so that activations stay near one."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {CODEBOOK: rng.standard_normal((128, WIDTH))}

    def layer(name: str, *shape: int, out: int) -> None:
        tensors[f"{name}.weight"] = rng.standard_normal(shape) * (np.prod(shape) / out) ** -0.5 * 1.5
        tensors[f"{name}.bias"] = rng.standard_normal(out) * 0.1

    def residual(name: str, width: int) -> None:
        for i, kernel in ((0, 3), (2, 3), (4, 1)):
            layer(f"{name}.net.{i}", width, width, kernel, kernel, out=width)

    layer("decoder.0", 16, WIDTH, 1, 1, out=16)
    for i, (ins, outs) in zip((4, 6, 8, 10), ((16, 15), (15, 9), (9, 7), (7, 5)), strict=True):
        layer(f"decoder.{i}", ins, outs, 4, 4, out=outs)
    layer("decoder.12", 1, 5, 1, 1, out=1)
    for i, (ins, outs) in zip((0, 2, 4, 6), ((1, 6), (6, 8), (8, 10), (10, 11)), strict=True):
        layer(f"encoder.{i}", outs, ins, 4, 4, out=outs)
    layer("encoder.10", WIDTH, 11, 1, 1, out=WIDTH)
    for part, numbers, width in (("decoder", (2, 3), 16), ("encoder", (8, 9), 11)):
        for i in numbers:
            residual(f"{part}.{i}", width)
    return {name: x.astype(np.float32) for name, x in tensors.items()}


def random_codec(seed: int = 0) -> MaskVQVAE:
    return mask_codec(random_tensors(seed), Path("random"))
