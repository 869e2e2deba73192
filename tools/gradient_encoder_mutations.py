"""Mistakes in the backward passes of SigLIP, CLIP and ViT, and passes that are right: for tools/gradient_study.py.

The models see three pictures, with texts or labels; a text that is shorter than a SigLIP reads ends in padding.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from gradient_mutations import WEIGHT, Mutation
from gradient_variants import backwards, one_hot, subtracted, wide
from wrong_gradients import Change, erf_slope, last_wins, layer_norm_variant, norms, scaled_sum, times

from npgemma.layers import activations, linear, losses
from npgemma.layers.attention import attend_backward
from npgemma.layers.linear import total
from npgemma.models import clip_grad, siglip_grad, vit_grad

Array = np.ndarray
PICTURES = 3
SIGMOID, CONTRASTIVE = losses.sigmoid_loss_backward, losses.contrastive_loss_backward
CROSS_ENTROPY = losses.cross_entropy_backward


def unit_of_constant_length(x: Array, dy: Array) -> Array:
    return dy / np.sqrt(np.square(x).sum(-1, keepdims=True))


def unit_by_matrix(x: Array, dy: Array) -> Array:
    """Each row times (I - y y^T) / length."""
    length = np.sqrt(np.square(x).sum(-1, keepdims=True))
    y = x / length
    projection = np.eye(x.shape[1], dtype=x.dtype) - y[:, :, None] * y[:, None]
    return (projection @ (dy / length)[:, :, None])[:, :, 0]


def matching_alone(images: Array, texts: Array, scale: float, bias: float) -> Any:
    """All pairs count as matching."""
    dscores = -activations.sigmoid(-(images @ texts.T * scale + bias)) / len(images)
    return of_scores(dscores.astype(images.dtype), images, texts, scale)


def not_transposed(images: Array, texts: Array, *numbers: float) -> Any:
    """The gradient of texts has the scores of texts by pictures the wrong way round."""
    dimages, _, *others = SIGMOID(images, texts, *numbers)
    scale, bias = numbers
    sign = (1 - 2 * np.eye(len(images))).astype(images.dtype)
    dscores = sign * activations.sigmoid(sign * (images @ texts.T * scale + bias)) / len(images)
    return dimages, dscores @ images * scale, *others


def of_scores(dscores: Array, images: Array, texts: Array, scale: float) -> tuple[Array, Array, float, float]:
    dscale = float((dscores * (images @ texts.T)).sum())
    return dscores @ texts * scale, dscores.T @ images * scale, dscale, float(dscores.sum())


def by_pictures_alone(images: Array, texts: Array, scale: float) -> Any:
    """The cross-entropy of the right text for each picture, and not that of the right picture for each text."""
    matching, shares = np.arange(len(images)), np.full(len(images), 1 / len(images))
    dscores = CROSS_ENTROPY(images @ texts.T * scale, matching, shares)
    return of_scores(dscores, images, texts, scale)[:3]


def scaled(function: Callable[..., Any], factor: float) -> Callable[..., Any]:
    return lambda *a: tuple(np.asarray(x).dtype.type(factor) * x for x in function(*a))


def of_one_text(images: Array, texts: Array, scale: float, bias: float) -> Any:
    """The sums over one text at a time."""
    return SIGMOID(images, texts, scale, bias, columns=1)


def attention(change: Callable[..., tuple[Array, Array, Array]]) -> tuple[tuple[object, str, object], ...]:
    def backward(q: Array, k: Array, v: Array, mask: Array, dy: Array, tap: Any) -> tuple[Array, Array, Array]:
        return change(q, k, v, mask, dy)

    return ((vit_grad, "attend_backward", backward),)


def without_root(q: Array, k: Array, v: Array, mask: Array, dy: Array) -> tuple[Array, Array, Array]:
    dq, dk, dv = attend_backward(q, k, v, mask, dy)
    return dq * q.dtype.type(q.shape[-1] ** 0.5), dk * q.dtype.type(q.shape[-1] ** 0.5), dv


def unmasked(q: Array, k: Array, v: Array, mask: Array, dy: Array) -> tuple[Array, Array, Array]:
    return attend_backward(q, k, v, np.ones_like(mask), dy)


def by_dy_y(q: Array, k: Array, v: Array, mask: Array, dy: Array) -> tuple[Array, Array, Array]:
    """As FlashAttention has it: the mean of dp is dy . y."""
    scale = q.shape[-1] ** -0.5
    p = activations.softmax(np.where(mask, np.einsum("tnh,snh->nts", q, k) * scale, -np.inf).astype(q.dtype))
    dp = np.einsum("tnh,snh->nts", dy, v)
    ds = p * (dp - (dy * np.einsum("nts,snh->tnh", p, v)).sum(-1).T[:, :, None]) * scale
    return np.einsum("nts,snh->tnh", ds, k), np.einsum("nts,tnh->snh", ds, q), np.einsum("nts,tnh->snh", p, dy)


def spread(x: Array, seen: dict[str, Array]) -> Array:
    """Every row gets the mean of all rows, as if they had been averaged."""
    return np.broadcast_to(x.mean(1, keepdims=True), x.shape)


def row_zero(at: int) -> Change:
    def change(x: Array, seen: dict[str, Array]) -> Array:
        rows = x.reshape(-1, x.shape[-1]).copy()
        rows[at] = 0
        return rows.reshape(x.shape)

    return change


def less(earlier: str) -> Change:
    """Without the share of a residual connection."""
    return lambda x, seen: x - seen[earlier]


def thirds(x: Array, seen: dict[str, Array]) -> Array:
    """Keys before queries."""
    q, k, v = np.split(x, 3)
    return np.concatenate([k, q, v])


def bias_of_patches(x: Array, seen: dict[str, Array]) -> Array:
    """The kernel of patches whose flat rows were read as [row, column, channel]."""
    width, channels, height, columns = x.shape
    return x.reshape(width, height, columns, channels).transpose(0, 3, 1, 2)


def averaged(module: object, dimensions: int) -> tuple[object, str, object]:
    return module, "total", scaled_sum(lambda w, dy: 1 / len(dy), lambda w: w.ndim == dimensions)


def slope_without_its_second_term(x: Array, dy: Array) -> Array:
    return dy / (1 + np.exp(-1.702 * x))


_SIGLIP_TEXT, _SIGLIP_VISION = "text_model.embeddings", "vision_model.head"
BOTH = (vit_grad, siglip_grad)
SIGLIP_BUGS: dict[str, Mutation] = {
    "mean over all scores": Mutation("loss", ((losses, "sigmoid_loss_backward", scaled(SIGMOID, 1 / PICTURES)),)),
    "pairs that do not match count as if they did": Mutation(
        "loss", ((losses, "sigmoid_loss_backward", matching_alone),)
    ),
    "scores of texts by pictures not transposed": Mutation(
        "loss", ((losses, "sigmoid_loss_backward", not_transposed),), sketched="text.head"
    ),
    "gradient of the scale, not of its logarithm": Mutation(
        "loss", changes=((f"{WEIGHT}logit_scale", times(float(np.exp(-2.5)))),)
    ),
    "length of a row taken as constant": Mutation(
        "image_embeds", ((siglip_grad, "unit_backward", unit_of_constant_length),), sketched="vision.head"
    ),
    "probe averaged over the pictures": Mutation(
        "vision.head", changes=((f"{WEIGHT}{_SIGLIP_VISION}.probe", times(1 / PICTURES)),)
    ),
    "rows of queries and keys exchanged in the joint matrix": Mutation(
        "vision.head", changes=((f"{WEIGHT}{_SIGLIP_VISION}.attention.in_proj_weight", thirds),)
    ),
    "pooling reads values alone": Mutation("vision.head", changes=(("grad.vision.head.attn.k", times(0)),)),
    "residual of the pooling cut": Mutation(
        "vision.head", changes=(("grad.vision.head.attn.out", less("grad.vision.head.out")),)
    ),
    "layer norm without mean(h)": Mutation(
        "vision.head", norms(BOTH, "layer_norm_backward", layer_norm_variant(mean=False, unbiased=False))
    ),
    "1/sqrt(H) missing": Mutation("vision.head", attention(without_root)),
    "slope of the erf gelu": Mutation("vision.head", ((activations, "gelu_and_slope", erf_slope),)),
    "positions of patches averaged over the pictures": Mutation("vision.embedding", (averaged(siglip_grad, 2),)),
    "mean of a text's rows in place of the last": Mutation(
        "text.last", changes=(("grad.text.norm", spread),), sketched="text.norm"
    ),
    "residual cut at one MLP of the texts": Mutation(
        "text.layers.1", changes=(("grad.text.layers.1.mid", less("grad.text.layers.1.out")),)
    ),
    "padding has no gradient": Mutation(
        "text.embedding", changes=((f"{WEIGHT}{_SIGLIP_TEXT}.token_embedding.weight", row_zero(1)),)
    ),
    "last of repeated ids wins": Mutation("text.embedding", ((vit_grad, "embed_backward", last_wins),)),
    "positions of texts averaged over the texts": Mutation(
        "text.embedding",
        changes=((f"{WEIGHT}{_SIGLIP_TEXT}.position_embedding.weight", times(1 / PICTURES)),),
    ),
}
CLIP_BUGS: dict[str, Mutation] = {
    "loss of pictures alone": Mutation("loss", ((losses, "contrastive_loss_backward", by_pictures_alone),)),
    "halves of the loss added": Mutation("loss", ((losses, "contrastive_loss_backward", scaled(CONTRASTIVE, 2)),)),
    "gradient of the scale, not of its logarithm": Mutation(
        "loss", changes=((f"{WEIGHT}logit_scale", times(float(np.exp(-2.5)))),)
    ),
    "length of a row taken as constant": Mutation(
        "image_embeds", ((clip_grad, "unit_backward", unit_of_constant_length),), sketched="vision.projection"
    ),
    "projection not transposed": Mutation(
        "vision.projection",
        changes=((f"{WEIGHT}visual_projection.weight", lambda x, seen: x.T.reshape(x.shape)),),
    ),
    "mean of all rows in place of the class row": Mutation(
        "vision.post_norm", changes=(("grad.vision.class", lambda x, seen: x / 17),), sketched="vision.layers.1"
    ),
    "slope of quick gelu without its second term": Mutation(
        "vision.layers.1", ((activations, "quick_gelu_backward", slope_without_its_second_term),)
    ),
    "norm before the first layer skipped": Mutation(
        "vision.pre_norm",
        changes=(("grad.vision.embedding", lambda x, seen: seen["grad.vision.pre_norm"]),),
        sketched="vision.embedding",
    ),
    "class token averaged over the pictures": Mutation(
        "vision.embedding", changes=((f"{WEIGHT}vision_model.embeddings.class_embedding", times(1 / PICTURES)),)
    ),
    "position of the class token has no gradient": Mutation(
        "vision.embedding", changes=((f"{WEIGHT}vision_model.embeddings.position_embedding.weight", row_zero(0)),)
    ),
    "gradient at the last row, not at the end token": Mutation(
        "text.end", changes=(("grad.text.norm", lambda x, seen: np.sort(x, 1)[:, ::-1]),), sketched="text.norm"
    ),
    "texts without their mask": Mutation("text.layers.1", attention(unmasked)),
    "last of repeated ids wins": Mutation("text.embedding", ((vit_grad, "embed_backward", last_wins),)),
}
_LAYER = "vit.encoder.layer"
VIT_BUGS: dict[str, Mutation] = {
    "sum over the pictures": Mutation("loss", changes=(("grad.logits", times(PICTURES)),), sketched="logits"),
    "labels counted from 1": Mutation(
        "loss", case=lambda case: replace(case, labels=(case.labels + 1) % 7), sketched="logits"
    ),
    "smoothing 0.1": Mutation("loss", case=lambda case: replace(case, smoothing=0.1), sketched="logits"),
    "bias of the classifier has no gradient": Mutation("logits", changes=((f"{WEIGHT}classifier.bias", times(0)),)),
    "mean of all rows in place of the class row": Mutation("class", changes=(("grad.norm", spread),), sketched="norm"),
    "variance over n - 1": Mutation(
        "norm",
        ((vit_grad, "layer_norm_backward", layer_norm_variant(mean=True, unbiased=True)),),
    ),
    "slope of the tanh gelu": Mutation("layers.1", ((activations, "gelu_erf_backward", activations.gelu_backward),)),
    "heads of one matrix in another order": Mutation(
        "layers.1",
        changes=((f"{WEIGHT}{_LAYER}.1.attention.attention.query.weight", lambda x, seen: np.roll(x, 8, 0)),),
    ),
    "residual cut at one attention": Mutation(
        "layers.1", changes=(("grad.layers.0.out", less("grad.layers.1.mid")),), sketched="layers.0"
    ),
    "1/sqrt(H) missing": Mutation("layers.1", attention(without_root)),
    "positions averaged over the pictures": Mutation(
        "embedding", changes=((f"{WEIGHT}vit.embeddings.position_embeddings", times(1 / PICTURES)),)
    ),
    "rows of patches read channels last": Mutation(
        "embedding", changes=((f"{WEIGHT}vit.embeddings.patch_embeddings.projection.weight", bias_of_patches),)
    ),
}
# Correct variants of all three.
ENCODER_BENIGN: dict[str, Mutation] = {
    "npgemma itself": Mutation(),
    "dW in float64": Mutation(replacements=((linear, "outer_products", wide(linear.outer_products)),)),
    "dW from the last row to the first, in parts": Mutation(replacements=((linear, "outer_products", backwards),)),
    "softmax by dy . y": Mutation(replacements=attention(by_dy_y)),
    "P - 1 at the target": Mutation(
        replacements=((losses, "cross_entropy_backward", subtracted), (vit_grad, "cross_entropy_backward", subtracted))
    ),
    "scores of one text at a time": Mutation(replacements=((losses, "sigmoid_loss_backward", of_one_text),)),
    "length of rows by a matrix": Mutation(
        replacements=((siglip_grad, "unit_backward", unit_by_matrix), (clip_grad, "unit_backward", unit_by_matrix))
    ),
    "embedding by a product with one-hot rows": Mutation(replacements=((vit_grad, "embed_backward", one_hot),)),
    "biases summed in float64": Mutation(
        replacements=((vit_grad, "total", lambda w, dy: total(w, dy.astype(np.float64)).astype(dy.dtype)),)
    ),
}
