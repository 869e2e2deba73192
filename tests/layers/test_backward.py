"""Every backward pass against its forward pass, by the complex step: f(x + i h v) = f(x) + i h (df . v), to rounding.

A forward pass that is not analytic (it clips, or takes a maximum or an absolute value of what changes) is differenced
instead, on both sides of x.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pytest

from npgemma.layers import activations, losses, norms
from npgemma.layers.attention import attend, attend_backward
from npgemma.layers.conv import Conv, ConvTranspose, conv, conv_backward, upsample, upsample_backward
from npgemma.layers.linear import (
    AdaptedRows,
    AdaptedWeight,
    embed,
    embed_backward,
    linear,
    linear_backward,
    project,
    project_backward,
    total,
    unproject,
    unproject_backward,
)
from npgemma.layers.norms import LayerNorm, RMSNorm
from npgemma.layers.rope import rope, rope_backward

# A complex step has no rounding of its own: sums of some hundred products of float64 numbers are off by 1e-15 of the
# length of the gradient. Differences of step h are off by h^2 and by 1e-16/h.
EXACT, STEP = 1e-14, 1e-100
DIFFERENCED, DIFFERENCE = 1e-8, 1e-6
DIRECTIONS = 3

Arrays = Mapping[str, np.ndarray]


class Case(NamedTuple):
    """A forward pass of arrays by name, and its backward pass: the gradient of each array, by name."""

    forward: Callable[..., np.ndarray]
    backward: Callable[..., Arrays]
    shapes: Mapping[str, tuple[int, ...]]
    analytic: bool = True


def layer_norm_gradients(dy, x, weight, bias):
    dx, p = norms.layer_norm_backward(LayerNorm(weight, bias, 1e-3), x, dy)
    return {"x": dx, "weight": p.weight, "bias": p.bias}


def rms_norm_gradients(dy, x, weight):
    dx, p = norms.rms_norm_backward(RMSNorm(weight, 1e-3), x, dy)
    return {"x": dx, "weight": p.weight}


def adapted_gradients(dy, x, w, a, b):
    dx, dw = linear_backward(x, AdaptedWeight(w, a, b, 0.7), dy)
    return {"x": dx, "w": dw.base, "a": dw.a, "b": dw.b}


def rows_gradients(dtable):
    return {"table": dtable.base, "rows": dtable.rows}


def scores_gradients(dx, dtable):
    return {"x": dx, **rows_gradients(dtable)}


REPLACED = np.array([1, 4])
MASK = np.tri(5, 7, 2, dtype=bool)  # the first row sees three
POSITIONS = np.array([3, 4, 5, 900, 901])
IDS = np.array([4, 1, 4, 4, 0])
TARGETS, WEIGHTS = np.array([2, 0, 3]), np.array([0.5, 0.25, 2.0])
HEADS = {"q": (5, 4, 6), "keys": (7, 2, 6), "values": (7, 2, 6)}


def named(*names: str) -> Callable[[tuple], Arrays]:
    return lambda found: dict(zip(names, found, strict=True))


def attention_case(**options: float) -> Case:
    return Case(
        lambda q, keys, values: attend(q, keys, values, MASK, **options),
        lambda dy, q, keys, values: named(*HEADS)(attend_backward(q, keys, values, MASK, dy, **options)),
        HEADS,
    )


def cross_entropy_case(smoothing: float) -> Case:
    def forward(logits):
        y = losses.log_softmax(logits)
        spread = np.full(y.shape, smoothing / (y.shape[1] - 1))
        spread[np.arange(3), TARGETS] = 1 - smoothing
        return -(WEIGHTS[:, None] * spread * y).sum()

    return Case(
        forward,
        lambda dy, logits: {"logits": losses.cross_entropy_backward(logits, TARGETS, WEIGHTS, smoothing) * dy},
        {"logits": (3, 6)},
    )


FITS = np.array([[1, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], bool)


def several_labels(logits):
    """The binary cross-entropy, spelled for complex numbers."""
    p = 1 / (1 + np.exp(-logits))
    return -(WEIGHTS[:, None] * np.log(np.where(FITS, p, 1 - p))).sum() / 6


def conv_case(kernel: int, padding: int, stride: int) -> Case:
    """Windows that overlap, lie apart, and leave pixels over."""

    def backward(dy, x, weight, bias):
        dx, p = conv_backward(Conv(weight, bias), x, padding, stride, dy)
        return {"x": dx, "weight": p.weight, "bias": p.bias}

    shapes = {"x": (2, 3, 7, 9), "weight": (5, 3, kernel, kernel), "bias": (5,)}
    return Case(lambda x, weight, bias: conv(Conv(weight, bias), x, padding, stride), backward, shapes)


def upsample_gradients(dy, x, weight, bias):
    dx, p = upsample_backward(ConvTranspose(weight, bias), x, dy)
    return {"x": dx, "weight": p.weight, "bias": p.bias}


def sum_of_pairs(images, texts, scale, bias):
    """The sigmoid loss, spelled for complex numbers."""
    z = 2 * np.eye(len(images)) - 1
    return np.log1p(np.exp(-z * (images @ texts.T * scale + bias))).sum() / len(images)


def both_directions(images, texts, scale):
    """The contrastive loss, spelled for complex numbers."""
    scores = images @ texts.T * scale
    return -sum(losses.log_softmax(each).diagonal().sum() for each in (scores, scores.T)) / (2 * len(images))


def scaled(dy: np.ndarray, *gradients: np.ndarray | float) -> tuple:
    return tuple(np.asarray(each * dy) for each in gradients)


PAIR = {"images": (5, 3), "texts": (5, 3), "scale": ()}

CASES = {
    "linear": Case(
        linear,
        lambda dy, x, w, bias: {**named("x", "w")(linear_backward(x, w, dy)), "bias": total(bias, dy)},
        {"x": (2, 5, 3), "w": (4, 3), "bias": (4,)},
    ),
    "project": Case(
        lambda x, w: project(x, w),
        lambda dy, x, w: named("x", "w")(project_backward(x, w, dy)),
        {"x": (5, 3), "w": (2, 4, 3)},
    ),
    "unproject": Case(
        lambda x, w: unproject(x, w),
        lambda dy, x, w: named("x", "w")(unproject_backward(x, w, dy)),
        {"x": (5, 2, 4), "w": (3, 2, 4)},
    ),
    "an adapted weight": Case(
        lambda x, w, a, b: linear(x, AdaptedWeight(w, a, b, 0.7)),
        adapted_gradients,
        {"x": (5, 3), "w": (4, 3), "a": (2, 3), "b": (4, 2)},
    ),
    "a table with replaced rows": Case(
        lambda table, rows: embed(IDS, AdaptedRows(table, REPLACED, rows), table.dtype),
        lambda dy, table, rows: rows_gradients(embed_backward(IDS, AdaptedRows(table, REPLACED, rows), dy)),
        {"table": (6, 3), "rows": (2, 3)},
    ),
    "scores of a table with replaced rows": Case(
        lambda x, table, rows: linear(x, AdaptedRows(table, REPLACED, rows)),
        lambda dy, x, table, rows: scores_gradients(*linear_backward(x, AdaptedRows(table, REPLACED, rows), dy)),
        {"x": (5, 3), "table": (6, 3), "rows": (2, 3)},
    ),
    "embed": Case(
        lambda table: embed(IDS, table, table.dtype),
        lambda dy, table: {"table": embed_backward(IDS, table, dy)},
        {"table": (6, 3)},
    ),
    "layer norm": Case(
        lambda x, weight, bias: norms.layer_norm(LayerNorm(weight, bias, 1e-3), x),
        layer_norm_gradients,
        {"x": (2, 5, 3), "weight": (3,), "bias": (3,)},
    ),
    "RMS norm": Case(
        lambda x, weight: norms.rms_norm(RMSNorm(weight, 1e-3), x), rms_norm_gradients, {"x": (5, 3), "weight": (3,)}
    ),
    "unit": Case(norms.unit, lambda dy, x: {"x": norms.unit_backward(x, dy)}, {"x": (5, 3)}),
    "gelu": Case(activations.gelu, lambda dy, x: {"x": activations.gelu_backward(x, dy)}, {"x": (5, 3)}),
    "gelu with erf": Case(
        activations.gelu_erf, lambda dy, x: {"x": activations.gelu_erf_backward(x, dy)}, {"x": (5, 3)}, analytic=False
    ),
    "quick gelu": Case(
        activations.quick_gelu,
        lambda dy, x: {"x": activations.quick_gelu_backward(x, dy)},
        {"x": (5, 3)},
        analytic=False,
    ),
    "GeGLU": Case(
        activations.geglu,
        lambda dy, gate, up: named("gate", "up")(activations.geglu_backward(gate, up, dy)),
        {"gate": (5, 3), "up": (5, 3)},
    ),
    "soft cap": Case(
        lambda x: activations.soft_cap(x, 1.5),
        lambda dy, x: {"x": activations.soft_cap_backward(x, 1.5, dy)},
        {"x": (5, 3)},
    ),
    "RoPE": Case(
        lambda x: rope(x, POSITIONS, 1e4, factor=2.0),
        lambda dy, x: {"x": rope_backward(dy, POSITIONS, 1e4, 2.0)},
        {"x": (5, 2, 6)},
    ),
    "attention": attention_case(),
    "attention with a cap and a scale": attention_case(cap=1.5, scale=0.8),
    "relu": Case(
        activations.relu, lambda dy, x: {"x": activations.relu_backward(activations.relu(x), dy)}, {"x": (5, 3)}
    ),
    "convolution": conv_case(3, 1, 1),
    "convolution by strides": conv_case(4, 1, 2),
    "convolution of windows that lie apart": conv_case(2, 0, 3),
    "convolution of single pixels": conv_case(1, 0, 1),
    "upsampling": Case(
        lambda x, weight, bias: upsample(ConvTranspose(weight, bias), x),
        upsample_gradients,
        {"x": (2, 3, 4, 6), "weight": (3, 5, 4, 4), "bias": (5,)},
    ),
    "sigmoid loss": Case(
        sum_of_pairs,
        lambda dy, **p: named(*PAIR, "bias")(scaled(dy, *losses.sigmoid_loss_backward(**p))),
        PAIR | {"bias": ()},
    ),
    "sigmoid loss, two texts at a time": Case(
        sum_of_pairs,
        lambda dy, **p: named(*PAIR, "bias")(scaled(dy, *losses.sigmoid_loss_backward(**p, columns=2))),
        PAIR | {"bias": ()},
    ),
    "contrastive loss": Case(
        both_directions,
        lambda dy, **p: named(*PAIR)(scaled(dy, *losses.contrastive_loss_backward(**p))),
        PAIR,
    ),
    "binary cross-entropy": Case(
        several_labels,
        lambda dy, logits: {"logits": losses.binary_cross_entropy_backward(logits, FITS, WEIGHTS) * dy},
        {"logits": (3, 6)},
    ),
    "cross-entropy": cross_entropy_case(0.0),
    "cross-entropy, smoothed": cross_entropy_case(0.3),
}


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(len(shapes))
    return {name: np.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def slope(case: Case, arrays: Arrays, name: str, v: np.ndarray) -> np.ndarray:
    """How the result changes along v, a direction of one of the arrays."""
    if case.analytic:
        wide = {each: x.astype(np.complex128) for each, x in arrays.items()}
        wide[name] = wide[name] + 1j * STEP * v
        return case.forward(*wide.values()).imag / STEP
    above, below = (case.forward(*{**arrays, name: arrays[name] + h * v}.values()) for h in (DIFFERENCE, -DIFFERENCE))
    return (above - below) / (2 * DIFFERENCE)


def error(case: Case, found: Arrays, arrays: Arrays, dy: np.ndarray, name: str) -> float:
    """The largest error of a gradient along random directions, as a share of its length."""
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(DIRECTIONS):
        v = rng.standard_normal(arrays[name].shape)
        wanted = (slope(case, arrays, name, v / np.linalg.norm(v)) * dy).sum()
        errors.append(abs((found[name] * v).sum() / np.linalg.norm(v) - wanted) / np.linalg.norm(found[name]))
    return max(errors)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_slopes_of_the_forward_pass(name: str) -> None:
    case = CASES[name]
    arrays = drawn(case.shapes)
    dy = np.random.default_rng(2).standard_normal(np.shape(case.forward(*arrays.values())))
    found = case.backward(dy, **arrays)
    assert found.keys() == arrays.keys()
    for argument in arrays:
        assert found[argument].shape == arrays[argument].shape
        assert error(case, found, arrays, dy, argument) < (EXACT if case.analytic else DIFFERENCED), argument
        wrong = {**found, argument: -found[argument]}
        assert error(case, wrong, arrays, dy, argument) > 0.01, "the check does not notice a wrong sign"


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_is_what_its_backward_pass_was_held_against(smoothing: float) -> None:
    logits = drawn({"logits": (3, 6)})["logits"]
    found = losses.cross_entropy(logits, TARGETS, WEIGHTS, smoothing)
    np.testing.assert_allclose(found, cross_entropy_case(smoothing).forward(logits), rtol=EXACT)


def test_binary_cross_entropy_is_what_its_backward_pass_was_held_against() -> None:
    logits = drawn({"logits": (3, 6)})["logits"]
    found = losses.binary_cross_entropy(logits, FITS, WEIGHTS)
    np.testing.assert_allclose(found, several_labels(logits), rtol=EXACT)


def test_losses_of_pairs_are_what_their_backward_passes_were_held_against() -> None:
    images, texts, scale, bias = drawn(PAIR | {"bias": ()}).values()
    found = losses.sigmoid_loss(images, texts, scale, bias), losses.contrastive_loss(images, texts, scale)
    wanted = sum_of_pairs(images, texts, scale, bias), both_directions(images, texts, scale)
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_gradients_of_losses_of_huge_scores_do_not_overflow(scale: float) -> None:
    """Right pairs with a score of 10,000 have no gradient; wrong ones have the slope of one half each way."""
    rows = np.eye(2)
    dimages, _, _, dbias = losses.sigmoid_loss_backward(rows, rows, scale, 0.0)
    assert dbias == (0.5 if scale > 0 else -0.5)
    assert dimages[0].tolist() == ([0.0, 0.25 * scale] if scale > 0 else [-0.5 * scale, 0.25 * scale])
    _, _, dscale = losses.contrastive_loss_backward(rows, rows, scale)
    assert dscale == (0.0 if scale > 0 else -1.0)


def test_the_gradient_at_a_sure_target_keeps_its_digits() -> None:
    """P is 1 - 3e-9 there: P - 1 in float32 is 0."""
    logits = np.array([[0.0, 20.0, -1.0]], np.float32)
    found = losses.cross_entropy_backward(logits, np.array([1]), np.ones(1))
    wide = losses.cross_entropy_backward(logits.astype(np.float64), np.array([1]), np.ones(1))
    np.testing.assert_allclose(found, wide, rtol=1e-6)


def test_the_loss_of_sure_labels_keeps_its_digits() -> None:
    """log (1 + e^-20) is 2e-9: a difference of softplus and logit is 0 in float32."""
    found = losses.binary_cross_entropy(np.array([[20, -18]], np.float32), np.array([[True, False]]), np.ones(1))
    assert found == pytest.approx((np.log1p(np.exp(-20.0)) + np.log1p(np.exp(-18.0))) / 2, rel=1e-6)


def test_the_slope_of_an_rms_norm_of_small_rows_has_eps_under_the_root() -> None:
    """Rows of size 1e-3, where eps is as large as their mean square."""
    x = drawn({"x": (5, 3)})["x"] * 1e-3
    case = Case(
        lambda x: norms.rms_norm(RMSNorm(np.ones(3), 1e-6), x),
        lambda dy, x: {"x": norms.rms_norm_backward(RMSNorm(np.ones(3), 1e-6), x, dy)[0]},
        {},
    )
    dy = np.ones((5, 3))
    assert error(case, case.backward(dy, x), {"x": x}, dy, "x") < EXACT
