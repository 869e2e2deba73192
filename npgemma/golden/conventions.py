"""Recognise where a port follows another convention than the golden file, which changes no result of the model.

    positions       counted from 0 instead of 1, or from 1 instead of 0: RoPE sees differences alone
    rotary pairs    interleaved instead of in halves: the products of q and k are the same
    embeddings      divided by sqrt(D), or multiplied by it, if the residual stream after layer 0 is right
    masks           additive: 0 where a row may look, a large negative number elsewhere

A port follows its conventions throughout. So the taps of the prefill vote, and what most of them say is undone in every
tap of its kind: a layer, a step or a row that does not follow the others is wrong.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from npgemma.golden.file import Golden
from npgemma.golden.judge import rms
from npgemma.golden.layout import Fitted
from npgemma.golden.mapping import HIDDEN, halves
from npgemma.golden.names import STEP
from npgemma.layers.shapes import Array, Float

# The theta of RoPE where a golden file has neither frequencies nor a rotation in its policy: that of Gemma 1 and 2.
THETA = 10_000.0
# A tap votes for a convention that leaves at most half of its distance from the truth, and for the golden file's own
# within a tenth of the truth's rms. A tap that is wrong in any convention does not vote.
BETTER, NEAR = 0.5, 0.1
# What is within this part of the truth's rms shows that an embedding was scaled back: a factor is at least 2.
SCALED_BACK = 0.02

ROTATED = re.compile(STEP + r"text\.layers\.(\d+)\.attn\.(?:q_rope|k_rope|segments\.\d+\.keys)")
STRAIGHT = re.compile(STEP + r"text\.layers\.(\d+)\.attn\.(?:q|k|q_norm|k_norm)")
# Tensors inside the rotation, which depend on the convention in their own ways.
TURNING = re.compile(STEP + r"text\.layers\.\d+\.attn\.[qk]_rope\.(?:angle|cos|sin|x_cos|x_sin)")
POSITIONS = re.compile(STEP + "positions")
EMBEDDED = re.compile(STEP + r"(?:projector|text\.embedding)")
MASK = re.compile(r"prompts\.\d+\.(?:mask|near)")

TURNED = "not compared, since its rotation follows another convention: its result is, harmless"
INTERLEAVED = "its rotary pairs are interleaved; harmless"
ADDITIVE = "its mask is additive; harmless"

Kind = TypeVar("Kind")
# The port's tensor of a tap in the shape of the truth, or None where it has none that fits.
Find = Callable[[str], Fitted | None]


@dataclass(frozen=True)
class Rotary:
    """The positions of a port less those of the golden file, and whether its rotary pairs are interleaved."""

    late: int = 0
    interleaved: bool = False

    def undo(self, x: Float[Array, "T N H"], frequencies: Float[Array, "J"]) -> Float[Array, "T N H"]:
        """`x` with its pairs in halves, rotated back by `late` positions."""
        x = halves(x) if self.interleaved else x
        if not self.late:
            return x
        first, second = np.split(x, 2, -1)
        cos, sin = np.cos(self.late * frequencies), np.sin(self.late * frequencies)
        return np.concatenate([first * cos + second * sin, second * cos - first * sin], -1)


OWN = Rotary()
STRAIGHT_KINDS = (OWN, Rotary(interleaved=True))
ROTATED_KINDS = tuple(Rotary(late, interleaved) for interleaved in (False, True) for late in (0, -1, 1))


@dataclass(frozen=True)
class Conventions:
    """Those of a port: of heads before and after RoPE, and of positions. `factors` make the truth of its embeddings."""

    straight: Rotary = OWN
    rotated: Rotary = OWN
    late: int = 0
    factors: Mapping[str, float] = field(default_factory=dict)

    def can_undo(self, tap: str) -> bool:
        """Whether the tensor of a tap has a counterpart in the conventions of the golden file."""
        return self.rotated == OWN or not TURNING.fullmatch(tap)

    def undo(self, golden: Golden, tap: str, found: Fitted) -> Fitted:
        """The port's tensor in the conventions of the golden file, with a note on each that was undone."""
        x, notes = found.x, []
        for pattern, kind in ((STRAIGHT, self.straight), (ROTATED, self.rotated)):
            if kind != OWN and pattern.fullmatch(tap):
                x = kind.undo(x, frequencies(golden, tap))
                notes += [INTERLEAVED] * kind.interleaved + [counted(golden)] * bool(kind.late)
        if self.late and POSITIONS.fullmatch(tap):
            x, notes = x - self.late, [counted(golden)]
        if tap in self.factors:
            factor = self.factors[tap]
            x, notes = x * factor, [f"it is scaled by {1 / factor:.4g}, and scaled back later; harmless"]
        return replace(found, x=replace(found, x=x).over(golden.truth[tap]), notes=(*found.notes, *notes))


def counted(golden: Golden) -> str:
    """The note on positions."""
    other = {"from 1": 0, "from 0": 1}[golden.metadata["policy"]["positions"]]
    return f"positions count from {other}; harmless"


def recognised(golden: Golden, taps: Iterable[str], find: Find) -> Conventions:
    """The conventions of a port that has `taps`; those of a model without RoPE are the golden file's own."""
    if "rope" not in golden.metadata["policy"]:
        return Conventions()
    whole = {tap: found.x for tap in taps if (found := find(tap)) is not None and found.missing is None}

    def asked(pattern: re.Pattern[str]) -> list[tuple[str, Array]]:
        """The taps that vote: those of the prefill, or those of the steps if it has none."""
        named = [(tap, x) for tap, x in whole.items() if pattern.fullmatch(tap)]
        return [(tap, x) for tap, x in named if not tap.startswith("steps.")] or named

    def turned(pattern: re.Pattern[str], kinds: Sequence[Rotary]) -> list[Rotary | None]:
        voting = [(tap, x, frequencies(golden, tap)) for tap, x in asked(pattern)]
        fitting = [each for each in voting if each[1].shape[-1] == 2 * len(each[2])]  # a file may hold other widths
        return [nearest(kinds, x, golden.truth[tap], angles) for tap, x, angles in fitting]

    rotated = turned(ROTATED, ROTATED_KINDS)
    counts = [offset(x, golden.truth[tap]) for tap, x in asked(POSITIONS)]
    turns = agreed(rotated, OWN)
    return Conventions(
        straight=agreed(turned(STRAIGHT, STRAIGHT_KINDS), OWN),
        rotated=turns,
        late=turns.late if any(rotated) else agreed(counts, 0),
        factors={tap: factor for tap in whole if EMBEDDED.fullmatch(tap) and (factor := rescaled(golden, tap, whole))},
    )


def agreed(votes: Sequence[Kind | None], own: Kind) -> Kind:
    """What most votes are for; `own` if as many are for it, or for several."""
    counts = Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    best = [vote for vote, count in counts.items() if count == most]
    return best[0] if len(best) == 1 else own


def nearest(
    kinds: Sequence[Rotary], x: Float[Array, "T N H"], truth: Float[Array, "T N H"], frequencies: Float[Array, "J"]
) -> Rotary | None:
    """The convention that `x` follows, or None if it follows none."""
    apart = {kind: rms(kind.undo(x, frequencies) - truth) for kind in kinds}
    best = min(kinds, key=apart.__getitem__)
    return best if apart[best] < (NEAR * rms(truth) if best == OWN else BETTER * apart[OWN]) else None


def offset(x: Array, truth: Array) -> int | None:
    """The number that all positions exceed the truth by, or None."""
    apart = np.unique(x.astype(np.int64) - truth)
    return int(apart[0]) if len(apart) == 1 and abs(apart[0]) <= 1 else None


def rescaled(golden: Golden, tap: str, found: Mapping[str, Array]) -> float | None:
    """sqrt(D) or 1 / sqrt(D) if it makes the truth of the embedding `tap`, and the stream after layer 0 is right."""
    step = (EMBEDDED.fullmatch(tap) or [""])[1] or ""
    layer = f"{step}text.layers.0."
    after = next((layer + name for name in ("mid", "out") if layer + name in found), None)
    root = math.sqrt(golden.truth[tap].shape[-1])

    def is_right(name: str, factor: float) -> bool:
        truth = golden.truth[name]
        return rms(found[name] * factor - truth) < SCALED_BACK * rms(truth)

    if after is None or not is_right(after, 1.0):
        return None
    return next((factor for factor in (root, 1 / root) if is_right(tap, factor)), None)


def frequencies(golden: Golden, tap: str) -> Float[Array, "J"]:
    """The angle in radians by which a position rotates each pair of the heads in `tap`."""
    layer = int((ROTATED.fullmatch(tap) or STRAIGHT.fullmatch(tap) or [0, 0, 0])[2])
    rotation = golden.metadata["policy"].get("rotation")
    theta, factor = (rotation[layer]["theta"], rotation[layer]["factor"]) if rotation else (THETA, 1.0)
    recorded = golden.truth.get(f"text.layers.{layer}.attn.k_rope.frequencies")
    pairs = golden.truth[tap].shape[-1] // 2
    return (theta ** -(np.arange(pairs) / pairs) if recorded is None else recorded) / factor


def additive(x: Array) -> bool:
    """Whether `x` is an additive mask: floats that are 0 or large negative numbers."""
    return x.dtype.kind == "f" and bool(np.all((x == 0) | (x <= HIDDEN)))
