"""Record a golden file: a run in float64, and the errors of runs in float32, and in emulated TF32 and bfloat16.

    pictures, texts --> float64 run --> truth
                    --> float32 runs                     --> |error| by row --> envelope.float32
                    --> float32 runs, factors rounded    --> |error| by row --> envelope.tf32
                    --> float32 runs, tensors rounded    --> |error| by row --> envelope.bfloat16, envelope.float16
                        as a schedule says

The other runs decode the tokens that the float64 run chose, if it writes any, so that all compute the same tensors;
`cases` says what a run is of each kind of model. In each precision, several runs add up in different orders, or round
more; the envelope is the largest of their errors. A port is then judged by the error of honest runs in its own
precision instead of by a fixed tolerance, as in the tests of FlashAttention and FlexAttention and in `same` of
torch._dynamo.

    >>> import npgemma
    >>> from npgemma.golden import read_golden
    >>> record(npgemma.load(), [npgemma.sample_picture()], "caption en", "g.safetensors", level="io", steps=0)
    >>> [name for name in read_golden("g.safetensors").taps][:3]
    ['pictures.0.resized', 'pixel_values', 'projector']
"""

from collections.abc import Sequence
from copy import copy
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from npgemma.api.finite import finite, require_in_range
from npgemma.api.generative import GenerativeModel
from npgemma.api.language import LanguageModel
from npgemma.api.load import AnyModel
from npgemma.errors import BadGolden
from npgemma.golden.arithmetic import ARITHMETICS, computing_as, precisions_of
from npgemma.golden.cases import KINDS, TYPES, Case
from npgemma.golden.file import Spool, write_golden
from npgemma.golden.names import is_in_level, row_axes
from npgemma.golden.provenance import describe, dtype_of_truth, schedules
from npgemma.golden.rounding import GRIDS, SIXTEEN_BITS, rounding, rounding_activations, schedule_in
from npgemma.io.picture import Picture
from npgemma.io.safetensors import weight_files
from npgemma.layers.bits import pack, widened
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap
from npgemma.layers.tree import Leaf, map_tree

M = TypeVar("M", bound=AnyModel)


def record(
    model: AnyModel,
    images: Sequence[Picture],
    text: str | Sequence[str],
    path: str | Path,
    level: str = "blocks",
    patterns: Sequence[str] = ("*",),
    steps: int | None = None,
    schedule: str = "hf_eager",
    truth: str | None = None,
) -> None:
    """Write a golden file. Tensors go to disk as they are made: memory holds the model and one of them.

    Parameters
    ----------
    model : VisionLanguageModel, LanguageModel, DualEncoder or Classifier
        The model to run, in float64 whatever its own dtype is.
    images, text : sequence of pictures, str or sequence of str
        No pictures for a language model. A DualEncoder reads texts; as many as pictures have a loss.
    path : str or Path
        The .safetensors file to write, as a whole or not at all.
    level : str
        'io' holds ids, pixels, features and scores; 'blocks' also the result of each layer; 'ops' everything.
    patterns : sequence of str
        Globs that narrow the level: only taps that match one of them are kept, and the inputs of the run.
    steps : int, optional
        How many tokens a model that writes decodes after the prefill, by default 3; fewer if an end token comes first.
    schedule : str
        How bfloat16 is emulated: a key of rounding.SCHEDULES.
    truth : str, optional
        What the truth is stored as: 'float64', by default that of small models, or 'float32', half the size.

    Raises
    ------
    BadPicture, BadPrompt, BadModel
        If the pictures or the text cannot be used, or a tensor is not finite or overflows in float32.
    BadGolden
        If the folder of `path` does not exist or the run reads that file, a glob matches no tap, or `schedule` does not
        fit the model.
    """
    path = checked_path(path, model, images)
    check_schedule(model, schedule)
    with Spool(path.parent, truth or dtype_of_truth(model)) as spool:
        keep = recording(model, spool, level, patterns)
        case = KINDS[type(model)].read(model, images, text, steps, keep)
        model.guard.check_files()
        with finite(model, exact := partial(case.run, computing(model, "float64"))):
            exact(tap=keep)
            check_used(patterns, list(spool.entries), level)
            overflows = record_envelopes(spool, model, schedule)
        write_golden(spool, describe(model, images, text, spool, schedules(model, schedule, overflows)), path)


def record_envelopes(spool: Spool, model: AnyModel, schedule: str) -> dict[str, str]:
    """Record the envelope of each dtype. Returns for each the first tap that overflows, or ''."""
    case = KINDS[type(model)].recorded(spool)
    return {dtype: record_envelope(spool, model, case, schedule, dtype) for dtype in ARITHMETICS}


def record_envelope(spool: Spool, model: AnyModel, case: Case, schedule: str, dtype: str) -> str:
    """Put the largest errors of the runs of `case` in a dtype, on every tap of `spool`, there.

    Returns the first tap that overflows, which only float16 may: then there is no envelope. BadModel for another dtype.
    """
    errors: dict[str, Float[Array, "2 R"]] = {}
    tap = rounding(measuring(spool, list(spool.axes), dtype, errors), schedule_in(schedule, dtype))
    honest = computing(model, dtype)
    for arithmetic in ARITHMETICS[dtype].values():
        try:
            case.run(honest, computing_as(tap, arithmetic))
        except Overflow as error:
            return error.tap
    for name, found in errors.items():
        put_envelope(spool, name, dtype, found)
    return ""


def put_envelope(spool: Spool, name: str, dtype: str, errors: Float[Array, "2 R"]) -> None:
    """Put the errors of a tap into `spool`, no less than those of the other precisions whose runs a port is judged by,
    which were put there before.
    """
    for other in precisions_of(dtype)[:-1]:
        errors = np.maximum(errors, spool[f"envelope.{other}/{name}"])
    spool.put(f"envelope.{dtype}/{name}", errors.astype(np.float32))


class Overflow(Exception):
    """A tensor that is too large for float16."""

    def __init__(self, tap: str) -> None:
        super().__init__(tap)
        self.tap = tap


def checked_path(path: str | Path, model: AnyModel, images: Sequence[Picture]) -> Path:
    """The path of a file to write. BadGolden if its folder does not exist, or if the run reads what is there."""
    path = Path(path)
    if not path.parent.is_dir():
        raise BadGolden(f"{path} cannot be written: the folder {path.parent} does not exist")
    read = [Path(each) for each in images if isinstance(each, (str, Path))]
    read += [*model.folder.iterdir(), *weight_files(model.path)]
    if path.exists() and any(each.exists() and path.samefile(each) for each in read):
        raise BadGolden(f"{path} is a picture or a file of the model, which the run reads; choose another file")
    return path


def check_schedule(model: AnyModel, schedule: str) -> None:
    """BadGolden if transformers does not run such a decoder with the attention that `schedule` emulates."""
    if schedule == "hf_sdpa" and isinstance(model, GenerativeModel) and model.decoder.blocks[0].attn.cap is not None:
        raise BadGolden(
            f"{model.folder}: the rounding 'hf_sdpa' does not fit this model: its scores are capped, and transformers' "
            "sdpa attention does not cap scores, so it runs such a decoder with eager attention; use 'hf_eager'"
        )


def check_used(patterns: Sequence[str], taps: Sequence[str], level: str) -> None:
    """BadGolden if one of the globs `patterns` matches none of `taps`."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in taps):
            raise BadGolden(
                f"no tap of level {level!r} matches {pattern!r}; `npgemma golden --list` prints every tap and its level"
            )


def computing(model: M, dtype: str) -> M:
    """The model of a run in `dtype`; one in 16 bits rounds its weights, and computes in float32 what it rounds."""
    other = copy(model)
    other.weights = in_sixteen_bits(model.weights, dtype) if dtype in SIXTEEN_BITS else model.weights
    other.dtype = np.dtype("float64" if dtype == "float64" else "float32")
    return other


def recording(model: AnyModel, spool: Spool, level: str, patterns: Sequence[str]) -> Tap:
    """The tap that puts tensors into `spool`: masks as bytes, integers as int32.

    It keeps the inputs of the run, and of `level` what matches one of the globs `patterns`. A language model has no
    types: all its tokens are suffix.
    """
    absent = (TYPES,) if isinstance(model, LanguageModel) else ()
    inputs = KINDS[type(model)].inputs
    kinds = {"f": spool.wide, "b": np.dtype(np.uint8), "u": np.dtype(np.uint8), "i": np.dtype(np.int32)}

    def keep(name: str, x: Array, axes: str) -> Array:
        kept = [*inputs, *(patterns if is_in_level(name, level) else ())]
        if name not in absent and any(fnmatchcase(name, pattern) for pattern in kept):
            require_in_range(x, f"{name} is not finite: a weight, or a number computed before it, is NaN or infinite")
            spool.put(name, x.astype(kinds[x.dtype.kind]), axes)
        return x

    return keep


def measuring(spool: Spool, taps: Sequence[str], dtype: str, errors: dict[str, Float[Array, "2 R"]]) -> Tap:
    """The tap that compares floats with the truth in `spool`; `errors` keeps the largest errors of each row."""
    measured = {name for name in taps if spool[name].dtype.kind == "f"}

    def measure(name: str, x: Array, axes: str) -> Array:
        if name in measured:
            if dtype == "float16" and not np.isfinite(x).all():
                raise Overflow(name)
            require_in_range(
                x, f"{name} is finite in float64 and overflows in {dtype}; a port in {dtype} overflows, too"
            )
            found = row_errors(axes, x, spool[name])
            errors[name] = np.maximum(errors.get(name, found), found)
        return x

    return measure


def row_errors(axes: str, x: Float[Array, "*R"], truth: Float[Array, "*R"]) -> Float[Array, "2 R"]:
    """The rms and the largest absolute difference between `x` and `truth`, both of one tap, for each of its rows."""
    error = by_row(axes, np.abs(np.subtract(x, truth, dtype=np.float64)))
    return np.stack([np.sqrt(np.square(error).mean(-1)), error.max(-1)])


def by_row(axes: str, x: Array) -> Array:
    """[R rest]: a tap's rows in order, each flattened."""
    rows = row_axes(axes)
    first = tuple(range(len(rows)))
    moved = x if rows == first else np.moveaxis(x, rows, first)
    return moved.reshape(int(np.prod(moved.shape[: len(rows)])), -1)


def in_sixteen_bits(weights: Any, dtype: str) -> Any:
    """The same weights, rounded to a dtype, with activations that round. Those stored in it stay memory maps."""
    stored = np.dtype(np.uint16 if dtype == "bfloat16" else np.float16)

    def narrow(leaf: Leaf) -> Array:
        if leaf.value.dtype == stored or leaf.value.dtype.kind == "i":
            return leaf.value
        x = widened(leaf.value, np.dtype(np.float32))
        if leaf.kind != "weight":
            return GRIDS[dtype](x)
        return pack(x) if dtype == "bfloat16" else x.astype(np.float16)

    return rounding_activations(map_tree(narrow, weights), dtype)
