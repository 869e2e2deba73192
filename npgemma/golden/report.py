"""Reports as text and as JSON, with the same content, limits included."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from npgemma.errors import listed, one_line
from npgemma.golden.compare import Report
from npgemma.golden.file import Golden
from npgemma.golden.judge import (
    BORDERLINE,
    FEW_FACTOR,
    FEW_VALUES,
    LIMITS,
    SIZE_LIMIT,
    TINY_FACTOR,
    TINY_VALUES,
    Verdict,
)
from npgemma.golden.trail import MASK

# How many wrong taps are listed one by one; the first ones say the most.
MOST = 4
STATUS = {0: "explained", 1: "not explained", 3: "incomplete", 4: "borderline"}


def as_json(report: Report, golden: Golden) -> dict[str, Any]:
    """The whole report as JSON values: what was judged, by which limits, and the results."""
    first = report.first_divergence
    found = {
        "status": STATUS[report.status],
        "dtype": report.dtype,
        "case": golden.metadata["case"],
        "limits": LIMITS
        | {"size": SIZE_LIMIT, "few_values": FEW_VALUES, "few_factor": FEW_FACTOR}
        | {"tiny_values": TINY_VALUES, "tiny_factor": TINY_FACTOR, "borderline": BORDERLINE},
        "first_divergence": asdict(first) if first else None,
        "culprits": [verdict.name for verdict in report.culprits],
        "borderline": [verdict.name for verdict in report.borderline],
        "hints": report.hints,
        "taps": [asdict(verdict) for verdict in report.verdicts],
        "replayed": [asdict(verdict) for verdict in report.replayed],
        "logits": report.logits,
        "missing": report.pairing.missing,
        "absent": report.pairing.absent,
        "unmapped": report.pairing.unmapped,
        "unrecorded": report.pairing.unrecorded,
    }
    return json_numbers(found)


def json_numbers(value: Any) -> Any:
    """`value` with None for infinities and NaN, which JSON lacks: a tap of the wrong shape has an infinite error."""
    if isinstance(value, Mapping):
        return {key: json_numbers(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_numbers(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(report: Report, golden: Golden, verbose: bool = False) -> str:
    """A line per block in execution order, then the first divergence, the culprits, the tokens and what is missing.

    If `verbose`, every name is listed instead of the first few.
    """
    limits = ", ".join(f"{kind} {limit:g}" for kind, limit in LIMITS.items())
    head = [
        f"golden   {recorded(golden.metadata['case'])}, truth in {golden.metadata['model']['truth_stored_as']}",
        f"judged   as {report.dtype}, in multiples of the errors of honest runs; allowed are {limits}, "
        f"{FEW_FACTOR:g} times that for taps with one row or fewer than {FEW_VALUES} values, {TINY_FACTOR:g} times for "
        f"fewer than {TINY_VALUES}",
        "",
        f"{'block':<32} taps    rms    row    max   finds errors above",
    ]
    blocks = [block_line(block, list(each)) for block, each in groupby(report.verdicts, lambda v: v.block)]
    rest = [*findings(report), *notes(report), *tokens(report, golden), *leftovers(report, verbose), summary(report)]
    return "\n".join([*head, *blocks, "", *rest])


def recorded(case: Mapping[str, Any]) -> str:
    """What was recorded: a prompt, or texts and pictures."""
    if "prompt" in case:
        return repr(case["prompt"])
    texts = [repr(text) for text in case.get("texts", ())]
    count = len(case["images"])
    return " and ".join([*([listed(texts, MOST)] if texts else []), f"{count} picture{'s' * (count != 1)}"])


def block_line(block: str, verdicts: Sequence[Verdict]) -> str:
    """The worst ratios of a block's taps, and the relative error above which a mistake in any of them is found."""
    measured = [verdict for verdict in verdicts if verdict.ratios]
    numbers = "  exact" if all(verdict.explained for verdict in verdicts) else "  WRONG"
    if measured:
        worst = {kind: max(verdict.ratios[kind] for verdict in measured) for kind in LIMITS}
        floor = f"{max(verdict.floor for verdict in measured):.1e}"
        numbers = "".join(f"{short(worst[kind]):>7}" for kind in LIMITS) + f"   {floor}"
    wrong = sum(not verdict.explained for verdict in verdicts)
    return f"{block:<32} {len(verdicts):>4}{numbers}" + (f"   {wrong} not explained" if wrong else "")


def findings(report: Report) -> Iterator[str]:
    """Where the port first differs from the truth, and, after a replay, which blocks make mistakes."""
    first = report.first_divergence
    if first is not None:
        wrong = [verdict for verdict in report.verdicts if verdict.wrong]
        begins = next(verdict.block for verdict in report.verdicts if not verdict.explained)
        before = f"; borderline from block {begins} on" if begins != first.block else ""
        yield f"{'FIRST DIVERGENCE' if wrong else 'BORDERLINE'} in block {first.block}{before}"
        yield from wrong_taps(wrong or report.borderline or [first])
    yield from report.hints
    if report.replayed:
        yield from culprits(report)


def culprits(report: Report) -> Iterator[str]:
    """A line for each part of the model that makes a mistake, the largest first, each with its taps."""
    parts: dict[tuple[str, tuple[str, ...]], list[Verdict]] = {}
    for verdict in report.culprits:
        parts.setdefault((verdict.after, verdict.blocks), []).append(verdict)
    for (after, blocks), verdicts in sorted(parts.items(), key=lambda part: -max(v.excess for v in part[1])):
        if len(blocks) == 1:
            yield f"CULPRIT block {blocks[0]}: wrong even when computed from the port's own tensors"
        else:
            yield (
                f"CULPRIT between {after or 'the inputs'} and {verdicts[0].name}: one of {len(blocks)} blocks, "
                f"{blocks[0]} to {blocks[-1]}; {next_dump(blocks)}"
            )
        yield from wrong_taps(verdicts)
    doubtful = [verdict for verdict in report.replayed if verdict.borderline]
    if doubtful:
        yield "BORDERLINE when computed from the port's own tensors:"
        yield from wrong_taps(doubtful)
    if not parts and not doubtful:
        yield "replay: every tap follows from the port's own tensors before it"


def next_dump(blocks: Sequence[str]) -> str:
    """What to dump next: a mask that each layer reads, or the result of the block in the middle, which halves them."""
    if MASK.fullmatch(blocks[0]):
        return f"{blocks[0]} was not dumped; dump it next"
    middle = blocks[(len(blocks) - 1) // 2]
    return f"dump {middle}{'.out' if '.layers.' in middle else ''} next"


def wrong_taps(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The first wrong taps: name, reason, wrong rows and diagnosis."""
    for verdict in verdicts[:MOST]:
        yield f"  {both_names(verdict)}: {one_line(verdict.reason)}"
        if verdict.bad_rows:
            yield f"      {'rows' if len(verdict.bad_rows) > 1 else 'row'} {ranges(verdict.bad_rows)}"
        yield from (f"      {sentence}" for sentence in verdict.diagnosis)
    if len(verdicts) > MOST:
        yield f"  and {len(verdicts) - MOST} more"


def both_names(verdict: Verdict) -> str:
    """The name of a tap, and that of the port if it has another."""
    theirs = one_line(verdict.theirs)
    return verdict.name if theirs == verdict.name else f"{verdict.name} ({theirs})"


def notes(report: Report) -> Iterator[str]:
    """What was left out of the comparison because it is harmless."""
    found: dict[str, list[str]] = {}
    for verdict in report.verdicts:
        for note in verdict.note.splitlines():
            found.setdefault(note, []).append(both_names(verdict))
    yield from (f"{listed(names, MOST)}: {note}" for note, names in found.items())


def tokens(report: Report, golden: Golden) -> Iterator[str]:
    """How the differences change the next tokens, or the labels."""
    what = "token" if "generated_ids" in golden.taps else "label"
    for tap, facts in report.logits.items():
        yield f"{tap}: KL {facts['kl']:.2e} nats, the likeliest {what} agrees in {facts['top1_agreement']:.0%} of rows"
        for flip in facts["flipped"]:
            why = "within rounding" if flip["explained"] else "beyond rounding"
            yield f"  row {flip['row']}: {what} {flip['port']} for {flip['truth']}, by {flip['margin']:.3g}, {why}"


def leftovers(report: Report, verbose: bool) -> Iterator[str]:
    """Taps and names without a partner: the first few of each kind, or all."""
    pairing = report.pairing
    for names, what in (
        (pairing.missing, "taps missing from the dump, which --allow-missing GLOB would allow"),
        (pairing.unmapped, "names in the dump that no mapping rule gives the name of a tap"),
        (pairing.absent, "taps missing from the dump, as allowed"),
        (pairing.unrecorded, "names in the dump whose taps this golden file does not hold"),
    ):
        if names:
            shown = len(names) if verbose else MOST
            more = ", ... (--verbose lists all)" if len(names) > shown else ""
            yield f"{what} ({len(names)}): {', '.join(map(one_line, names[:shown]))}{more}"


def summary(report: Report) -> str:
    """The verdict on the whole dump, in one line."""
    explained = sum(verdict.explained for verdict in report.verdicts)
    of_all = f"{explained} of {len(report.verdicts)} taps"
    line = f"{STATUS[report.status].upper()}: rounding in {report.dtype} explains {of_all}"
    if report.culprits:
        return f"{line}, and {len(report.culprits)} do not follow from the port's own tensors"
    if report.status == 4:
        few = f"{len({verdict.name for verdict in report.borderline})} are beyond that by up to {BORDERLINE:g} times"
        return f"{line}; {few}, which an unusual order of sums may cause, or a small mistake"
    if report.status == 1 and report.dtype != "float32":
        where = "with TF32 off" if report.dtype == "tf32" else "in float32"
        return f"{line}. A dump {where} would show smaller mistakes"
    return line


def short(ratio: float) -> str:
    """A ratio in at most six characters."""
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0e}"


def ranges(rows: Sequence[int]) -> str:
    """[0, 1, 2, 5] as '0-2, 5'."""
    found = []
    for _, group in groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):
        run = [row for _, row in group]
        found.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}")
    return ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
