"""Reports on gradients, as text and as JSON. Blocks are in the order of the backward pass, from the loss on."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from npgemma.golden.compare import Report
from npgemma.golden.file import Golden
from npgemma.golden.gradient_judge import LIMITS
from npgemma.golden.gradient_taps import is_input
from npgemma.golden.judge import FEW_FACTOR, FEW_VALUES, TINY_FACTOR, TINY_VALUES, Verdict
from npgemma.golden.report import as_json, block_line, findings, leftovers, notes, recorded, summary


def gradients_as_text(report: Report, golden: Golden, verbose: bool = False) -> str:
    """A line per block in backward order, then the first divergence, the culprits and what is missing."""
    case, facts = golden.metadata["case"], golden.metadata["gradients"]
    limits = ", ".join(f"{kind} {limit:g}" for kind, limit in LIMITS.items())
    smoothed = f", smoothing {facts['smoothing']:g}" if facts["smoothing"] else ""
    answers = " and ".join(map(repr, case["suffixes"]))
    trained = f", {' and '.join(facts['train'])} trained" if facts.get("train") else ""
    trained = ", of an adapter" + trained if facts.get("adapter") else trained
    what = recorded(case) + (f", then {answers}" if answers else "")
    head = [
        f"golden   {what}: loss {float(golden.truth['loss']):.6g}, the mean over {facts['mean']}s{smoothed}{trained}",
        f"judged   as {report.dtype}, in multiples of the errors of honest runs; allowed are {limits}, {FEW_FACTOR:g} "
        f"times that for fewer than {FEW_VALUES} values, {TINY_FACTOR:g} times for fewer than {TINY_VALUES}",
        "",
        f"{'block, from the loss backwards':<32} taps    rms    row    max   finds errors above",
    ]
    lines = [block_line(block, each) for block, each in in_blocks(report.verdicts)]
    return "\n".join(
        [*head, *lines, "", *findings(report), *notes(report), *leftovers(report, verbose), summary(report)]
    )


def in_blocks(verdicts: Sequence[Verdict]) -> list[tuple[str, list[Verdict]]]:
    """The verdicts of each block, the inputs of the run as one."""
    named = (("inputs" if is_input(verdict.name) else verdict.block, verdict) for verdict in verdicts)
    return [(block, [verdict for _, verdict in each]) for block, each in groupby(named, lambda pair: pair[0])]


def gradients_as_json(report: Report, golden: Golden) -> dict[str, Any]:
    """The whole report as JSON values, limits included."""
    found = as_json(report, golden)
    return found | {"limits": found["limits"] | LIMITS, "gradients": golden.metadata["gradients"]}
