"""A loss of every architecture and its gradient, on one fixed batch of random numbers.

`CASES[name](seed)` makes the case of an entry of tests/architectures.py. The losses are spelled again here, from the
results of the forward pass, so that they take complex numbers.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import architectures
import mask_codecs
import numpy as np

from npgemma import testing
from npgemma.layers.activations import gelu, log_softmax
from npgemma.layers.shapes import Array
from npgemma.layers.taps import Kept, at, silent
from npgemma.layers.tree import Leaf, leaves, map_tree, thawed
from npgemma.models import (
    clip,
    clip_grad,
    mask_vqvae,
    mask_vqvae_grad,
    paligemma,
    paligemma_grad,
    prefix_lm,
    prefix_lm_grad,
    siglip,
    siglip_grad,
    vit,
    vit_grad,
)
from npgemma.models.paligemma_grad import Labelled

F64 = np.dtype(np.float64)


class Case(NamedTuple):
    """Weights, what computes the loss and its gradient of them, and a second spelling of the loss."""

    weights: Any
    gradient: Callable[..., tuple[float, Any]]
    loss: Callable[[Any], np.ndarray]


def log_probability(logits: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The sum of weight log p, spelled for complex numbers."""
    y = logits - logits.real.max(-1, keepdims=True)
    y = y - np.log(np.exp(y).sum(-1, keepdims=True))
    return (weights[1:] * y[np.arange(len(ids) - 1), ids[1:]]).sum()


def dtype_of(p: Any) -> np.dtype:
    return np.result_type(*(leaf.value for leaf in leaves(p)))


def random_weights(name: str) -> Any:
    layout = next(iter(architectures.ARCHITECTURES[name].layouts.values()))
    return thawed(layout.fill(testing.layout_tensors(layout)), lambda path: True, F64)


def pictures_case(name: str, seed: int) -> Case:
    """Three pictures and three examples; two of them ask about the same picture, one about two."""
    rng = np.random.default_rng(seed)
    p = random_weights(name)
    patches = len(p.vision.embedding.position)
    side = math.isqrt(patches) * p.vision.embedding.weight.shape[-1]
    pixels = rng.uniform(-1, 1, (3, 3, side, side))
    examples = []
    for pictures, prefix, suffix in (([0], 3, 4), ([2, 1], 2, 3), ([2], 4, 1)):
        text = rng.integers(3, p.image_token, prefix + suffix)
        ids = np.concatenate([np.full(len(pictures) * patches, p.image_token), text])
        types = np.r_[np.zeros(len(ids) - suffix, int), np.ones(suffix, int)]
        examples.append(Labelled(ids, types, pictures, types * rng.uniform(0.1, 1)))

    def loss(p: paligemma.PaliGemma) -> np.ndarray:
        values = pixels.astype(dtype_of(p))
        each = (
            log_probability(
                paligemma.forward(p, one.input_ids, values[list(one.pictures)], one.token_type_ids),
                one.input_ids,
                one.weights,
            )
            for one in examples
        )
        return -sum(each)

    return Case(p, lambda p, **options: paligemma_grad.loss_and_gradient(p, pixels, examples, **options), loss)


def text_case(name: str, seed: int) -> Case:
    """Two texts of different lengths, longer than the windows of Gemma 2 and 3."""
    rng = np.random.default_rng(seed)
    p = random_weights(name)
    prompts = [prefix_lm.causal_prompt(p, rng.integers(0, len(p.embedding), length), F64) for length in (9, 6)]
    weights = [np.r_[0, rng.uniform(0.1, 1, len(prompt.input_ids) - 1)] for prompt in prompts]

    def gradient(p: Any, **options: Any) -> tuple[float, Any]:
        loss, _, found = prefix_lm_grad.loss_and_gradient(p, prompts, weights, **options)
        return loss, found

    def loss(p: Any) -> np.ndarray:
        again = [prefix_lm.causal_prompt(p, prompt.input_ids, dtype_of(p)) for prompt in prompts]
        pairs = zip(again, weights, strict=True)
        return -sum(log_probability(prefix_lm.forward(p, each), each.input_ids, weight) for each, weight in pairs)

    return Case(p, gradient, loss)


# Two pictures whose last columns are left over, three for the pairs.
PIXELS = np.random.default_rng(3).uniform(-1, 1, (3, 3, 14, 14))


def tower_case(seed: int) -> Case:
    """SigLIP's vision tower alone; the loss is a sum of its rows with random factors."""
    p = random_weights("vision tower")
    pixels = np.asarray(architectures.PICTURES, F64)
    factors = np.random.default_rng(seed).standard_normal(siglip.vision_tower(p, pixels).shape)

    def gradient(p: siglip.VisionTower, recompute: bool = False, tap=silent) -> tuple[float, siglip.VisionTower]:
        saw = Kept(vit_grad.encoder_needs(recompute), tap)
        loss = float((siglip.vision_tower(p, pixels, saw) * factors).sum())
        return loss, siglip_grad.vision_tower_backward(p, pixels, saw, factors, at(tap, "grad"))

    return Case(p, gradient, lambda p: (siglip.vision_tower(p, pixels.astype(dtype_of(p))) * factors).sum())


def siglip_case(seed: int) -> Case:
    """Three pictures and their texts, of which two share words."""
    p, ids = random_weights("SigLIP"), architectures.WORDS

    def loss(p: siglip.Siglip) -> np.ndarray:
        images = siglip.encode_images(p, PIXELS.astype(dtype_of(p)))
        scores = images @ siglip.encode_texts(p, ids, images.dtype).T * np.exp(p.log_scale) + p.bias
        return np.log1p(np.exp((1 - 2 * np.eye(3)) * scores)).sum() / 3

    return Case(p, lambda p, **options: siglip_grad.loss_and_gradient(p, PIXELS, ids, **options), loss)


def clip_case(seed: int) -> Case:
    """Three pictures, and texts whose end tokens stand at different places. gelu takes the place of activations that
    take no complex numbers, which tests/layers/test_backward.py holds against their slopes.
    """
    p, ids = random_weights("CLIP"), architectures.ENDED
    p = replace(p, vision=replace(p.vision, act=gelu), text=replace(p.text, act=gelu))

    def loss(p: clip.Clip) -> np.ndarray:
        images = clip.encode_images(p, PIXELS.astype(dtype_of(p)))
        scores = images @ clip.encode_texts(p, ids, images.dtype).T * np.exp(p.log_scale)
        return -sum(log_softmax(each).diagonal().mean() for each in (scores, scores.T)) / 2

    return Case(p, lambda p, **options: clip_grad.loss_and_gradient(p, PIXELS, ids, **options), loss)


def vit_case(seed: int) -> Case:
    """Three pictures, of which two have the same label, with weights of their own; gelu as for CLIP."""
    p, labels, weights = replace(random_weights("ViT"), act=gelu), np.array([2, 0, 2]), np.array([0.5, 0.2, 0.9])

    def loss(p: vit.ViT) -> np.ndarray:
        y = log_softmax(vit.forward(p, PIXELS.astype(dtype_of(p))))
        return -(weights * y[np.arange(3), labels]).sum()

    return Case(p, lambda p, **options: vit_grad.loss_and_gradient(p, PIXELS, labels, weights, **options), loss)


def several_labels_case(seed: int) -> Case:
    """Three pictures, and whether each of five labels fits; gelu as for CLIP."""
    p, weights = replace(random_weights("ViT"), act=gelu), np.array([0.5, 0.2, 0.9])
    fits = np.random.default_rng(seed).integers(0, 2, (3, len(p.head.bias))).astype(bool)

    def loss(p: vit.ViT) -> np.ndarray:
        y = 1 / (1 + np.exp(-vit.forward(p, PIXELS.astype(dtype_of(p)))))
        return -(weights * np.log(np.where(fits, y, 1 - y)).mean(-1)).sum()

    return Case(p, lambda p, **options: vit_grad.loss_and_gradient(p, PIXELS, fits, weights, **options), loss)


def masks_case(seed: int) -> Case:
    """Two masks. What passes straight through a choice of codes is the gradient of a loss with that choice kept, where
    the decoder reads the rows of the encoder, moved by a constant onto those of the codebook.
    """
    p = thawed(mask_codecs.random_codec(), lambda path: path != "codebook", F64)
    masks = np.random.default_rng(seed).uniform(-1, 1, (2, 64, 64))
    rows = mask_vqvae.encode_rows(p.encoder, masks)
    near = p.codebook[mask_vqvae.nearest(p, rows)].astype(F64)

    def loss(p: mask_vqvae.MaskVQVAE) -> np.ndarray:
        y = mask_vqvae.encode_rows(p.encoder, masks.astype(dtype_of(p)))
        wrong = mask_vqvae.decode_rows(p.decoder, y + (near - rows)) - masks
        return (wrong * wrong).mean() + 0.25 * ((y - near) * (y - near)).mean()

    def gradient(p: mask_vqvae.MaskVQVAE, recompute: bool = False, **options: Any) -> tuple[float, Any]:
        return mask_vqvae_grad.loss_and_gradient(p, masks, **options)

    return Case(p, gradient, loss)


CASES: dict[str, Callable[[int], Case]] = {
    **{name: lambda seed, name=name: pictures_case(name, seed) for name in ("PaliGemma 1", "PaliGemma 2")},
    **{name: lambda seed, name=name: text_case(name, seed) for name in ("Gemma 1", "Gemma 2", "Gemma 3")},
    "vision tower": tower_case,
    "SigLIP": siglip_case,
    "CLIP": clip_case,
    "ViT": vit_case,
    "ViT that finds several labels": several_labels_case,
    "mask decoder": masks_case,
}


def moved(case: Case, step: Callable[[Leaf], Any]) -> np.ndarray:
    """The loss where step(leaf) is added to each weight."""
    return case.loss(map_tree(lambda leaf: leaf.value + step(leaf), case.weights))


def protect(name: str, x: Array, axes: str) -> Array:
    """A tap that makes a tensor, and what it is a view of, read-only."""
    part: Array | None = x
    while isinstance(part, np.ndarray):
        part.flags.writeable = False
        part = part.base
    return x
