"""The first steps of a training on the recorded case, so that a port can compare its optimizer.

    loss, gradient --> its length --> clip --> AdamW --> other weights --> the next loss ...

The file holds the loss and the length of the gradient of each step, and the constants of the steps. In bfloat16, the
weights that are updated are float32, and each step computes with them rounded, as most ports train.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from npgemma.api.load import AnyModel
from npgemma.api.steps import steps_of
from npgemma.api.trainable import trained
from npgemma.errors import BadGolden
from npgemma.golden.arithmetic import plain
from npgemma.golden.file import Golden
from npgemma.golden.gradient_case import GradientCase
from npgemma.golden.gradient_judge import judge_gradient
from npgemma.golden.gradient_run import at_path, paths_of
from npgemma.golden.gradient_taps import CURVE
from npgemma.golden.judge import Verdict
from npgemma.golden.rounding import GRIDS, SIXTEEN_BITS
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap
from npgemma.layers.tree import Leaf, leaves, map_tree, thawed

Facts = Mapping[str, Any]


def curve_facts(model: AnyModel, facts: Facts, count: int | None) -> dict[str, Any]:
    """What a file says about its steps. BadGolden if memory does not hold the gradients of what is trained."""
    if count is None:
        return {}
    if not facts["whole"]:
        raise BadGolden(
            f"{model.folder}: the steps of a training need the gradients of all weights that are trained in memory; "
            "train fewer with --train or an adapter, or leave --steps out"
        )
    tensors = trained(model, facts["train"])
    return {"curve": steps_of(model, count, [*paths_of(tensors)]).facts(tensors)}


def run_curve(case: GradientCase, model: AnyModel, facts: Facts, dtype: str, tap: Tap, put: Tap) -> None:
    """The steps in a dtype, if the file has any; activations pass `tap`, losses and lengths `put`."""
    if "curve" not in facts:
        return
    paths = paths_of(trained(model, facts["train"]))
    steps = steps_of(model, facts["curve"]["steps"], [*paths])
    tree = thawed(model.weights, paths.__contains__, model.dtype)
    arrays = {leaf.path: leaf.value for leaf in leaves(tree) if leaf.path in paths}
    grid = GRIDS[dtype] if dtype in SIXTEEN_BITS else None

    def rounded(leaf: Leaf) -> Array:
        return leaf.value if grid is None or leaf.path not in paths else grid(leaf.value)

    def gradient() -> tuple[float, dict[str, Array]]:
        losses: list[float] = []

        def watch(name: str, x: Array, axes: str) -> Array:
            x = tap(name, x, axes)
            if name == "loss":
                losses.append(float(x))
            return x

        found = case.loss_and_gradient(model, map_tree(rounded, tree), watch)
        by_path = {path: np.ascontiguousarray(plain(at_path(found, path))) for path in arrays}
        return losses[0], by_path if grid is None else {path: grid(g) for path, g in by_path.items()}

    made = [*steps.run(arrays, gradient)]
    for name, values in zip(CURVE, zip(*made, strict=True), strict=True):
        put(name, np.array(values, model.dtype), "T")


def growing(errors: Float[Array, "2 R"]) -> Float[Array, "2 R"]:
    """Errors of steps, each of which counts as no less than those before it: an error of a step is a single draw."""
    return np.maximum.accumulate(errors, axis=1)


def judged_steps(golden: Golden, tap: str, theirs: str, x: Array, dtype: str) -> Iterator[Verdict]:
    """A verdict on each step; the block that is named is the step."""
    truth, envelope = golden.truth[tap], golden.envelopes[dtype][tap]
    for i in range(len(truth)):
        one = slice(i, i + 1)
        verdict = judge_gradient(tap, "T", theirs, x[one], truth[one], envelope[:, one], dtype)
        yield replace(verdict, name=f"{tap}[{i}]", block=f"step {i + 1}")
