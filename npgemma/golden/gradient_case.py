"""What gradients are recorded of, for each kind of model: the inputs of a loss, the loss, and its gradient.

    AnswerCase   pictures, a prompt, suffixes -> the cross-entropy of the suffixes
    MatchCase    pictures, a text for each    -> the loss of pairs: SigLIP's of sigmoids, CLIP's of two softmaxes
    LabelCase    pictures, a label for each   -> the cross-entropy of the labels, of each if several fit

A new kind of model is a class and a line here, and a table in `gradient_taps`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

from npgemma.api.classifier import Classifier
from npgemma.api.dual_encoder import DualEncoder
from npgemma.api.language import LanguageModel
from npgemma.api.load import AnyModel
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden.cases import Recorded
from npgemma.golden.gradient_answers import AnswerCase
from npgemma.golden.gradient_encoders import LabelCase, MatchCase
from npgemma.golden.gradient_options import Facts, GradientOptions, Named, Texts
from npgemma.io.picture import Picture
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap


class GradientCase(Protocol):
    """`mean` and `smoothing` are facts of the loss. `table` is the path of the weight that ids look up, or ''."""

    table: ClassVar[str]

    @property
    def mean(self) -> str: ...

    @property
    def smoothing(self) -> float: ...

    @classmethod
    def read(
        cls,
        model: Any,
        images: Sequence[Picture],
        text: Texts,
        answers: Sequence[str],
        options: GradientOptions,
        tap: Tap,
    ) -> Self:
        """The case of pictures, texts and what should be answered; `tap` gets what preprocessing makes.

        BadPicture, or BadPrompt for what does not fit the model.
        """

    @classmethod
    def recorded(cls, truth: Recorded, facts: Facts) -> Self:
        """The case of a recorded run."""

    def inputs(self) -> Named:
        """What a port needs beside pictures and ids: labels and their weights, with names and axes."""

    def looked_up(self, model: Any, dx: Array) -> tuple[Int[Array, "T"], Float[Array, "T D"]]:
        """The ids that were looked up, and the gradient of each row, from that of the embedding."""

    def loss_and_gradient(self, model: Any, p: Any, tap: Tap) -> Any:
        """The gradient of the weights `p`; `tap` gets the loss, what it is made of, and gradients of activations."""


KINDS: Mapping[type[AnyModel], type[GradientCase]] = {
    VisionLanguageModel: AnswerCase,
    LanguageModel: AnswerCase,
    DualEncoder: MatchCase,
    Classifier: LabelCase,
}


def case_of(model: AnyModel, truth: Recorded, facts: Facts) -> GradientCase:
    """The case of a recorded run of `model`."""
    return KINDS[type(model)].recorded(truth, facts)
