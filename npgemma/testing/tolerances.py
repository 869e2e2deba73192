"""What two correct runs of one model may differ by."""

import numpy as np

from npgemma.layers.shapes import Array

# Two runs of one model differ by the roundings of the same sums in another order: about ten a layer, each of one unit
# in the last place of the residual stream, for up to ten layers.
ROUNDINGS = 100


def tolerance(logits: Array, eps: float | None = None) -> float:
    """What two runs of one model may differ by: ROUNDINGS units in the last place of the largest logit.

    `eps` is that unit near 1, by default of the dtype of the logits; give 2**-8 for a port that computes in bfloat16.
    """
    unit = float(np.finfo(logits.dtype).eps) if eps is None else eps
    return ROUNDINGS * unit * max(1.0, float(np.abs(logits).max()))


def assert_rows_equal(what: str, found: Array, expected: Array, eps: float | None = None) -> None:
    """AssertionError, naming the first row that is off, its largest difference and what was allowed."""
    if found.shape != expected.shape:
        raise AssertionError(f"{what}: shape {list(found.shape)}, expected {list(expected.shape)}")
    allowed = tolerance(expected, eps)
    off = np.abs(found - expected).max(-1)
    rows = np.flatnonzero(~(off <= allowed))
    if rows.size:
        row = int(rows[0])
        raise AssertionError(f"{what}: row {row} is off by {off[row]:.3g}, rounding allows {allowed:.3g}")
