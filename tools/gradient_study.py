"""Plant mistakes in npgemma's own backward pass, and see whether `npgemma compare` finds them and lets rounding pass.

    python tools/gradient_study.py            # the tables of npgemma/golden/README.md, section Gradients
    python tools/gradient_study.py CLIP ViT   # some of them

Each mistake runs in float32, on two pictures with an answer each: its gradients are compared with a golden file as a
port's would be. It counts as found if rounding does not explain it and the first block named is that it was planted in.
The other columns have the same from the sketches of weight gradients alone, and in emulated bfloat16.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
from gradient_adapter_mutations import ADAPTER_BENIGN, ADAPTER_BUGS
from gradient_curve_mutations import CURVE_BENIGN, CURVE_BUGS, CurveStudy, curve_study
from gradient_encoder_mutations import CLIP_BUGS, ENCODER_BENIGN, SIGLIP_BUGS, VIT_BUGS
from gradient_mutations import BUGS, LATER_BUGS, SHARED_BUGS, Mutation
from gradient_variants import BENIGN
from mutation_study import first_block, print_table, worst
from PIL import Image, ImageOps
from random_encoders import CLIP, SEVERAL, SIGLIP, VIT, write_encoder
from random_models import PALIGEMMA_2, write_model

import npgemma
from npgemma.api.load import AnyModel
from npgemma.api.trainable import beside
from npgemma.checkpoints.adapter import LowRank
from npgemma.checkpoints.adapter_writing import write_adapter
from npgemma.golden import Dump, Golden, Report, read_golden
from npgemma.golden.gradient_case import case_of
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_options import GradientOptions
from npgemma.golden.gradient_record import record_gradients, rounding_gradients
from npgemma.golden.gradient_run import run
from npgemma.golden.gradient_taps import FORWARD, ROWS, SIGNS, WEIGHT
from npgemma.golden.record import computing
from npgemma.golden.rounding import rounding, schedule_in
from npgemma.layers.taps import Recorder

GRADIENTS = ("grad.*", *FORWARD)


@dataclass
class GradientStudy:
    """A model, with its adapter beside it, and a golden file of its gradients; `judge` compares a variant with it."""

    model: AnyModel
    golden: Golden
    adapter: Path | None = None

    def judge(self, variant: Mutation, dtype: str = "float32") -> Report:
        """The report on a backward pass of `variant`."""
        facts = self.golden.metadata["gradients"]
        taps, whole = Recorder(*GRADIENTS), facts["whole"]
        tap = rounding(variant.tap(rounding_gradients(taps, dtype)), schedule_in("hf_eager", dtype))
        case = variant.case(case_of(self.model, self.golden.truth, facts))
        with ExitStack() as stack:
            for module, name, function in variant.replacements:
                stack.enter_context(mock.patch.object(module, name, function))
            for _ in run(case, computing(self.model, dtype), self.golden.truth[SIGNS], whole, tap, facts["train"]):
                pass
        kept = {name: x for name, x in taps.items() if name in self.golden.taps or name.startswith(WEIGHT)}
        sketches = {name for name in kept if name.startswith(("grad.rows.", "grad.columns."))}
        dump = Dump({name: x for name, x in kept.items() if name not in sketches})
        return compare_gradients(self.golden, dump, dtype=dtype)


def sketches_alone(report: Report) -> Report:
    """What is left of a report without gradients of activations and matrices: sketches, vectors and no loss."""
    names = {verdict.name for verdict in report.verdicts}
    vectors = {name for name in names if name.startswith(WEIGHT) and name.replace(WEIGHT, ROWS) not in names}
    kept = [v for v in report.verdicts if v.name.startswith(("grad.rows.", "grad.columns.")) or v.name in vectors]
    return replace(report, verdicts=kept)


def study(
    model: AnyModel, pictures: Sequence[object], answers: Sequence[str], folder: Path, text: object = "caption en"
) -> GradientStudy:
    """A golden file of the gradients of every tap, and the model."""
    path = folder / "gradients.safetensors"
    record_gradients(model, pictures, text, answers, path, "ops")
    return GradientStudy(model, read_golden(path))


def two_pictures() -> list[Image.Image]:
    sample = Image.open(npgemma.sample_picture()).convert("RGB")
    return [sample, ImageOps.mirror(ImageOps.invert(sample))]


def embedded(folder: Path) -> GradientStudy:
    """The embedded model, two pictures, an answer to each."""
    return study(npgemma.load(), two_pictures(), ["a red star", "two green circles and a star"], folder)


def shared(folder: Path) -> GradientStudy:
    """The embedded model, one picture, two answers."""
    return study(npgemma.load(), two_pictures()[:1], ["a red star", "two green circles and a star"], folder)


def random_paligemma_2(folder: Path) -> GradientStudy:
    """A random PaliGemma 2, whose windows are shorter than its answers."""
    model = npgemma.load(write_model(folder / "model", PALIGEMMA_2))
    return study(model, two_pictures(), ["a red star above a blue square", "two green circles and a star"], folder)


RANK, ALPHA = 3, 7.0
LAYERS = "language_model.model.layers"
# The matrices of each layer that the adapter changes.
ADAPTED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def write_random_adapter(folder: Path, model: AnyModel) -> Path:
    """An adapter of a PaliGemma's decoder, of which both halves are noise; returns its folder."""
    rng, shapes = np.random.default_rng(5), model.checkpoint.hf_layout(model.config).shapes
    updates = {}
    for name in (f"{LAYERS}.{i}.{each}.weight" for i in range(len(model.decoder.blocks)) for each in ADAPTED):
        outputs, inputs = shapes[name]
        a, b = rng.standard_normal((RANK, inputs)) / 3, rng.standard_normal((outputs, RANK)) / 3
        updates[name] = LowRank(a.astype(np.float32), b.astype(np.float32), ALPHA / RANK, (outputs, inputs))
    folder.mkdir()
    write_adapter(folder, updates, {}, shapes, "a random model")
    return folder


def adapted(folder: Path) -> GradientStudy:
    """A random PaliGemma 2 with an adapter, which alone is trained."""
    model, path = npgemma.load(write_model(folder / "model", PALIGEMMA_2)), folder / "gradients.safetensors"
    adapter = write_random_adapter(folder / "adapter", model)
    answers = ["a red star above a blue square", "two green circles and a star"]
    options = GradientOptions(adapter=adapter)
    record_gradients(model, two_pictures(), "caption en", answers, path, "ops", options)
    return GradientStudy(beside(model, adapter), read_golden(path), adapter)


# The right labels of three pictures.
LABELS = {VIT: ["3", "b", "a"], SEVERAL: ["b ; 3", "", "a;b;g"]}


def encoder(name: str, folder: Path) -> GradientStudy:
    """A random encoder of this kind, three pictures, and their texts or labels."""
    model, pictures, texts = write_encoder(folder / "model", name)
    return study(model, pictures, LABELS.get(name, []), folder, texts)


ENCODERS = {SIGLIP: SIGLIP_BUGS, CLIP: CLIP_BUGS, VIT: VIT_BUGS}
PLANTED = {
    "the embedded model": (BUGS, embedded),
    "the embedded model, one picture in two prompts": (SHARED_BUGS, shared),
    "a random PaliGemma 2": (LATER_BUGS, random_paligemma_2),
}
PLANTED |= {"an adapter of a random PaliGemma 2": (ADAPTER_BUGS, adapted)}
PLANTED |= {f"a random {name}": (bugs, partial(encoder, name)) for name, bugs in ENCODERS.items()}
RIGHT = {
    "the embedded model": (BENIGN, embedded),
    "a random PaliGemma 2": (BENIGN, random_paligemma_2),
}
RIGHT |= {"an adapter of a random PaliGemma 2": (ADAPTER_BENIGN, adapted)}
RIGHT |= {f"a random {name}": (ENCODER_BENIGN, partial(encoder, name)) for name in ENCODERS}


def rows(study: GradientStudy, bugs: Mapping[str, Mutation]) -> Iterator[tuple[str, bool]]:
    """For each mistake its line of the table, and whether it is found with its block named."""
    for name, bug in bugs.items():
        report, rounded = study.judge(bug), study.judge(bug, "bfloat16")
        alone = sketches_alone(report)
        first, seen = first_block(report), first_block(alone)
        block = "the same" if first == bug.block else first
        wanted = bug.sketched or bug.block
        sketch = f"{worst(alone):.3g}" + ("" if seen in (wanted, "-") else f", {seen}")
        bf16 = f"{worst(rounded):.3g}" + (
            "" if first_block(rounded) in (bug.block, "-") else f", {first_block(rounded)}"
        )
        yield f"| {name} | {bug.block} | {worst(report):.3g} | {block} | {sketch} | {bf16} |", first == bug.block


def benign_rows(study: GradientStudy, variants: Mapping[str, Mutation]) -> Iterator[tuple[str, bool]]:
    """For each correct variant its line of the table, and whether it is explained."""
    for name, variant in variants.items():
        report, rounded = study.judge(variant), study.judge(variant, "bfloat16")
        yield f"| {name} | {worst(report):.2f} | {worst(rounded):.2f} |", report.status == rounded.status == 0


def curve_rows(study: CurveStudy) -> Iterator[tuple[str, bool]]:
    """For each mistake of an optimizer its line of the table, and whether it is found at its step."""
    for name, mistake in (CURVE_BUGS | CURVE_BENIGN).items():
        report = study.judge(mistake)
        first = first_block(report)
        named = "the same" if first == mistake.step else first
        yield f"| {name} | {mistake.step} | {worst(report):.3g} | {named} |", first == mistake.step


def main(kinds: Sequence[str]) -> None:
    """Print the tables of the models whose names contain one of `kinds`, by default of all."""

    def wanted(name: str) -> bool:
        return not kinds or any(kind in name for kind in kinds)

    for name, (bugs, start) in PLANTED.items():
        with TemporaryDirectory() as folder:
            head = f"| planted in {name} | in | float32 | first block named | sketches alone | bfloat16 |"
            if wanted(name):
                print_table(head, rows(start(Path(folder)), bugs), "found")
    if wanted("steps"):
        with TemporaryDirectory() as folder:
            head = "| planted in ten steps of a random ViT | shows at | float32 | first step named |"
            print_table(head, curve_rows(curve_study(Path(folder))), "found or explained")
    for name, (variants, start) in RIGHT.items():
        with TemporaryDirectory() as folder:
            head = f"| correct, but rounded differently: {name} | float32 | bfloat16 |"
            if wanted(name):
                print_table(head, benign_rows(start(Path(folder)), variants), "explained")


if __name__ == "__main__":
    main(sys.argv[1:])
