"""Plant mistakes in npgemma itself and see whether `npgemma compare` finds them; and see that it lets rounding pass.

    python tools/mutation_study.py            # the tables, as npgemma/golden/README.md has them

Each mistake runs on the embedded model in float32, and its tensors are held against the golden file of the package as a
port's dump would be. It is killed if rounding does not explain it and the first block that is named is the one it was
planted in. The benign variants are correct runs that round differently; each has to be explained. What the same
mistakes look like in emulated bfloat16 is printed beside.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from unittest import mock

import numpy as np
from mutations import BENIGN, BUGS, ROUNDED, Variant

import npgemma
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden import Dump, Golden, Report, compare, read_golden
from npgemma.golden.file import EMBEDDED_GOLDEN
from npgemma.golden.record import in_bfloat16, run
from npgemma.golden.replay import case_of
from npgemma.golden.rounding import HF_EAGER, rounding
from npgemma.layers.taps import Recorder


class Study:
    """The embedded model and its golden file, and what becomes of a variant."""

    def __init__(self) -> None:
        self.model: VisionLanguageModel = npgemma.load()
        self.golden: Golden = read_golden(EMBEDDED_GOLDEN)
        self.ids = self.golden.truth["generated_ids"].tolist()
        self.case = case_of(self.golden)

    def judge(self, variant: Variant, dtype: str = "float32", schedule: dict[str, str] | None = None) -> Report:
        """The report on a run of `variant`; in bfloat16 it is emulated, with `schedule`."""
        model, taps = self.model, Recorder()
        weights = in_bfloat16(model.weights) if dtype == "bfloat16" else model.weights
        change = variant.tap()

        def tap(name: str, x: np.ndarray) -> np.ndarray:
            return taps(name, change(name, x))

        with ExitStack() as stack:
            for module, name, new in variant.patches:
                stack.enter_context(mock.patch.object(module, name, new))
            heard = tap if dtype == "float32" else rounding(tap, schedule or {})
            run(model, variant.weights(weights), variant.case(self.case), np.dtype(np.float32), heard, self.ids)
        tensors = {name: x for name, x in taps.items() if name in self.golden.taps}
        return compare(self.golden, Dump(tensors), dtype=dtype, allow_missing=["pictures.*"])


def worst(report: Report) -> float:
    """The largest ratio over its limit, infinite for what is wrong without one."""
    ratios = [max((v.ratios[k] / v.limits[k] for k in v.limits), default=0.0) for v in report.verdicts]
    wrong_without = any(not v.explained and not v.ratios for v in report.verdicts)
    return math.inf if wrong_without else max(ratios)


def rows(study: Study) -> Iterator[tuple[str, str, float, str, bool, float]]:
    """By bug: name, where planted, worst ratio over its limit, first block named, killed, the ratio in bfloat16."""
    for name, bug in BUGS.items():
        report, rounded = study.judge(bug), study.judge(bug, "bfloat16", HF_EAGER)
        first = report.first_divergence.block if report.first_divergence else "-"
        yield name, bug.block, worst(report), first, report.status == 1 and first == bug.block, worst(rounded)


def main() -> None:
    study = Study()
    print("| planted | in | float32 | first block named | bfloat16 |\n|---|---|---|---|---|")
    killed = 0
    for name, block, ratio, first, dead, rounded in rows(study):
        killed += dead
        print(f"| {name} | {block} | {ratio:.3g} | {first if first != block else 'the same'} | {rounded:.3g} |")
    print(f"\nkilled {killed} of {len(BUGS)}\n")
    print("| correct, but rounded otherwise | float32 | bfloat16 |\n|---|---|---|")
    explained = 0
    for name, variant in BENIGN.items():
        report = study.judge(variant)
        explained += report.status == 0
        print(f"| {name} | {worst(report):.2f} | |")
    for name, schedule in ROUNDED.items():
        report = study.judge(Variant(), "bfloat16", schedule)
        explained += report.status == 0
        print(f"| rounded to bfloat16: {name} | | {worst(report):.2f} |")
    print(f"\nexplained {explained} of {len(BENIGN) + len(ROUNDED)}")


if __name__ == "__main__":
    main()
