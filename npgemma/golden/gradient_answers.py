"""Gradients of models that write: the loss of answers to a prompt.

An example is one prompt with its answer: all pictures in one example, or as many answers as pictures, one of each. What
an answer is, its end token included, is what transformers' processor makes of a suffix.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from npgemma.api.language import LanguageModel
from npgemma.api.processor import Inputs
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.errors import BadPrompt
from npgemma.golden.cases import Recorded
from npgemma.golden.gradient_options import MEANS, Facts, GradientOptions, Named, Texts
from npgemma.io.picture import Picture
from npgemma.layers.activations import log_softmax
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap
from npgemma.models import paligemma_grad, prefix_lm_grad
from npgemma.models.paligemma_grad import Labelled
from npgemma.models.prefix_lm import causal_prompt

IGNORED = -100  # the label of what is not learned, as transformers has it


@dataclass(frozen=True)
class AnswerCase:
    """Pictures, examples, which mean the loss is, and how much smoothing it has."""

    table: ClassVar[str] = "text.embedding"
    pixel_values: Float[Array, "B 3 Y X"]
    examples: tuple[Labelled, ...]
    mean: str = MEANS[0]
    smoothing: float = 0.0

    @classmethod
    def read(
        cls,
        model: VisionLanguageModel | LanguageModel,
        images: Sequence[Picture],
        text: Texts,
        answers: Sequence[str],
        options: GradientOptions,
        tap: Tap,
    ) -> "AnswerCase":
        """By token, each learned token counts the same; by example, each example does."""
        each = [[picture] for picture in images] if len(answers) == len(images) > 1 else [list(images)] * len(answers)
        if not isinstance(text, str):
            raise BadPrompt(f"{model.folder} continues a prompt; give one text, not {len(text)}")
        if not answers or (len(images) > 1 and len(answers) not in (1, len(images))):
            raise BadPrompt(f"there are {len(images)} pictures and {len(answers)} suffixes; give one, or one for each")
        pictures: list[Any] = [list(images)] if images else [[]]
        own = text if len(each[0]) == len(images) else ""  # with a picture for each answer, only the pixels are used
        inputs = model.processor(pictures, [own], tap=tap)
        ids = [model.processor.suffix_ids(answer) for answer in answers]
        prompts = [model.processor([one], [text]).input_ids[0] for one in each]
        model.guard.check_scored([len(prompt) + len(answer) for prompt, answer in zip(prompts, ids, strict=True)])
        return make_case(inputs, prompts, ids, options.mean or MEANS[0], options.smoothing)

    @classmethod
    def recorded(cls, truth: Recorded, facts: Facts) -> "AnswerCase":
        examples: list[Labelled] = []
        while (scope := f"prompts.{len(examples)}") + ".input_ids" in truth:
            ids, weights = truth[f"{scope}.input_ids"].astype(np.int64), np.array(truth[f"{scope}.loss_weights"])
            types = truth[f"{scope}.token_type_ids"].astype(np.int64)
            pictures = truth[f"{scope}.pictures"].tolist() if f"{scope}.pictures" in truth else []
            examples.append(Labelled(ids, types, pictures, weights.astype(np.float64)))
        pixels = truth["pixel_values"] if "pixel_values" in truth else np.empty((0, 3, 0, 0), np.float32)
        return cls(np.array(pixels), tuple(examples), facts["mean"], facts["smoothing"])

    @property
    def learned(self) -> Array:
        """The tokens that are learned, of all examples in turn."""
        return np.concatenate([each.input_ids[each.weights != 0] for each in self.examples])

    def inputs(self) -> Named:
        for i, each in enumerate(self.examples):
            yield f"prompts.{i}.labels", np.where(each.weights != 0, each.input_ids, IGNORED), "T"
            yield f"prompts.{i}.loss_weights", each.weights, "T"
            if each.pictures:
                yield f"prompts.{i}.pictures", np.array(each.pictures), "T"

    def looked_up(self, model: VisionLanguageModel | LanguageModel, dx: Array) -> tuple[Array, Array]:
        ids = np.concatenate([each.input_ids for each in self.examples])
        text = ids != getattr(model.config, "image_token_index", None)
        return ids[text], dx[text] * np.asarray(math.sqrt(dx.shape[1]), dx.dtype)

    def loss_and_gradient(self, model: VisionLanguageModel | LanguageModel, p: Any, tap: Tap) -> Any:
        log_probs: list[Array] = []

        def watch(name: str, x: Array, axes: str) -> Array:
            x = tap(name, x, axes)
            if name == "logits":
                start = sum(map(len, log_probs))
                targets = self.learned[start : start + len(x)]
                log_probs.append(log_softmax(x)[np.arange(len(x)), targets])
                if start + len(x) == len(self.learned):
                    tap("log_probs", np.concatenate(log_probs), "T")
            return x

        gradient: Any
        if isinstance(model, LanguageModel):
            prompts = [causal_prompt(p, each.input_ids, model.dtype) for each in self.examples]
            weights = [each.weights for each in self.examples]
            loss, _, gradient = prefix_lm_grad.loss_and_gradient(p, prompts, weights, self.smoothing, tap=watch)
        else:
            pixels = self.pixel_values.astype(model.dtype)
            loss, gradient = paligemma_grad.loss_and_gradient(p, pixels, self.examples, self.smoothing, tap=watch)
        tap("loss", np.array(loss, model.dtype), "")
        return gradient


def make_case(
    inputs: Inputs, prompts: Sequence[Array], answers: Sequence[Sequence[int]], mean: str, smoothing: float
) -> AnswerCase:
    """The case of prompts and answers as ids, and of pictures: each prompt has one of them, or the one has all."""
    count, total = len(prompts), sum(map(len, answers))
    shown = [[i] for i in range(count)] if len(inputs.pixel_values) == count else [[*range(len(inputs.pixel_values))]]
    examples = []
    for ids, answer, pictures in zip(prompts, answers, shown * (count // len(shown)), strict=True):
        types = np.repeat([0, 1], [len(ids), len(answer)])
        weights = types / (total if mean == "token" else count * len(answer))
        examples.append(Labelled(np.concatenate([ids, answer]).astype(np.int64), types, pictures, weights))
    return AnswerCase(inputs.pixel_values, tuple(examples), mean, smoothing)
