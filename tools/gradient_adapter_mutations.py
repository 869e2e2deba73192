"""Mistakes in the backward pass of a LoRA adapter, and passes that are right: for tools/gradient_study.py."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from gradient_mutations import Mutation
from wrong_gradients import times

from npgemma.layers import linear
from npgemma.layers.linear import AdaptedWeight

Array = np.ndarray
BACKWARD, FORWARD = linear.adapted_backward, linear.adapted
Found = tuple[Array, AdaptedWeight]
_LAYER = "grad.weights.base_model.model.model.language_model.layers.{}"


def planted(change: Callable[[Array, AdaptedWeight, Array], Found], block: str = "text.layers.3") -> Mutation:
    return Mutation(block, ((linear, "adapted_backward", change),))


def with_scale(scale: Callable[[AdaptedWeight], float]) -> Callable[[Array, AdaptedWeight, Array], Found]:
    """Another scale, of which the forward pass does not know."""
    return lambda x, w, dy: BACKWARD(x, replace(w, scale=scale(w)), dy)


def of_root(w: AdaptedWeight) -> float:
    """alpha / sqrt(r)."""
    return w.scale * len(w.a) ** 0.5


def halves(change: Callable[[AdaptedWeight, float], AdaptedWeight]) -> Callable[[Array, AdaptedWeight, Array], Found]:
    def backward(x: Array, w: AdaptedWeight, dy: Array) -> Found:
        dx, gradient = BACKWARD(x, w, dy)
        return dx, change(gradient, x.dtype.type(w.scale))

    return backward


def base_alone(x: Array, w: AdaptedWeight, dy: Array) -> Found:
    """dx without the share of the update."""
    _, gradient = BACKWARD(x, w, dy)
    return linear.linear_backward(x, w.base, dy)[0], gradient


def merged(x: Array, w: AdaptedWeight, dy: Array) -> Found:
    """dx by one product with W + scale B A."""
    _, gradient = BACKWARD(x, w, dy)
    whole = linear.widened(w.base, x.dtype) + x.dtype.type(w.scale) * (w.b @ w.a)
    return dy @ whole, gradient


def by_dw(x: Array, w: AdaptedWeight, dy: Array) -> Found:
    """Both halves from the gradient of the whole matrix: dA = scale B^T dW, dB = scale dW A^T."""
    dx, gradient = BACKWARD(x, w, dy)
    dw = dy.T @ x * x.dtype.type(w.scale)
    return dx, replace(gradient, a=w.b.T @ dw, b=dw @ w.a.T)


ADAPTER_BUGS: dict[str, Mutation] = {
    "alpha / r forgotten": planted(with_scale(lambda w: 1.0)),
    "alpha / sqrt(r) for alpha / r": planted(with_scale(of_root)),
    "alpha / sqrt(r) for alpha / r, forwards too": Mutation(
        "loss",
        (
            (linear, "adapted_backward", with_scale(of_root)),
            (linear, "adapted", lambda x, w: FORWARD(x, replace(w, scale=of_root(w)))),
        ),
        sketched="text.layers.3",
    ),
    "scale twice": planted(halves(lambda g, scale: replace(g, a=g.a * scale, b=g.b * scale))),
    "scale missing for A": planted(halves(lambda g, scale: replace(g, a=g.a / scale))),
    "scale missing for B": planted(halves(lambda g, scale: replace(g, b=g.b / scale))),
    "A and B exchanged": planted(halves(lambda g, scale: replace(g, a=g.b, b=g.a))),
    "A and B exchanged and transposed": planted(halves(lambda g, scale: replace(g, a=g.b.T, b=g.a.T))),
    "rows of A read as columns": planted(halves(lambda g, scale: replace(g, a=g.a.T.reshape(g.a.shape)))),
    "input reads the base alone": planted(base_alone),
    "A of the queries given to the keys": Mutation(
        "text.layers.1",
        changes=(
            (
                f"{_LAYER.format(1)}.self_attn.k_proj.lora_A.weight",
                lambda x, seen: seen[f"{_LAYER.format(1)}.self_attn.q_proj.lora_A.weight"],
            ),
        ),
    ),
    "B of one layer has no gradient": Mutation(
        "text.layers.2", changes=((f"{_LAYER.format(2)}.mlp.up_proj.lora_B.weight", times(0)),)
    ),
}
ADAPTER_BENIGN: dict[str, Mutation] = {
    "npgemma itself": Mutation(),
    "dx by W + scale B A": Mutation(replacements=((linear, "adapted_backward", merged),)),
    "dA and dB from dW": Mutation(replacements=((linear, "adapted_backward", by_dw),)),
}
