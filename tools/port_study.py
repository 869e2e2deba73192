"""Hold `npgemma compare` against runs of transformers: does it find mistakes, and let correct runs pass?

    python tools/port_study.py --bugs            # each mistake of port_bugs.py, in float32
    python tools/port_study.py --cases 200       # so many random pictures, prompts and numbers of steps, in float32

Both use the embedded model. A case is a false alarm if a correct run has exit status 1, borderline if it has 4.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest import mock

import torch
import transformers
from dump_transformers import dump, load_model, make_inputs
from port_bugs import HARMLESS, LATE_BUGS, PORT_BUGS
from shape_world import ask, draw_scene
from transformers_bugs import Bug

import npgemma
from npgemma.golden import Dump, Golden, Report, compare, read_golden, record
from npgemma.golden.arithmetic import ARITHMETICS, USUAL
from npgemma.golden.file import EMBEDDED_GOLDEN
from npgemma.golden.presets import preset
from npgemma.golden.replay import replay
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.picture import Picture

SAMPLE = npgemma.sample_picture()
NO_BUG = Bug("")
# Prompts that the embedded model was not trained for, besides those of its world.
OTHER_PROMPTS = ("", "caption de", "describe the picture in a few words", "1 2 3 4 5 6 7 8 9 10", "detect a ; b ; c")


@dataclass(frozen=True)
class Case:
    """A golden file of the embedded model, and what it was recorded from."""

    golden: Golden
    pictures: Sequence[Picture]
    prompt: str

    def dump(self, bug: Bug = NO_BUG, attention: str = "eager") -> Dump:
        """What transformers computes in float32."""
        model = load_model(EMBEDDED, torch.float32, attention)
        ids = self.golden.truth["generated_ids"].tolist()[:-1]
        with ExitStack() as stack:
            bug.plant(model, stack)
            inputs = bug.inputs(make_inputs(EMBEDDED, self.pictures, self.prompt), self.pictures)
            found = dump(model, inputs, ids)
        return Dump({name: x.numpy() for name, x in found.items()})

    def compare(self, found: Dump) -> tuple[Report, Report]:
        """The reports without a replay and with one."""
        report = compare(self.golden, found, preset("transformers", self.golden))
        return report, replay(npgemma.load(), self.golden, found, report)


def recorded(folder: Path, pictures: Sequence[Picture], prompt: str, steps: int) -> Case:
    """A case with every tap, the errors of all runs in float32, and those of one in bfloat16, which a file needs."""
    with mock.patch.dict(ARITHMETICS, {"float32": ARITHMETICS["float32"], "bfloat16": USUAL}, clear=True):
        record(npgemma.load(), pictures, prompt, folder / "golden.safetensors", "ops", steps=steps)
    return Case(read_golden(folder / "golden.safetensors"), pictures, prompt)


def embedded() -> Case:
    """The golden file in the package."""
    return Case(read_golden(EMBEDDED_GOLDEN), [SAMPLE], "caption en")


def long_case(folder: Path) -> Case:
    """More than 256 rows, and more than three steps before an end token comes."""
    return recorded(folder, [SAMPLE] * 8, "detect red circle ; blue star", 6)


def blamed(report: Report) -> str:
    """The block of the first culprit of a replay, or the first and the last block of the part that it is in."""
    if not report.culprits:
        return "-"
    first, *rest = report.culprits[0].blocks
    return f"{first} to {rest[-1]}" if rest else first


def is_found(report: Report, replayed: Report, bug: Bug) -> bool:
    """Whether the first divergence is in the block of a mistake, and the first culprit is or contains it."""
    first, culprits = report.first_divergence, replayed.culprits
    named = bool(culprits) and (bug.culprit or bug.block) in culprits[0].blocks
    return report.status == replayed.status == 1 and first is not None and first.block == bug.block and named


def print_bugs(files: dict[str, Case], bugs: dict[str, Bug]) -> None:
    """A line for each mistake: for each golden file the first divergence and the culprit."""
    print("| planted | in |" + "".join(f" {name}: worst ratio, first divergence, culprit |" for name in files))
    for name, bug in bugs.items():
        cells = []
        for case in files.values():
            report, replayed = case.compare(case.dump(bug))
            worst, first = max(verdict.excess for verdict in report.verdicts), report.first_divergence
            found = "found" if is_found(report, replayed, bug) else f"status {replayed.status}"
            cells.append(f"{found}, {worst:.3g}, {first.block if first else '-'}, {blamed(replayed)}")
        print(f"| {name} | {bug.block} | {' | '.join(cells)} |", flush=True)


def random_case(seed: int, folder: Path) -> Case:
    """One or two pictures of the embedded model's world, a prompt for it or another one, and 0 to 8 steps."""
    rng = Random(seed)
    scene = draw_scene(rng)
    pictures = [scene.image] if rng.random() < 0.8 else [scene.image, draw_scene(rng).image]
    prompt = rng.choice(OTHER_PROMPTS) if rng.random() < 0.25 else ask(scene, rng, 1)[0].prompt
    return recorded(folder, pictures, prompt, rng.randint(0, 8))


def print_cases(seeds: Sequence[int]) -> None:
    """Each case that is not explained, and their numbers, by exit status."""
    counts = {"without a replay": Counter(), "with a replay": Counter()}
    taps: Counter[str] = Counter()
    for seed in seeds:
        with TemporaryDirectory() as folder:
            case = random_case(seed, Path(folder))
            reports = case.compare(case.dump(attention=("eager", "sdpa")[seed % 2]))
        for (how, count), report in zip(counts.items(), reports, strict=True):
            count[report.status] += 1
            unexplained = [v for v in (*report.verdicts, *report.replayed) if not v.explained]
            taps["verdicts"] += len(report.verdicts) + len(report.replayed)
            taps["not explained"] += len(unexplained)
            if report.status:
                worst = max(unexplained, key=lambda v: v.excess, default=None)
                what = f"{worst.name} {worst.excess:.3g} x its limit" if worst else report.pairing.missing
                print(f"seed {seed}, {case.prompt!r}, {how}: status {report.status}, {what}", flush=True)
    for how, count in counts.items():
        print(f"{how}: {dict(count)} of {len(seeds)}")
    print(dict(taps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bugs", action="store_true", help="plant mistakes")
    parser.add_argument("--cases", type=int, default=0, metavar="N", help="compare so many random cases")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the seed of the first case")
    a = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    if a.bugs:
        with TemporaryDirectory() as one, TemporaryDirectory() as two:
            files = {"embedded": embedded(), "ops": recorded(Path(one), [SAMPLE], "caption en", 3)}
            print_bugs(files, PORT_BUGS | HARMLESS)
            print_bugs({"297 rows, 6 steps": long_case(Path(two))}, LATE_BUGS)
    if a.cases:
        print_cases(range(a.first, a.first + a.cases))


if __name__ == "__main__":
    main()
