"""Gradients of encoders: the loss of pairs of pictures and texts, and that of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from npgemma.api.classifier import Classifier
from npgemma.api.dual_encoder import DualEncoder
from npgemma.errors import BadPrompt
from npgemma.golden.cases import PairCase, PictureCase, Recorded
from npgemma.golden.gradient_options import Facts, GradientOptions, Named, Texts, refuse
from npgemma.io.picture import Picture
from npgemma.layers.activations import log_softmax
from npgemma.layers.shapes import Array, Bool, Float, Int
from npgemma.layers.taps import Tap
from npgemma.models import clip_grad, siglip_grad, vit_grad
from npgemma.models.siglip import Siglip


@dataclass(frozen=True)
class MatchCase:
    """Pictures, and the text that matches each."""

    table: ClassVar[str] = "text.embedding.tokens"
    mean: ClassVar[str] = "pair"
    smoothing: ClassVar[float] = 0.0
    pairs: PairCase

    @classmethod
    def read(
        cls,
        model: DualEncoder,
        images: Sequence[Picture],
        text: Texts,
        answers: Sequence[str],
        options: GradientOptions,
        tap: Tap,
    ) -> "MatchCase":
        refuse(model, options, "mean", "smoothing")
        if answers or isinstance(text, str) or not len(images) == len(text) > 1:
            found = f"{len(images)} pictures and {1 if isinstance(text, str) else len(text)} texts"
            raise BadPrompt(
                f"{model.folder}: there are {found}; its loss is that of two or more pictures with a text for each, "
                "and of no suffixes"
            )
        return cls(PairCase.read(model, images, text, None, tap))

    @classmethod
    def recorded(cls, truth: Recorded, facts: Facts) -> "MatchCase":
        return cls(PairCase.recorded(truth))

    def inputs(self) -> Named:
        yield from ()

    def looked_up(self, model: DualEncoder, dx: Array) -> tuple[Array, Array]:
        return self.pairs.input_ids.reshape(-1), dx.reshape(-1, dx.shape[-1])

    def loss_and_gradient(self, model: DualEncoder, p: Any, tap: Tap) -> Any:
        rows: list[Array] = []

        def watch(name: str, x: Array, axes: str) -> Array:
            x = tap(name, x, axes)
            if name in ("image_embeds", "text_embeds"):
                rows.append(x)
                if len(rows) == 2:
                    tap("logits_per_image", model.functions.logits(p, *rows), "B U")
            return x

        pixels = self.pairs.pixel_values.astype(model.dtype)
        backward = siglip_grad if isinstance(p, Siglip) else clip_grad
        return backward.loss_and_gradient(p, pixels, self.pairs.input_ids, tap=watch)[1]


@dataclass(frozen=True)
class LabelCase:
    """Pictures, and the number of the right label of each; for a model that finds several, whether each label fits."""

    table: ClassVar[str] = ""
    mean: ClassVar[str] = "picture"
    pictures: PictureCase
    labels: Int[Array, "B"] | Bool[Array, "B V"]
    smoothing: float = 0.0

    @classmethod
    def read(
        cls,
        model: Classifier,
        images: Sequence[Picture],
        text: Texts,
        answers: Sequence[str],
        options: GradientOptions,
        tap: Tap,
    ) -> "LabelCase":
        several = model.config.multi_label
        refuse(model, options, *["mean", "smoothing"] if several else ["mean"])
        if len(model.config.labels) == 1:
            raise BadPrompt(f"{model.folder} has a single label, on whose loss implementations disagree")
        if len(answers) != len(images):
            more = '; several labels of a picture stand in one text, as "a ; b"' if several else ""
            found = f"{len(images)} pictures and {len(answers)} labels"
            raise BadPrompt(f"there are {found}; give one for each picture{more}")
        labels = np.array([fitting(model, answer) if several else number_of(model, answer) for answer in answers])
        return cls(PictureCase.read(model, images, text, None, tap), labels, options.smoothing)

    @classmethod
    def recorded(cls, truth: Recorded, facts: Facts) -> "LabelCase":
        labels = truth["labels"].astype(bool if truth["labels"].ndim == 2 else np.int64)
        return cls(PictureCase.recorded(truth), labels, facts["smoothing"])

    def inputs(self) -> Named:
        yield "labels", self.labels.astype(np.int64), "B V" if self.labels.ndim == 2 else "B"

    def looked_up(self, model: Classifier, dx: Array) -> tuple[Array, Array]:
        raise NotImplementedError("a ViT reads no ids")

    def loss_and_gradient(self, model: Classifier, p: Any, tap: Tap) -> Any:
        def watch(name: str, x: Array, axes: str) -> Array:
            x = tap(name, x, axes)
            if name == "logits":
                tap("log_probs", log_probs(x, self.labels), "B")
            return x

        pixels, weights = self.pictures.pixel_values.astype(model.dtype), np.ones(len(self.labels)) / len(self.labels)
        loss, gradient = vit_grad.loss_and_gradient(p, pixels, self.labels, weights, self.smoothing, tap=watch)
        tap("loss", np.array(loss, model.dtype), "")
        return gradient


def log_probs(logits: Float[Array, "B V"], labels: Int[Array, "B"] | Bool[Array, "B V"]) -> Float[Array, "B"]:
    """log p of the right label of each picture, or of all answers, whether each label fits."""
    if labels.ndim == 1:
        y: Array = log_softmax(logits)[np.arange(len(logits)), labels]
        return y
    return -np.logaddexp(0, np.where(labels, -logits, logits)).sum(-1)


def fitting(model: Classifier, labels: str) -> Bool[Array, "V"]:
    """Which labels fit a picture, of names or numbers between semicolons. BadPrompt if the model does not have one."""
    names = model.config.labels
    each = [labels] if labels in names else [part.strip() for part in labels.split(";") if part.strip()]
    fits = np.zeros(len(names), bool)
    fits[[number_of(model, label) for label in each]] = True
    return fits


def number_of(model: Classifier, label: str) -> int:
    """The number of a label, which is named or numbered. BadPrompt if the model does not have it."""
    names = model.config.labels
    number = names.index(label) if label in names else int(label) if label.isdecimal() else len(names)
    if number >= len(names):
        raise BadPrompt(f"{model.folder} has no label {label!r}; give its name, or a number from 0 to {len(names) - 1}")
    return number
