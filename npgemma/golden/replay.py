"""Replay: the reference runs on the port's own tensors, so that a mistake shows in the block that makes it.

The model runs once more. Wherever the port dumped a tensor, the reference's own result is noted and the run continues
with the port's tensor. So each tap is computed from the port's tensors just before it: if it is wrong, the mistake is
between those and it, however far its effects reach:

    ... -> port's x -> reference block -> y'             y' against the port's y judges this block
                       port's y -> next block -> z'      z' against the port's z judges the next one

The replay runs in float64 for the truth, and in the port's precision for the envelope.

A port whose last norm is wrong, and therefore its logits:

    >>> import npgemma
    >>> from npgemma.golden import compare, read_golden
    >>> from npgemma.golden.file import EMBEDDED_GOLDEN
    >>> model, golden = npgemma.load(), read_golden(EMBEDDED_GOLDEN)
    >>> wrong = {name: -golden.truth[name] for name in ("text.norm", "logits")}
    >>> dump = Dump(dict(golden.truth) | wrong)
    >>> report = replay(model, golden, dump, compare(golden, dump, dtype="float32"))
    >>> [verdict.name for verdict in report.verdicts if not verdict.explained]
    ['text.norm', 'logits']
    >>> [verdict.name for verdict in report.culprits]
    ['text.norm']
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from npgemma.api.load import AnyModel
from npgemma.errors import BadGolden
from npgemma.golden.cases import case_of
from npgemma.golden.compare import Report
from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden, Spool
from npgemma.golden.judge import Verdict, judge, judge_relative, levelled
from npgemma.golden.layout import Fitted
from npgemma.golden.port import Port
from npgemma.golden.provenance import is_recorded_from
from npgemma.golden.record import computing, row_errors
from npgemma.golden.rounding import rounding
from npgemma.layers.shapes import Array
from npgemma.layers.taps import silent

# The port's tensor of a tap, or None where the run continues with the reference's own: where the port dumped none, or
# one that cannot be computed with. Ids are never taken from the port, since wrong ones may lie outside the vocabulary.
Given = Callable[[str], Fitted | None]


def replay(model: AnyModel, golden: Golden, dump: Dump, report: Report) -> Report:
    """Judge each tap as computed from the port's tensors before it. Memory holds the model and one tap.

    Parameters
    ----------
    model : VisionLanguageModel, LanguageModel, DualEncoder or Classifier
        The model that `golden` was recorded from.
    golden, dump : Golden, Dump
        What `report` compares.
    report : Report
        The result of `compare`.

    Returns
    -------
    Report
        `report` with the verdicts as `replayed`; its `culprits` are the taps that are wrong.

    Raises
    ------
    BadGolden
        If the golden file was recorded from another model.
    """
    if not is_recorded_from(golden.metadata["model"], model):
        raise BadGolden(
            f"the golden file was not recorded from {model.folder}: the checksums of their files differ; "
            "name the model that it was recorded from with --model"
        )
    pairs = report.pairing.pairs
    port = Port(golden, dump, report.pairing)
    verdicts: list[Verdict] = []

    def given(tap: str) -> Fitted | None:
        return port.usable(tap) if tap in pairs and not tap.endswith("_ids") else None

    with Spool(Path(tempfile.gettempdir())) as exact:

        def note(tap: str, axes: str, honest: Array, x: Array) -> None:
            is_float = honest.dtype.kind == "f"
            envelope = row_errors(axes, honest, exact[tap]) if is_float else None
            verdict = judge(tap, axes, pairs[tap][0], x, exact[tap], envelope, report.dtype)
            if is_float and report.dtype == "bfloat16":
                verdict = judge_relative(verdict, levelled(x, exact[tap]) if verdict.note else x, exact[tap], honest)
            verdicts.append(verdict)

        with np.errstate(all="ignore"):  # a port's tensors may overflow or divide by zero: a mask may hide everything
            follow(model, golden, given, "float64", lambda tap, axes, local, _: exact.put(tap, local))
            follow(model, golden, given, report.dtype, note)
    return replace(report, replayed=verdicts)


def follow(
    model: AnyModel,
    golden: Golden,
    given: Given,
    dtype: str,
    note: Callable[[str, str, Array, Array], None],
) -> None:
    """Run `model` on the port's tensors; `note` receives each tap, its axes, the computed tensor and the port's."""

    def swap(name: str, x: Array, axes: str) -> Array:
        found = given(name)
        if found is None:
            return x
        theirs = found.over(x)
        note(name, axes, x, theirs)
        return theirs.astype(x.dtype)

    schedule = {} if dtype == "float64" else golden.metadata["schedules"][dtype]["rounds"]
    again = rounding(silent, schedule)  # a port may dump a tensor before it rounds it, such as the pixels

    def tap(name: str, x: Array, axes: str) -> Array:
        return again(name, rounding(swap, schedule)(name, x, axes), axes)

    case_of(model, golden).run(computing(model, dtype), tap)
