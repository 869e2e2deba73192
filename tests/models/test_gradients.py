"""The gradient of the loss of each model, by the complex step: one random direction for every weight."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from gradient_cases import CASES, F64, Case, moved, protect

from npgemma.layers.linear import AdaptedRows, AdaptedWeight
from npgemma.layers.taps import Kept, Recorder, numbered
from npgemma.layers.tree import Leaf, is_frozen, leaves, map_tree, thawed
from npgemma.models import prefix_lm, prefix_lm_grad

# The complex step is exact to rounding. A model of a few layers loses one or two digits more than a layer (EXACT in
# tests/layers/test_backward.py).
EXACT, STEP = 1e-13, 1e-100
# A bias of keys adds the same number to all scores of a row, which softmax does not notice: its gradient is 0.
ZERO = "k_bias"

every_model = pytest.mark.parametrize("case", CASES, indirect=True)


@cache
def made(name: str) -> Case:
    return CASES[name](0)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return made(request.param)


def slope(case: Case, directions: Mapping[str, np.ndarray]) -> float:
    """How the loss changes along a direction of some of the weights, by their paths."""
    return moved(case, lambda leaf: 1j * STEP * directions[leaf.path] if leaf.path in directions else 0).imag / STEP


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
    trained = [leaf.path for leaf in leaves(case.weights) if not is_frozen(leaf.value)]
    assert [leaf.path for leaf in leaves(gradient)] == trained
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
    seen = Recorder()
    again, found = case.gradient(case.weights, tap=seen)
    assert again == loss
    for one, other in zip(leaves(gradient), leaves(found), strict=True):
        np.testing.assert_allclose(other.value, one.value, atol=EXACT * np.abs(one.value).max())
    named = {name for name in seen if name.startswith("grad.")}
    inner = {name for name in seen.keys() - named if name.endswith((".mid", ".hidden", ".second"))}
    assert inner
    assert {f"grad.{name}" for name in inner} < named
    for name in named:
        assert seen[name].shape == seen[name.removeprefix("grad.")].shape
        assert seen.axes[name] == seen.axes[name.removeprefix("grad.")], name


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "computed again"])
@every_model
def test_a_model_keeps_what_its_backward_pass_reads_and_nothing_else(
    case: Case, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tapes: list[Kept] = []
    read: dict[int, set[str]] = {}
    make, get = Kept.__init__, Kept.__getitem__

    def start(tape: Kept, *arguments: Any) -> None:
        make(tape, *arguments)
        tapes.append(tape)

    def record(part: Kept, name: str) -> np.ndarray:
        read.setdefault(id(part.tensors), set()).add(part.scope + name)
        return get(part, name)

    monkeypatch.setattr(Kept, "__init__", start)
    monkeypatch.setattr(Kept, "__getitem__", record)
    monkeypatch.setattr(Kept, "take", record)
    case.gradient(case.weights, recompute=recompute)
    for tape in tapes:
        assert tape.tensors.keys() == read[id(tape.tensors)]
        assert {numbered(name) for name in tape.tensors} == tape.needs


@every_model
def test_nothing_is_written_to_a_tensor_that_has_passed_a_tap(case: Case) -> None:
    """Neither forwards nor backwards: what is kept is a reference."""
    loss, _ = case.gradient(case.weights, tap=protect)
    assert loss == case.gradient(case.weights)[0]


def test_the_matrices_of_an_adapter_have_gradients_while_its_base_is_frozen() -> None:
    rng = np.random.default_rng(0)
    case = CASES["Gemma 2"](0)

    def adapted(leaf: Leaf) -> Any:
        if leaf.path == "embedding":  # every other row is replaced
            ids = np.arange(0, len(leaf.value), 2)
            return AdaptedRows(leaf.value, ids, rng.standard_normal((len(ids), leaf.value.shape[1])))
        if not leaf.path.endswith((".q", ".k", ".v", ".o", ".gate", ".up", ".down")):
            return leaf.value
        rows = math.prod(leaf.value.shape[:-1]) if not leaf.path.endswith(".o") else len(leaf.value)
        a = rng.standard_normal((2, leaf.value.size // rows))
        return AdaptedWeight(leaf.value, a, rng.standard_normal((rows, 2)), 0.5)

    p = map_tree(adapted, case.weights)
    chosen = [leaf.path for leaf in leaves(p) if leaf.path.endswith((".a", ".b", ".rows"))]
    assert len(chosen) == 1 + 2 * 7 * len(p.blocks)
    _, gradient = case.gradient(thawed(p, chosen.__contains__, F64))
    assert [leaf.path for leaf in leaves(gradient)] == chosen
    assert wrong_gradients(case._replace(weights=p), gradient) == []


def test_a_first_token_with_a_weight_is_refused() -> None:
    case = CASES["Gemma 1"](0)
    prompt = prefix_lm.causal_prompt(case.weights, np.array([3, 4]), F64)
    with pytest.raises(ValueError, match="no row predicts it"):
        prefix_lm_grad.loss_and_gradient(case.weights, [prompt], [np.ones(2)])
