"""Record a golden file: one run in float64, and how far runs in float32 and in emulated bfloat16 are from it.

    picture, prompt --> float64 run --> truth
                    --> float32 run                      --> |error| by row --> envelope.float32
                    --> float32 run, tensors rounded     --> |error| by row --> envelope.bfloat16
                        as a schedule says

The other two runs are fed the tokens that the float64 run chose, so that all three compute the same thing. To judge a
port by the error of an honest run in its own precision, instead of by a fixed tolerance, is how FlashAttention's and
FlexAttention's tests and torch._dynamo's `same` judge theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from npgemma.api.vision_language import VisionLanguageModel
from npgemma.errors import BadGolden, BadModel
from npgemma.golden.file import Spool, write_golden
from npgemma.golden.names import is_in_level, row_axes
from npgemma.golden.provenance import describe
from npgemma.golden.rounding import FLOAT32, SCHEDULES, rounding
from npgemma.io.picture import Picture
from npgemma.layers.bits import pack, round_to_bfloat16
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Recorder, Tap, at
from npgemma.layers.tree import Leaf, arrays, map_tree
from npgemma.models.gemma import logits, new_caches
from npgemma.models.paligemma import PaliGemma, Prompt, image_features, prefill, step

# A truth of a model with fewer parameters is stored in float64; of a larger one in float32, in half the space.
SMALL = 100_000_000
# What fixes a run is in every file, whatever was asked for: a port has to be fed with it.
INPUTS = ("pixel_values", "prompts.0.input_ids", "prompts.0.token_type_ids", "generated_ids", "steps.*.input_ids")


@dataclass(frozen=True)
class Case:
    """What a run starts from. `steps` tokens are decoded after the prefill, fewer where an end token comes first."""

    pixel_values: Float[Array, "B 3 Y X"]
    input_ids: Int[Array, "T"]
    token_type_ids: Int[Array, "T"]
    steps: int


def record(
    model: VisionLanguageModel,
    images: Sequence[Picture],
    prompt: str,
    path: str | Path,
    level: str = "blocks",
    patterns: Sequence[str] = ("*",),
    steps: int = 3,
    schedule: str = "hf_eager",
) -> None:
    """Write the golden file `path` of `model` on one prompt and its pictures.

    `level` is 'io' (ids, pixels, image features, logits), 'blocks' (what each layer hands on) or 'ops' (everything);
    `patterns` are globs that narrow it; the inputs are always there. `schedule` names what bfloat16 is emulated as, a
    key of layers.rounding.SCHEDULES. Tensors go to disk as they are made: memory holds the model and one of them.
    Raises BadPicture, BadPrompt, BadModel if a tensor is not finite, BadGolden if there is no folder for `path` or a
    pattern is the name of no tap.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise BadGolden(f"{path} cannot be written: there is no folder {path.parent}")
    seen = Recorder()
    inputs = model.processor([list(images)], [prompt], tap=seen)
    case = Case(inputs.pixel_values, inputs.input_ids[0], inputs.token_type_ids[0], steps)
    model.guard.check_length([case.input_ids], steps + 1)
    model.guard.check_files()

    def wanted(name: str) -> bool:
        inside = is_in_level(name, level) and any(fnmatchcase(name, pattern) for pattern in patterns)
        return inside or any(fnmatchcase(name, pattern) for pattern in INPUTS)

    parameters = sum(x.size for x in arrays(model.weights))
    wide = np.dtype(np.float64 if parameters < SMALL else np.float32)
    with Spool(path.parent) as spool:
        keep = recording(spool, wanted, wide)
        for name, x in seen.items():
            keep(name, x, seen.axes[name])
        ids = run(model, model.weights, case, np.dtype(np.float64), keep)
        taps = list(spool.entries)
        idle = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in taps)]
        if idle:
            raise BadGolden(f"{idle[0]!r} is the name of no tap of level {level!r}; npgemma golden --list has them all")
        for dtype, weights, rounded in (
            ("float32", model.weights, FLOAT32),
            ("bfloat16", in_bfloat16(model.weights), SCHEDULES[schedule]),
        ):
            measure = measuring(spool, taps, dtype)
            run(model, weights, case, np.dtype(np.float32), rounding(measure, rounded), ids)
        write_golden(spool, describe(model, images, prompt, spool.axes, schedule, wide.name), path)


def run(
    model: VisionLanguageModel,
    weights: PaliGemma,
    case: Case,
    dtype: np.dtype,
    tap: Tap,
    forced: Sequence[int] | None = None,
) -> list[int]:
    """One prefill and its steps; the likeliest token after each, or the `forced` ones, which are fed instead."""
    features = image_features(weights, case.pixel_values.astype(dtype), tap)
    prompt = Prompt(case.input_ids, case.token_type_ids, features.reshape(-1, features.shape[-1]))
    caches = [new_caches(weights.text, len(case.input_ids) + case.steps, dtype)]
    hidden = prefill(weights, [prompt], caches, tap=tap)
    scores = tap("logits", logits(weights.text, hidden[-1:]), "B V")
    ids: list[int] = []
    while True:
        ids.append(forced[len(ids)] if forced else int(scores[0, : model.tokenizer.image_id].argmax()))
        if len(ids) > case.steps or ids[-1] in model.config.eos_token_ids:
            break
        scores = step(weights, np.array(ids[-1:]), caches, dtype, tap=at(tap, f"steps.{len(ids)}"))
    tap("generated_ids", np.array(ids), "T")
    return ids


def recording(spool: Spool, wanted: Callable[[str], bool], wide: np.dtype) -> Tap:
    """The tap that puts what is wanted into `spool`: floats as `wide`, masks as bytes, whole numbers as int32."""

    def keep(name: str, x: Array, axes: str) -> Array:
        if wanted(name):
            if not np.isfinite(x).all():
                raise BadModel(f"{name} is not finite: some weight, or a number on its way, is NaN or infinite")
            kinds = {"f": wide, "b": np.dtype(np.uint8), "u": np.dtype(np.uint8), "i": np.dtype(np.int32)}
            spool.put(name, x.astype(kinds[x.dtype.kind]), axes)
        return x

    return keep


def measuring(spool: Spool, taps: Sequence[str], dtype: str) -> Tap:
    """The tap that holds floats against the truth in `spool` and puts their errors there: rms and largest, by row."""
    measured = {name for name in taps if spool[name].dtype.kind == "f"}

    def measure(name: str, x: Array, axes: str) -> Array:
        if name in measured:
            spool.put(f"envelope.{dtype}/{name}", row_errors(axes, x, spool[name]).astype(np.float32))
        return x

    return measure


def row_errors(axes: str, x: Float[Array, "*R"], truth: Float[Array, "*R"]) -> Float[Array, "2 R"]:
    """The rms and the largest absolute difference between `x` and `truth`, both of one tap, for each of its rows."""
    error = by_row(axes, np.abs(np.subtract(x, truth, dtype=np.float64)))
    return np.stack([np.sqrt(np.square(error).mean(-1)), error.max(-1)])


def by_row(axes: str, x: Array) -> Array:
    """[R rest]: the rows of a tap in order, and everything that belongs to a row."""
    rows = row_axes(axes)
    moved = np.moveaxis(x, rows, range(len(rows)))
    return moved.reshape(int(np.prod(moved.shape[: len(rows)])), -1)


def in_bfloat16(weights: PaliGemma) -> PaliGemma:
    """The same model with every number moved to the bfloat16 grid, as a run in bfloat16 holds it.

    What is stored as bfloat16 stays the map of the file that it is.
    """

    def narrow(leaf: Leaf) -> Array:
        x = leaf.value
        if x.dtype == np.uint16:
            return x
        return (pack if leaf.kind == "weight" else round_to_bfloat16)(x.astype(np.float32))

    return map_tree(narrow, weights)
