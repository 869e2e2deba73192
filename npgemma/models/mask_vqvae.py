"""The mask auto-encoder behind PaliGemma's 128 segmentation codes: 16 codes <-> a mask of 64 x 64.

    codes [16] --> codebook rows [4 4 E] --> conv --> 2 residual blocks --> 4 x up by two --> conv --> mask [64 64]
    mask [64 64] --> 4 x down by two --> 2 residual blocks --> conv --> nearest codebook rows --> codes [16]

Codes run along the rows of the 4 x 4 grid; mask values are about -1 (outside) .. 1 (inside). Sources: Ning et al. 2023
(arXiv:2301.02229), section 3; google-research/big_vision, pp/proj/paligemma/segmentation.py. Weights are stored as
torch.nn.Conv2d stores them.
"""

from dataclasses import dataclass

import numpy as np

from npgemma.layers.activations import relu
from npgemma.layers.conv import Conv, ConvTranspose, conv, upsample
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, at, silent

GRID = 4  # codes on a side
SIDE = 64  # pixels on a side of a mask


@dataclass(frozen=True)
class ResidualBlock:
    convs: tuple[Conv, ...]  # 3 x 3, 3 x 3, 1 x 1


def residual_block(p: ResidualBlock, x: Float[Array, "B C Y X"], tap: Tap = silent) -> Float[Array, "B C Y X"]:
    """x + conv1x1(relu(conv3x3(relu(conv3x3(x)))))."""
    first, second, third = p.convs
    y = tap("first", relu(conv(first, x, padding=1)), "B C Y X")
    y = tap("second", relu(conv(second, y, padding=1)), "B C Y X")
    return tap("out", x + conv(third, y, padding=0), "B C Y X")


@dataclass(frozen=True)
class MaskDecoder:
    blocks: tuple[ResidualBlock, ...]
    up: tuple[ConvTranspose, ...]
    ends: tuple[Conv, ...]  # 1 x 1, the first layer and the last


@dataclass(frozen=True)
class MaskEncoder:
    down: tuple[Conv, ...]
    blocks: tuple[ResidualBlock, ...]
    last: Conv


@dataclass(frozen=True)
class MaskVQVAE:
    codebook: Float[Array, "128 E"]
    decoder: MaskDecoder
    encoder: MaskEncoder


def decode_mask(p: MaskVQVAE, codes: Int[Array, "B 16"]) -> Float[Array, "B 64 64"]:
    """The masks of rows of 16 codes. Raises IndexError for a code without a row in the codebook."""
    if codes.size and not 0 <= codes.min() <= codes.max() < len(p.codebook):
        raise IndexError(f"mask codes run from {codes.min()} to {codes.max()}, the codebook has {len(p.codebook)} rows")
    return decode_rows(p.decoder, p.codebook[codes])


def decode_rows(p: MaskDecoder, rows: Float[Array, "B 16 E"], tap: Tap = silent) -> Float[Array, "B 64 64"]:
    """The masks of rows of the codebook."""
    x = rows.reshape(len(rows), GRID, GRID, rows.shape[2]).transpose(0, 3, 1, 2)  # B E 4 4
    first, last = p.ends
    x = tap("first", relu(conv(first, x, padding=0)), "B C Y X")
    for i, block in enumerate(p.blocks):
        x = residual_block(block, x, at(tap, f"blocks.{i}"))
    for i, up in enumerate(p.up):
        x = tap(f"up.{i}", relu(upsample(up, x)), "B C Y X")
    return conv(last, x, padding=0)[:, 0]


def encode_mask(p: MaskVQVAE, masks: Float[Array, "B 64 64"]) -> Int[Array, "B 16"]:
    """The 16 codes of masks in -1 .. 1: for each of their patches the nearest codebook row, the first of equals.

    ValueError for masks of another shape or range.
    """
    if masks.shape[1:] != (SIDE, SIDE) or masks.dtype.kind != "f" or not (np.abs(masks) <= 1).all():
        found = f"{masks.dtype} {list(masks.shape)}"
        raise ValueError(
            f"masks must be floats [B {SIDE} {SIDE}] in -1 .. 1, not {found}; encode_object takes any [H W]"
        )
    return nearest(p, encode_rows(p.encoder, masks))


def encode_rows(p: MaskEncoder, masks: Float[Array, "B 64 64"], tap: Tap = silent) -> Float[Array, "B 16 E"]:
    """A row for each patch of a mask, near one of the codebook."""
    x = masks[:, None]
    for i, down in enumerate(p.down):
        x = tap(f"down.{i}", relu(conv(down, x, padding=1, stride=2)), "B C Y X")
    for i, block in enumerate(p.blocks):
        x = residual_block(block, x, at(tap, f"blocks.{i}"))
    x = conv(p.last, x, padding=0)
    return x.transpose(0, 2, 3, 1).reshape(len(masks), GRID * GRID, x.shape[1])


def nearest(p: MaskVQVAE, rows: Float[Array, "B 16 E"]) -> Int[Array, "B 16"]:
    """The codebook row nearest to each of the rows, the first of equals."""
    return np.square(rows[:, :, None] - p.codebook).sum(-1).argmin(-1)
