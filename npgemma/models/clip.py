"""CLIP: a picture and a text as rows of the same space, trained so that each text finds its picture among many.

    pixels --> patches --> linear --> class token first --> + position --> norm --> L x block --> class row --> norm
           --> linear --> length 1 --.
                                     |-- scores
    tokens --> table --> + position --> L x causal block --> norm --> row of the end token --> linear --> length 1

Source: CLIP (Radford et al. 2021), section 2.4; clip/model.py.
"""

from dataclasses import dataclass, replace

import numpy as np

from npgemma.layers import losses
from npgemma.layers.activations import Activation, softmax
from npgemma.layers.linear import linear
from npgemma.layers.norms import LayerNorm, layer_norm, unit
from npgemma.layers.shapes import Array, Float, Int, Weight
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.vit import (
    Block,
    TokenEmbedding,
    encoder,
    every_row,
    patches,
    resize_after_class,
    sequences,
    token_embedding,
)


@dataclass(frozen=True)
class PatchEmbedding:
    weight: Weight[Array, "D C h w"]
    class_token: Float[Array, "D"]
    position: Float[Array, "T D"]


def patch_embedding(
    p: PatchEmbedding, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent
) -> Float[Array, "B T D"]:
    """x[b t] = row[t] + position[t], where row 0 is the class token and row 1 + i is W patch[b i]; T = 1 + P."""
    width, _, size, _ = p.weight.shape
    x = tap("patches", linear(patches(pixel_values, size), p.weight.reshape(width, -1)), "B P D")
    first = np.broadcast_to(p.class_token.astype(x.dtype), (len(x), 1, width))
    return np.concatenate([first, x], 1) + p.position


@dataclass(frozen=True)
class Projection:
    weight: Weight[Array, "E D"]


@dataclass(frozen=True)
class VisionTower:
    embedding: PatchEmbedding
    pre_norm: LayerNorm
    blocks: tuple[Block, ...]
    act: Activation
    post_norm: LayerNorm
    projection: Projection


def vision_tower(p: VisionTower, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent) -> Float[Array, "B E"]:
    """One row for each picture, from its class token."""
    x = tap("embedding", patch_embedding(p.embedding, pixel_values, at(tap, "embedding")), "B T D")
    x = tap("pre_norm", layer_norm(p.pre_norm, x), "B T D")
    x = encoder(p.blocks, x, every_row(x.shape[1]), p.act, sequences(tap, "pictures", P="T"))
    x = tap("class", x[:, 0], "B D")
    x = tap("post_norm", layer_norm(p.post_norm, x), "B D")
    return tap("projection", linear(x, p.projection.weight), "B E")


@dataclass(frozen=True)
class TextTower:
    embedding: TokenEmbedding
    blocks: tuple[Block, ...]
    act: Activation
    norm: LayerNorm
    projection: Projection
    end_token: int


def text_tower(p: TextTower, input_ids: Int[Array, "U T"], dtype: np.dtype, tap: Tap = silent) -> Float[Array, "U E"]:
    """One row for each text, from the first row that holds the end token: no row sees those behind it.

    Raises ValueError for a text without an end token.
    """
    x = tap("embedding", token_embedding(p.embedding, input_ids, dtype), "U T D")
    causal = np.tri(x.shape[1], dtype=bool)
    x = encoder(p.blocks, x, causal, p.act, sequences(tap, "texts", B="U", P="T"))
    x = tap("norm", layer_norm(p.norm, x), "U T D")
    x = tap("end", x[np.arange(len(x)), end_rows(input_ids, p.end_token)], "U D")
    return tap("projection", linear(x, p.projection.weight), "U E")


def end_rows(input_ids: Int[Array, "U T"], end_token: int) -> Int[Array, "U"]:
    """Where the first end token of each text is. ValueError if a text has none."""
    ends = input_ids == end_token
    if not ends.any(1).all():
        raise ValueError(f"text {int(ends.any(1).argmin())} has no end token, {end_token}")
    return ends.argmax(1)


@dataclass(frozen=True)
class Clip:
    """`log_scale` is what the training learned for the scores."""

    vision: VisionTower
    text: TextTower
    log_scale: Float[Array, ""]


def resized(p: Clip, rows: int, columns: int) -> Clip:
    """The same model for pictures of rows x columns patches; it was not trained with them."""
    embedding = p.vision.embedding
    position = resize_after_class(embedding.position, rows, columns)
    return replace(p, vision=replace(p.vision, embedding=replace(embedding, position=position)))


def encode_images(p: Clip, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent) -> Float[Array, "B E"]:
    """A row of length 1 for each picture."""
    pixel_values = tap("pixel_values", pixel_values, "B C Y X")
    x = vision_tower(p.vision, pixel_values, at(tap, "vision"))
    return tap("image_embeds", unit(x, at(tap, "image_embeds")), "B E")


def encode_texts(p: Clip, input_ids: Int[Array, "U T"], dtype: np.dtype, tap: Tap = silent) -> Float[Array, "U E"]:
    """A row of length 1 for each text, as `dtype`. ValueError for a text without an end token."""
    input_ids = tap("input_ids", input_ids, "U T")
    x = text_tower(p.text, input_ids, dtype, at(tap, "text"))
    return tap("text_embeds", unit(x, at(tap, "text_embeds", B="U")), "U E")


def scale(p: Clip) -> float:
    """e^log_scale; infinite where it is too large for float64."""
    return float(np.exp(np.float64(p.log_scale)))


def logits(p: Clip, images: Float[Array, "B E"], texts: Float[Array, "U E"], tap: Tap = silent) -> Float[Array, "B U"]:
    """l = e^log_scale images texts^T; see `probabilities`."""
    cosine = tap("cosine", images @ texts.T, "B U")
    return tap("logits_per_image", cosine * tap("scale", np.asarray(scale(p), cosine.dtype), ""), "B U")


def probabilities(logits: Float[Array, "B U"], tap: Tap = silent) -> Float[Array, "B U"]:
    """The softmax over the texts: which of them belongs to the picture, if one does."""
    return tap("probabilities", softmax(logits), "B U")


def loss(p: Clip, images: Float[Array, "B E"], texts: Float[Array, "B E"], tap: Tap = silent) -> float:
    """The contrastive loss of pictures and texts, of which those in the same place match."""
    return float(tap("loss", np.asarray(losses.contrastive_loss(images, texts, scale(p)), images.dtype), ""))
