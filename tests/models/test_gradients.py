"""The gradient of the loss of each language model, by the complex step: one random direction for every weight."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import architectures
import numpy as np
import pytest

from npgemma import testing
from npgemma.layers.linear import AdaptedWeight
from npgemma.layers.taps import Recorder
from npgemma.layers.tree import Leaf, leaves, map_tree, thawed
from npgemma.models import paligemma, paligemma_grad, prefix_lm, prefix_lm_grad
from npgemma.models.paligemma_grad import Labelled

# The complex step is exact to rounding. A model of a few layers loses one or two digits more than a layer (EXACT in
# tests/layers/test_backward.py).
EXACT, STEP = 1e-13, 1e-100
F64 = np.dtype(np.float64)
# A bias of keys adds the same number to all scores of a row, which softmax does not notice: its gradient is 0.
ZERO = "k_bias"


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


def pictures_case(name: str, seed: int) -> Case:
    """Three pictures and three examples; two of them ask about the same picture, one about two."""
    rng = np.random.default_rng(seed)
    p = thawed(random_weights(name), lambda path: True, F64)
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
    p = thawed(random_weights(name), lambda path: True, F64)
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


def random_weights(name: str) -> Any:
    layout = next(iter(architectures.ARCHITECTURES[name].layouts.values()))
    return layout.fill(testing.layout_tensors(layout))


CASES: dict[str, Callable[[int], Case]] = {
    "PaliGemma 1": lambda seed: pictures_case("PaliGemma 1", seed),
    "PaliGemma 2": lambda seed: pictures_case("PaliGemma 2", seed),
    "Gemma 1": lambda seed: text_case("Gemma 1", seed),
    "Gemma 2": lambda seed: text_case("Gemma 2", seed),
    "Gemma 3": lambda seed: text_case("Gemma 3", seed),
}
every_model = pytest.mark.parametrize("case", [make(0) for make in CASES.values()], ids=list(CASES))


def slope(case: Case, directions: Mapping[str, np.ndarray]) -> float:
    """How the loss changes along a direction of some of the weights, by their paths."""

    def stepped(leaf: Leaf) -> np.ndarray:
        return leaf.value + 1j * STEP * directions[leaf.path] if leaf.path in directions else leaf.value

    return case.loss(map_tree(stepped, case.weights)).imag / STEP


def wrong_gradients(case: Case, gradient: Any) -> list[str]:
    """The paths of the gradients that are not the slopes of the loss; the weights are tried one by one if the slope
    along a direction of all of them is wrong, to which each contributes about as much.
    """
    rng = np.random.default_rng(1)
    found = {leaf.path: leaf.value for leaf in leaves(gradient)}
    directions = {}
    for path, x in found.items():
        v = rng.standard_normal(x.shape)
        directions[path] = v / np.linalg.norm(v) / (1 if path.endswith(ZERO) else np.linalg.norm(x))
    changes = {path: (found[path] * directions[path]).sum() for path in found}
    if abs(sum(changes.values()) - slope(case, directions)) <= EXACT * len(found) ** 0.5:
        return []
    return [p for p in found if abs(changes[p] - slope(case, {p: directions[p]})) > EXACT] or ["their sum"]


@every_model
def test_every_gradient_is_the_slope_of_the_loss(case: Case) -> None:
    loss, gradient = case.gradient(case.weights)
    np.testing.assert_allclose(loss, case.loss(case.weights), rtol=EXACT)
    assert [leaf.path for leaf in leaves(gradient)] == [leaf.path for leaf in leaves(case.weights)]
    assert wrong_gradients(case, gradient) == []


def test_a_wrong_gradient_is_named() -> None:
    case = CASES["Gemma 1"](0)
    _, gradient = case.gradient(case.weights)
    wrong = map_tree(lambda leaf: leaf.value * (1.001 if leaf.path == "blocks[1].mlp.up" else 1), gradient)
    assert wrong_gradients(case, wrong) == ["blocks[1].mlp.up"]


@every_model
def test_blocks_computed_again_give_the_same_bits(case: Case) -> None:
    kept, again = case.gradient(case.weights), case.gradient(case.weights, recompute=True)
    assert kept[0] == again[0]
    assert_same_bits(kept[1], again[1])


def assert_same_bits(gradient: Any, other: Any) -> None:
    for one, another in zip(leaves(gradient), leaves(other), strict=True):
        np.testing.assert_array_equal(one.value, another.value, err_msg=one.path, strict=True)


@every_model
def test_frozen_weights_have_no_gradient_and_the_others_have_the_same(case: Case) -> None:
    _, whole = case.gradient(case.weights)
    wanted = {leaf.path: leaf.value for leaf in leaves(whole)}
    third = {path for i, path in enumerate(wanted) if i % 3 == 0}
    decoder = {path for path in wanted if not path.startswith(("vision", "projector"))}
    projector = {path for path in wanted if not path.startswith("vision")}
    for chosen in (third, decoder, projector):
        _, found = case.gradient(thawed(case.weights, chosen.__contains__, F64))
        assert {leaf.path for leaf in leaves(found)} == chosen
        for leaf in leaves(found):
            np.testing.assert_array_equal(leaf.value, wanted[leaf.path], err_msg=leaf.path)


@every_model
def test_a_tap_gets_the_gradients_of_tensors_and_changes_nothing(case: Case) -> None:
    loss, gradient = case.gradient(case.weights)
    seen = Recorder("text.*", "grad.text.*")
    again, found = case.gradient(case.weights, tap=seen)
    assert again == loss
    for one, other in zip(leaves(gradient), leaves(found), strict=True):
        np.testing.assert_allclose(other.value, one.value, atol=EXACT * np.abs(one.value).max())
    named = {name for name in seen if name.startswith("grad.")}
    assert {"grad.text.embedding", "grad.text.layers.0.attn.q_rope", "grad.text.norm"} <= named
    for name in named:
        assert seen[name].shape == seen[name.removeprefix("grad.")].shape
        assert seen.axes[name] == seen.axes[name.removeprefix("grad.")], name


def test_the_matrices_of_an_adapter_have_gradients_while_its_base_is_frozen() -> None:
    rng = np.random.default_rng(0)
    case = CASES["Gemma 2"](0)

    def adapted(leaf: Leaf) -> Any:
        if not leaf.path.endswith((".q", ".k", ".v", ".o", ".gate", ".up", ".down")):
            return leaf.value
        rows = math.prod(leaf.value.shape[:-1]) if not leaf.path.endswith(".o") else len(leaf.value)
        a = rng.standard_normal((2, leaf.value.size // rows))
        return AdaptedWeight(leaf.value, a, rng.standard_normal((rows, 2)), 0.5)

    p = map_tree(adapted, case.weights)
    chosen = [leaf.path for leaf in leaves(p) if leaf.path.endswith((".a", ".b"))]
    assert len(chosen) == 2 * 7 * len(p.blocks)
    _, gradient = case.gradient(thawed(p, chosen.__contains__, F64))
    assert [leaf.path for leaf in leaves(gradient)] == chosen
    assert wrong_gradients(case._replace(weights=p), gradient) == []


def test_a_first_token_with_a_weight_is_refused() -> None:
    case = CASES["Gemma 1"](0)
    prompt = prefix_lm.causal_prompt(case.weights, np.array([3, 4]), F64)
    with pytest.raises(ValueError, match="no row predicts it"):
        prefix_lm_grad.loss_and_gradient(case.weights, [prompt], [np.ones(2)])
