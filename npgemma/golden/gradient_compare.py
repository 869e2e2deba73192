"""Compare a port's gradients with a golden file: a verdict for each, in the order of the backward pass.

The first that is wrong is in the block whose backward pass makes a mistake: the gradient that entered it is right.

    >>> import npgemma
    >>> from npgemma.golden import read_golden
    >>> from npgemma.golden.gradient_record import record_gradients
    >>> record_gradients(npgemma.load(), [npgemma.sample_picture()], "caption en", ["a red star"], "g.safetensors")
    >>> golden = read_golden("g.safetensors")
    >>> port = {tap: x.astype("float32") for tap, x in golden.truth.items() if tap.startswith("grad.weights.")}
    >>> port["grad.weights.language_model.model.layers.2.mlp.up_proj.weight"] *= 1.1
    >>> report = compare_gradients(golden, Dump(port), allow_missing=["*"])
    >>> report.status, report.first_divergence.block
    (1, 'text.layers.2')
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np

from npgemma.api.finite import quiet
from npgemma.errors import BadGolden, listed
from npgemma.golden.compare import Report, check_envelope
from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden
from npgemma.golden.gradient_curve import judged_steps
from npgemma.golden.gradient_diagnose import diagnosed
from npgemma.golden.gradient_judge import failed, judge_gradient
from npgemma.golden.gradient_taps import ACTIVATION, COLUMNS, CURVE, ROWS, SIGNS, SKETCHES, WEIGHT, is_input, matrix_of
from npgemma.golden.grids import grid_of, most_common
from npgemma.golden.judge import Verdict, rms
from npgemma.golden.layout import Fitted, Place, is_foldable, lay
from npgemma.golden.mapping import SAME_NAMES, NameMap, Pairing, Rule, pair
from npgemma.golden.port import Misfit
from npgemma.golden.sketches import sketches
from npgemma.golden.tf32 import tf32_hint
from npgemma.layers.shapes import Array

PADDED = "its examples are rows of a batch, padded; harmless"
COPIED = "it has a copy of a picture for each prompt that shows it; their gradients are added; harmless"
FROZEN = "it has gradients of weights that are frozen in the golden file, which are not compared: {}; harmless"


@quiet()  # a port's numbers may be so large that their squares overflow
def compare_gradients(
    golden: Golden,
    dump: Dump,
    names: NameMap = SAME_NAMES,
    dtype: str | None = None,
    allow_missing: Sequence[str] = (),
) -> Report:
    """Judge every gradient of `golden` that `dump` has; the parameters and errors are those of `compare`."""
    optional = golden.metadata["gradients"].get("optional", ())
    names = replace(names, absent=(*names.absent, *allow_missing, *optional))
    frozen = frozen_names(golden)
    found = pair(names, dump, [*golden.taps, *unrecorded_matrices(golden), *forward_taps(golden), *frozen])
    pairing = replace(found, pairs={tap: rule for tap, rule in found.pairs.items() if tap not in frozen})
    if not pairing.pairs:
        raise BadGolden(
            f"no name of the dump, such as {next(iter(dump))!r}, is the name of a recorded tap; use --preset or --map"
        )
    gradients = (theirs for tap, (theirs, _) in pairing.pairs.items() if tap.startswith(ACTIVATION))
    dtype = dtype or most_common(grid_of(dump, theirs) for theirs in gradients)
    check_envelope(golden, dtype)
    port = GradientPort(golden, dump, pairing)
    verdicts = [judged(port, tap, dtype) for tap in golden.taps if port.has(tap) and tap not in CURVE]
    verdicts += in_steps(port, dtype)
    sent = sorted(theirs for tap, (theirs, _) in found.pairs.items() if tap in frozen)
    hints = [FROZEN.format(listed(sent, 2))] if sent else []
    if dtype == "float32":
        hints += tf32_hint(golden, verdicts, lambda tap: judged(port, tap, "tf32"))
    report = Report(dtype, verdicts, port.complete(), hints=hints)
    return diagnosed(report, golden, port.find)


def frozen_names(golden: Golden) -> set[str]:
    """The names that gradients of frozen weights would have."""
    facts = golden.metadata["gradients"]
    return {start + name for name in facts.get("frozen", ()) for start in (WEIGHT, *SKETCHES)}


def unrecorded_matrices(golden: Golden) -> list[str]:
    """The names of gradients of which the file has the sketches alone."""
    names = (WEIGHT + matrix_of(tap) for tap in golden.taps if tap.startswith(ROWS))
    return [name for name in names if name not in golden.taps]


def forward_taps(golden: Golden) -> list[str]:
    """The taps of the forward pass whose gradients are recorded; a replay continues with them."""
    activations = (tap for tap in golden.taps if tap.startswith(ACTIVATION) and not matrix_of(tap))
    return [tap.removeprefix(ACTIVATION) for tap in activations]


def judged(port: "GradientPort", tap: str, dtype: str) -> Verdict:
    """The verdict on the port's tensor of a tap."""
    golden, theirs = port.golden, port.name_of(tap)
    facts = golden.metadata["gradients"]
    block = facts["blocks"].get(tap) or tap
    try:
        found = port[tap]
    except Misfit as error:
        return replace(failed(tap, theirs, error.reason, error.diagnosis), block=block)
    envelope, zero = golden.envelopes[dtype].get(tap), facts["zero"].get(tap)
    size = None if zero is None else rms(golden.truth[zero])
    verdict = judge_gradient(tap, golden.taps[tap], theirs, found.x, golden.truth[tap], envelope, dtype, size)
    return replace(verdict, block=block, note="\n".join(filter(None, [*found.notes, verdict.note])))


def in_steps(port: "GradientPort", dtype: str) -> list[Verdict]:
    """The verdicts on the steps of a training, step by step."""
    found: list[Verdict] = []
    for tap in CURVE:
        if tap not in port.golden.taps or not port.has(tap):
            continue
        verdict = judged(port, tap, dtype)
        x = port.find(tap)
        theirs = port.name_of(tap)
        found += [replace(verdict, block="step 1")] if x is None else judged_steps(port.golden, tap, theirs, x, dtype)
    return sorted(found, key=lambda verdict: int(verdict.block.removeprefix("step ")))


class GradientPort:
    """The tensors of `dump` in the shapes of a golden file; sketches and the length of the gradient are computed."""

    def __init__(self, golden: Golden, dump: Dump, pairing: Pairing) -> None:
        self.golden, self.dump, self.pairing = golden, dump, pairing
        prompts = (tap for tap in golden.taps if fnmatchcase(tap, "prompts.*.input_ids"))
        self.lengths = [len(golden.truth[tap]) for tap in prompts]
        shown = [golden.truth[tap] for tap in golden.taps if fnmatchcase(tap, "prompts.*.pictures")]
        self.shown = np.concatenate(shown) if shown else np.empty(0, np.int32)
        self.matrices = [matrix_of(tap) for tap in golden.taps if tap.startswith(ROWS)]
        vectors = {tap for tap in golden.taps if tap.startswith(WEIGHT)}
        self.weights = vectors | {WEIGHT + name for name in self.matrices}
        self.sketched: dict[str, tuple[Array, Array]] = {}

    def has(self, tap: str) -> bool:
        """Whether the port has a tap, or what it is computed from."""
        if tap in self.pairing.pairs:
            return True
        if tap == "gradient_norm":
            return self.weights <= self.pairing.pairs.keys()
        return tap.startswith(SKETCHES) and WEIGHT + matrix_of(tap) in self.pairing.pairs

    def name_of(self, tap: str) -> str:
        """The port's name of what a tap is compared with."""
        source = tap if tap in self.pairing.pairs else WEIGHT + matrix_of(tap)
        return self.pairing.pairs[source][0] if source in self.pairing.pairs else "its gradients"

    def __getitem__(self, tap: str) -> Fitted:
        """The tensor of a tap, as float64 if it is a float. Misfit if it does not fit."""
        if tap in self.pairing.pairs:
            return self.laid(tap)
        if tap == "gradient_norm":
            squares = (np.square(self.whole(name), dtype=np.float64).sum() for name in sorted(self.weights))
            return Fitted(np.sqrt(np.array(math.fsum(squares))))
        return Fitted(self.sketches_of(matrix_of(tap))[0 if tap.startswith(ROWS) else 1])

    def sketches_of(self, matrix: str) -> tuple[Array, Array]:
        """The two sketches of a matrix that the port has whole. Misfit if it does not fit."""
        if matrix not in self.sketched:
            shape = tuple(len(self.golden.truth[start + matrix]) for start in SKETCHES)
            g = self.whole(WEIGHT + matrix)
            if not is_foldable(g.shape, shape):
                raise Misfit(f"shape {list(g.shape)}, expected {list(shape)} (O I)")
            self.sketched[matrix] = sketches(g.reshape(shape), self.golden.truth[SIGNS])
        return self.sketched[matrix]

    def find(self, tap: str) -> Array | None:
        """The tensor of a tap, or None if none fits."""
        try:
            return self[tap].x if self.has(tap) else None
        except Misfit:
            return None

    def whole(self, tap: str) -> Array:
        """The gradient of a weight as the port has it."""
        theirs, rule = self.pairing.pairs[tap]
        return self.applied(rule, theirs)

    def applied(self, rule: Rule, theirs: str) -> Array:
        """A tensor of the port as its rule changes it. Misfit if it does not fit the rule."""
        try:
            return rule.apply(self.dump[theirs])
        except (ValueError, IndexError) as error:
            shape = list(self.dump[theirs].shape)
            raise Misfit(f"its mapping rule does not fit the shape {shape}: {error}") from None

    def laid(self, tap: str) -> Fitted:
        """A tensor of the port in the shape of its tap."""
        theirs, rule = self.pairing.pairs[tap]
        like = tap if tap in self.golden.taps else ACTIVATION + tap  # a tap has the shape of its gradient
        truth, axes = self.golden.truth[like], self.golden.taps[like]
        x = self.applied(rule, theirs)
        is_batch = axes.startswith("T") and x.ndim > 2 and len(x) == len(self.lengths)
        is_batch = is_batch and x.shape[1] >= max(self.lengths)
        rows = self.rows_of(x, self.padded_before) if is_batch else self.of_pictures(axes, x, truth)
        found = lay(Place(tap, axes, truth, 0, False), rows, rule.rows)
        if found is None:
            raise Misfit(f"shape {list(x.shape)}, expected {list(truth.shape)} ({axes})")
        notes = (PADDED,) if is_batch and x.shape[:2] != (1, len(truth)) else found.notes
        notes = (COPIED, *notes) if rows.shape[:1] != x.shape[:1] and axes.startswith("B") else notes
        return replace(found, x=found.x.astype(np.float64) if truth.dtype.kind == "f" else found.x, notes=notes)

    def of_pictures(self, axes: str, x: Array, truth: Array) -> Array:
        """`x` of each picture, if the port has a copy of it for each prompt that shows it: their sum."""
        if not axes.startswith("B ") or x.shape[:1] != (len(self.shown),) or len(truth) == len(self.shown):
            return x
        found = np.zeros((len(truth), *x.shape[1:]), np.float64)
        np.add.at(found, self.shown, x)
        return found

    def rows_of(self, x: Array, padded_before: bool) -> Array:
        """The rows of the examples in turn, from a batch that is padded behind or in front."""
        starts = [x.shape[1] - length if padded_before else 0 for length in self.lengths]
        pairs = zip(x, starts, self.lengths, strict=True)
        return np.concatenate([each[start : start + length] for each, start, length in pairs])

    @cached_property
    def padded_before(self) -> bool:
        """Whether the rows in front of a batch are padding, which has no gradient, unlike the answer at the end."""
        for tap in (tap for tap in self.golden.taps if tap.startswith("grad.text.") and tap in self.pairing.pairs):
            theirs, rule = self.pairing.pairs[tap]
            x = self.applied(rule, theirs)
            if x.ndim > 2 and len(x) == len(self.lengths) and x.shape[1] >= max(self.lengths):
                behind, front = (float(np.abs(self.rows_of(x, side)).sum()) for side in (False, True))
                return front > 1.001 * behind  # the sums of the same numbers differ by rounding
        return False

    def complete(self) -> Pairing:
        """The pairing, where what is computed is not missing; nor is a matrix of which the port has both sketches."""
        pairs = self.pairing.pairs
        sketched = {WEIGHT + name for name in self.matrices if all(start + name in pairs for start in (ROWS, COLUMNS))}
        kept = self.golden.taps.keys() - sketched

        def without(taps: Sequence[str]) -> list[str]:
            return [tap for tap in taps if tap in kept and not self.has(tap) and not is_input(tap)]

        return replace(self.pairing, missing=without(self.pairing.missing), absent=without(self.pairing.absent))
