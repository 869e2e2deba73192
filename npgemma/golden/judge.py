"""One tap of a port against the truth: does rounding explain the difference?

The measure is the error that an honest run in the same precision has there (the envelope), not a fixed tolerance:

    rms ratio   rms(x - truth) / rms error of the honest run
    row ratio   the same of the worst row, where the honest error of a row counts as no less than that of all rows
    max ratio   largest |x - truth| / largest error of the honest run

Each may be at most its limit in LIMITS. An honest error below one unit roundoff of the truth (of its rms, or that of
the row, and for the largest error of its largest number) counts as that, since a port may round what it stores. One
ratio is not enough: a single wrong number hardly moves the rms, and one wrong token moves that of its row alone.
tools/mutation_study.py shows what the limits let pass; its table is in README.md.

Up to BORDERLINE times its limit an error is borderline: an unusual order of sums may cause it, and so may a small
mistake. Mistakes in ports that run in float32 were 100 to 10,000,000 times the limit.

Logits that are wrong are compared once more, without a constant in each row, which no softmax sees.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from npgemma.golden.names import block_of
from npgemma.golden.record import by_row, row_errors
from npgemma.layers.activations import log_softmax
from npgemma.layers.shapes import Array, Float, Int

LIMITS = {"rms": 2.0, "row": 5.0, "max": 4.0}
# The limit of the error of numbers of like size, at least LIKE of them, which is judged in a replay in 16 bits.
SIZE_LIMIT, LIKE = 2.0, 64
# An error of up to so many times its limit is borderline.
BORDERLINE = 10.0
# The limit of the worst row holds for this many rows, and grows with their number as the largest of so many draws does.
USUAL_ROWS = 40
# The ratios of a tap with few values, or with one row, vary more: its limits are FEW_FACTOR times as large.
FEW_VALUES, FEW_FACTOR = 1000, 2.0
# That of a single number, such as a loss, or of one for each picture varies still more.
TINY_VALUES, TINY_FACTOR = 16, 10.0
# Logits may differ by a constant in each row. Its rounding is allowed for as long as the rms of the port's logits is at
# most so many times that of the truth: a larger constant would round their differences away.
MOST_CONSTANT = 16.0
CONSTANT = "differs from the golden logits by a constant in each row, as log-softmax does; harmless"
# Half the distance of neighbouring numbers near 1.
ROUNDOFF = {"float32": 2.0**-24, "tf32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@dataclass(frozen=True)
class Verdict:
    """The judgement of one tap.

    `theirs` is the port's name of it, `reason` says why it is not explained. `ratios` are rms, row and max in multiples
    of the envelope; integers have none. `floor` is the relative error (of the truth's rms) that this tap could not have
    told from rounding; `bad_rows` are the rows whose own ratio exceeds the limit; `note` says what was left out of the
    comparison because it is harmless. In a replay, `after` is the last tensor of the port that everything later depends
    on, and `blocks` are those that the reference computed from there to this tap: a mistake is in one of them.
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
    note: str = ""
    after: str = ""
    blocks: tuple[str, ...] = ()

    @property
    def excess(self) -> float:
        """The largest ratio over its limit; for a tap without ratios 0 if it is right, else infinity."""
        if not self.ratios:
            return 0.0 if self.explained else math.inf
        return max(self.ratios[kind] / limit for kind, limit in self.limits.items())

    @property
    def borderline(self) -> bool:
        """Whether the error is larger than rounding explains, and smaller than mistakes usually make it.

        An error of numbers of like size beyond its limit is never borderline: it is taken of single roundings to 16
        bits, which do not depend on the order of sums.
        """
        alike = self.ratios.get("size", 0.0) <= self.limits.get("size", math.inf)
        return not self.explained and self.excess <= BORDERLINE and alike

    @property
    def wrong(self) -> bool:
        """Whether the error is larger than borderline."""
        return not self.explained and not self.borderline


def judge(
    name: str, axes: str, theirs: str, x: Array, truth: Array, envelope: Float[Array, "2 R"] | None, dtype: str
) -> Verdict:
    """Compare `x` with the truth, which has the same shape: floats by the envelope of `dtype`, integers exactly."""
    if envelope is None:
        return judge_exact(name, axes, theirs, x, truth)
    different = np.flatnonzero((np.isfinite(x) != np.isfinite(truth)).reshape(-1))
    if different.size or not np.isfinite(x).all():
        found = f"{different.size or np.sum(~np.isfinite(x))} of {x.size} numbers are NaN or infinite, the first at "
        where = np.unravel_index(different[0] if different.size else 0, x.shape)
        return failed(name, theirs, found + str([int(i) for i in where]))
    verdict = measured(name, axes, theirs, x, truth, envelope, ROUNDOFF[dtype] * rms(truth))
    if verdict.explained or not name.endswith("logits"):
        return verdict
    stored = min(rms(x), MOST_CONSTANT * rms(truth))  # a port rounds what it stores, the constant included
    level = measured(name, axes, theirs, levelled(x, truth), truth, envelope, ROUNDOFF[dtype] * max(stored, rms(truth)))
    return replace(level, note=CONSTANT) if level.explained else verdict


def levelled(x: Float[Array, "*R V"], truth: Float[Array, "*R V"]) -> Float[Array, "*R V"]:
    """`x` without the mean of its difference from the truth in each row; no softmax sees what is the same for a row."""
    return x - (x - truth).mean(-1, keepdims=True)


def measured(
    name: str, axes: str, theirs: str, x: Array, truth: Array, envelope: Float[Array, "2 R"], least: float
) -> Verdict:
    """Compare floats by an envelope. An honest error counts as no less than `least`."""
    limits = limits_of(x.size, envelope.shape[1])
    size = rms(truth)
    peak = float(np.abs(truth).max()) / size if size else 1.0
    rows, largest = row_errors(axes, x, truth)
    error, honest = rms(rows), max(rms(envelope[0]), least)
    rounded = least / size * np.sqrt(np.square(by_row(axes, truth)).mean(-1)) if size else 0.0
    row_ratios = ratio(rows, np.maximum(envelope[0], np.maximum(honest, rounded)))
    ratios = {
        "rms": float(ratio(error, honest)),
        "row": float(row_ratios.max()),
        "max": float(ratio(largest.max(), max(float(envelope[1].max()), least * peak))),
    }
    over = [f"{kind} error {ratios[kind]:.3g} x the envelope" for kind in limits if ratios[kind] > limits[kind]]
    floor = limits["rms"] * honest / size if size else 0.0
    bad_rows = tuple(np.flatnonzero(row_ratios > limits["row"]).tolist())
    return Verdict(name, theirs, block_of(name), not over, "; ".join(over), ratios, limits, error, floor, bad_rows)


def judge_exact(name: str, axes: str, theirs: str, x: Array, truth: Array) -> Verdict:
    """Compare ids, masks, positions or an 8-bit picture, which must be equal in every element."""
    different = np.flatnonzero((x != truth).reshape(-1))
    reason = ""
    if different.size:
        where = np.unravel_index(different[0], x.shape)
        values = f"{x[where]} instead of {truth[where]}"
        reason = f"{different.size} of {x.size} differ, the first at {[int(i) for i in where]}: {values}"
    rows = tuple(np.flatnonzero((by_row(axes, x) != by_row(axes, truth)).any(-1)).tolist())
    return Verdict(name, theirs, block_of(name), not reason, reason, {}, {}, different.size / x.size, 0.0, rows)


def judge_by_size(verdict: Verdict, x: Array, truth: Array, honest: Float[Array, "P"], dtype: str) -> Verdict:
    """`verdict` with a fourth ratio, which shows errors of the small numbers of a tensor that its rms hides.

    size ratio = rms error of numbers of like size / that of the honest runs, for the worst such part of the tensor. It
    needs a replay, where `x` and `truth` come from the same tensors: the erf form of gelu differs from the tanh form by
    a tenth at -3, where gelu is nearly 0.
    """
    if not verdict.ratios:
        return verdict
    part, sizes = parts_by_size(truth), errors_by_size(np.zeros_like(x), truth)
    found = ratio(errors_by_size(x, truth), np.maximum(honest, ROUNDOFF[dtype] / 2 * sizes))
    worst = int(found.argmax())
    limit = SIZE_LIMIT * (verdict.limits["rms"] / LIMITS["rms"])
    where = f"error of its {np.sum(part == worst)} numbers of about {sizes[worst]:.2g}"
    over = f"{where} {found[worst]:.3g} x the envelope" * bool(found[worst] > limit)
    reason = "; ".join(filter(None, [verdict.reason, over]))
    return replace(
        verdict,
        explained=not reason,
        reason=reason,
        ratios={**verdict.ratios, "size": float(found[worst])},
        limits={**verdict.limits, "size": limit},
    )


def errors_by_size(x: Array, truth: Array) -> Float[Array, "P"]:
    """The rms error of the numbers of like size, for each part that `truth` has of them."""
    part = parts_by_size(truth)
    squares = np.square(np.subtract(x, truth, dtype=np.float64)).reshape(-1)
    return np.sqrt(np.bincount(part, squares) / np.bincount(part))


def parts_by_size(truth: Array) -> Int[Array, "N"]:
    """Which part each number belongs to: from one power of 2 of the rms to the next, the smallest numbers first.

    A part has at least LIKE numbers, and more powers of 2 for it: the error of a few sums near 0 is large in relation
    to them in one run and small in another, whatever computes them. Numbers below 1/256 of the rms are in one part.
    """
    relative = np.abs(truth).reshape(-1) / (rms(truth) or 1.0)
    finite = np.where(np.isfinite(relative), relative, 0.0)  # a port's tensors may overflow the run on them
    octave = np.log2(np.maximum(finite, 1 / 256)).astype(int) + 8
    counts, found, part = np.bincount(octave), 0, 0
    parts = np.zeros_like(counts)
    for i, count in enumerate(counts):
        parts[i], found = part, found + int(count)
        if found >= LIKE:
            part, found = part + 1, 0
    return np.minimum(parts, max(part - 1, 0))[octave]


def failed(name: str, theirs: str, reason: str) -> Verdict:
    """The verdict on a tap that cannot be measured."""
    return Verdict(name, theirs, block_of(name), False, reason, {}, {}, float("inf"), 0.0)


def passed(name: str, theirs: str, note: str) -> Verdict:
    """The verdict on a tap that need not be compared, with the reason."""
    return Verdict(name, theirs, block_of(name), True, "", {}, {}, 0.0, 0.0, note=note)


def limits_of(values: int, rows: int) -> dict[str, float]:
    """The limits for a tap of so many values and rows.

    If a row's ratio is lognormal, the largest of R rows is about exp(spread sqrt(2 log R)): the limit for USUAL_ROWS
    gives the spread, and with it the limit for more of them.
    """
    few = FEW_FACTOR if values < FEW_VALUES or rows == 1 else 1.0
    factor = TINY_FACTOR if values < TINY_VALUES else few
    spread = math.sqrt(math.log(max(rows, USUAL_ROWS)) / math.log(USUAL_ROWS))
    limits = LIMITS | {"row": LIMITS["row"] ** spread}
    return {kind: limit * factor for kind, limit in limits.items()}


def rms(x: Array) -> float:
    """sqrt(mean(x^2))."""
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


def ratio(error: Any, honest: Any) -> Any:
    """error / honest; 0 without an error; otherwise infinite where the honest run is exact."""
    found = np.where(np.asarray(error) > 0, np.inf, 0.0)
    return np.divide(error, honest, out=found, where=np.asarray(honest) > 0)


def logit_facts(x: Float[Array, "B V"], truth: Float[Array, "B V"], envelope: Float[Array, "2 R"]) -> dict[str, Any]:
    """How the difference changes the next token: KL(truth || x) in nats, the mean over rows, and the likeliest token.

    A row in which another token is the likeliest is explained if the truth's margin between the two is at most twice
    the honest error, so that an honest run may prefer the other one too.
    """
    p, q = (log_softmax(logits.astype(np.float64)) for logits in (truth, x))
    best, theirs = truth.argmax(-1), x.argmax(-1)
    rows = np.arange(len(truth))
    margin = truth[rows, best] - truth[rows, theirs]
    flipped = best != theirs
    return {
        "kl": max(0.0, float(np.mean(np.sum(np.exp(p) * (p - q), -1)))),  # rounding can make it negative
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
