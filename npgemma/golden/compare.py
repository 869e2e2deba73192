"""Compare a dump with a golden file: a verdict for each tap, and the first that rounding does not explain.

Tensors are paired by name, never by position. Nothing passes by being left out: a tap that the port lacks, or a name of
the port that no rule knows, makes the comparison incomplete.

    >>> from npgemma.golden import read_golden
    >>> from npgemma.golden.file import EMBEDDED_GOLDEN
    >>> golden = read_golden(EMBEDDED_GOLDEN)
    >>> dump = Dump({"logits": 2 * golden.truth["logits"].astype("float32")})
    >>> report = compare(golden, dump, allow_missing=["*"])
    >>> report.status, report.first_divergence.block, report.first_divergence.diagnosis
    (1, 'logits', ('it is the truth times 2, which is 2',))
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from npgemma.api.finite import quiet
from npgemma.errors import BadGolden
from npgemma.golden.conventions import TURNED
from npgemma.golden.diagnose import diagnose
from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden
from npgemma.golden.grids import grid_of, most_common
from npgemma.golden.judge import Verdict, failed, judge, logit_facts, passed
from npgemma.golden.mapping import SAME_NAMES, NameMap, Pairing, pair
from npgemma.golden.port import Misfit, Port
from npgemma.golden.rounding import SIXTEEN_BITS
from npgemma.golden.tf32 import tf32_hint

FLOAT32_TOO = "rounding in float32 explains all of it, too; leave out --dtype tf32"


@dataclass(frozen=True)
class Report:
    """`verdicts` in execution order. `replayed` judges each tap as computed from the port's tensors before it.

    `hints` are sentences on the precision of the port.
    """

    dtype: str
    verdicts: Sequence[Verdict]
    pairing: Pairing
    logits: Mapping[str, Any] = field(default_factory=dict)
    hints: Sequence[str] = ()
    replayed: Sequence[Verdict] = ()

    @property
    def first_divergence(self) -> Verdict | None:
        """The first tap that is wrong, or if none is, the first that is borderline."""
        wrong = (verdict for verdict in self.verdicts if verdict.wrong)
        return next(wrong, None) or next((verdict for verdict in self.verdicts if not verdict.explained), None)

    @property
    def culprits(self) -> list[Verdict]:
        """The taps that are wrong even when they are computed from the port's own tensors."""
        return [verdict for verdict in self.replayed if verdict.wrong]

    @property
    def borderline(self) -> list[Verdict]:
        """The borderline taps, without those that follow from the port's own tensors, where errors do not add up."""
        follow = {verdict.name for verdict in self.replayed if verdict.explained}
        again = [verdict for verdict in self.replayed if verdict.borderline]
        return again + [verdict for verdict in self.verdicts if verdict.borderline and verdict.name not in follow]

    @property
    def status(self) -> int:
        """0 if every tap is explained, 1 if one is wrong, 3 if taps or names are left over, 4 if one is borderline."""
        if self.culprits or any(verdict.wrong for verdict in self.verdicts):
            return 1
        if self.pairing.missing or self.pairing.unmapped:
            return 3
        return 4 if self.borderline else 0


@quiet()  # a port's numbers may be so large that their squares overflow
def compare(
    golden: Golden,
    dump: Dump,
    names: NameMap = SAME_NAMES,
    dtype: str | None = None,
    allow_missing: Sequence[str] = (),
) -> Report:
    """Judge every tap of `golden` that `dump` has.

    Parameters
    ----------
    golden : Golden
        The truth and the envelopes.
    dump : Dump
        The tensors of the port.
    names : NameMap
        Gives the port's names those of taps.
    dtype : str, optional
        The precision the port computes in, whose envelope it is judged by: 'float32', 'tf32', 'bfloat16' or 'float16'.
        By default the one that holds the numbers of most of the dump, however they are stored.
    allow_missing : sequence of str
        Globs of taps that the dump may lack.

    Returns
    -------
    Report
        A verdict for each tap that the dump has, and what is missing.

    Raises
    ------
    BadGolden
        If no name of the dump is that of a recorded tap, two names claim the same tap, or the golden file has no
        errors in `dtype`.
    """
    names = replace(names, absent=(*names.absent, *allow_missing))
    pairing = pair(names, dump, golden.taps)
    if not pairing.pairs:
        raise BadGolden(
            f"no name of the dump, such as {next(iter(dump))!r}, is the name of a recorded tap; use --preset or --map"
        )
    grids = {tap: grid_of(dump, theirs) for tap, (theirs, _) in pairing.pairs.items() if tap in golden.floats}
    dtype = dtype or most_common(grids.values())
    check_envelope(golden, dtype)
    port = Port(golden, dump, pairing)
    taps = [tap for tap in golden.taps if tap in pairing.pairs]
    verdicts = [judged(port, tap, dtype, grids.get(tap, "")) for tap in taps]
    logits = {tap: found for tap in taps if tap.endswith("logits") and (found := port.usable(tap))}
    facts = {tap: logit_facts(x.x, golden.truth[tap], golden.envelopes[dtype][tap]) for tap, x in logits.items()}
    return Report(dtype, verdicts, pairing, facts, list(hints(port, verdicts, dtype, grids)))


def check_envelope(golden: Golden, dtype: str) -> None:
    """BadGolden if the golden file has no honest errors in a dtype."""
    if dtype == "float16" and "gradients" in golden.metadata:
        raise BadGolden(
            "a golden file of gradients has no errors of runs in float16, where training scales the loss; dump "
            "float32, TF32 or bfloat16"
        )
    if dtype not in golden.envelopes:
        tap = golden.metadata["schedules"].get(dtype, {}).get("overflows")
        why = f"{tap} overflows in it, in a port too" if tap else "it was recorded by an older release; record it again"
        raise BadGolden(f"the golden file has no errors of runs in {dtype}: {why}")


def hints(port: Port, verdicts: Sequence[Verdict], dtype: str, grids: Mapping[str, str]) -> Iterator[str]:
    """What the port's numbers say: its precision, if it was not named, and another that explains its errors."""
    if dtype == "tf32" and all(measured(port, verdict.name, "float32").explained for verdict in verdicts):
        yield FLOAT32_TOO
    if dtype == "float32" and (hint := tf32_hint(port.golden, verdicts, lambda tap: measured(port, tap, "tf32"))):
        yield from hint
        return
    on = {grid: [tap for tap, found in grids.items() if found == grid] for grid in SIXTEEN_BITS}
    for grid, taps in on.items():
        found = f"the numbers of {len(taps)} of {len(grids)} taps are {grid} numbers"
        if dtype == grid and any(port.dump.dtypes[port.pairing.pairs[tap][0]] == "float32" for tap in taps):
            yield f"{found}, though they are stored in float32"
        if dtype == "float32" and taps and any(verdict.wrong for verdict in verdicts) and grid in port.golden.envelopes:
            explained = sum(measured(port, verdict.name, grid).explained for verdict in verdicts)
            yield f"{found}; as {grid}, rounding explains {explained} of {len(verdicts)}: use --dtype {grid}"


def measured(port: Port, tap: str, dtype: str) -> Verdict:
    """The verdict on the port's tensor of `tap`, with a diagnosis only if it does not fit."""
    golden, theirs = port.golden, port.pairing.pairs[tap][0]
    if not port.conventions.can_undo(tap):
        return passed(tap, theirs, TURNED)
    try:
        found = port[tap]
    except Misfit as error:
        return replace(failed(tap, theirs, error.reason), diagnosis=error.diagnosis)
    verdict = judge(tap, golden.taps[tap], theirs, found.x, golden.truth[tap], golden.envelope(dtype, tap), dtype)
    return replace(verdict, note="\n".join(filter(None, [*found.notes, verdict.note])))


def judged(port: Port, tap: str, dtype: str, grid: str) -> Verdict:
    """The verdict on the port's tensor of `tap`, with a diagnosis if it is wrong; `grid` is that of its numbers."""
    verdict, golden = measured(port, tap, dtype), port.golden
    found = None if verdict.explained else port.usable(tap)
    if found is None:
        return verdict
    truth = golden.truth[tap]
    same_shape = {
        other: golden.truth[other] for other in golden.taps if other != tap and golden.truth[other].shape == truth.shape
    }
    on_grid = dtype == "float32" and grid in SIXTEEN_BITS
    rounded = [f"its numbers are {grid} numbers: the port rounds it to {grid}"] if on_grid else []
    return replace(verdict, diagnosis=(*rounded, *diagnose(golden.taps[tap], found.x, truth, same_shape)))
