"""Backward passes that are right and round differently, for tools/gradient_study.py."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from gradient_mutations import Mutation
from wrong_gradients import RMS_PLACES, attention, norms, of_probabilities

from npgemma.layers import activations, linear
from npgemma.layers.activations import softmax
from npgemma.layers.linear import total
from npgemma.layers.norms import RMSNorm
from npgemma.models import prefix_lm_grad, vit_grad

Array = np.ndarray


def wide(function: Callable[..., Any]) -> Callable[..., Any]:
    """A product in float64, rounded once."""

    def computed(*arrays: Array) -> Array:
        return function(*(x.astype(np.float64) for x in arrays)).astype(arrays[0].dtype)

    return computed


def backwards(dy: Array, x: Array) -> Array:
    """Sums over rows from the last to the first, some at a time."""
    parts = [dy[::-1][i : i + 7].T @ x[::-1][i : i + 7] for i in range(0, len(x), 7)]
    return sum(parts[1:], parts[0])


def rms_by_inverse(p: RMSNorm, x: Array, dy: Array) -> tuple[Array, RMSNorm]:
    r = 1 / np.sqrt(np.square(x).mean(-1, keepdims=True) + p.eps)
    h = dy * np.add(p.weight, 1, dtype=x.dtype)
    return r * h - x * (r * r * r) * (h * x).mean(-1, keepdims=True), replace(p, weight=total(p.weight, dy * (x * r)))


def slope_by_exponentials(x: Array) -> tuple[Array, Array]:
    u = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    s = 1 / (1 + np.exp(-np.clip(u, -80, 80)))
    slope = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return x * s, s + x * s * (1 - s) * slope


def subtracted(logits: Array, targets: Array, weights: Array, smoothing: float = 0.0) -> Array:
    p = softmax(logits)
    p -= smoothing / (logits.shape[1] - 1)
    p[np.arange(len(targets)), targets] -= 1 - smoothing - smoothing / (logits.shape[1] - 1)
    return p * weights[:, None].astype(logits.dtype)


def one_hot(ids: Array, table: Array, dy: Array) -> Array:
    hot = (np.arange(len(table))[:, None] == ids).astype(dy.dtype)
    return hot @ dy


BENIGN: dict[str, Mutation] = {
    "npgemma itself": Mutation(),
    "dW in float64": Mutation(replacements=((linear, "outer_products", wide(linear.outer_products)),)),
    "dW from the last row to the first, in parts": Mutation(replacements=((linear, "outer_products", backwards),)),
    "dy W by einsum": Mutation(replacements=((linear, "multiply_back", lambda dy, w: np.einsum("to,oi->ti", dy, w)),)),
    "softmax by dy . y, heads repeated": Mutation(
        replacements=attention(lambda dq, dk, dv, a: of_probabilities(a, flash=True))
    ),
    "rms norm by the inverse root": Mutation(replacements=norms(RMS_PLACES, "rms_norm_backward", rms_by_inverse)),
    "slope of gelu by exponentials": Mutation(replacements=((activations, "gelu_and_slope", slope_by_exponentials),)),
    "P - 1 at the target": Mutation(replacements=((prefix_lm_grad, "cross_entropy_backward", subtracted),)),
    "embedding by a product with one-hot rows": Mutation(replacements=((prefix_lm_grad, "embed_backward", one_hot),)),
    "biases summed in float64": Mutation(
        replacements=((vit_grad, "total", lambda w, dy: total(w, dy.astype(np.float64)).astype(dy.dtype)),)
    ),
}
