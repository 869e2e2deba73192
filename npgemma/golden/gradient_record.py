"""Record a golden file of gradients: those of a run in float64, and the errors of runs in float32, TF32 and bfloat16.

    pictures, prompt, suffixes --> float64 loss, backward --> truth
                               --> float32 runs           --> |error| --> envelope.float32
                               --> the same, factors      --> |error| --> envelope.tf32
                                   of products rounded
                               --> float32 runs, tensors  --> |error| --> envelope.bfloat16
                                   rounded as a schedule says, and each gradient rounded once

The arithmetics of the honest runs are those of `record`. A large model has no array for the gradient of a matrix: its
two sketches are computed without it.

    >>> import npgemma
    >>> from npgemma.golden import read_golden
    >>> picture = npgemma.sample_picture()
    >>> record_gradients(npgemma.load(), [picture], "caption en", ["a red star"], "g.safetensors", "io")
    >>> golden = read_golden("g.safetensors")
    >>> golden.truth["grad.rows.multi_modal_projector.linear.weight"].shape
    (128,)
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from npgemma.api.finite import finite, require_in_range
from npgemma.api.load import AnyModel
from npgemma.api.trainable import beside, digest_of, frozen, scales_of, trained
from npgemma.golden.arithmetic import ARITHMETICS, computing_as
from npgemma.golden.file import Spool, write_golden
from npgemma.golden.gradient_case import KINDS, GradientCase, case_of
from npgemma.golden.gradient_curve import curve_facts, growing, run_curve
from npgemma.golden.gradient_options import DEFAULTS, GradientOptions
from npgemma.golden.gradient_run import longest_side, place_of, run
from npgemma.golden.gradient_taps import (
    ACTIVATION,
    CURVE,
    FORWARD,
    LOSS,
    SIGNS,
    SKETCHES,
    WEIGHT,
    Trail,
    block_of_weight,
    first_block,
    in_backward_order,
    is_input,
    is_matrix,
    matrix_of,
)
from npgemma.golden.names import is_in_level, is_tap
from npgemma.golden.provenance import SMALL, describe, dtype_of_truth, schedules
from npgemma.golden.record import check_schedule, checked_path, computing, measuring, put_envelope
from npgemma.golden.rounding import GRIDS, SIXTEEN_BITS, Schedule, rounding, schedule_in
from npgemma.golden.sketches import signs
from npgemma.io.picture import Picture
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, silent

# The precisions that gradients are judged in: many are too small for float16, where training scales the loss.
DTYPES = ("float32", "tf32", "bfloat16")


def record_gradients(
    model: AnyModel,
    images: Sequence[Picture],
    text: str | Sequence[str],
    answers: Sequence[str],
    path: str | Path,
    level: str = "blocks",
    options: GradientOptions = DEFAULTS,
    schedule: str = "hf_eager",
    truth: str | None = None,
) -> None:
    """Write a golden file of a loss, and of its gradients.

    Parameters
    ----------
    model : VisionLanguageModel, LanguageModel, DualEncoder or Classifier
        The model to run, in float64 whatever its own dtype is.
    images, text : sequence of pictures, str or sequence of str
        The pictures, none for a language model, and the prompt; a DualEncoder has a text for each picture, and a
        Classifier no text.
    answers : sequence of str
        Suffixes: one, with all pictures in one example; or one for each picture. Several without pictures or with one
        are as many examples. For a Classifier the label of each picture, by name or number; a DualEncoder has none.
    path : str or Path
        The .safetensors file to write, as a whole or not at all.
    level : str
        'io' holds the inputs, the loss, and of each weight the sketches of its gradient; 'blocks' also the gradient of
        each layer's result and, of a small model, of each weight; 'ops' the gradient of every tensor.
    options : GradientOptions
        What the loss is, and what of the model is trained.
    schedule, truth : str
        As for `record`.

    Raises
    ------
    BadPicture, BadPrompt, BadModel, BadGolden, BadData
        As `record` does; BadData for a pattern that names no weight, and an adapter that cannot be trained.
    """
    path = checked_path(path, model, images)
    check_schedule(model, schedule)
    model = model if options.adapter is None else beside(model, options.adapter)
    with Spool(path.parent, truth or dtype_of_truth(model)) as spool:
        case = KINDS[type(model)].read(model, images, text, answers, options, keeping(spool, level))
        model.guard.check_files()
        facts = record_runs(spool, model, case, level, schedule, options)
        described = describe(model, images, text, spool, schedules(model, schedule, dict.fromkeys(DTYPES, "")))
        described["case"] |= {"suffixes": list(answers)}
        described["taps"] = [[tap, spool.axes[tap]] for tap in in_backward_order(list(spool.axes), facts["blocks"])]
        write_golden(spool, described | {"gradients": facts}, path)


def record_runs(
    spool: Spool, model: AnyModel, case: GradientCase, level: str, schedule: str, options: GradientOptions
) -> dict[str, Any]:
    """Put the truth and the errors of honest runs into `spool`; returns what the file says about the gradients."""
    train = options.train
    facts: dict[str, Any] = {"mean": case.mean, "smoothing": case.smoothing, "train": list(train)}
    facts |= {
        "frozen": frozen(model, train),
        "whole": is_small(model, train),
        "adapter": options.adapter and digest_of(options.adapter),
        "scales": scales_of(model),
    }
    facts |= curve_facts(model, facts, options.steps)
    with finite(model, exact := partial(exact_run, case, model, facts)):
        facts |= exact(keeping(spool, level))
        run_curve(case, computing(model, "float64"), facts, "float64", silent, keeping(spool, level))
        spool.keep(lambda tap: not tap.startswith(ACTIVATION) or tap in facts["blocks"])
        for dtype in DTYPES:
            record_errors(spool, model, case_of(model, spool, facts), facts, schedule, dtype)
    return facts


def is_small(model: AnyModel, train: Sequence[str]) -> bool:
    """Whether memory holds the gradients of all weights that are trained."""
    return sum(math.prod(tensor.shape) for tensor in trained(model, train).values()) < SMALL


def exact_run(case: GradientCase, model: AnyModel, facts: Mapping[str, Any], tap: Tap) -> dict[str, Any]:
    """The run in float64; returns the block of each gradient, in backward order, and those that are 0.

    A pass need not go on behind the last block that is trained, nor have all gradients in it: `optional` are those that
    a port may lack.
    """
    trail, blocks = Trail(), dict.fromkeys(FORWARD[::-1], LOSS)

    def follow(name: str, x: Array, axes: str) -> Array:
        if name.startswith(ACTIVATION) and not matrix_of(name):
            blocks[name] = trail.block_of(name)
        return tap(name, x, axes)

    tensors, train = trained(model, facts.get("train", ())), facts.get("train", ())
    needed = signs(longest_side(tensors.values()))
    names = [*run(case, computing(model, "float64"), needed, facts["whole"], follow, train)]
    weights = {name: block_of_weight(place_of(model, tensors[tensor])) for tensor, name in names}
    through, last = trail.reach({*weights.values()})
    blocks = {name: block for name, block in blocks.items() if first_block(name) in through}
    optional = [name for name, block in blocks.items() if block in last and name.startswith(ACTIVATION)]
    found = [*blocks.items(), *weights.items()]
    order = {name: block for block in trail.blocks if block in through for name, each in found if each == block}
    order["gradient_norm"] = ""
    return {"blocks": order, "zero": zero_gradients(model, train), "optional": optional if facts["frozen"] else []}


def zero_gradients(model: AnyModel, train: Sequence[str]) -> dict[str, str]:
    """The gradients that are 0 in exact arithmetic, each with the one by whose size its errors are judged.

    A bias of keys adds the same to all scores of a row, which no softmax notices.
    """
    alone = {tensor.paths[0]: tensor.name for tensor in trained(model, train).values() if len(tensor.paths) == 1}
    keys = {path: path.replace("k_bias", "q_bias") for path in alone if path.endswith("k_bias")}
    return {WEIGHT + alone[path]: WEIGHT + alone[of] for path, of in keys.items() if of in alone}


def keeping(spool: Spool, level: str) -> Tap:
    """The tap that puts the gradients of a level, and the inputs, into `spool`."""
    kinds = {"f": spool.wide, "i": np.dtype(np.int32), "u": np.dtype(np.uint8)}

    def keep(name: str, x: Array, axes: str) -> Array:
        if is_kept(name, x.shape, level):
            require_in_range(x, f"{name} is not finite: a weight, or a number computed before it, is NaN or infinite")
            spool.put(name, x if name == SIGNS else x.astype(kinds[x.dtype.kind]), axes)
        return x

    return keep


def is_kept(name: str, shape: tuple[int, ...], level: str) -> bool:
    """Whether a file of `level` holds a tensor: the smallest have of a matrix only its sketches."""
    if name.endswith((".mask", ".near")) or not is_tap(name):
        return False
    if is_input(name):
        return True
    if matrix_of(name):
        return level != "io" or not is_matrix(shape)
    return name in (*FORWARD, *CURVE, "gradient_norm") or (name.startswith(ACTIVATION) and is_in_level(name, level))


def record_errors(
    spool: Spool, model: AnyModel, case: GradientCase, facts: Mapping[str, Any], schedule: str, dtype: str
) -> None:
    """Put the largest errors of the honest runs in a dtype into `spool`."""
    errors: dict[str, Float[Array, "2 R"]] = {}
    taps, rounds = [name for name in spool.axes if name != SIGNS], schedule_in(schedule, dtype)
    measure = measuring(spool, taps, dtype, errors)
    honest_runs(model, case, facts, rounds, dtype, measure)
    for arithmetic in ARITHMETICS[dtype].values():
        tap = computing_as(rounding(rounding_gradients(silent, dtype), rounds), arithmetic)
        run_curve(case, computing(model, dtype), facts, dtype, tap, measure)
    errors |= {name: growing(errors[name]) for name in CURVE if name in errors}
    for name, found in errors.items():
        put_envelope(spool, name, dtype, found * pooled(name, errors, spool))


def pooled(name: str, errors: Mapping[str, Float[Array, "2 R"]], spool: Spool) -> float:
    """What the error of a sketch is multiplied by: it is a single draw, and may be small by chance.

    Let E be the error of a matrix [O I]. The squares of E s add up to O times a square of that length, on average over
    signs to |E|^2, and so do those of s' E. The sketch counts as no more exact than the other one, or the matrix, says.
    """
    if not name.startswith(SKETCHES):
        return 1.0
    matrix = matrix_of(name)
    squares = [square_sum(start + matrix, errors, spool) for start in (*SKETCHES, WEIGHT)]
    own = square_sum(name, errors, spool)
    return math.sqrt(max(squares) / own) if own else 1.0


def square_sum(name: str, errors: Mapping[str, Float[Array, "2 R"]], spool: Spool) -> float:
    """The sum of the squared errors of a tensor, of the largest of its honest runs; 0 if it is not recorded."""
    if name not in errors:
        return 0.0
    return float(np.square(errors[name][0]).mean() * math.prod(spool.entries[name][2]))


def honest_runs(
    model: AnyModel, case: GradientCase, facts: Mapping[str, Any], schedule: Schedule, dtype: str, measure: Tap
) -> None:
    """The run in a dtype with each of its arithmetics; `measure` gets what a port would have."""
    honest, tap = computing(model, dtype), rounding(rounding_gradients(measure, dtype), schedule)
    needed = signs(longest_side(trained(model, facts.get("train", ())).values()))
    for arithmetic in ARITHMETICS[dtype].values():
        for _ in run(case, honest, needed, facts["whole"], computing_as(tap, arithmetic), facts.get("train", ())):
            pass


def rounding_gradients(tap: Tap, dtype: str) -> Tap:
    """The tap that rounds each gradient once to 16 bits. Sketches in float64 are those of a matrix that was rounded."""

    def rounded(name: str, x: Array, axes: str) -> Array:
        is_gradient = name.startswith(ACTIVATION) and x.dtype == np.float32
        return tap(name, GRIDS[dtype](x) if is_gradient else x, axes)

    return rounded if dtype in SIXTEEN_BITS else tap
