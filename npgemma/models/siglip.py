"""SigLIP: a picture and a text as rows of the same space, and how well they match.

    pixels --> patches --> linear --> + position --> L x block --> norm --> pooling head --> length 1 --.
                                                                                                       |-- scores
    tokens --> table --> + position --> L x block --> norm --> last row --> linear --> length 1 -------'

PaliGemma reads the rows of the vision tower, one for each patch, and lacks everything behind its norm.

Source: SigLIP (Zhai et al. 2023); big_vision's models/vit.py and models/proj/image_text/text_transformer.py.
"""

from dataclasses import dataclass, replace

import numpy as np

from npgemma.layers import losses
from npgemma.layers.activations import gelu, sigmoid
from npgemma.layers.linear import linear
from npgemma.layers.norms import LayerNorm, layer_norm, unit
from npgemma.layers.resize import resize_positions
from npgemma.layers.shapes import Array, Float, Int, Weight
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.vit import (
    MLP,
    Attention,
    Block,
    TokenEmbedding,
    attention,
    encoder,
    every_row,
    mlp,
    patches,
    sequences,
    token_embedding,
)


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
    x = encoder(p.blocks, x, every_row(x.shape[1]), gelu, tap)
    return tap("norm", layer_norm(p.norm, x), "B P D")


@dataclass(frozen=True)
class PoolingHead:
    """Multi-head attention pooling: `probe` is a learned row that asks the patches for what matters."""

    probe: Float[Array, "D"]
    attn: Attention
    norm: LayerNorm
    mlp: MLP


def pooling_head(p: PoolingHead, x: Float[Array, "B P D"], tap: Tap = silent) -> Float[Array, "B D"]:
    """y = r + mlp(norm r), where r is the attention of the probe to all rows of a picture."""
    probe = np.broadcast_to(p.probe.astype(x.dtype), (len(x), 1, x.shape[-1]))  # B Q D, Q = 1
    r = attention(p.attn, probe, x, np.ones((1, x.shape[1]), bool), at(tap, "attn", T="Q"))
    h = tap("norm", layer_norm(p.norm, r), "B Q D")
    return tap("out", r + mlp(p.mlp, h, gelu, at(tap, "mlp", P="Q")), "B Q D")[:, 0]


@dataclass(frozen=True)
class Projection:
    weight: Weight[Array, "E D"]
    bias: Float[Array, "E"]


@dataclass(frozen=True)
class TextTower:
    embedding: TokenEmbedding
    blocks: tuple[Block, ...]
    norm: LayerNorm
    head: Projection


def text_tower(p: TextTower, input_ids: Int[Array, "U T"], dtype: np.dtype, tap: Tap = silent) -> Float[Array, "U E"]:
    """One row for each text, from its last row: every row sees all others, those of padding too.

    The texts must be padded to the length that the model was trained with; another length gives another result.
    """
    x = tap("embedding", token_embedding(p.embedding, input_ids, dtype), "U T D")
    x = encoder(p.blocks, x, every_row(x.shape[1]), gelu, sequences(tap, "texts", B="U", P="T"))
    x = tap("norm", layer_norm(p.norm, x), "U T D")
    x = tap("last", x[:, -1], "U D")
    return tap("head", linear(x, p.head.weight, p.head.bias), "U E")


@dataclass(frozen=True)
class Siglip:
    """`log_scale` and `bias` are what the training learned for the scores."""

    vision: VisionTower
    vision_head: PoolingHead
    text: TextTower
    log_scale: Float[Array, ""]
    bias: Float[Array, ""]


def resized(p: Siglip, rows: int, columns: int) -> Siglip:
    """The same model for pictures of rows x columns patches; it was not trained with them."""
    embedding = p.vision.embedding
    embedding = replace(embedding, position=resize_positions(embedding.position, rows, columns))
    return replace(p, vision=replace(p.vision, embedding=embedding))


def encode_images(p: Siglip, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent) -> Float[Array, "B E"]:
    """A row of length 1 for each picture."""
    pixel_values = tap("pixel_values", pixel_values, "B C Y X")
    x = vision_tower(p.vision, pixel_values, at(tap, "vision"))
    x = pooling_head(p.vision_head, x, at(tap, "vision.head"))
    return tap("image_embeds", unit(x, at(tap, "image_embeds")), "B E")


def encode_texts(p: Siglip, input_ids: Int[Array, "U T"], dtype: np.dtype, tap: Tap = silent) -> Float[Array, "U E"]:
    """A row of length 1 for each text, as `dtype`."""
    input_ids = tap("input_ids", input_ids, "U T")
    x = text_tower(p.text, input_ids, dtype, at(tap, "text"))
    return tap("text_embeds", unit(x, at(tap, "text_embeds", B="U")), "U E")


def scale(p: Siglip) -> float:
    """e^log_scale; infinite where it is too large for float64."""
    return float(np.exp(np.float64(p.log_scale)))


def logits(
    p: Siglip, images: Float[Array, "B E"], texts: Float[Array, "U E"], tap: Tap = silent
) -> Float[Array, "B U"]:
    """l = e^log_scale images texts^T + bias; see `probabilities`."""
    cosine = tap("cosine", images @ texts.T, "B U")
    scaled = tap("scaled", cosine * tap("scale", np.asarray(scale(p), cosine.dtype), ""), "B U")
    return tap("logits_per_image", scaled + float(p.bias), "B U")


def probabilities(logits: Float[Array, "B U"], tap: Tap = silent) -> Float[Array, "B U"]:
    """The sigmoid of each score: whether picture and text match, whatever the other texts are."""
    return tap("probabilities", sigmoid(logits), "B U")


def loss(p: Siglip, images: Float[Array, "B E"], texts: Float[Array, "B E"], tap: Tap = silent) -> float:
    """The sigmoid loss of pictures and texts, of which those in the same place match."""
    found = losses.sigmoid_loss(images, texts, scale(p), float(p.bias))
    return float(tap("loss", np.asarray(found, images.dtype), ""))
