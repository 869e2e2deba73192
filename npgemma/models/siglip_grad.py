"""SigLIP read backwards: each function takes what its namesake in `siglip` took, and dy. See `gemma_grad`."""

import numpy as np

from npgemma.layers import losses
from npgemma.layers.activations import gelu
from npgemma.layers.linear import linear_backward, total
from npgemma.layers.norms import layer_norm_backward, unit_backward
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Kept, Tap, at, silent
from npgemma.models import siglip
from npgemma.models.siglip import PatchEmbedding, PoolingHead, Projection, Siglip, TextTower, VisionTower
from npgemma.models.vit import every_row, sequences
from npgemma.models.vit_grad import (
    attention_backward,
    encoder_backward,
    last_rows,
    mlp_backward,
    patches_backward,
    token_embedding_backward,
    towers_need,
)

# What the backward pass reads behind the blocks of the towers.
HEAD_NEEDS = (
    *("vision.norm", "vision.head.attn.q", "vision.head.attn.k", "vision.head.attn.v", "vision.head.attn.heads"),
    *("vision.head.attn.out", "vision.head.norm", "vision.head.mlp.fc1", "vision.head.mlp.hidden", "vision.head.out"),
    *("text.last", "text.head"),
)


def needs(recompute: bool = False) -> frozenset[str]:
    """What the backward pass of both towers reads; only the results of blocks if it computes the blocks again."""
    return towers_need(recompute, HEAD_NEEDS)


def patch_embedding_backward(
    p: PatchEmbedding, pixel_values: Float[Array, "B C Y X"], dy: Float[Array, "B P D"], tap: Tap = silent
) -> PatchEmbedding:
    """forward: y = W patch + bias + position. A position gets the sum over the pictures; pixels get no gradient."""
    dpatches = tap("patches", dy, "B P D")
    weight = patches_backward(p.weight, pixel_values, dpatches)
    return PatchEmbedding(weight, total(p.bias, dpatches), total(p.position, dy))


def vision_tower_backward(
    p: VisionTower, pixel_values: Float[Array, "B C Y X"], saw: Kept, dy: Float[Array, "B P D"], tap: Tap = silent
) -> VisionTower:
    """The gradient of the tower from that of its rows."""
    last = last_rows(p.blocks, saw)
    dx, norm = layer_norm_backward(p.norm, last, tap("norm", dy, "B P D"))
    dx, blocks = encoder_backward(p.blocks, every_row(dx.shape[1]), gelu, saw, dx, tap)
    embedding = patch_embedding_backward(p.embedding, pixel_values, tap("embedding", dx, "B P D"), at(tap, "embedding"))
    return VisionTower(embedding, blocks, norm)


def pooling_head_backward(
    p: PoolingHead, x: Float[Array, "B P D"], saw: Kept, dy: Float[Array, "B D"], tap: Tap = silent
) -> tuple[Float[Array, "B P D"], PoolingHead]:
    """forward: y = r + mlp(norm r), where r is the attention of the probe to x. The probe is the same for all pictures,
    and x reaches r through keys and values alone.
    """
    dy = tap("out", dy[:, None], "B Q D")
    dh, mlp = mlp_backward(p.mlp, saw["norm"], gelu, saw.inside("mlp"), dy, at(tap, "mlp", P="Q"))
    dr, norm = layer_norm_backward(p.norm, saw["attn.out"], tap("norm", dh, "B Q D"))
    probe, mask = np.broadcast_to(p.probe.astype(x.dtype), dy.shape), np.ones((1, x.shape[1]), bool)
    attn, inside = saw.inside("attn", T="Q"), at(tap, "attn", T="Q")
    dprobe, dx, attention = attention_backward(p.attn, probe, x, mask, attn, dy + dr, inside)
    return dx, PoolingHead(total(p.probe, dprobe[:, 0]), attention, norm, mlp)


def text_tower_backward(
    p: TextTower, input_ids: Int[Array, "U T"], saw: Kept, dy: Float[Array, "U E"], tap: Tap = silent
) -> TextTower:
    """The gradient of the tower from that of its rows. Behind the norm, only the last row of a text is read."""
    dy = tap("head", dy, "U E")
    dlast, weight = linear_backward(saw["last"], p.head.weight, dy)
    last = last_rows(p.blocks, saw)
    dx = np.zeros_like(last)
    dx[:, -1] = tap("last", dlast, "U D")
    dx, norm = layer_norm_backward(p.norm, last, tap("norm", dx, "U T D"))
    mask, inside = every_row(last.shape[1]), saw.under(sequences(saw.tap, "texts", B="U", P="T"))
    dx, blocks = encoder_backward(p.blocks, mask, gelu, inside, dx, sequences(tap, "texts", B="U", P="T"))
    embedding = token_embedding_backward(p.embedding, input_ids, tap("embedding", dx, "U T D"))
    return TextTower(embedding, blocks, norm, Projection(weight, total(p.head.bias, dy)))


def encode_images_backward(
    p: Siglip, pixel_values: Float[Array, "B C Y X"], saw: Kept, dy: Float[Array, "B E"], tap: Tap = silent
) -> tuple[VisionTower, PoolingHead]:
    """The gradients of the tower and of its head from that of the rows of length 1."""
    dx = unit_backward(saw["vision.head.out"][:, 0], tap("image_embeds", dy, "B E"))
    x, head = saw["vision.norm"], saw.inside("vision.head")
    dx, vision_head = pooling_head_backward(p.vision_head, x, head, dx, at(tap, "vision.head"))
    return vision_tower_backward(p.vision, pixel_values, saw.inside("vision"), dx, at(tap, "vision")), vision_head


def encode_texts_backward(
    p: Siglip, input_ids: Int[Array, "U T"], saw: Kept, dy: Float[Array, "U E"], tap: Tap = silent
) -> TextTower:
    """The gradient of the tower from that of the rows of length 1."""
    dx = unit_backward(saw["text.head"], tap("text_embeds", dy, "U E"))
    return text_tower_backward(p.text, input_ids, saw.inside("text"), dx, at(tap, "text"))


def loss_and_gradient(
    p: Siglip,
    pixel_values: Float[Array, "B C Y X"],
    input_ids: Int[Array, "B T"],
    recompute: bool = False,
    tap: Tap = silent,
) -> tuple[float, Siglip]:
    """The sigmoid loss of pictures and texts, of which those in the same place match, and its gradient.

    `tap` gets the tensors of the forward pass, and gradients under `grad.`. With `recompute`, only the results of
    blocks are kept, and each block is computed again on the way back: the same bits from less memory.
    """
    saw, dtype = Kept(needs(recompute), tap), pixel_values.dtype
    images, texts = siglip.encode_images(p, pixel_values, saw), siglip.encode_texts(p, input_ids, dtype, saw)
    loss, scale = siglip.loss(p, images, texts, tap), siglip.scale(p)
    dimages, dtexts, dscale, dbias = losses.sigmoid_loss_backward(images, texts, scale, float(p.bias))
    vision, vision_head = encode_images_backward(p, pixel_values, saw, dimages, at(tap, "grad"))
    text = encode_texts_backward(p, input_ids, saw, dtexts, at(tap, "grad"))
    log_scale, bias = np.asarray(dscale * scale, dtype), np.asarray(dbias, dtype)
    return loss, Siglip(vision, vision_head, text, total(p.log_scale, log_scale), total(p.bias, bias))
