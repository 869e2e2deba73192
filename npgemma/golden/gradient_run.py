"""The run whose gradients are recorded: the loss, the gradient of every trained weight, and the sketches of matrices.

`api.trainable` says what is trained, and what each gradient is called.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from npgemma.api.generative import GenerativeModel
from npgemma.api.load import AnyModel
from npgemma.api.trainable import Tensor, trained
from npgemma.golden.gradient_case import GradientCase
from npgemma.golden.gradient_taps import SIGNS, SKETCHES, WEIGHT, WEIGHTS, is_matrix, sides
from npgemma.golden.sketches import of_probe, probe, sketches
from npgemma.layers.bits import widened
from npgemma.layers.linear import AdaptedWeight, embed_backward
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap
from npgemma.layers.tree import Leaf, map_tree, thawed

# The gradient of a weight, or the two sketches of it.
Found: TypeAlias = Array | tuple[Array, Array]


def place_of(model: AnyModel, tensor: Tensor) -> str:
    """The path of a tensor's array in a model that has a decoder, which a language model is itself."""
    return f"text.{tensor.paths[0]}" if model.weights is getattr(model, "decoder", None) else tensor.paths[0]


def at_path(tree: Any, path: str) -> Any:
    """The field of a tree at a path such as 'blocks[3].attn.q'."""
    for step in re.findall(r"\w+", path):
        tree = tree[int(step)] if step.isdecimal() else getattr(tree, step)
    return tree


def run(
    case: GradientCase, model: AnyModel, signs: Array, whole: bool, tap: Tap, train: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """The loss and all gradients, through `tap`; yields the name of each tensor with each name of its gradient.

    With `whole`, matrices have gradients; otherwise only their sketches are computed, in little memory.
    """
    for name, x, axes in case.inputs():
        tap(name, x.astype(model.dtype) if x.dtype.kind == "f" else x, axes)
    tensors = trained(model, train)
    compute = whole_gradients if whole else sketched_gradients
    squares = 0.0
    for name, found in compute(case, model, tensors, signs, tap):
        both: tuple[Array, ...] = found if isinstance(found, tuple) else ()
        if isinstance(found, np.ndarray):
            x = tap(WEIGHT + name, found, WEIGHTS[found.ndim])
            squares += float(np.square(x, dtype=np.float64).sum())
            yield name, WEIGHT + name
            both = sketches(x, signs) if is_matrix(x.shape) else ()
        for start, sketch in zip(SKETCHES, both, strict=bool(both)):
            tap(start + name, sketch, "I")
            yield name, start + name
    if whole:
        tap("gradient_norm", np.sqrt(np.array(squares)), "")
    tap(SIGNS, signs, "I")


def whole_gradients(
    case: GradientCase, model: AnyModel, tensors: Mapping[str, Tensor], signs: Array, tap: Tap
) -> Iterator[tuple[str, Found]]:
    """The gradient of each tensor, by its name."""
    paths = paths_of(tensors)
    gradient = case.loss_and_gradient(model, thawed(model.weights, paths.__contains__, model.dtype), tap)
    for name, tensor in tensors.items():
        yield name, tensor.whole([at_path(gradient, path) for path in tensor.paths])


def paths_of(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """The paths of all arrays of tensors."""
    return frozenset(path for tensor in tensors.values() for path in tensor.paths)


def sketched_gradients(
    case: GradientCase, model: AnyModel, tensors: Mapping[str, Tensor], signs: Array, tap: Tap
) -> Iterator[tuple[str, Found]]:
    """The sketches of the gradients of matrices, and the gradients of all other tensors, by name.

    The table of embeddings is frozen, so that no array of its size is made; a head that is tied to it is a weight of
    its own, and the rows that were looked up add their share.
    """
    entered: list[Array] = []
    table = case.table if hasattr(model.weights, "text") else case.table.removeprefix("text.")
    tied = isinstance(model, GenerativeModel) and model.decoder.head is None

    def watch(name: str, x: Array, axes: str) -> Array:
        x = tap(name, x, axes)
        if name == "grad.text.embedding":
            entered.append(x)
        return x

    p = with_probes(model, tensors, signs, table)
    if tied and table in paths_of(tensors):
        p = with_decoder(p, replace(decoder_of(p), head=head_probe(decoder_of(model.weights).embedding, signs)))
    gradient = case.loss_and_gradient(model, p, watch)
    for name, tensor in tensors.items():
        if table in tensor.paths:
            rows = sides(tensor.shape)[0]
            looked_up = of_rows(*case.looked_up(model, entered[0]), rows, signs)
            head = of_probe(decoder_of(gradient).head) if tied else (0, 0)
            yield name, (looked_up[0] + head[0], looked_up[1] + head[1])
        else:
            yield name, found_in(tensor, [at_path(gradient, path) for path in tensor.paths])


def with_probes(model: AnyModel, tensors: Mapping[str, Tensor], signs: Array, table: str) -> Any:
    """The weights for training, each trained matrix with a probe in its place, and the table frozen.

    The rows of a tensor that holds several matrices count through all of them.
    """
    probed: dict[str, tuple[int, int]] = {}
    for tensor in tensors.values():
        start = 0
        for path, home in zip(tensor.paths, tensor.homes, strict=bool(tensor.homes)):
            if home.leaf.kind == "weight":
                probed[path] = start, start + home.shape[0]
                start += home.shape[0]

    def changed(leaf: Leaf) -> Any:
        if leaf.path in probed and leaf.path != table:
            first, last = probed[leaf.path]
            return probe(leaf.value, signs, signs[first:last])
        if leaf.path in paths and leaf.path != table:
            return np.array(widened(leaf.value, model.dtype))
        return frozen(leaf.value)

    paths = paths_of(tensors)
    return map_tree(changed, model.weights)


def found_in(tensor: Tensor, gradients: Sequence[Any]) -> Found:
    """The sketches of a tensor from the probes of its arrays, or its gradient if it is not one of matrices."""
    if not isinstance(gradients[0], AdaptedWeight):
        return tensor.whole(gradients)
    rows, columns = zip(*map(of_probe, gradients), strict=True)
    return np.concatenate(rows), sum(columns[1:], columns[0])


def of_rows(ids: Array, dx: Float[Array, "T D"], count: int, signs: Array) -> tuple[Array, Array]:
    """The sketches of the gradient of a table of so many rows that comes from the rows that were looked up."""
    looked_up, index = np.unique(ids, return_inverse=True)
    compact = embed_backward(index, np.empty((len(looked_up), dx.shape[1]), dx.dtype), dx)
    by_rows = np.zeros(count, dx.dtype)
    by_rows[looked_up] = compact @ signs[: dx.shape[1]].astype(dx.dtype)
    return by_rows, signs[looked_up].astype(dx.dtype) @ compact


def head_probe(table: Array, signs: Array) -> AdaptedWeight:
    """The probe of a table that is used as a head."""
    return probe(table, signs, signs[: len(table)])


def decoder_of(p: Any) -> Any:
    """The decoder of a PaliGemma; a language model is one."""
    return getattr(p, "text", p)


def with_decoder(p: Any, decoder: Any) -> Any:
    """The model with another decoder."""
    return replace(p, text=decoder) if hasattr(p, "text") else decoder


def frozen(w: Array) -> Array:
    """A view of a weight that cannot be written to."""
    view = w.view()
    view.flags.writeable = False
    return view


def longest_side(tensors: Collection[Tensor]) -> int:
    """How many signs the matrices among tensors need."""
    return max((max(sides(tensor.shape)) for tensor in tensors if is_matrix(tensor.shape)), default=1)
