"""Replay: the reference runs on the port's own tensors, so that a mistake shows in the block that makes it.

The model runs once more. Wherever the port dumped a tensor, the reference's own result is noted and the run continues
with the port's tensor. So each tap is computed from the port's tensors just before it: if it is wrong, the mistake is
between those and it, however far its effects reach:

    ... -> port's x -> reference block -> y'             y' against the port's y judges this block
                       port's y -> next block -> z'      z' against the port's z judges the next one

The replay runs in float64 for the truth, and in the port's precision, with each of its arithmetics, for the envelope.

A block is tested alone where the port dumped the tensor before it. Where it did not, the reference computed several
blocks in a row, and the mistake may be in any of them: a verdict names them all, and the tensor that they begin with.

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
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from npgemma.api.generative import GenerativeModel
from npgemma.api.load import AnyModel
from npgemma.errors import BadGolden
from npgemma.golden.arithmetic import ARITHMETICS, Arithmetic, computing_as, precisions_of
from npgemma.golden.cases import case_of
from npgemma.golden.compare import Report
from npgemma.golden.contents import check_replayable
from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden, Spool, pooled
from npgemma.golden.judge import Verdict, errors_by_size, judge, judge_by_size, levelled
from npgemma.golden.layout import Fitted
from npgemma.golden.port import Port
from npgemma.golden.provenance import is_recorded_from
from npgemma.golden.record import computing, row_errors
from npgemma.golden.rounding import SIXTEEN_BITS, rounding
from npgemma.golden.trail import Trail, without_right_masks
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import silent

# The port's tensor of a tap, or None where the run continues with the reference's own: where the port dumped none, or
# one that cannot be computed with.
Given = Callable[[str], Fitted | None]
# Receives a tap, its axes, what the reference computed, and whether the run continues with the port's tensor.
Note = Callable[[str, str, Array, bool], None]


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
    check_replayable(model, str(model.folder), golden.truth)
    port, dtype = Port(golden, dump, report.pairing), report.dtype

    def given(tap: str) -> Fitted | None:
        found = port.usable(tap) if tap in report.pairing.pairs else None
        return found if found is None or can_continue_with(model, golden, tap, found.x) else None

    with Spool(Path(tempfile.gettempdir())) as exact, np.errstate(all="ignore"):  # a port's tensors may overflow
        trail = Trail(golden, model)
        tested: dict[str, tuple[str, tuple[str, ...]]] = {}

        def keep(tap: str, axes: str, x: Array, replaced: bool) -> None:
            tested[tap] = trail.pass_through(tap, replaced)
            if replaced:
                exact.put(tap, x, axes)

        follow(computing(model, "float64"), golden, given, "float64", None, keep)
        honest = honest_runs(model, golden, given, dtype, exact)
        verdicts = []
        for tap, axes in exact.axes.items():
            after, blocks = tested[tap]
            verdict = replayed(tap, axes, port, exact[tap], honest, dtype)
            verdicts.append(replace(verdict, after=after, blocks=blocks))
    return replace(report, replayed=without_right_masks(verdicts, honest.rows))


def can_continue_with(model: AnyModel, golden: Golden, tap: str, x: Array) -> bool:
    """Whether the model can compute with the port's tensor: ids must be in the vocabulary, and keep image tokens."""
    if not tap.endswith("_ids"):
        return True
    if not isinstance(model, GenerativeModel) or not tap.endswith("input_ids"):
        return False
    image, truth = getattr(model.config, "image_token_index", None), golden.truth[tap]
    in_range = x.min(initial=0) >= 0 and x.max(initial=0) < len(model.decoder.embedding)
    return bool(in_range and np.array_equal(x == image, truth == image))


@dataclass
class Honest:
    """The largest errors of honest runs on the port's tensors, by tap: of each row, and of numbers of like size."""

    rows: dict[str, Float[Array, "2 R"]] = field(default_factory=dict)
    sizes: dict[str, Float[Array, "P"]] = field(default_factory=dict)


def honest_runs(model: AnyModel, golden: Golden, given: Given, dtype: str, exact: Spool) -> Honest:
    """Run the reference on the port's tensors with each arithmetic of a dtype."""
    found = Honest()

    def measure(tap: str, axes: str, x: Array, replaced: bool) -> None:
        if replaced and x.dtype.kind == "f":
            rows = row_errors(axes, x, exact[tap])
            found.rows[tap] = np.maximum(found.rows.get(tap, rows), rows)
            if dtype in SIXTEEN_BITS:
                sizes = errors_by_size(x, exact[tap])
                found.sizes[tap] = np.maximum(found.sizes.get(tap, sizes), sizes)

    other = computing(model, dtype)
    for arithmetic in (each for precision in precisions_of(dtype) for each in ARITHMETICS[precision].values()):
        follow(other, golden, given, dtype, arithmetic, measure)
    return replace(found, rows=pooled(found.rows))


def replayed(tap: str, axes: str, port: Port, exact: Array, honest: Honest, dtype: str) -> Verdict:
    """The verdict on a tap of the port, against what follows from its tensors before that."""
    x, theirs = port[tap].over(exact), port.pairing.pairs[tap][0]
    verdict = judge(tap, axes, theirs, x, exact, honest.rows.get(tap), dtype)
    if tap not in honest.sizes:
        return verdict
    return judge_by_size(verdict, levelled(x, exact) if verdict.note else x, exact, honest.sizes[tap], dtype)


def follow(
    model: AnyModel, golden: Golden, given: Given, dtype: str, arithmetic: type[Arithmetic] | None, note: Note
) -> None:
    """Run `model`, which computes in `dtype`, on the port's tensors."""

    def swap(name: str, x: Array, axes: str) -> Array:
        found = given(name)
        note(name, axes, x, found is not None)
        return x if found is None else found.over(x).astype(x.dtype)

    schedule = {} if dtype == "float64" else golden.metadata["schedules"][dtype]["rounds"]
    again = rounding(silent, schedule)  # a port may dump a tensor before it rounds it, such as the pixels

    def tap(name: str, x: Array, axes: str) -> Array:
        return again(name, rounding(swap, schedule)(name, x, axes), axes)

    case_of(model, golden).run(model, computing_as(tap, arithmetic))
