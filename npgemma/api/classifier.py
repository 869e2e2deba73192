"""`Classifier`: a ViT, to name what a picture shows."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgemma.api.encoding import BATCH, encoded
from npgemma.api.finite import computed
from npgemma.api.guard import ClassifierGuard, checked_pixels
from npgemma.api.lazy import lazy
from npgemma.api.model import LoadedModel
from npgemma.api.processor import Pictures, PixelProcessor, as_pictures
from npgemma.checkpoints import vit
from npgemma.checkpoints.vit import ViTConfig
from npgemma.decoding.options import require_count
from npgemma.errors import BadModel
from npgemma.io.picture import Picture
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, checked, silent
from npgemma.models.vit import ViT, forward, independent_probabilities, probabilities

TOP = 5  # how many labels are given by default


class Label(NamedTuple):
    """What a picture may show, and how probable that is.

    Attributes
    ----------
    name : str
        The label, from config.json.
    probability : float
        From 0 to 1; those of all labels sum to 1, unless the model was trained to find several in a picture.

    Examples
    --------
    >>> import npgemma
    >>> npgemma.Label("tabby cat", 0.75).name
    'tabby cat'
    """

    name: str
    probability: float


class Classifier(LoadedModel[ViTConfig, ViT]):
    """A ViT with a classifier; `npgemma.load` makes one.

    Attributes
    ----------
    config : ViTConfig
        The sizes of the model and its labels, from config.json.
    processor : PixelProcessor
        `processor(images)` gives the pixel values that `forward` takes.
    folder, weights, dtype
        Where the model is, its weights, and the dtype of a run.

    Examples
    --------
    None comes with npgemma, so this one needs a download.

    >>> import npgemma
    >>> model = npgemma.Classifier.load("google/vit-base-patch16-224")  # doctest: +SKIP
    >>> for label in model.classify("cat.jpg", top=2)[0]:  # doctest: +SKIP
    ...     print(f"{label.probability:.2f} {label.name}")
    0.94 Egyptian cat
    0.04 tabby, tabby cat
    """

    checkpoints = (vit,)
    embedded = None
    guard_type = ClassifierGuard

    @lazy
    def processor(self) -> PixelProcessor:
        return PixelProcessor(self.config.vision.image_size, self.config.pixels, self.guard.budget.left)

    @classmethod
    def check_tokenizer(cls, tokenizer: str | Path) -> None:
        raise BadModel(f"tokenizer {tokenizer}: a ViT reads no texts; load it without one")

    def forward(self, pixel_values: Float[Array, "B 3 Y X"], tap: Tap = silent) -> Float[Array, "B A"]:
        """The logit of each label for each picture.

        Parameters
        ----------
        pixel_values : float array [B 3 Y X]
            Pictures as the processor makes them.
        tap : callable, optional
            A function (name, tensor[, axes]) -> tensor, such as a Recorder, that every tensor worth comparing passes
            through; the model continues with what it returns.

        Returns
        -------
        float array [B A]

        Raises
        ------
        BadPrompt, BadModel, TooLittleMemory
            If the pixel values do not fit the model, the logits are not finite (unless the tap makes them so), or the
            run needs more memory than is available.
        TypeError
            If the tap takes other arguments, or returns something else than an array like its tensor.
        """
        tap, pixels = checked(tap), checked_pixels(pixel_values, self.config.vision.image_size)
        self.guard.check_files()
        self.guard.check_memory([], len(pixels))
        return computed(self, partial(forward, self.weights, pixels.astype(self.dtype, copy=False)), tap)

    def classify(self, images: Pictures, top: int = TOP, batch_size: int = BATCH) -> list[list[Label]]:
        """The likeliest labels of each picture, the likeliest first.

        Parameters
        ----------
        images : picture or sequence of pictures
            Paths, PIL images or uint8 arrays.
        top : int
            How many labels; all of them if there are fewer.
        batch_size : int
            How many pictures run at a time; the memory that is needed grows with it.

        Returns
        -------
        list of list of Label
            For each picture.

        Raises
        ------
        BadPicture
            For a picture that cannot be read.
        BadModel, TooLittleMemory
            As for `forward`.
        """
        require_count("top", top)
        names = self.config.labels
        logits = encoded(self, partial(run_images, self), as_pictures(images), len(names), batch_size, silent)
        rows = probabilities_of(self)(logits)
        order = np.argsort(-rows, axis=-1, kind="stable")[:, :top]
        return [[Label(names[i], float(row[i])) for i in best] for row, best in zip(rows, order, strict=True)]


def probabilities_of(model: Classifier) -> Callable[..., Float[Array, "B A"]]:
    """The function that makes probabilities of the model's logits."""
    return independent_probabilities if model.config.multi_label else probabilities


def run_images(model: Classifier, images: Sequence[Picture], tap: Tap) -> Float[Array, "B A"]:
    """The logits of all pictures at once."""
    return forward(model.weights, model.processor(images).astype(model.dtype, copy=False), tap)
