"""One tap of a port against the truth: does rounding explain the difference?

The measure is the error that an honest run in the same precision has there (the envelope), not a fixed tolerance:

    rms ratio   rms(x - truth) / rms error of the honest run
    row ratio   the same of the worst row, where the honest error of a row counts as no less than that of all rows
    max ratio   largest |x - truth| / largest error of the honest run

all of them at most LIMITS. Where the honest error is below one unit roundoff of the truth's rms, that is taken instead:
a port may store what it computed. One ratio would not do: a single wrong number hardly moves the rms, and one wrong
token only its row. The limits were set by tools/mutation_study.py; its table is in the README.md here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npgemma.golden.names import block_of
from npgemma.golden.record import by_row, row_errors
from npgemma.layers.activations import log_softmax
from npgemma.layers.shapes import Array, Float

LIMITS = {"rms": 2.0, "row": 4.0, "max": 4.0}
# The same for the relative error of a replay in bfloat16.
RELATIVE_LIMIT = 2.0
# A tap of few values, or of one row, whose errors go together, has noisier ratios and limits so many times as large.
FEW_VALUES, FEW_FACTOR = 1000, 2.0
# Half the distance of neighbouring numbers near 1.
ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}


@dataclass(frozen=True)
class Verdict:
    """What was found at one tap. `ratios` are rms, row and max in multiples of the envelope, none for whole numbers.

    `floor` is the relative error (of the truth's rms) that this tap could not have told from rounding; `bad_rows` are
    the rows whose own ratio is above the limit.
    """

    name: str
    theirs: str
    block: str
    explained: bool
    reason: str
    ratios: Mapping[str, float]
    limits: Mapping[str, float]
    error: float
    floor: float
    bad_rows: tuple[int, ...] = ()
    diagnosis: tuple[str, ...] = ()


def judge(
    name: str, axes: str, theirs: str, x: Array, truth: Array, envelope: Float[Array, "2 R"] | None, dtype: str
) -> Verdict:
    """Hold `x`, which has the truth's shape, against it: floats by the envelope of `dtype`, whole numbers exactly."""
    if envelope is None:
        return judge_exact(name, axes, theirs, x, truth)
    different = np.flatnonzero((np.isfinite(x) != np.isfinite(truth)).reshape(-1))
    if different.size or not np.isfinite(x).all():
        found = f"{different.size or np.sum(~np.isfinite(x))} of {x.size} numbers are NaN or infinite, the first at "
        where = np.unravel_index(different[0] if different.size else 0, x.shape)
        return failed(name, theirs, found + str([int(i) for i in where]))
    limits = limits_of(x.size, envelope.shape[1])
    rms = float(np.sqrt(np.square(truth, dtype=np.float64).mean()))
    least = ROUNDOFF[dtype] * rms
    rows, largest = row_errors(axes, x, truth)
    error = float(np.sqrt(np.square(rows).mean()))
    honest = max(float(np.sqrt(np.square(envelope[0], dtype=np.float64).mean())), least)
    row_ratios = ratio(rows, np.maximum(envelope[0], honest))
    ratios = {
        "rms": float(ratio(error, honest)),
        "row": float(row_ratios.max()),
        "max": float(ratio(largest.max(), max(float(envelope[1].max()), least))),
    }
    over = [f"{kind} error {ratios[kind]:.3g} x the envelope" for kind in limits if ratios[kind] > limits[kind]]
    floor = limits["rms"] * honest / rms if rms else 0.0
    bad_rows = tuple(np.flatnonzero(row_ratios > limits["row"]).tolist())
    return Verdict(name, theirs, block_of(name), not over, "; ".join(over), ratios, limits, error, floor, bad_rows)


def judge_exact(name: str, axes: str, theirs: str, x: Array, truth: Array) -> Verdict:
    """Ids, masks, positions and 8-bit pictures: every one is right or the tap is wrong."""
    different = np.flatnonzero((x != truth).reshape(-1))
    reason = ""
    if different.size:
        where = np.unravel_index(different[0], x.shape)
        values = f"{x[where]} instead of {truth[where]}"
        reason = f"{different.size} of {x.size} differ, the first at {[int(i) for i in where]}: {values}"
    rows = tuple(np.flatnonzero((by_row(axes, x) != by_row(axes, truth)).any(-1)).tolist())
    return Verdict(name, theirs, block_of(name), not reason, reason, {}, {}, different.size / x.size, 0.0, rows)


def judge_relative(verdict: Verdict, x: Array, truth: Array, honest: Array) -> Verdict:
    """`verdict`, and what rounding to few bits hides from the rms: errors of the small numbers of a tensor.

    relative ratio = rms of |x - truth| / |truth| over the same of the honest run, numbers below 1/256 of the truth's
    rms counted as that. Of use where both come from the same tensors, in a replay: a gelu of the other form is a tenth
    off at -3, where it is nearly 0.
    """
    rms = float(np.sqrt(np.square(truth, dtype=np.float64).mean()))
    if not verdict.ratios or not rms:
        return verdict
    size = np.maximum(np.abs(truth), rms / 256)
    errors = [float(np.sqrt(np.square((tensor - truth) / size).mean())) for tensor in (x, honest)]
    found = errors[0] / max(errors[1], ROUNDOFF["bfloat16"] / 2)
    limit = RELATIVE_LIMIT * (verdict.limits["rms"] / LIMITS["rms"])
    reason = "; ".join(filter(None, [verdict.reason, f"relative error {found:.3g} x the envelope" * (found > limit)]))
    return replace(
        verdict,
        explained=not reason,
        reason=reason,
        ratios={**verdict.ratios, "relative": found},
        limits={**verdict.limits, "relative": limit},
    )


def failed(name: str, theirs: str, reason: str) -> Verdict:
    """A tap that cannot be measured at all."""
    return Verdict(name, theirs, block_of(name), False, reason, {}, {}, float("inf"), 0.0)


def limits_of(values: int, rows: int) -> dict[str, float]:
    factor = FEW_FACTOR if values < FEW_VALUES or rows == 1 else 1.0
    return {kind: limit * factor for kind, limit in LIMITS.items()}


def ratio(error: Any, honest: Any) -> Any:
    """error / honest; 0 where there is no error (a tensor of zeros may be right), infinite where none is honest."""
    found = np.where(np.asarray(error) > 0, np.inf, 0.0)
    return np.divide(error, honest, out=found, where=np.asarray(honest) > 0)


def logit_facts(x: Float[Array, "B V"], truth: Float[Array, "B V"], envelope: Float[Array, "2 R"]) -> dict[str, Any]:
    """What the difference does to the next token: KL divergence, and whether the likeliest is the same.

    For a flipped one, whether the truth's margin between the two is within twice the honest error, so that an honest
    run may flip it too. KL(truth || x) in nats is the mean over the rows.
    """
    p, q = (log_softmax(logits.astype(np.float64)) for logits in (truth, x))
    best, theirs = truth.argmax(-1), x.argmax(-1)
    rows = np.arange(len(truth))
    margin = truth[rows, best] - truth[rows, theirs]
    flipped = best != theirs
    return {
        "kl": max(0.0, float(np.mean(np.sum(np.exp(p) * (p - q), -1)))),  # below 0 by rounding alone
        "top1_agreement": float(np.mean(~flipped)),
        "flipped": [
            {
                "row": int(row),
                "truth": int(best[row]),
                "port": int(theirs[row]),
                "margin": float(margin[row]),
                "explained": bool(margin[row] <= 2 * envelope[1][row]),
            }
            for row in np.flatnonzero(flipped)
        ],
    }
