"""One gradient of a port against the truth: does rounding explain the difference?

The measure is that of activations (see judge), the error of honest runs, with other limits: the rows of the gradient
of a weight are outputs, not tokens, and a gradient is a sum over all rows that cancels in part, so its errors scatter
more. README.md has what honest ports need of these limits, and what mistakes make.

The gradient of a bias of keys is 0 in exact arithmetic, and what a port finds is rounding alone, which is measured in
units of roundoff of the gradient of the bias of queries.
"""

import numpy as np

from npgemma.golden.judge import (
    FEW_FACTOR,
    FEW_VALUES,
    ROUNDOFF,
    TINY_FACTOR,
    TINY_VALUES,
    Verdict,
    judge_exact,
    ratio,
    rms,
)
from npgemma.golden.record import by_row, row_errors
from npgemma.layers.shapes import Array, Float

LIMITS = {"rms": 4.0, "row": 16.0, "max": 8.0}
ZERO = "zero in exact arithmetic: judged by the size of the queries' gradient"
# What rounding makes of a zero, in units of roundoff of that size: where a softmax is nearly sure, attention rounds
# numbers much larger than those that it adds up. Up to 27 units were seen, 6 of these; a mistake makes 256 or more.
ROUNDED_ZERO = 16.0


def judge_gradient(
    tap: str,
    axes: str,
    theirs: str,
    x: Array,
    truth: Array,
    envelope: Float[Array, "2 R"] | None,
    dtype: str,
    size: float | None = None,
) -> Verdict:
    """Compare `x` with the truth, which has the same shape; `size` is that of a gradient that is zero."""
    if envelope is None:
        return judge_exact(tap, axes, theirs, x, truth)
    different = np.flatnonzero(~np.isfinite(x).reshape(-1))
    if different.size:
        where = [int(i) for i in np.unravel_index(different[0], x.shape)]
        return failed(tap, theirs, f"{different.size} of {x.size} numbers are NaN or infinite, the first at {where}")
    least = ROUNDOFF[dtype] * (rms(truth) if size is None else ROUNDED_ZERO * size)
    limits = limits_of(values_in(axes, truth))
    rows, largest = row_errors(axes, x, truth)
    error, honest = rms(rows), max(rms(envelope[0]), least)
    peak = float(np.abs(truth).max()) / rms(truth) if size is None and rms(truth) else 1.0
    row_ratios = ratio(rows, np.maximum(envelope[0], honest))
    ratios = {
        "rms": float(ratio(error, honest)),
        "row": float(row_ratios.max()),
        "max": float(ratio(largest.max(), max(float(envelope[1].max()), least * peak))),
    }
    over = [f"{kind} error {ratios[kind]:.3g} x the envelope" for kind in limits if ratios[kind] > limits[kind]]
    scale = rms(truth) if size is None else size
    floor = limits["rms"] * honest / scale if scale else 0.0
    bad_rows = tuple(np.flatnonzero(row_ratios > limits["row"]).tolist()) if len(rows) > 1 else ()
    note = "" if size is None else ZERO
    return Verdict(tap, theirs, tap, not over, "; ".join(over), ratios, limits, error, floor, bad_rows, note=note)


def failed(tap: str, theirs: str, reason: str, diagnosis: tuple[str, ...] = ()) -> Verdict:
    """The verdict on a gradient that cannot be measured."""
    return Verdict(tap, theirs, tap, False, reason, {}, {}, float("inf"), 0.0, diagnosis=diagnosis)


def values_in(axes: str, truth: Array) -> int:
    """How many values a gradient has, without rows that are zero, as where a loss reads one row of each picture."""
    nonzero = np.any(by_row(axes, truth), axis=1)
    return int(nonzero.mean() * truth.size) if nonzero.any() else truth.size


def limits_of(values: int) -> dict[str, float]:
    """The limits for a gradient of so many values: those of few vary more."""
    factor = TINY_FACTOR if values < TINY_VALUES else FEW_FACTOR if values < FEW_VALUES else 1.0
    return {kind: limit * factor for kind, limit in LIMITS.items()}
