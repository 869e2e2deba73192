"""Judge transformers' gradients by golden files of several batches and models: no honest run may be called wrong.

    python tools/gradient_port_study.py       # the table of honest ports in npgemma/golden/README.md

Each batch is recorded at level `ops`, and dumped by transformers in float32 and in bfloat16, with eager and with sdpa
attention.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from dump_gradients import dump_gradients
from dump_transformers import load_model
from gradient_study import two_pictures
from PIL import Image, ImageOps
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

DTYPES, ATTENTIONS = ("float32", "bfloat16"), ("eager", "sdpa")


class Batch(NamedTuple):
    """Pictures, a prompt, and its answers."""

    pictures: Sequence[Image.Image]
    prompt: str
    suffixes: Sequence[str]


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


def reports(model: AnyModel, batch: Batch, folder: Path) -> Iterator[tuple[str, str, Report]]:
    """The report on each precision and attention, with a replay."""
    case = folder / "case.safetensors"
    record_gradients(model, batch.pictures, batch.prompt, batch.suffixes, case, "ops")
    golden = read_golden(case)
    for dtype in DTYPES:
        for attention in ATTENTIONS:
            port = load_model(model.folder, getattr(torch, dtype), attention)
            save_file(dump_gradients(port, case), folder / "dump.safetensors")
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


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print("| model | batch | precision | attention | rms | row | max | replay, over its limit | not explained |")
    print("|" + "---|" * 9)
    with TemporaryDirectory() as folder:
        later = npgemma.load(write_model(Path(folder) / "paligemma2", PALIGEMMA_2))
        models = {"embedded": (npgemma.load(), batches()), "random PaliGemma 2": (later, batches())}
        for number, config in GEMMAS.items():
            models[f"random Gemma {number}"] = npgemma.load(write_model(Path(folder) / f"gemma{number}", config)), TEXTS
        for name, (model, tried) in models.items():
            for i, batch in enumerate(tried, 1):
                for dtype, attention, report in reports(model, batch, Path(folder)):
                    print(f"| {name} | {i} | {dtype} | {attention} | {line(report)} |", flush=True)


if __name__ == "__main__":
    main()
