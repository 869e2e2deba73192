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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from npgemma.api.finite import quiet
from npgemma.errors import BadGolden
from npgemma.golden.diagnose import diagnose
from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden
from npgemma.golden.judge import Verdict, failed, judge, logit_facts
from npgemma.golden.mapping import SAME_NAMES, NameMap, Pairing, pair
from npgemma.golden.port import Misfit, Port


@dataclass(frozen=True)
class Report:
    """`verdicts` in execution order. `replayed` judges each tap as computed from the port's tensors before it."""

    dtype: str
    verdicts: Sequence[Verdict]
    pairing: Pairing
    logits: Mapping[str, Any] = field(default_factory=dict)
    replayed: Sequence[Verdict] = ()

    @property
    def first_divergence(self) -> Verdict | None:
        """The first tap that rounding does not explain."""
        return next((verdict for verdict in self.verdicts if not verdict.explained), None)

    @property
    def culprits(self) -> list[Verdict]:
        """The taps that are wrong even when they are computed from the port's own tensors."""
        return [verdict for verdict in self.replayed if not verdict.explained]

    @property
    def status(self) -> int:
        """0 if rounding explains every tap, 1 if it does not, 3 if taps or names are left over."""
        if self.first_divergence or self.culprits:
            return 1
        return 3 if self.pairing.missing or self.pairing.unmapped else 0


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
        The precision the port computes in, whose envelope it is judged by: 'float32' or 'bfloat16'. By default the one
        in which most of the dump is stored.
    allow_missing : sequence of str
        Globs of taps that the dump may lack.

    Returns
    -------
    Report
        A verdict for each tap that the dump has, and what is missing.

    Raises
    ------
    BadGolden
        If no name of the dump is that of a recorded tap, or two names claim the same tap.
    """
    names = replace(names, absent=(*names.absent, *allow_missing))
    pairing = pair(names, dump, golden.taps)
    if not pairing.pairs:
        raise BadGolden(
            f"no name of the dump, such as {next(iter(dump))!r}, is the name of a recorded tap; use --preset or --map"
        )
    dtype = dtype or stored_dtype(dump, [theirs for theirs, _ in pairing.pairs.values()])
    port = Port(golden, dump, pairing)
    verdicts, facts = [], {}
    for tap in golden.taps:
        if tap in pairing.pairs:
            verdicts.append(judged(port, tap, dtype))
            found = port.usable(tap) if tap.endswith("logits") else None
            if found is not None:
                facts[tap] = logit_facts(found.x, golden.truth[tap], golden.envelopes[dtype][tap])
    return Report(dtype, verdicts, pairing, facts)


def stored_dtype(dump: Dump, names: Sequence[str]) -> str:
    """'bfloat16' if most of the dump's floats are stored in 16 bits, else 'float32'."""
    stored = [dump.dtypes[name] for name in names if "float" in dump.dtypes[name]]
    return "bfloat16" if sum(name.endswith("16") for name in stored) * 2 > len(stored) else "float32"


def judged(port: Port, tap: str, dtype: str) -> Verdict:
    """The verdict on the port's tensor of `tap`, with a diagnosis if it is wrong."""
    golden, theirs = port.golden, port.pairing.pairs[tap][0]
    truth, axes = golden.truth[tap], golden.taps[tap]
    try:
        found = port[tap]
    except Misfit as error:
        return replace(failed(tap, theirs, error.reason), diagnosis=error.diagnosis)
    verdict = judge(tap, axes, theirs, found.x, truth, golden.envelopes[dtype].get(tap), dtype)
    verdict = replace(verdict, note="\n".join(filter(None, [*found.notes, verdict.note])))
    if verdict.explained or not np.isfinite(found.x).all():
        return verdict
    same_shape = {
        other: golden.truth[other] for other in golden.taps if other != tap and golden.truth[other].shape == truth.shape
    }
    return replace(verdict, diagnosis=tuple(diagnose(axes, found.x, truth, same_shape)))
