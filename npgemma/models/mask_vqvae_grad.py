"""The mask auto-encoder read backwards: each function takes what its namesake in `mask_vqvae` took, and dy.

See `gemma_grad` for what `saw` and the results are.
"""

import numpy as np

from npgemma.layers.activations import relu_backward
from npgemma.layers.conv import conv_backward, upsample_backward
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Kept, Tap, at, silent
from npgemma.layers.tree import Gradient
from npgemma.models.mask_vqvae import (
    GRID,
    MaskDecoder,
    MaskEncoder,
    MaskVQVAE,
    ResidualBlock,
    decode_rows,
    encode_rows,
    nearest,
)

# What the backward pass reads.
BLOCK_NEEDS = ("blocks.{i}.first", "blocks.{i}.second", "blocks.{i}.out")
NEEDS = (
    *(f"encoder.{name}" for name in ("down.{i}", *BLOCK_NEEDS)),
    *(f"decoder.{name}" for name in ("first", *BLOCK_NEEDS, "up.{i}")),
)


def residual_block_backward(
    p: ResidualBlock, x: Float[Array, "B C Y X"], saw: Kept, dy: Float[Array, "B C Y X"], tap: Tap = silent
) -> tuple[Float[Array, "B C Y X"], ResidualBlock]:
    """forward: y = x + conv1x1(relu(conv3x3(relu(conv3x3(x)))))."""
    first, second, third = p.convs
    dy = tap("out", dy, "B C Y X")
    dx, third = conv_backward(third, saw["second"], 0, 1, dy)
    dx, second = conv_backward(second, saw["first"], 1, 1, relu_backward(saw["second"], tap("second", dx, "B C Y X")))
    dx, first = conv_backward(first, x, 1, 1, relu_backward(saw["first"], tap("first", dx, "B C Y X")))
    return dy + dx, ResidualBlock((first, second, third))


def residual_blocks_backward(
    blocks: tuple[ResidualBlock, ...],
    x: Float[Array, "B C Y X"],
    saw: Kept,
    dy: Float[Array, "B C Y X"],
    tap: Tap = silent,
) -> tuple[Float[Array, "B C Y X"], tuple[ResidualBlock, ...]]:
    """The blocks from the last to the first, which took x."""
    gradients = list(blocks)
    for i in reversed(range(len(blocks))):
        before, name = saw[f"blocks.{i - 1}.out"] if i else x, f"blocks.{i}"
        dy, gradients[i] = residual_block_backward(blocks[i], before, saw.inside(name), dy, at(tap, name))
    return dy, tuple(gradients)


def decode_rows_backward(
    p: MaskDecoder, rows: Float[Array, "B 16 E"], saw: Kept, dy: Float[Array, "B 64 64"], tap: Tap = silent
) -> tuple[Float[Array, "B 16 E"], MaskDecoder]:
    """The gradients of the rows and of the decoder from that of the masks."""
    x = rows.reshape(len(rows), GRID, GRID, rows.shape[2]).transpose(0, 3, 1, 2)  # B E 4 4
    first, last = p.ends
    outputs = [saw[f"blocks.{len(p.blocks) - 1}.out"], *(saw[f"up.{i}"] for i in range(len(p.up)))]
    dx, last = conv_backward(last, outputs[-1], 0, 1, dy[:, None])
    ups = list(p.up)
    for i in reversed(range(len(ups))):
        dx = relu_backward(outputs[i + 1], tap(f"up.{i}", dx, "B C Y X"))
        dx, ups[i] = upsample_backward(p.up[i], outputs[i], dx)
    dx, blocks = residual_blocks_backward(p.blocks, saw["first"], saw, dx, tap)
    dx, first = conv_backward(first, x, 0, 1, relu_backward(saw["first"], tap("first", dx, "B C Y X")))
    return dx.transpose(0, 2, 3, 1).reshape(rows.shape), MaskDecoder(blocks, tuple(ups), (first, last))


def encode_rows_backward(
    p: MaskEncoder, masks: Float[Array, "B 64 64"], saw: Kept, dy: Float[Array, "B 16 E"], tap: Tap = silent
) -> MaskEncoder:
    """The gradient of the encoder from that of its rows."""
    outputs = [masks[:, None], *(saw[f"down.{i}"] for i in range(len(p.down)))]
    dx = dy.reshape(len(dy), GRID, GRID, dy.shape[2]).transpose(0, 3, 1, 2)
    dx, last = conv_backward(p.last, saw[f"blocks.{len(p.blocks) - 1}.out"], 0, 1, dx)
    dx, blocks = residual_blocks_backward(p.blocks, outputs[-1], saw, dx, tap)
    down = list(p.down)
    for i in reversed(range(len(down))):
        dx = relu_backward(outputs[i + 1], tap(f"down.{i}", dx, "B C Y X"))
        dx, down[i] = conv_backward(p.down[i], outputs[i], 1, 2, dx)
    return MaskEncoder(tuple(down), blocks, last)


def loss_and_gradient(
    p: MaskVQVAE, masks: Float[Array, "B 64 64"], commitment: float = 0.25, tap: Tap = silent
) -> tuple[float, MaskVQVAE]:
    """L = mean (mask - decoded mask)^2 + commitment mean (row - nearest codebook row)^2, and its gradient.

    The decoder reads the codebook rows, and what it gives to them passes straight to the rows of the encoder that they
    stand for. The codebook has no gradient: it follows as running means of the rows that fall to its codes.

    Source: van den Oord et al. 2017, section 3.2.
    """
    saw = Kept(NEEDS, tap)
    rows = encode_rows(p.encoder, masks, at(saw, "encoder"))
    near = p.codebook[nearest(p, rows)].astype(rows.dtype)
    wrong, far = decode_rows(p.decoder, near, at(saw, "decoder")) - masks, rows - near
    loss = float(np.square(wrong).mean()) + commitment * float(np.square(far).mean())
    decoder, encoder = saw.inside("decoder"), saw.inside("encoder")
    drows, ddecoder = decode_rows_backward(p.decoder, near, decoder, wrong * 2 / wrong.size, at(tap, "grad.decoder"))
    drows += far * 2 * commitment / far.size
    dencoder = encode_rows_backward(p.encoder, masks, encoder, drows, at(tap, "grad.encoder"))
    codebook: Gradient = None
    return loss, MaskVQVAE(codebook, ddecoder, dencoder)
