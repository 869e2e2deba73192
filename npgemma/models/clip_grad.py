"""CLIP read backwards: each function takes what its namesake in `clip` took, and dy. See `gemma_grad`."""

import numpy as np

from npgemma.layers import losses
from npgemma.layers.linear import linear_backward, total
from npgemma.layers.norms import layer_norm_backward, unit_backward
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Kept, Tap, at, silent
from npgemma.models import clip
from npgemma.models.clip import Clip, PatchEmbedding, Projection, TextTower, VisionTower, end_rows
from npgemma.models.vit import every_row, sequences
from npgemma.models.vit_grad import encoder_backward, last_rows, patches_backward, token_embedding_backward, towers_need

# What the backward pass reads before and behind the blocks of the towers.
END_NEEDS = (
    *("vision.pre_norm", "vision.class", "vision.post_norm", "vision.projection"),
    *("text.end", "text.projection"),
)


def needs(recompute: bool = False) -> frozenset[str]:
    """What the backward pass of both towers reads; only the results of blocks if it computes the blocks again."""
    return towers_need(recompute, END_NEEDS)


def patch_embedding_backward(
    p: PatchEmbedding, pixel_values: Float[Array, "B C Y X"], dy: Float[Array, "B T D"], tap: Tap = silent
) -> PatchEmbedding:
    """forward: y = row + position, where row 0 is the class token and row 1 + i is W patch[i]."""
    dpatches = tap("patches", dy[:, 1:], "B P D")
    weight = patches_backward(p.weight, pixel_values, dpatches)
    return PatchEmbedding(weight, total(p.class_token, dy[:, 0]), total(p.position, dy))


def vision_tower_backward(
    p: VisionTower, pixel_values: Float[Array, "B C Y X"], saw: Kept, dy: Float[Array, "B E"], tap: Tap = silent
) -> VisionTower:
    """The gradient of the tower from that of its rows. Behind the blocks, only the class row of a picture is read."""
    dx, weight = linear_backward(saw["post_norm"], p.projection.weight, tap("projection", dy, "B E"))
    dclass, post_norm = layer_norm_backward(p.post_norm, saw["class"], tap("post_norm", dx, "B D"))
    dx = np.zeros_like(saw["pre_norm"])
    dx[:, 0] = tap("class", dclass, "B D")
    mask, inside = every_row(dx.shape[1]), saw.under(sequences(saw.tap, "pictures", P="T"))
    names = sequences(tap, "pictures", P="T")
    dx, blocks = encoder_backward(p.blocks, mask, p.act, inside, dx, names, first="pre_norm")
    dx, pre_norm = layer_norm_backward(p.pre_norm, saw["embedding"], tap("pre_norm", dx, "B T D"))
    embedding = patch_embedding_backward(p.embedding, pixel_values, tap("embedding", dx, "B T D"), at(tap, "embedding"))
    return VisionTower(embedding, pre_norm, blocks, p.act, post_norm, Projection(weight))


def text_tower_backward(
    p: TextTower, input_ids: Int[Array, "U T"], saw: Kept, dy: Float[Array, "U E"], tap: Tap = silent
) -> TextTower:
    """The gradient of the tower from that of its rows. Behind the norm, only the row of the end token is read."""
    dend, weight = linear_backward(saw["end"], p.projection.weight, tap("projection", dy, "U E"))
    last = last_rows(p.blocks, saw)
    dx = np.zeros_like(last)
    dx[np.arange(len(dx)), end_rows(input_ids, p.end_token)] = tap("end", dend, "U D")
    dx, norm = layer_norm_backward(p.norm, last, tap("norm", dx, "U T D"))
    causal, inside = np.tri(last.shape[1], dtype=bool), saw.under(sequences(saw.tap, "texts", B="U", P="T"))
    dx, blocks = encoder_backward(p.blocks, causal, p.act, inside, dx, sequences(tap, "texts", B="U", P="T"))
    embedding = token_embedding_backward(p.embedding, input_ids, tap("embedding", dx, "U T D"))
    return TextTower(embedding, blocks, p.act, norm, Projection(weight), p.end_token)


def encode_images_backward(
    p: Clip, pixel_values: Float[Array, "B C Y X"], saw: Kept, dy: Float[Array, "B E"], tap: Tap = silent
) -> VisionTower:
    """The gradient of the tower from that of the rows of length 1."""
    dx = unit_backward(saw["vision.projection"], tap("image_embeds", dy, "B E"))
    return vision_tower_backward(p.vision, pixel_values, saw.inside("vision"), dx, at(tap, "vision"))


def encode_texts_backward(
    p: Clip, input_ids: Int[Array, "U T"], saw: Kept, dy: Float[Array, "U E"], tap: Tap = silent
) -> TextTower:
    """The gradient of the tower from that of the rows of length 1."""
    dx = unit_backward(saw["text.projection"], tap("text_embeds", dy, "U E"))
    return text_tower_backward(p.text, input_ids, saw.inside("text"), dx, at(tap, "text"))


def loss_and_gradient(
    p: Clip,
    pixel_values: Float[Array, "B C Y X"],
    input_ids: Int[Array, "B T"],
    recompute: bool = False,
    tap: Tap = silent,
) -> tuple[float, Clip]:
    """The contrastive loss of pictures and texts, of which those in the same place match, and its gradient.

    For `recompute` and `tap` see `siglip_grad`. CLIP was trained with log_scale held below log 100: after a step, not
    here.
    """
    saw, dtype = Kept(needs(recompute), tap), pixel_values.dtype
    images, texts = clip.encode_images(p, pixel_values, saw), clip.encode_texts(p, input_ids, dtype, saw)
    loss, scale = clip.loss(p, images, texts, tap), clip.scale(p)
    dimages, dtexts, dscale = losses.contrastive_loss_backward(images, texts, scale)
    vision = encode_images_backward(p, pixel_values, saw, dimages, at(tap, "grad"))
    text = encode_texts_backward(p, input_ids, saw, dtexts, at(tap, "grad"))
    return loss, Clip(vision, text, total(p.log_scale, np.asarray(dscale * scale, dtype)))
