"""Judge transformers' gradients by golden files of several batches and models: no honest run may be called wrong.

    python tools/gradient_port_study.py         # the table of honest ports in npgemma/golden/README.md
    python tools/gradient_port_study.py CLIP    # a part of it

Each batch is recorded at level `ops`, and dumped by transformers in float32 and in bfloat16, with eager and with sdpa
attention.
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from dump_gradients import dump_encoder_gradients, dump_gradients
from dump_transformers import load_model
from gradient_study import LABELS, two_pictures
from PIL import ImageOps
from random_encoders import CLIP, SEVERAL, SIGLIP, VIT, write_encoder
from random_models import GEMMAS, PALIGEMMA_2, write_model
from safetensors.torch import save_file

import npgemma
from npgemma.api.load import AnyModel
from npgemma.golden import Report, read_dump, read_golden
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_judge import LIMITS
from npgemma.golden.gradient_presets import gradient_preset
from npgemma.golden.gradient_record import record_gradients
from npgemma.golden.gradient_replay import replay_gradients
from npgemma.io.picture import Picture

DTYPES, ATTENTIONS = ("float32", "bfloat16"), ("eager", "sdpa")


class Batch(NamedTuple):
    """Pictures, a prompt or texts, and what should be answered."""

    pictures: Sequence[Picture]
    prompt: str | Sequence[str]
    answers: Sequence[str]


def batches() -> list[Batch]:
    one, two = two_pictures()
    gray = ImageOps.grayscale(one).convert("RGB")
    return [
        Batch([one, two], "caption en", ["a red star", "two green circles and a star"]),
        Batch([two], "caption en", ["a blue square above a red circle"]),
        Batch([one], "detect star", ["<loc0100><loc0200><loc0300><loc0400> star", "star", "ocr a b c"]),
        Batch([one, two, gray], "ocr", ["A", "Q 9", "what is this ?"]),
        Batch([gray, one], "caption de", ["ein roter Stern und ein Kreis"]),
    ]


TEXTS = [
    Batch([], "a blue star", [" and a green circle", " is red"]),
    Batch([], "one", [" two three four five six seven eight"]),
]


# Random models of each kind of encoder.
SEEDS = range(4, 8)


def encoders(folder: Path) -> Iterator[tuple[str, int, AnyModel, Batch]]:
    """Random encoders, each with its pictures and texts or labels."""
    for name in (SIGLIP, CLIP, VIT, SEVERAL):
        for i, seed in enumerate(SEEDS, 1):
            model, pictures, texts = write_encoder(folder / f"{name} {seed}", name, seed)
            yield f"random {name}", i, model, Batch(pictures, texts, LABELS.get(name, []))


def reports(model: AnyModel, batch: Batch, folder: Path) -> Iterator[tuple[str, str, Report]]:
    """The report on each precision and attention, with a replay."""
    case = folder / "case.safetensors"
    record_gradients(model, batch.pictures, batch.prompt, batch.answers, case, "ops")
    golden = read_golden(case)
    for dtype in DTYPES:
        for attention in ATTENTIONS:
            port = load_model(model.folder, getattr(torch, dtype), attention)
            encodes = isinstance(model, npgemma.DualEncoder | npgemma.Classifier)
            save_file((dump_encoder_gradients if encodes else dump_gradients)(port, case), folder / "dump.safetensors")
            dump = read_dump(folder / "dump.safetensors")
            report = compare_gradients(golden, dump, gradient_preset("transformers", golden), dtype)
            yield dtype, attention, replay_gradients(model, golden, dump, report)


def line(report: Report) -> str:
    """The largest ratios, as if each gradient had 1,000 values or more, and how many are not explained."""
    ratios = [
        max(v.ratios[kind] / v.limits[kind] * limit for v in report.verdicts if v.ratios)
        for kind, limit in LIMITS.items()
    ]
    wrong = sum(not v.explained for v in report.verdicts), sum(not v.explained for v in report.replayed)
    again = max(v.excess for v in report.replayed)
    return " | ".join(
        [*(f"{ratio:.2f}" for ratio in ratios), f"{again:.2f}", f"{wrong[0]}, {wrong[1]} of {len(report.verdicts)}"]
    )


def writers(folder: Path) -> Iterator[tuple[str, int, AnyModel, Batch]]:
    """Models that write, each with several batches."""
    later = npgemma.load(write_model(folder / "paligemma2", PALIGEMMA_2))
    models = {"embedded": (npgemma.load(), batches()), "random PaliGemma 2": (later, batches())}
    for number, config in GEMMAS.items():
        models[f"random Gemma {number}"] = npgemma.load(write_model(folder / f"gemma{number}", config)), TEXTS
    for name, (model, tried) in models.items():
        yield from ((name, i, model, batch) for i, batch in enumerate(tried, 1))


def main(kinds: Sequence[str]) -> None:
    """Print a line for each batch of the models whose names contain one of `kinds`, by default of all."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print("| model | batch | precision | attention | rms | row | max | replay, over its limit | not explained |")
    print("|" + "---|" * 9)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for kind, i, model, batch in chain(writers(folder), encoders(folder)):
            if not kinds or any(each in kind for each in kinds):
                for dtype, attention, report in reports(model, batch, folder):
                    print(f"| {kind} | {i} | {dtype} | {attention} | {line(report)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
