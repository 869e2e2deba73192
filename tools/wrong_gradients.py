"""Backward passes as people get them wrong: the functions that gradient_mutations.py plants in npgemma."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from npgemma.golden.gradient_answers import AnswerCase
from npgemma.layers import activations
from npgemma.layers.activations import gelu_and_slope, softmax
from npgemma.layers.linear import linear_backward, total
from npgemma.layers.norms import LayerNorm, RMSNorm
from npgemma.layers.taps import Tap
from npgemma.models import gemma_grad, paligemma_grad, siglip_grad, vit_grad
from npgemma.models.gemma_grad import logits_backward
from npgemma.models.prefix_lm_grad import learned_rows

Array = np.ndarray
Change = Callable[[Array, dict[str, Array]], Array]


# ---------------------------------------------------------------------------- norms


def rms_without_one(p: RMSNorm, x: Array, dy: Array) -> tuple[Array, RMSNorm]:
    s = np.sqrt(np.square(x).mean(-1, keepdims=True) + p.eps)
    n, h = x / s, dy * p.weight
    return (h - n * (h * n).mean(-1, keepdims=True)) / s, replace(p, weight=total(p.weight, dy * n))


def rms_of_constant_size(p: RMSNorm, x: Array, dy: Array) -> tuple[Array, RMSNorm]:
    s = np.sqrt(np.square(x).mean(-1, keepdims=True) + p.eps)
    return dy * (1 + p.weight) / s, replace(p, weight=total(p.weight, dy * x / s))


def rms_of_scaled_weight(p: RMSNorm, x: Array, dy: Array) -> tuple[Array, RMSNorm]:
    """dw is that of the rows after their scale."""
    dx, gradient = RMS(p, x, dy)
    return dx, replace(gradient, weight=gradient.weight * (1 + p.weight))


def layer_norm_variant(mean: bool, unbiased: bool) -> Callable[..., tuple[Array, LayerNorm]]:
    def backward(p: LayerNorm, x: Array, dy: Array) -> tuple[Array, LayerNorm]:
        centred = x - x.mean(-1, keepdims=True)
        count = x.shape[-1] - unbiased
        s = np.sqrt(np.square(centred).sum(-1, keepdims=True) / count + p.eps)
        n, h = centred / s, dy * p.weight
        dx = h - n * (h * n).mean(-1, keepdims=True) - (h.mean(-1, keepdims=True) if mean else 0)
        return dx / s, LayerNorm(total(p.weight, dy * n), total(p.bias, dy), p.eps)

    return backward


RMS = gemma_grad.rms_norm_backward
RMS_PLACES = (gemma_grad,)
LAYER_NORM_PLACES = (vit_grad, siglip_grad)


def norms(places: tuple[object, ...], name: str, function: object) -> tuple[tuple[object, str, object], ...]:
    return tuple((place, name, function) for place in places)


# ---------------------------------------------------------------------------- attention

ATTEND = gemma_grad.attend_backward


def attention(change: Callable[..., tuple[Array, Array, Array]]) -> tuple[tuple[object, str, object], ...]:
    """The decoder's attention, whose gradients `change` makes of (dq, dk, dv) and the arguments."""

    def backward(q: Array, k: Array, v: Array, mask: Array, dy: Array, tap: Tap, scale: Any, cap: Any) -> Any:
        arguments = {"q": q, "k": k, "v": v, "mask": mask, "dy": dy, "tap": tap, "scale": scale, "cap": cap}
        return change(*ATTEND(q, k, v, mask, dy, tap, scale, cap), arguments)

    return ((gemma_grad, "attend_backward", backward),)


def first_head(dq: Array, dk: Array, dv: Array, a: dict[str, Any]) -> tuple[Array, Array, Array]:
    """A key head gets the gradient of the first of its query heads."""
    group = a["q"].shape[1] // a["k"].shape[1]
    alone = ATTEND(a["q"][:, ::group], a["k"], a["v"], a["mask"], a["dy"][:, ::group], a["tap"], a["scale"], a["cap"])
    return dq, alone[1], alone[2]


def mean_of_heads(dq: Array, dk: Array, dv: Array, a: dict[str, Any]) -> tuple[Array, Array, Array]:
    group = a["q"].shape[1] // a["k"].shape[1]
    return dq, dk / group, dv / group


def of_probabilities(a: dict[str, Any], flash: bool) -> tuple[Array, Array, Array]:
    """ds = p dp, without the mean of dp; or, as FlashAttention has it, with the mean as dy . y."""
    q, k, v, dy = a["q"], a["k"], a["v"], a["dy"]
    group = q.shape[1] // k.shape[1]
    keys, values = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scale = q.shape[-1] ** -0.5 if a["scale"] is None else a["scale"]
    scores = np.einsum("tnh,snh->nts", q, keys) * scale
    capped = scores if a["cap"] is None else capped_at(a["cap"], scores)
    p = softmax(np.where(a["mask"], capped, -np.inf).astype(q.dtype))
    dp = np.einsum("tnh,snh->nts", dy, values)
    if flash:
        dp = dp - (dy * np.einsum("nts,snh->tnh", p, values)).sum(-1).T[:, :, None]
    ds = p * dp * scale * (1 if a["cap"] is None else 1 - np.square(capped / a["cap"]))
    dk, dv = np.einsum("nts,tnh->snh", ds, q), np.einsum("nts,tnh->snh", p, dy)
    shape = (len(k), k.shape[1], group, k.shape[2])
    return np.einsum("nts,snh->tnh", ds, keys), dk.reshape(shape).sum(2), dv.reshape(shape).sum(2)


def causal(dq: Array, dk: Array, dv: Array, a: dict[str, Any]) -> tuple[Array, Array, Array]:
    mask = a["mask"] & np.tri(*a["mask"].shape, dtype=bool)
    return ATTEND(a["q"], a["k"], a["v"], mask, a["dy"], a["tap"], a["scale"], a["cap"])


def no_window(dq: Array, dk: Array, dv: Array, a: dict[str, Any]) -> tuple[Array, Array, Array]:
    mask = a["mask"] | np.tri(*a["mask"].shape, dtype=bool)
    return ATTEND(a["q"], a["k"], a["v"], mask, a["dy"], a["tap"], a["scale"], a["cap"])


def no_cap(dq: Array, dk: Array, dv: Array, a: dict[str, Any]) -> tuple[Array, Array, Array]:
    """The slope of the cap is taken as 1: dz = dx."""
    q, k, v, dy, group = a["q"], a["k"], a["v"], a["dy"], a["q"].shape[1] // a["k"].shape[1]
    keys, values = np.repeat(k, group, 1), np.repeat(v, group, 1)
    p = softmax(np.where(a["mask"], capped_at(a["cap"], np.einsum("tnh,snh->nts", q, keys) * a["scale"]), -np.inf))
    dp = np.einsum("tnh,snh->nts", dy, values)
    ds = (p * (dp - (p * dp).sum(-1, keepdims=True)) * a["scale"]).astype(q.dtype)
    dkeys = np.einsum("nts,tnh->snh", ds, q).reshape(len(k), k.shape[1], group, -1).sum(2)
    return np.einsum("nts,snh->tnh", ds, keys), dkeys, dv


def capped_at(cap: float, x: Array) -> Array:
    return cap * np.tanh(x / cap)


def square_root(a: dict[str, Any]) -> float:
    return math.sqrt(a["q"].shape[-1])


# ---------------------------------------------------------------------------- MLP, table, loss, sums


def erf_slope(x: Array) -> tuple[Array, Array]:
    return gelu_and_slope(x)[0], activations.gelu_erf_backward(x, np.ones_like(x))


def without_the_three(x: Array) -> tuple[Array, Array]:
    """The slope of the cube is forgotten."""
    c = math.sqrt(2 / math.pi)
    s = 0.5 * (1 + np.tanh(c * (x + 0.044715 * x**3)))
    y = x * s
    return y, s + y * (1 - s) * 2 * c * (1 + 0.044715 * x * x)


MLP_BACKWARD = gemma_grad.mlp_backward


def without_up(p: Any, x: Array, saw: Any, dy: Array, tap: Tap) -> tuple[Array, Any]:
    seen: dict[str, Array] = {}

    def watch(name: str, y: Array, axes: str) -> Array:
        seen[name] = tap(name, y, axes)
        return seen[name]

    dx, gradient = MLP_BACKWARD(p, x, saw, dy, watch)
    return dx - linear_backward(x, p.up, seen["up"])[0], gradient


def last_wins(ids: Array, table: Array, dy: Array) -> Array:
    gradient = np.zeros(table.shape, dy.dtype)
    gradient[ids] = dy
    return gradient


def head_times(factor: float) -> Callable[..., tuple[Array, Array]]:
    def backward(p: Any, x: Array, dy: Array) -> tuple[Array, Array]:
        dx, gradient = logits_backward(p, x, dy)
        return dx, gradient * gradient.dtype.type(factor)

    return backward


def predicting_itself(prompts: Any, weights: Any) -> Any:
    found = learned_rows(prompts, weights)
    return found._replace(rows=found.rows + 1)


def labelled(change: Callable[[AnswerCase], list[Array]]) -> Callable[[AnswerCase], AnswerCase]:
    """The case with other weights of its tokens."""

    def case(case: AnswerCase) -> AnswerCase:
        changed = zip(case.examples, change(case), strict=True)
        return replace(case, examples=tuple(each._replace(weights=weights) for each, weights in changed))

    return case


def equal(learned: list[Array]) -> list[Array]:
    count = sum(each.sum() for each in learned)
    return [each / count for each in learned]


def with_newline(case: AnswerCase) -> list[Array]:
    return equal([(np.r_[each.weights[1:], 0] + each.weights > 0).astype(float) for each in case.examples])


def without_end(case: AnswerCase) -> list[Array]:
    return equal([(np.r_[each.weights[1:], 0] > 0) * (each.weights > 0) * 1.0 for each in case.examples])


def by_example(case: AnswerCase) -> list[Array]:
    return [each.weights / each.weights.sum() / len(case.examples) for each in case.examples]


def over_rows(case: AnswerCase) -> list[Array]:
    rows = sum(len(each.weights) for each in case.examples)
    return [(each.weights > 0) / rows for each in case.examples]


def last_example(case: AnswerCase) -> list[Array]:
    return [each.weights * (i == len(case.examples) - 1) for i, each in enumerate(case.examples)]


def scaled_sum(factor: Callable[[Array, Array], float], which: Callable[[Array], bool]) -> Callable[..., Array]:
    def changed(w: Array, dy: Array) -> Array:
        gradient = total(w, dy)
        return gradient * gradient.dtype.type(factor(w, dy)) if which(w) else gradient

    return changed


def one_prompt_alone(p: Any, features: Array, examples: Any, *more: Any, **options: Any) -> Any:
    """A picture in several prompts gets the gradient of the last of them."""
    loss, _, text = FEATURES(p, features, examples, *more, **options)
    kept = [each._replace(weights=each.weights * (i == len(examples) - 1)) for i, each in enumerate(examples)]
    _, last, _ = FEATURES(p, features, kept, smoothing=more[0] if more else 0.0)
    return loss, last, text


FEATURES = paligemma_grad.loss_and_feature_gradient


def times(factor: float) -> Change:
    return lambda x, seen: x * x.dtype.type(factor)
