"""A loaded model and examples -> a run that trains it: which arrays, whose gradients, and how good its answers are."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgemma.api.finite import first_too_large, quiet
from npgemma.api.language import LanguageModel
from npgemma.api.training_scores import scored
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.checkpoints.adapter import read_adapter
from npgemma.checkpoints.trained_model import Home, as_written, with_adapter
from npgemma.io.digests import digests
from npgemma.io.model_folder import find_adapter
from npgemma.io.safetensors import weight_files
from npgemma.io.unusable import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG
from npgemma.layers.shapes import Array
from npgemma.layers.taps import Tap, silent
from npgemma.layers.tree import leaves, thawed, trained
from npgemma.models.paligemma import image_features
from npgemma.training import gradients, lora, parts
from npgemma.training.augment import Augmentation, augmented
from npgemma.training.batches import Place, batch_of, parts_of, places, steps_of
from npgemma.training.encoding import Encoder, PictureEncoder, TextEncoder
from npgemma.training.examples import Example, digest_of
from npgemma.training.features import KeepingEncoder, scratch
from npgemma.training.gradients import BatchGradient, Computing, OfParts
from npgemma.training.loop import Recipe, StepGradient
from npgemma.training.optimizers import OPTIMIZERS, is_decayed
from npgemma.training.options import TrainingOptions
from npgemma.training.schedules import Schedule
from npgemma.training.workers import Workers, processes_for

# What a log says about the places where programs that train disagree.
CONVENTIONS = {
    "decay": "w -= rate decay w, as torch's AdamW, of matrices alone",
    "clip": "gradients times most / (length + 1e-6), as torch",
    "smoothing": "e / (V - 1) beside the target, as big_vision",
}
MOST_PIXELS = 1 << 28  # numbers that are kept of pictures: 1 GiB
# The most numbers in the layers of a small model: its products are too small to share, so each core takes a part of the
# batch, of SMALL_PARTS, from beginning to end.
SMALL, SMALL_PARTS = 1 << 24, 2
FEWEST_STEPS = 20  # with fewer, processes take longer to start than they save


def encoder_of(model: VisionLanguageModel | LanguageModel) -> Encoder:
    """How a model reads examples."""
    most = model.config.text.max_position_embeddings
    if isinstance(model, VisionLanguageModel):
        return PictureEncoder(model.processor, most)
    return TextEncoder(model.processor, most, model.config.eos_token_ids[0])


@dataclass(frozen=True)
class Lines:
    """The examples of a run: those it learns from, and by name those that it is evaluated on."""

    learned: Sequence[Example]
    evaluated: Mapping[str, Sequence[Example]]


class Length(NamedTuple):
    """The number of tokens of an example, and of those that are learned."""

    tokens: int
    learned: int


class Transfer:
    """A model whose chosen arrays are private copies that can be written, and all others mapped and frozen.

    `model` is a VisionLanguageModel or a LanguageModel. If it has an adapter that goes on learning, or options ask for
    a new one, the low-rank updates of that are trained. BadData if the options choose nothing, or the adapter is of
    another kind.
    """

    def __init__(self, model: Any, lines: Lines, options: TrainingOptions, adapter: str | None = None) -> None:
        self.model, self.lines, self.options = model, lines, options
        self.home = Home(model.path, model.checkpoint, model.config)
        self.adapter = None if adapter is None else find_adapter(adapter)
        self.has_updates = self.adapter is not None or options.lora is not None
        self.adapted = self.with_updates()
        self.paths = self.trained_paths()
        self.how = Computing(model.dtype, options.smoothing)
        self.decoder_alone = isinstance(model, VisionLanguageModel) and not any(
            parts.name_of(path).startswith(("vision.", "projector.")) for path in self.paths
        )

    def with_updates(self) -> Any:
        """The weights, with low-rank updates if there are any; all of them as they are mapped."""
        weights, options = self.model.weights, self.options
        if self.adapter is not None:
            known = read_adapter(self.adapter, self.model.checkpoint.NAMES)
            return with_adapter(weights, known, self.home.places)
        if options.lora is not None:
            paths = parts.adaptable(leaves(weights), options.patterns)
            shapes = {path: self.home.places[path].shape for path in paths}
            tree = lora.with_adapters(weights, shapes, options.lora, options.scale, options.seed)
            tables = {"text.embedding", "text.head", "embedding", "head"} & self.home.places.keys()
            return lora.with_rows(tree, tables, self.word_ids(), self.model.dtype) if options.words else tree
        return weights

    def word_ids(self) -> set[int]:
        """The tokens of the words that are to be learned, at the beginning of a text and after a space."""
        encode = self.model.processor.tokenizer.encode
        return {token for word in self.options.words for text in (word, f" {word}") for token in encode(text)}

    def trained_paths(self) -> frozenset[str]:
        """The paths of the arrays that are trained: the halves of updates, or what the options choose."""
        found = leaves(self.adapted)
        if self.has_updates:
            return frozenset(leaf.path for leaf in found if lora.is_update(leaf.path))
        return parts.chosen(found, self.options.patterns)

    @property
    def sizes(self) -> list[int]:
        """The number of numbers of each trained array."""
        return [leaf.value.size for leaf in leaves(self.adapted) if leaf.path in self.paths]

    @cached_property
    def layer_numbers(self) -> int:
        """The number of numbers of all layers, which each row of a batch meets."""
        return sum(leaf.value.size for leaf in leaves(self.model.weights) if "blocks[" in leaf.path)

    @property
    def is_small(self) -> bool:
        """Whether each core takes a part of the batch."""
        return self.layer_numbers <= SMALL

    @property
    def part(self) -> int:
        """How many examples there are in a part of a batch."""
        return math.ceil(self.options.batch / SMALL_PARTS) if self.is_small else self.options.batch

    @property
    def parts(self) -> int:
        """How many parts there are in a step."""
        return math.ceil(self.options.examples / self.part)

    @property
    def processes(self) -> int:
        """How many processes compute at once."""
        return processes_for(self.parts) if self.is_small and self.steps >= FEWEST_STEPS else 1

    @cached_property
    def tree(self) -> Any:
        """The weights: private copies of the trained arrays, and read-only views of the others."""
        return thawed(self.adapted, lambda path: path in self.paths, self.model.dtype)

    @cached_property
    def trained(self) -> dict[str, Array]:
        """The trained arrays, by path; a run changes them in place."""
        return trained(self.tree)

    @cached_property
    def lengths(self) -> list[Length]:
        """The lengths of the examples that are learned."""
        read = [self.encoder.encode(each.prefix, each.suffix, len(each.images)) for each in self.lines.learned]
        return [Length(len(each.input_ids), len(each.input_ids) - each.learned_from) for each in read]

    @cached_property
    def encoder(self) -> Encoder:
        return encoder_of(self.model)

    @property
    def rate(self) -> float:
        """The highest rate."""
        return self.options.peak_rate(self.model.config.text.hidden_size, self.has_updates)

    @property
    def steps(self) -> int:
        return steps_of(self.options.epochs, len(self.lines.learned), self.options.examples)

    # ---------------------------------------------------------------------------------------------------- what it is

    def facts(self) -> dict[str, Any]:
        """What a run is: two runs with the same facts have the same bits."""
        o = self.options
        found = asdict(o) | {"rate": self.rate, "dtype": self.model.dtype.name, "conventions": CONVENTIONS}
        found["examples"] = len(self.lines.learned)
        found["model sha256"] = files_digest([*weight_files(self.model.path), self.model.folder / CONFIG])
        found["tokenizer sha256"] = files_digest([self.model.tokenizer_file])
        if self.adapter is not None:
            found["adapter sha256"] = files_digest([self.adapter / ADAPTER_CONFIG, self.adapter / ADAPTER_WEIGHTS])
        sets = {"data": self.lines.learned, **self.lines.evaluated}
        return found | {f"{name} sha256": digest_of(examples) for name, examples in sets.items()}

    @contextmanager
    def recipe(self, folder: Path, processes: int = 1) -> Iterator[Recipe]:
        """What a run does; the features of pictures wait in a nameless file in `folder`.

        So many processes compute the gradients of a small model, this one included.
        """
        if not self.is_small:
            yield self.recipe_with(folder, self.one_by_one())
            return
        with Workers(partial(self.batch_gradient, how=self.how), self.tree, processes - 1) as workers:
            yield self.recipe_with(folder, workers.gradients)

    def recipe_with(self, folder: Path, of_parts: OfParts) -> Recipe:
        """The same, with what computes the gradients of the parts of a batch."""
        o, steps = self.options, self.steps
        encoder = self.keeping_encoder(folder)
        decayed = frozenset(leaf.path for leaf in leaves(self.tree) if leaf.path in self.paths and is_decayed(leaf))
        return Recipe(
            OPTIMIZERS[o.optimizer],
            Schedule(o.schedule, self.rate, steps, int(o.warmup * steps)),
            o.decay,
            decayed,
            o.clip or None,
            partial(self.gradient, encoder, of_parts),
            self.evaluate,
            o.evaluate_every,
            self.origin,
        )

    # ----------------------------------------------------------------------------------------------------- one step

    def examples(self, step: int) -> list[Example]:
        """Those of a step, counted from 0, cropped and flipped."""
        o = self.options
        chosen = places(o.seed, step, len(self.lines.learned), o.examples)
        return [self.augmented(place) for place in chosen]

    def augmented(self, place: Place) -> Example:
        o, example = self.options, self.lines.learned[place.example]
        return augmented(example, o.augment, o.seed, place.number, self.encoder.read)

    def one_by_one(self, tap: Tap = silent) -> OfParts:
        """The gradients of parts by this process, which shares the work of each among its cores."""
        return partial(map, partial(self.batch_gradient, self.tree, how=self.how, tap=tap))

    def gradient(self, encoder: Encoder, of_parts: OfParts, step: int) -> StepGradient:
        """The loss and the gradients of a step, counted from 0: the sums of those of the parts of the batch, which are
        the same however many cores there are.
        """
        batch = batch_of(self.examples(step), encoder, self.options.loss_mean)
        loss, total = 0.0, dict[str, Array]()
        with quiet():
            for more, found in of_parts(parts_of(batch, self.part)):
                loss += float(more)
                total = gradients.add(total, found) if total else found
        return StepGradient(loss, sum(int((each.weights != 0).sum()) for each in batch.prompts), total)

    @property
    def batch_gradient(self) -> BatchGradient:
        if isinstance(self.model, LanguageModel):
            return gradients.language_model
        return gradients.decoder_alone if self.decoder_alone else gradients.whole

    @property
    def is_fixed(self) -> bool:
        """Whether a picture is the same each time."""
        return self.options.augment == Augmentation()

    def keeping_encoder(self, folder: Path) -> KeepingEncoder:
        """The encoder that reads pictures once, and takes them through frozen towers.

        Features are much work, and all are kept; pixels are less, and are kept as far as MOST_PIXELS goes.
        """
        images = dict.fromkeys(image for each in self.lines.learned for image in each.images)
        files = [image for image in images if isinstance(image, Path) and self.is_fixed]
        if not self.decoder_alone:
            files = files[: MOST_PIXELS // max(1, int(np.prod(self.shape)))]
        store = scratch(folder, (len(files), *self.shape), self.store_dtype)
        return KeepingEncoder(self.encoder, self.features, store, {path: i for i, path in enumerate(files)})

    def plain_encoder(self, tap: Tap = silent) -> KeepingEncoder:
        """The same for a single step: nothing is kept."""
        nothing = np.empty((0, *self.shape), self.store_dtype)
        return KeepingEncoder(self.encoder, partial(self.features, tap=tap), nothing, {})

    @property
    def store_dtype(self) -> np.dtype:
        return self.model.dtype if self.decoder_alone else np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of a picture: its features if the towers are frozen, its pixels if not, and none in a text."""
        if isinstance(self.model, LanguageModel):
            return 3, 0, 0
        vision = self.model.config.vision
        if self.decoder_alone:
            return vision.num_patches, len(self.model.weights.projector.weight)
        return 3, vision.image_size, vision.image_size

    def features(self, pixels: Array, tap: Tap = silent) -> Array:
        """Pixels, or what frozen towers make of them."""
        if not self.decoder_alone:
            return pixels
        with quiet():
            return image_features(self.tree, pixels.astype(self.model.dtype, copy=False), tap)

    def origin(self, step: int) -> str:
        """The first tensor of a step that is not finite, or whose squares are not, and which pass it is in; or ''."""

        def again(tap: Tap) -> None:
            self.gradient(self.plain_encoder(tap), self.one_by_one(tap), step)

        name = first_too_large(again)
        if name is None:
            return ""
        return f"the tap {name} of the {'backward' if name.startswith('grad.') else 'forward'} pass"

    # -------------------------------------------------------------------------------------------------- how good it is

    def evaluate(self, last: bool = False) -> list[dict[str, Any]]:
        """A line for each set of held-out examples: the loss, and the scores of greedy answers by task.

        After the `last` step, the weights are those that are written, rounded to the dtype of the model's files.
        """
        model = copy(self.model)
        model.weights = as_written(self.tree, self.home) if last else self.tree
        return [{name: scored(model, self.encoder, examples)} for name, examples in self.lines.evaluated.items()]


def files_digest(paths: Iterable[Path]) -> str:
    """The sha256 of files, by name."""
    found = sorted((path.name, digests(path)[0]) for path in paths)
    return hashlib.sha256(repr(found).encode()).hexdigest()
