"""SigLIP's vision tower: a Vision Transformer that turns a picture into one row for each patch.

    pixels --> patches --> linear --> + position --> L x block --> norm

Source: SigLIP (Zhai et al. 2023); the sizes of big_vision's models/vit.py. The tower has no class token; in PaliGemma
it has no pooling head either.
"""

from dataclasses import dataclass

from npgemma.layers.linear import linear
from npgemma.layers.norms import LayerNorm, layer_norm
from npgemma.layers.shapes import Array, Float, Weight
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.vit import Block, encoder, patches


@dataclass(frozen=True)
class PatchEmbedding:
    weight: Weight[Array, "D C h w"]
    bias: Float[Array, "D"]
    position: Float[Array, "P D"]


def patch_embedding(
    p: PatchEmbedding, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent
) -> Float[Array, "B P D"]:
    """x[b p] = W patch[b p] + bias + position[p].

    A convolution whose stride is its kernel size is a linear layer on patches that do not overlap.
    """
    width, _, size, _ = p.weight.shape
    x = linear(patches(pixel_values, size), p.weight.reshape(width, -1), p.bias)
    return tap("patches", x, "B P D") + p.position


@dataclass(frozen=True)
class VisionTower:
    embedding: PatchEmbedding
    blocks: tuple[Block, ...]
    norm: LayerNorm


def vision_tower(p: VisionTower, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent) -> Float[Array, "B P D"]:
    """One row for each patch of each picture: pixel values in -1 .. 1, Y = X, P = (Y // patch size)^2."""
    x = tap("embedding", patch_embedding(p.embedding, pixel_values, at(tap, "embedding")), "B P D")
    x = encoder(p.blocks, x, tap)
    return tap("norm", layer_norm(p.norm, x), "B P D")
