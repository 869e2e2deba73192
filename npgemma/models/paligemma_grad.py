"""PaliGemma read backwards: the loss of answers about pictures, and its gradient."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npgemma.layers.linear import linear_backward, total
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Kept, Tap, at, silent
from npgemma.layers.tree import no_gradient, trains
from npgemma.models import prefix_lm_grad
from npgemma.models.gemma import Decoder
from npgemma.models.paligemma import PaliGemma, Projector, image_features, make_prompt
from npgemma.models.siglip import VisionTower
from npgemma.models.siglip_grad import vision_tower_backward
from npgemma.models.vit_grad import encoder_needs


class Labelled(NamedTuple):
    """A prompt with its answer: its pictures, in the order of its image tokens, and the weight of each token in the
    loss, 0 for what is not learned; see `prefix_lm_grad`.
    """

    input_ids: Int[Array, "T"]
    token_type_ids: Int[Array, "T"]
    pictures: Sequence[int]
    weights: Float[Array, "T"]


def loss_and_gradient(
    p: PaliGemma,
    pixel_values: Float[Array, "B C Y X"],
    examples: Sequence[Labelled],
    smoothing: float = 0.0,
    recompute: bool = False,
    tap: Tap = silent,
) -> tuple[float, PaliGemma]:
    """The loss, and the gradient of every weight that is not frozen.

    A picture that several examples ask about stands once in `pixel_values`. `tap` gets the tensors of the forward pass,
    and gradients under `grad.`; for `recompute` see `prefix_lm_grad`.
    """
    saw = Kept(feature_needs(p, recompute), tap)
    features = image_features(p, pixel_values, saw)
    loss, dfeatures, text = loss_and_feature_gradient(p, features, examples, smoothing, recompute, tap)
    vision, projector = image_features_backward(p, pixel_values, saw, dfeatures, at(tap, "grad"))
    return loss, PaliGemma(vision, projector, text, p.image_token)


def loss_and_feature_gradient(
    p: PaliGemma,
    features: Float[Array, "B P D"],
    examples: Sequence[Labelled],
    smoothing: float = 0.0,
    recompute: bool = False,
    tap: Tap = silent,
) -> tuple[float, Float[Array, "B P D"], Decoder]:
    """The loss, the gradient of the features of pictures, and that of the decoder.

    The features stay the same while tower and projector are frozen, and then need to be computed only once.
    """
    prompts = [make_prompt(p, each.input_ids, each.token_type_ids, features[list(each.pictures)]) for each in examples]
    weights = [each.weights for each in examples]
    loss, dsoft, text = prefix_lm_grad.loss_and_gradient(p.text, prompts, weights, smoothing, recompute, tap)
    dfeatures = np.zeros_like(features)
    for each, rows in zip(examples, dsoft, strict=True):
        np.add.at(dfeatures, list(each.pictures), rows.reshape(-1, *features.shape[1:]))
    return loss, dfeatures, text


def feature_needs(p: PaliGemma, recompute: bool = False) -> frozenset[str]:
    """What the backward pass of the features reads: nothing of what is frozen, or stands before all that is not."""
    if trains(p.vision):
        return frozenset({"vision.norm", *(f"vision.{name}" for name in encoder_needs(recompute))})
    return frozenset({"vision.norm"} if trains(p.projector) else ())


def image_features_backward(
    p: PaliGemma, pixel_values: Float[Array, "B C Y X"], saw: Kept, dy: Float[Array, "B P D"], tap: Tap = silent
) -> tuple[VisionTower, Projector]:
    """forward: y = projector(tower(pixels)). The pass ends where everything before is frozen."""
    vision, projector = no_gradient(p.vision), no_gradient(p.projector)
    dy = tap("projector", dy, "B P D")
    if "vision.norm" not in saw:
        return vision, projector
    dx, weight = linear_backward(saw["vision.norm"], p.projector.weight, dy)
    if "vision.embedding" in saw:
        vision = vision_tower_backward(p.vision, pixel_values, saw.inside("vision"), dx, at(tap, "vision"))
    return vision, Projector(weight, total(p.projector.bias, dy))
