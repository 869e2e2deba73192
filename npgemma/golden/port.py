"""A port's tensors by tap, in the shape and the conventions of a golden file."""

import re
from dataclasses import replace

import numpy as np

from npgemma.golden.conventions import ADDITIVE, MASK, ROTATED, additive, recognised
from npgemma.golden.diagnose import diagnose_shape
from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden
from npgemma.golden.layout import PADDED_AFTER, Fitted, Place, distance, lay
from npgemma.golden.mapping import Pairing, may_look


class Misfit(Exception):
    """A tensor that does not fit its tap: why, and sentences on what may have made it so."""

    def __init__(self, reason: str, diagnosis: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason, self.diagnosis = reason, diagnosis


class Port:
    """The tensors of `dump` that `pairing` gives taps of `golden`; floats are float64."""

    def __init__(self, golden: Golden, dump: Dump, pairing: Pairing) -> None:
        self.golden, self.dump, self.pairing = golden, dump, pairing
        self.padded_before = self.is_padded_before()
        self.conventions = recognised(golden, pairing.pairs, lambda tap: self.find(tap, self.padded_before))

    def __getitem__(self, tap: str) -> Fitted:
        """The tensor of a tap. Misfit if it does not fit."""
        return self.conventions.undo(self.golden, tap, self.laid(tap, self.padded_before))

    def usable(self, tap: str) -> Fitted | None:
        """The tensor of a tap, or None if it cannot be compared, does not fit, or holds a NaN or an infinity."""
        if not self.conventions.can_undo(tap):
            return None
        try:
            found = self[tap]
        except Misfit:
            return None
        return found if np.isfinite(found.x).all() else None

    def find(self, tap: str, padded_before: bool = False) -> Fitted | None:
        """The tensor in the shape of its tap, in the port's own conventions; None if it does not fit."""
        try:
            return self.laid(tap, padded_before)
        except Misfit:
            return None

    def laid(self, tap: str, padded_before: bool = False) -> Fitted:
        """The tensor in the shape of its tap, in the port's own conventions. Misfit if it does not fit."""
        theirs, rule = self.pairing.pairs[tap]
        truth, axes = self.golden.truth[tap], self.golden.taps[tap]
        try:
            x = rule.apply(self.dump[theirs])
        except (ValueError, IndexError) as error:
            shape = list(self.dump[theirs].shape)
            raise Misfit(f"its mapping rule does not fit the shape {shape}: {error}") from None
        notes: tuple[str, ...] = ()
        if MASK.fullmatch(tap) and additive(x):
            x, notes = may_look(x), (ADDITIVE,)
        found = lay(Place(tap, axes, truth, rows_so_far(self.golden, tap), padded_before), x, rule.rows)
        if found is None:
            reason = f"shape {list(x.shape)}, expected {list(truth.shape)} ({axes})"
            raise Misfit(reason, tuple(diagnose_shape(axes, x, truth)))
        kind = np.float64 if truth.dtype.kind == "f" else found.x.dtype
        return replace(found, x=found.x.astype(kind), notes=(*notes, *found.notes))

    def is_padded_before(self) -> bool:
        """Whether most tensors with more rows than their taps are nearer to the truth at their last rows."""
        votes: list[bool] = []
        for tap in self.pairing.pairs:
            first = self.find(tap)
            if first is not None and PADDED_AFTER in first.notes and not ROTATED.fullmatch(tap):
                last = self.find(tap, padded_before=True)
                truth = self.golden.truth[tap]
                votes.append(last is not None and distance(last.x, truth) < distance(first.x, truth))
        return sum(votes) * 2 > len(votes)


def rows_so_far(golden: Golden, tap: str) -> int:
    """How many rows the run has had when it computes `tap`; 0 if the golden file does not say."""
    ids = golden.truth.get("prompts.0.input_ids")
    step = re.match(r"steps\.(\d+)\.", tap)
    return 0 if ids is None else len(ids) + (int(step[1]) if step else 0)
