"""What is recorded of each kind of model: the inputs of a run, and the run itself, which is the one that users get.

    GenerativeCase   pictures, a prompt -> a prefill, and a step for each token
    PairCase         pictures, texts    -> the rows of both, their scores, probabilities and loss
    PictureCase      pictures           -> the scores and probabilities of labels

A golden file holds the inputs of its run, whatever its level, so `recorded` makes the same case from it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from npgemma.api.classifier import Classifier, probabilities_of
from npgemma.api.dual_encoder import DualEncoder, as_texts, run_pixels, run_texts
from npgemma.api.generation import embed, limits
from npgemma.api.language import LanguageModel
from npgemma.api.load import AnyModel
from npgemma.api.processor import Inputs, text_inputs
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.errors import BadPrompt
from npgemma.golden.file import Golden, Spool
from npgemma.io.picture import Picture
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, at
from npgemma.models import vit
from npgemma.models.gemma import logits, new_caches
from npgemma.models.prefix_lm import prefill, step

STEPS = 3  # how many tokens are decoded after the prefill by default
TYPES = "prompts.0.token_type_ids"
# Tensors of a recorded run by the names of their taps.
Recorded = Mapping[str, Array] | Spool


class Case(Protocol):
    """`inputs` are globs of the taps that are in every file, since a port needs them."""

    inputs: ClassVar[tuple[str, ...]]

    @classmethod
    def read(
        cls, model: Any, images: Sequence[Picture], text: str | Sequence[str], steps: int | None, tap: Tap
    ) -> Self:
        """The case of pictures and texts; `tap` gets what preprocessing makes. BadPicture, BadPrompt, BadModel."""

    @classmethod
    def recorded(cls, truth: Recorded) -> Self:
        """The case of a recorded run."""

    def run(self, model: Any, tap: Tap) -> None:
        """The run of a model on it."""


@dataclass(frozen=True)
class GenerativeCase:
    """One prompt, and how many tokens are decoded after the prefill; fewer if an end token comes first.

    After the prefill and after each step comes the likeliest token, or that of `chosen`.
    """

    inputs: ClassVar[tuple[str, ...]] = (
        *("pixel_values", "prompts.0.input_ids", TYPES, "generated_ids", "steps.*.input_ids"),
    )
    prompt: Inputs
    steps: int
    chosen: Sequence[int] = ()

    @classmethod
    def read(
        cls,
        model: VisionLanguageModel | LanguageModel,
        images: Sequence[Picture],
        text: str | Sequence[str],
        steps: int | None,
        tap: Tap,
    ) -> "GenerativeCase":
        if not isinstance(text, str):
            raise BadPrompt(f"{model.folder} continues a prompt; give one text, not {len(text)}")
        steps = STEPS if steps is None else steps
        prompt: Inputs = model.processor([list(images)], [text], tap=tap)
        model.guard.check_length(prompt.input_ids, steps + 1)
        return cls(prompt, steps)

    @classmethod
    def recorded(cls, truth: Recorded) -> "GenerativeCase":
        ids, chosen = truth["prompts.0.input_ids"].astype(np.int64), truth["generated_ids"].tolist()
        if "pixel_values" not in truth:
            return cls(text_inputs([ids]), len(chosen) - 1, chosen)
        types, pixels = truth[TYPES].astype(np.int64), truth["pixel_values"]
        return cls(Inputs([ids], [types], pixels, [len(pixels)]), len(chosen) - 1, chosen)

    def run(self, model: VisionLanguageModel | LanguageModel, tap: Tap) -> None:
        p, (prompt,) = model.decoder, embed(model, self.prompt, tap)
        caches = [new_caches(p, len(prompt.input_ids) + self.steps, prompt.dtype)]
        hidden = prefill(p, [prompt], caches, tap=tap)
        scores = tap("logits", logits(p, hidden[-1:], at(tap, "logits")), "B V")
        ends = None if self.chosen else limits(model)
        ids: list[int] = []
        while True:
            ids.append(self.chosen[len(ids)] if ends is None else int(ends.allowed(scores[0]).argmax()))
            if len(ids) > self.steps or ids[-1] in model.config.eos_token_ids:
                break
            scores = step(p, np.array(ids[-1:]), caches, tap=at(tap, f"steps.{len(ids)}"))
        tap("generated_ids", np.array(ids), "T")


@dataclass(frozen=True)
class PairCase:
    """Pictures and texts. The loss is that of as many texts as pictures, which match one by one."""

    inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "input_ids")
    pixel_values: Float[Array, "B 3 Y X"]
    input_ids: Int[Array, "U T"]

    @classmethod
    def read(
        cls, model: DualEncoder, images: Sequence[Picture], text: str | Sequence[str], steps: int | None, tap: Tap
    ) -> "PairCase":
        refuse_steps(model, steps)
        if not len(images) or not len(as_texts(text)):
            raise BadPrompt(f"{model.folder} compares pictures with texts; give at least one of both")
        ids = model.text_rows(text).ids
        model.guard.check_memory([ids.shape[1]] * len(ids), 0)
        return cls(read_pixels(model, images, tap), ids)

    @classmethod
    def recorded(cls, truth: Recorded) -> "PairCase":
        return cls(truth["pixel_values"], truth["input_ids"].astype(np.int64))

    def run(self, model: DualEncoder, tap: Tap) -> None:
        p, functions = model.weights, model.functions
        images, texts = run_pixels(model, self.pixel_values, tap), run_texts(model, self.input_ids, tap)
        functions.probabilities(functions.logits(p, images, texts, tap), tap)
        if len(images) == len(texts):
            functions.loss(p, images, texts, tap)


@dataclass(frozen=True)
class PictureCase:
    """Pictures, for a model that has labels."""

    inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    pixel_values: Float[Array, "B 3 Y X"]

    @classmethod
    def read(
        cls, model: Classifier, images: Sequence[Picture], text: str | Sequence[str], steps: int | None, tap: Tap
    ) -> "PictureCase":
        refuse_steps(model, steps)
        if not len(images) or text:
            raise BadPrompt(f"{model.folder} reads pictures and no texts; give at least one picture")
        return cls(read_pixels(model, images, tap))

    @classmethod
    def recorded(cls, truth: Recorded) -> "PictureCase":
        return cls(truth["pixel_values"])

    def run(self, model: Classifier, tap: Tap) -> None:
        scores = vit.forward(model.weights, self.pixel_values.astype(model.dtype, copy=False), tap)
        probabilities_of(model)(scores, tap)


def refuse_steps(model: DualEncoder | Classifier, steps: int | None) -> None:
    """BadPrompt if a run that writes no tokens is to have steps."""
    if steps is not None:
        raise BadPrompt(f"{model.folder} writes no tokens, and its run has no steps; leave their number out")


def read_pixels(model: DualEncoder | Classifier, images: Sequence[Picture], tap: Tap) -> Float[Array, "B 3 Y X"]:
    """The pixel values of pictures. BadPicture for one that cannot be read, TooLittleMemory for too many."""
    model.guard.check_memory([], len(images))
    return model.processor(images, tap)


KINDS: dict[type[AnyModel], type[Case]] = {
    VisionLanguageModel: GenerativeCase,
    LanguageModel: GenerativeCase,
    DualEncoder: PairCase,
    Classifier: PictureCase,
}


def case_of(model: AnyModel, golden: Golden) -> Case:
    """The case that `golden` was recorded of, with `model` or one like it."""
    return KINDS[type(model)].recorded(golden.truth)
