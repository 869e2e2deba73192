"""The Vision Transformer's encoder: patches of a picture, and the blocks that SigLIP's vision tower is made of.

    block:  x += attention(norm x)
            x += mlp(norm x)

Source: ViT (Dosovitskiy et al. 2021), section 3.1; the order of operations of big_vision's models/vit.py.
"""

from dataclasses import dataclass

import numpy as np

from npgemma.layers.activations import gelu
from npgemma.layers.attention import attend
from npgemma.layers.linear import linear, project, unproject
from npgemma.layers.norms import LayerNorm, layer_norm
from npgemma.layers.shapes import Array, Float, Weight
from npgemma.layers.taps import Tap, at, silent


def patches(pixel_values: Float[Array, "B C Y X"], size: int) -> Float[Array, "B P I"]:
    """Each picture cut into squares of `size` x `size` pixels, row by row; I = C size size.

    Pixels that do not fill a last patch are left out, as in a 'valid' convolution.
    """
    images, channels, height, width = pixel_values.shape
    rows, columns = height // size, width // size
    cut = pixel_values[:, :, : rows * size, : columns * size].reshape(images, channels, rows, size, columns, size)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(images, rows * columns, channels * size * size)


@dataclass(frozen=True)
class Attention:
    q: Weight[Array, "N H D"]
    q_bias: Float[Array, "N H"]
    k: Weight[Array, "N H D"]
    k_bias: Float[Array, "N H"]
    v: Weight[Array, "N H D"]
    v_bias: Float[Array, "N H"]
    o: Weight[Array, "D N H"]
    o_bias: Float[Array, "D"]


def attention(p: Attention, x: Float[Array, "B P D"], tap: Tap = silent) -> Float[Array, "B P D"]:
    """Every patch of a picture attends to every patch of the same picture."""
    q = tap("q", project(x, p.q, p.q_bias), "B P N H")
    k = tap("k", project(x, p.k, p.k_bias), "B P N H")
    v = tap("v", project(x, p.v, p.v_bias), "B P N H")
    everything = np.ones((x.shape[1], x.shape[1]), bool)  # P P
    heads = np.empty_like(q)
    for i in range(len(x)):
        heads[i] = attend(q[i], k[i], v[i], everything, at(tap, f"pictures.{i}"))
    heads = tap("heads", heads, "B P N H")
    return tap("out", unproject(heads, p.o, p.o_bias), "B P D")


@dataclass(frozen=True)
class MLP:
    fc1: Weight[Array, "F D"]
    fc1_bias: Float[Array, "F"]
    fc2: Weight[Array, "D F"]
    fc2_bias: Float[Array, "D"]


def mlp(p: MLP, x: Float[Array, "B P D"], tap: Tap = silent) -> Float[Array, "B P D"]:
    """y = fc2(gelu(fc1(x)))."""
    hidden = tap("fc1", linear(x, p.fc1, p.fc1_bias), "B P F")
    hidden = tap("hidden", gelu(hidden), "B P F")
    return tap("out", linear(hidden, p.fc2, p.fc2_bias), "B P D")


@dataclass(frozen=True)
class Block:
    attn_norm: LayerNorm
    attn: Attention
    mlp_norm: LayerNorm
    mlp: MLP


def block(p: Block, x: Float[Array, "B P D"], tap: Tap = silent) -> Float[Array, "B P D"]:
    """x += attention(norm x); x += mlp(norm x)."""
    h = tap("attn_norm", layer_norm(p.attn_norm, x), "B P D")
    x = tap("mid", x + attention(p.attn, h, at(tap, "attn")), "B P D")
    h = tap("mlp_norm", layer_norm(p.mlp_norm, x), "B P D")
    return tap("out", x + mlp(p.mlp, h, at(tap, "mlp")), "B P D")


def encoder(blocks: tuple[Block, ...], x: Float[Array, "B P D"], tap: Tap = silent) -> Float[Array, "B P D"]:
    """The blocks in turn."""
    for i, weights in enumerate(blocks):
        x = block(weights, x, at(tap, f"layers.{i}"))
    return x
