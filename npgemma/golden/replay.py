"""Replay: the reference on the port's own tensors, so that a mistake shows where it is made and not where it leads.

The model runs once more, and wherever the port dumped a tensor, what the reference computed there is noted and the run
goes on with the port's. So each tap is computed from the port's own tensors just before it, and what is wrong there is
wrong between those and it, even when everything downstream differs:

    ... -> port's x -> reference block -> y'      y' against the port's y: this block
                       port's y -> next block -> z'      z' against the port's z: the next one

Done in float64, and in the port's precision for the envelope.
"""

from collections.abc import Mapping

import numpy as np

from npgemma.errors import BadGolden
from npgemma.golden.compare import Report, fitted
from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden
from npgemma.golden.judge import judge, judge_relative
from npgemma.golden.provenance import model_hashes
from npgemma.golden.record import Case, in_bfloat16, row_errors, run
from npgemma.layers.rounding import rounding
from npgemma.layers.shapes import Array
from npgemma.layers.taps import silent
from npgemma.model import Model


def replay(model: Model, golden: Golden, dump: Dump, report: Report) -> Report:
    """`report`, with a verdict for each tap on how it follows from the port's tensors before it.

    Raises BadGolden if the golden file was not recorded from `model`.
    """
    hashes = model_hashes(model.folder)
    if any(golden.metadata["model"][key] != hashes[key] for key in hashes):
        raise BadGolden(f"{model.folder} is not the model that the golden file was recorded from; give that one")
    given = {tap: x for tap, x in fitted(golden, dump, report.pairing).items() if isinstance(x, np.ndarray)}
    exact = follow(model, golden, given, "float64")
    honest = follow(model, golden, given, report.dtype)
    verdicts = []
    for verdict in report.verdicts:
        tap = verdict.name
        if tap in exact:
            is_float = exact[tap].dtype.kind == "f"
            envelope = row_errors(tap, honest[tap], exact[tap]) if is_float else None
            local = judge(tap, verdict.theirs, given[tap], exact[tap], envelope, report.dtype)
            if is_float and report.dtype == "bfloat16":
                local = judge_relative(local, given[tap], exact[tap], honest[tap])
            verdicts.append(local)
    return Report(**vars(report) | {"replayed": verdicts})


def follow(model: Model, golden: Golden, given: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """What the reference makes of the port's tensors at each tap that the port has, in `dtype`."""
    weights = in_bfloat16(model.weights) if dtype == "bfloat16" else model.weights
    found: dict[str, Array] = {}

    def swap(name: str, x: Array) -> Array:
        if name not in given or name == "generated_ids":
            return x
        found[name] = x.copy()
        return given[name].astype(x.dtype)

    schedule = {} if dtype == "float64" else golden.metadata["schedules"][dtype]["rounds"]
    again = rounding(silent, schedule)  # what a port dumped before it rounded it, such as pixels

    def tap(name: str, x: Array) -> Array:
        return again(name, rounding(swap, schedule)(name, x))

    ids = golden.truth["generated_ids"].tolist()
    run(model, weights, case_of(golden), np.dtype("float64" if dtype == "float64" else "float32"), tap, ids)
    return found


def case_of(golden: Golden) -> Case:
    """What the recorded run started from."""
    ids, types = (golden.truth[f"prompts.0.{name}"].astype(np.int64) for name in ("input_ids", "token_type_ids"))
    return Case(golden.truth["pixel_values"], ids, types, len(golden.truth["generated_ids"]) - 1)
