"""Plant mistakes in npgemma's own runs, and see whether `npgemma compare` finds them and lets rounding pass.

    python tools/mutation_study.py            # the tables of npgemma/golden/README.md

Each mistake runs in float32: on the embedded model, with the golden file in the package, or on a random model of a
later family, with a golden file of its own. Its tensors are compared with that file as a port's dump would be. A
mistake counts as found if rounding does not explain it and the first block named is the block it was planted in. Every
correct variant, which only rounds differently, has to be explained. The last column shows the same mistake in emulated
bfloat16.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from correct_variants import BENIGN
from encoder_mutations import CLIP_BUGS, SIGLIP_BUGS, VIT_BUGS
from later_mutations import GEMMA_3_BUGS, PALIGEMMA_2_BUGS
from mutations import BUGS, ROUNDED, Variant
from random_encoders import CLIP, SIGLIP, VIT, write_encoder
from random_models import GEMMAS, PALIGEMMA_2, PROMPT, load_with_suffix, write_model

import npgemma
from npgemma.api.load import AnyModel
from npgemma.golden import Dump, Golden, Report, compare, read_golden, record
from npgemma.golden.cases import case_of
from npgemma.golden.file import EMBEDDED_GOLDEN
from npgemma.golden.record import computing
from npgemma.golden.replay import replay
from npgemma.golden.rounding import HF_EAGER, rounding
from npgemma.layers.taps import Recorder


class Study:
    """A model and its golden file; `judge` runs a variant and compares it."""

    def __init__(self, model: AnyModel, golden: Golden) -> None:
        self.model = model
        self.golden = golden
        self.case = case_of(model, golden)
        self.models = {dtype: computing(model, dtype) for dtype in ("float32", "bfloat16")}

    def judge(
        self,
        variant: Variant,
        dtype: str = "float32",
        schedule: Mapping[str, str] | None = None,
        replayed: bool = False,
    ) -> Report:
        """The report on a run of `variant`. A run in bfloat16 is emulated: `schedule` says what it rounds."""
        taps = Recorder()
        again = rounding(taps, schedule or {})  # what the variant computed is rounded too
        change = variant.tap()
        tap = rounding(lambda name, x, axes: again(name, change(name, x, axes), axes), schedule or {})
        model = copy(self.models[dtype])
        model.weights = variant.weights(model.weights)
        with ExitStack() as stack:
            for module, name, function in variant.replacements:
                stack.enter_context(mock.patch.object(module, name, function))
            variant.case(self.case).run(model, tap)
        absent = ("pictures.*", *variant.absent)
        names = (name for name in self.golden.taps if name in taps and not any(fnmatchcase(name, g) for g in absent))
        dump = Dump({name: taps[name] for name in names})
        report = compare(self.golden, dump, dtype=dtype, allow_missing=absent)
        return replay(self.model, self.golden, dump, report) if replayed else report

    def of(self, keeps: Callable[[str], bool]) -> "Study":
        """The same study of some of the taps."""
        taps = {name: axes for name, axes in self.golden.taps.items() if keeps(name)}
        return Study(self.model, replace(self.golden, taps=taps))


def embedded() -> Study:
    """The embedded model, and the golden file in the package."""
    return Study(npgemma.load(), read_golden(EMBEDDED_GOLDEN))


def with_every_tap(folder: Path) -> Study:
    """The embedded model, and a golden file of all its taps."""
    return recorded(npgemma.load(), [npgemma.sample_picture()], "caption en", folder, steps=3)


def random_paligemma_2(folder: Path) -> Study:
    """A random PaliGemma 2 that is written to `folder`."""
    model = load_with_suffix(write_model(folder / "model", PALIGEMMA_2), PALIGEMMA_2)
    return recorded(model, [npgemma.sample_picture()], "caption en", folder)


def random_gemma_3(folder: Path) -> Study:
    """A random Gemma 3 that is written to `folder`."""
    model = npgemma.load(write_model(folder / "model", GEMMAS[3]))
    return recorded(model, [], PROMPT, folder)


def random_encoder(name: str, folder: Path) -> Study:
    """A random SigLIP, CLIP or ViT that is written to `folder`."""
    written = write_encoder(folder / "model", name)
    return Study(written.model, written.record(folder / "golden.safetensors"))


def recorded(model: AnyModel, images: Sequence[Path], prompt: str, folder: Path, steps: int = 1) -> Study:
    """A golden file of a model with every tap, and the model."""
    path = folder / "golden.safetensors"
    record(model, images, prompt, path, "ops", steps=steps)
    return Study(model, read_golden(path))


# The mistakes of each table, and the study that they are planted in, which needs a folder to write to.
PLANTED: dict[str, tuple[dict[str, Variant], Callable[[Path], Study]]] = {
    "the embedded model": (BUGS, lambda _: embedded()),
    "a random PaliGemma 2": (PALIGEMMA_2_BUGS, random_paligemma_2),
    "a random Gemma 3": (GEMMA_3_BUGS, random_gemma_3),
    "a random SigLIP": (SIGLIP_BUGS, partial(random_encoder, SIGLIP)),
    "a random CLIP": (CLIP_BUGS, partial(random_encoder, CLIP)),
    "a random ViT": (VIT_BUGS, partial(random_encoder, VIT)),
}


def worst(report: Report) -> float:
    """The largest ratio over its limit; infinite if a tap without ratios is wrong."""
    return max(verdict.excess for verdict in report.verdicts)


def first_block(report: Report) -> str:
    """The block of the first tap that is wrong or borderline."""
    return next((verdict.block for verdict in report.verdicts if not verdict.explained), "-")


def bug_rows(study: Study, bugs: Mapping[str, Variant]) -> Iterator[tuple[str, bool]]:
    """For each bug its line of the table, and whether it is found in float32."""
    for name, bug in bugs.items():
        report, rounded = study.judge(bug), study.judge(bug, "bfloat16", HF_EAGER)
        first, borderline = first_block(report), ", borderline" * (report.status == 4)
        block = first if first != bug.block else "the same"
        numbers = f"{worst(report):.3g}{borderline} | {block} | {worst(rounded):.3g}"
        yield f"| {name} | {bug.block} | {numbers} |", report.status in (1, 4) and first == bug.block


def benign_rows(study: Study) -> Iterator[tuple[str, bool]]:
    """For each correct variant its line of the table, and whether it is explained, with a replay and without."""
    for name, variant in BENIGN.items():
        report = study.judge(variant, replayed=True)
        again = max(verdict.excess for verdict in report.replayed)
        yield f"| {name} | {worst(report):.2f} | {again:.2f} | |", report.status == 0
    for name, schedule in ROUNDED.items():
        report = study.judge(Variant(), "bfloat16", schedule)
        yield f"| rounded to bfloat16: {name} | | | {worst(report):.2f} |", report.status == 0


def print_table(head: str, rows: Iterator[tuple[str, bool]], verb: str) -> None:
    columns = head.count("|") - 1
    print(head, "|" + "---|" * columns, sep="\n")
    outcomes = []
    for line, outcome in rows:
        print(line)
        outcomes.append(outcome)
    print(f"\n{verb} {sum(outcomes)} of {len(outcomes)}\n")


def main() -> None:
    for name, (bugs, start) in PLANTED.items():
        with TemporaryDirectory() as folder:
            head = f"| planted in {name} | in | float32 | first block named | bfloat16 |"
            print_table(head, bug_rows(start(Path(folder)), bugs), "found")
    head = "| correct, but rounded differently | float32 | with a replay | bfloat16 |"
    with TemporaryDirectory() as folder:
        print_table(head, benign_rows(with_every_tap(Path(folder))), "explained")


if __name__ == "__main__":
    main()
