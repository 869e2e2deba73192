"""SigLIP's vision tower: a Vision Transformer that turns a picture into one row a patch.

    pixels --> patches --> + position --> L x block --> norm          block:  x += attention(norm x)
                                                                              x += mlp(norm x)

Sources: SigLIP (Zhai et al. 2023); ViT (Dosovitskiy et al. 2021), section 3.1; the sizes and the order of operations of
big_vision's models/vit.py. In PaliGemma there is neither a class token nor a pooling head.
"""

from dataclasses import dataclass

import numpy as np

from npgemma.layers.matmul import linear, project, unproject
from npgemma.layers.ops import LayerNorm, attend, gelu, layer_norm
from npgemma.layers.shapes import Array, Float, Weight
from npgemma.layers.taps import Tap, at, silent


@dataclass(frozen=True)
class PatchEmbedding:
    weight: Weight[Array, "D C h w"]
    bias: Float[Array, "D"]
    position: Float[Array, "P D"]


def patch_embedding(
    p: PatchEmbedding, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent
) -> Float[Array, "B P D"]:
    """x[b p] = W patch[b p] + bias + position[p].

    A convolution whose stride is its kernel size is a linear layer on patches cut out side by side: no two share a
    pixel. Patches run along the rows of the picture; pixels that do not fill a last patch are left out, as a 'valid'
    convolution does.
    """
    width, channels, size, _ = p.weight.shape
    images, _, side, _ = pixel_values.shape
    grid = side // size
    cut = pixel_values[:, :, : grid * size, : grid * size].reshape(images, channels, grid, size, grid, size)
    patches = cut.transpose(0, 2, 4, 1, 3, 5).reshape(images, grid * grid, channels * size * size)  # B P Chw
    return tap("patches", linear(patches, p.weight.reshape(width, -1), p.bias)) + p.position


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
    """Every patch of a picture looks at every patch of the same picture."""
    q = tap("q", project(x, p.q, p.q_bias))
    k = tap("k", project(x, p.k, p.k_bias))
    v = tap("v", project(x, p.v, p.v_bias))
    everything = np.ones((x.shape[1], x.shape[1]), bool)
    heads = np.empty_like(q)
    for i in range(len(x)):
        heads[i] = attend(q[i], k[i], v[i], everything, at(tap, f"pictures.{i}"))
    return tap("out", unproject(tap("heads", heads), p.o, p.o_bias))


@dataclass(frozen=True)
class MLP:
    fc1: Weight[Array, "F D"]
    fc1_bias: Float[Array, "F"]
    fc2: Weight[Array, "D F"]
    fc2_bias: Float[Array, "D"]


def mlp(p: MLP, x: Float[Array, "B P D"], tap: Tap = silent) -> Float[Array, "B P D"]:
    """y = fc2(gelu(fc1(x)))."""
    hidden = tap("hidden", gelu(tap("fc1", linear(x, p.fc1, p.fc1_bias))))
    return tap("out", linear(hidden, p.fc2, p.fc2_bias))


@dataclass(frozen=True)
class Block:
    attn_norm: LayerNorm
    attn: Attention
    mlp_norm: LayerNorm
    mlp: MLP


def block(p: Block, x: Float[Array, "B P D"], tap: Tap = silent) -> Float[Array, "B P D"]:
    """x += attention(norm x); x += mlp(norm x)."""
    h = tap("attn_norm", layer_norm(p.attn_norm, x))
    x = tap("mid", x + attention(p.attn, h, at(tap, "attn")))
    h = tap("mlp_norm", layer_norm(p.mlp_norm, x))
    return tap("out", x + mlp(p.mlp, h, at(tap, "mlp")))


@dataclass(frozen=True)
class VisionTower:
    embedding: PatchEmbedding
    blocks: tuple[Block, ...]
    norm: LayerNorm


def vision_tower(p: VisionTower, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent) -> Float[Array, "B P D"]:
    """One row a patch, of each picture: pixel values in -1 .. 1, Y = X, P = (Y // patch size)^2."""
    x = tap("embedding", patch_embedding(p.embedding, pixel_values, at(tap, "embedding")))
    for i, weights in enumerate(p.blocks):
        x = block(weights, x, at(tap, f"layers.{i}"))
    return tap("norm", layer_norm(p.norm, x))
