"""What gradients are recorded of: examples with their answers, the loss, and the gradient of every weight.

An example is one prompt with its answer: all pictures in one example, or as many answers as pictures, one of each. What
an answer is, its end token included, is what transformers' processor makes of a suffix.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from npgemma.api.language import LanguageModel
from npgemma.api.processor import Inputs
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.errors import BadPrompt
from npgemma.golden.cases import Recorded
from npgemma.golden.gradient_taps import SIGNS, SKETCHES, WEIGHT
from npgemma.golden.sketches import of_probe, probe, sketches
from npgemma.io.picture import Picture
from npgemma.layers.activations import log_softmax
from npgemma.layers.bits import widened
from npgemma.layers.linear import AdaptedWeight, embed_backward
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, at
from npgemma.layers.tree import Leaf, map_tree, thawed
from npgemma.models import paligemma_grad, prefix_lm_grad
from npgemma.models.paligemma_grad import Labelled
from npgemma.models.prefix_lm import causal_prompt

Trained: TypeAlias = VisionLanguageModel | LanguageModel
# checkpoints.layout.Stored by the paths of weights.
Homes: TypeAlias = Mapping[str, Any]
MEANS = ("token", "example")
AXES = {1: "I", 2: "O I", 4: "O C Y X"}  # of weights of so many axes
IGNORED = -100  # the label of what is not learned, as transformers has it


@dataclass(frozen=True)
class GradientCase:
    """Pictures, examples, and how much smoothing the loss has."""

    pixel_values: Float[Array, "B 3 Y X"]
    examples: tuple[Labelled, ...]
    smoothing: float = 0.0

    @property
    def learned(self) -> Array:
        """The tokens that are learned, of all examples in turn."""
        return np.concatenate([each.input_ids[each.weights != 0] for each in self.examples])


def read_case(
    model: Trained, images: Sequence[Picture], text: str, suffixes: Sequence[str], mean: str, smoothing: float, tap: Tap
) -> GradientCase:
    """The case of a prompt and its answers; `tap` gets what preprocessing makes. BadPrompt for answers that do not fit.

    By token, each learned token counts the same; by example, each example does.
    """
    each = [[picture] for picture in images] if len(suffixes) == len(images) > 1 else [list(images)] * len(suffixes)
    if not suffixes or (len(images) > 1 and len(suffixes) not in (1, len(images))):
        raise BadPrompt(f"there are {len(images)} pictures and {len(suffixes)} suffixes; give one, or one for each")
    pictures: list[Any] = [list(images)] if images else [[]]
    inputs = model.processor(pictures, [text], tap=tap)
    answers = [model.processor.suffix_ids(suffix) for suffix in suffixes]
    prompts = [model.processor([one], [text]).input_ids[0] for one in each]
    model.guard.check_scored([len(ids) + len(answer) for ids, answer in zip(prompts, answers, strict=True)])
    return make_case(inputs, prompts, answers, mean, smoothing)


def make_case(
    inputs: Inputs, prompts: Sequence[Array], answers: Sequence[Sequence[int]], mean: str, smoothing: float
) -> GradientCase:
    """The case of prompts and answers as ids, and of pictures: each prompt has one of them, or the one has all."""
    count, total = len(prompts), sum(map(len, answers))
    shown = [[i] for i in range(count)] if len(inputs.pixel_values) == count else [[*range(len(inputs.pixel_values))]]
    examples = []
    for ids, answer, pictures in zip(prompts, answers, shown * (count // len(shown)), strict=True):
        types = np.repeat([0, 1], [len(ids), len(answer)])
        weights = types / (total if mean == "token" else count * len(answer))
        examples.append(Labelled(np.concatenate([ids, answer]).astype(np.int64), types, pictures, weights))
    return GradientCase(inputs.pixel_values, tuple(examples), smoothing)


def recorded_case(truth: Recorded, smoothing: float) -> GradientCase:
    """The case of a recorded run."""
    examples: list[Labelled] = []
    while (scope := f"prompts.{len(examples)}") + ".input_ids" in truth:
        ids, weights = truth[f"{scope}.input_ids"].astype(np.int64), np.array(truth[f"{scope}.loss_weights"])
        types = truth[f"{scope}.token_type_ids"].astype(np.int64)
        pictures = truth[f"{scope}.pictures"].tolist() if f"{scope}.pictures" in truth else []
        examples.append(Labelled(ids, types, pictures, weights.astype(np.float64)))
    pixels = truth["pixel_values"] if "pixel_values" in truth else np.empty((0, 3, 0, 0), np.float32)
    return GradientCase(np.array(pixels), tuple(examples), smoothing)


# ---------------------------------------------------------------------------------------------------------- the run


def run(case: GradientCase, model: Trained, signs: Array, whole: bool, tap: Tap) -> Iterator[tuple[str, str]]:
    """The loss and all gradients, through `tap`; yields the path of each weight with each name of its gradient.

    With `whole`, matrices have gradients; otherwise only their sketches are computed, in little memory.
    """
    for i, each in enumerate(case.examples):
        scope = at(tap, f"prompts.{i}")
        scope("labels", np.where(each.weights != 0, each.input_ids, IGNORED), "T")
        scope("loss_weights", each.weights.astype(model.dtype), "T")
        if each.pictures:
            scope("pictures", np.array(each.pictures), "T")
    homes = homes_of(model)
    compute = whole_gradients if whole else sketched_gradients
    squares = 0.0
    for path, x in compute(case, model, homes, signs, tap):
        name = homes[path].name
        if isinstance(x, np.ndarray):
            x = tap(WEIGHT + name, homes[path].from_field(x), AXES[len(homes[path].shape)])
            squares += float(np.square(x, dtype=np.float64).sum())
            yield path, WEIGHT + name
        both = x if isinstance(x, tuple) else sketches(x, signs) if x.ndim > 1 else ()
        for start, sketch in zip(SKETCHES, both, strict=bool(both)):
            tap(start + name, sketch, "I")
            yield path, start + name
    if whole:
        tap("gradient_norm", np.sqrt(np.array(squares)), "")
    tap(SIGNS, signs, "I")


# The gradient of a weight, or the two sketches of it.
Found: TypeAlias = Array | tuple[Array, Array]


def whole_gradients(
    case: GradientCase, model: Trained, homes: Homes, signs: Array, tap: Tap
) -> Iterator[tuple[str, Found]]:
    """The gradient of each weight, by its path."""
    gradient = loss_and_gradient(case, model, thawed(model.weights, lambda path: True, model.dtype), tap)
    yield from ((path, at_path(gradient, path)) for path in homes)


def sketched_gradients(
    case: GradientCase, model: Trained, homes: Homes, signs: Array, tap: Tap
) -> Iterator[tuple[str, Found]]:
    """The sketches of the gradients of matrices, and the gradients of all other weights, by path.

    The table of embeddings is frozen, so that no array of its size is made; a head that is tied to it is a weight of
    its own, and the rows that were looked up add their share.
    """
    entered: list[Array] = []

    def watch(name: str, x: Array, axes: str) -> Array:
        x = tap(name, x, axes)
        if name == "grad.text.embedding":
            entered.append(x)
        return x

    def probed(leaf: Leaf) -> Any:
        if leaf.kind != "weight":
            return np.array(widened(leaf.value, model.dtype))
        return frozen(leaf.value) if leaf.path == table else probe(leaf.value, signs, homes[leaf.path].shape[0])

    p, table = model.weights, "embedding" if isinstance(model, LanguageModel) else "text.embedding"
    tied = model.decoder.head is None
    p = map_tree(probed, p)
    if tied:
        p = with_decoder(p, replace(decoder_of(p), head=probe(model.decoder.embedding, signs)))
    gradient = loss_and_gradient(case, model, p, watch)
    looked_up = of_rows(case, model, entered[0], signs)
    for path in homes:
        x = at_path(gradient, path)
        if path == table:
            head = of_probe(decoder_of(gradient).head) if tied else (0, 0)
            yield path, tuple(a + b for a, b in zip(looked_up, head, strict=True))
        else:
            yield path, of_probe(x) if isinstance(x, AdaptedWeight) else x


def of_rows(case: GradientCase, model: Trained, dx: Float[Array, "T D"], signs: Array) -> tuple[Array, Array]:
    """The sketches of the share of the table's gradient that comes from the rows that were looked up."""
    ids = np.concatenate([each.input_ids for each in case.examples])
    text = ids != getattr(model.config, "image_token_index", None)
    looked_up, index = np.unique(ids[text], return_inverse=True)
    rows = np.empty((len(looked_up), dx.shape[1]), dx.dtype)
    compact = embed_backward(index, rows, dx[text] * np.asarray(math.sqrt(dx.shape[1]), dx.dtype))
    by_rows = np.zeros(len(model.decoder.embedding), dx.dtype)
    by_rows[looked_up] = compact @ signs[: dx.shape[1]].astype(dx.dtype)
    return by_rows, signs[looked_up].astype(dx.dtype) @ compact


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


def at_path(tree: Any, path: str) -> Any:
    """The field of a tree at a path such as 'blocks[3].attn.q'."""
    for step in re.findall(r"\w+", path):
        tree = tree[int(step)] if step.isdecimal() else getattr(tree, step)
    return tree


def homes_of(model: Trained) -> Homes:
    """Where each weight is stored in Hugging Face's checkpoints, by its path: name, shape and order of axes."""
    return {home.leaf.path: home for home in model.checkpoint.hf_layout(model.config).stored}


def loss_and_gradient(case: GradientCase, model: Trained, p: Any, tap: Tap) -> Any:
    """The gradient of the weights; `tap` gets log p of learned tokens, the loss, and the gradients of activations."""
    log_probs: list[Array] = []

    def watch(name: str, x: Array, axes: str) -> Array:
        x = tap(name, x, axes)
        if name == "logits":
            start = sum(map(len, log_probs))
            targets = case.learned[start : start + len(x)]
            log_probs.append(log_softmax(x)[np.arange(len(x)), targets])
            if start + len(x) == len(case.learned):
                tap("log_probs", np.concatenate(log_probs), "T")
        return x

    gradient: Any
    if isinstance(model, LanguageModel):
        prompts = [causal_prompt(p, each.input_ids, model.dtype) for each in case.examples]
        weights = [each.weights for each in case.examples]
        loss, _, gradient = prefix_lm_grad.loss_and_gradient(p, prompts, weights, case.smoothing, tap=watch)
    else:
        pixels = case.pixel_values.astype(model.dtype)
        loss, gradient = paligemma_grad.loss_and_gradient(p, pixels, case.examples, case.smoothing, tap=watch)
    tap("loss", np.array(loss, model.dtype), "")
    return gradient
