"""Replay of a backward pass: each block gets the gradient that entered it in the port, and the port's own inputs.

    ... -> port's dy -> reference block backwards -> dx'      dx' against the port's dx judges this block
                        port's dx -> next block   -> dx''     dx'' against the port's next one judges the next

Where the port dumped the result of a block of the forward pass, the forward pass continues with it, too. The gradients
of weights are computed from the same tensors. The replay runs in float64 for the truth, and in the port's precision,
with each of its arithmetics, for the envelope.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from npgemma.api.load import AnyModel
from npgemma.api.trainable import beside, digest_of
from npgemma.errors import BadGolden
from npgemma.golden.arithmetic import precisions_of
from npgemma.golden.compare import Report
from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden
from npgemma.golden.gradient_case import case_of
from npgemma.golden.gradient_compare import GradientPort
from npgemma.golden.gradient_judge import judge_gradient
from npgemma.golden.gradient_record import honest_runs
from npgemma.golden.gradient_run import run
from npgemma.golden.gradient_taps import ACTIVATION, BEGINS, ENTERS, FORWARD, LOSS, SIGNS, is_input, matrix_of
from npgemma.golden.judge import Verdict, rms
from npgemma.golden.provenance import is_recorded_from
from npgemma.golden.record import computing, row_errors
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap


def replay_gradients(
    model: AnyModel, golden: Golden, dump: Dump, report: Report, adapter: str | Path | None = None
) -> Report:
    """`report` with a verdict on each gradient as computed from the port's tensors before it.

    BadGolden if the golden file was recorded from another model, or with another `adapter` or none.
    """
    if not is_recorded_from(golden.metadata["model"], model):
        raise BadGolden(
            f"the golden file was not recorded from {model.folder}: the checksums of their files differ; "
            "name the model that it was recorded from with --model"
        )
    if golden.metadata["gradients"].get("adapter") != (adapter and digest_of(adapter)):
        raise BadGolden(
            "the golden file was recorded with another adapter, or without one; name with --adapter what it was "
            "recorded with"
        )
    model = model if adapter is None else beside(model, adapter)
    facts = golden.metadata["gradients"]
    case, port, dtype = case_of(model, golden.truth, facts), GradientPort(golden, dump, report.pairing), report.dtype
    replayed = Replayed(port, Trail(facts["blocks"]))
    schedule = golden.metadata["schedules"][dtype]["rounds"]
    with np.errstate(all="ignore"):  # a port's tensors may overflow
        exact, tap = computing(model, "float64"), replayed.exactly()
        for _ in run(case, exact, golden.truth[SIGNS], facts["whole"], tap, facts.get("train", ())):
            pass
        for precision in precisions_of(dtype):
            honest_runs(model, case, facts, schedule, precision, replayed.honestly())
    taps = [tap for tap in golden.taps if tap in replayed.exact]
    return replace(report, replayed=[replayed.verdict(tap, dtype) for tap in taps])


class Trail:
    """The blocks that the reference computed since the last gradient of the port that entered a block."""

    def __init__(self, blocks: dict[str, str]) -> None:
        self.block_of = blocks
        self.after, self.blocks = "", [next(iter(blocks.values()), "")]
        # What each block began with: the gradient of the port, and the blocks from there to it.
        self.begins: dict[str, tuple[str, tuple[str, ...]]] = {}

    def pass_through(self, tap: str, replaced: bool) -> None:
        """Note that the backward pass computed an activation's gradient, and whether it continues with the port's."""
        block, entered = self.block_of.get(tap, ""), ENTERS.fullmatch(tap)
        if BEGINS.fullmatch(tap):
            self.after, self.blocks = "", [LOSS]
        if block not in self.blocks:
            self.blocks.append(block)
        self.begins.setdefault(block, (self.after, tuple(self.blocks)))
        if entered and replaced:
            self.after, self.blocks = tap, [entered[1]]

    def found(self, tap: str) -> tuple[str, tuple[str, ...]]:
        """What a tap was computed from, and in which blocks; those of a weight's gradient are those of its block."""
        block = self.block_of.get(tap, "")
        return self.begins.get(block, ("", (block,)))


@dataclass
class Replayed:
    """What the reference computes from the tensors of a port: the truth, and the largest errors of honest runs."""

    port: GradientPort
    trail: Trail
    exact: dict[str, Array] = field(default_factory=dict)
    errors: dict[str, Float[Array, "2 R"]] = field(default_factory=dict)

    def exactly(self) -> Tap:
        """The tap of the run in float64."""

        def keep(name: str, x: Array, axes: str) -> Array:
            found = self.given(name)
            if name.startswith(ACTIVATION) and not matrix_of(name):
                self.trail.pass_through(name, found is not None)
            if self.judges(name):
                self.exact[name] = np.array(x)
            return x if found is None else found.astype(x.dtype)

        return keep

    def honestly(self) -> Tap:
        """The tap of a run in the precision of the port."""

        def measure(name: str, x: Array, axes: str) -> Array:
            if name in self.exact:
                errors = row_errors(axes, x, self.exact[name])
                self.errors[name] = np.maximum(self.errors.get(name, errors), errors)
            found = self.given(name)
            return x if found is None else found.astype(x.dtype)

        return measure

    def judges(self, name: str) -> bool:
        """Whether the port has a tensor that follows from others: a gradient or a loss."""
        return self.port.has(name) and (name.startswith(ACTIVATION) or name in FORWARD)

    def given(self, name: str) -> Array | None:
        """The port's tensor that the run continues with: all but weights' gradients, which nothing is computed from."""
        if matrix_of(name) or is_input(name) or name in FORWARD:
            return None
        found = self.port.find(name)
        return found if found is not None and np.isfinite(found).all() else None

    def verdict(self, tap: str, dtype: str) -> Verdict:
        """The verdict on a gradient of the port, against what follows from its tensors before that."""
        golden, x = self.port.golden, self.port.find(tap)
        facts = golden.metadata["gradients"]
        exact = self.exact[tap]
        after, blocks = self.trail.found(tap)
        zero = facts["zero"].get(tap)
        size = None if zero is None else rms(golden.truth[zero])
        x = np.full_like(exact, np.nan) if x is None else x.reshape(exact.shape)
        verdict = judge_gradient(tap, golden.taps[tap], self.port.name_of(tap), x, exact, self.errors[tap], dtype, size)
        return replace(verdict, block=facts["blocks"].get(tap) or tap, after=after, blocks=blocks)
