"""`golden --gradients`, and `compare` with the file that it records."""

import argparse
from collections.abc import Mapping

from npgemma.api.classifier import Classifier
from npgemma.api.dual_encoder import DualEncoder
from npgemma.api.language import LanguageModel
from npgemma.api.load import AnyModel, load
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.commands.flags import WrongUsage
from npgemma.commands.output import as_json as json_text
from npgemma.commands.output import say
from npgemma.golden.chart import draw_chart
from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_options import MEANS, GradientOptions
from npgemma.golden.gradient_presets import gradient_preset
from npgemma.golden.gradient_record import record_gradients
from npgemma.golden.gradient_replay import replay_gradients
from npgemma.golden.gradient_report import gradients_as_json, gradients_as_text
from npgemma.golden.mapping import SAME_NAMES
from npgemma.golden.mapping_file import read_mapping
from npgemma.io.model_folder import EMBEDDED_LANGUAGE, EMBEDDED_PAIR
from npgemma.io.picture import write_picture

# The flag of what each kind of model should answer; a pair is a picture with the text in the same place.
ANSWERS: Mapping[type[AnyModel], str] = {
    VisionLanguageModel: "--suffix",
    LanguageModel: "--suffix",
    DualEncoder: "",
    Classifier: "--label",
}


def add_gradients(golden: argparse.ArgumentParser) -> None:
    """The flags of `golden` that record gradients."""
    golden.add_argument(
        "--gradients", action="store_true", help="record a loss and its gradients, for a port that trains"
    )
    golden.add_argument(
        "--suffix",
        action="append",
        metavar="TEXT",
        help="an answer to the prompt, for --gradients; may be repeated: one, or one for each picture",
    )
    golden.add_argument(
        "--label",
        action="append",
        metavar="LABEL",
        help="the right label of a picture, by name or number, for --gradients of a ViT; once for each picture, with "
        'several as "cat ; dog" if the model finds several',
    )
    golden.add_argument(
        "--train",
        action="append",
        metavar="PATTERN",
        help="train only weights that a preset or pattern names, as in `npgemma train`; may be repeated (default: all)",
    )
    golden.add_argument(
        "--adapter", metavar="FOLDER", help="the LoRA adapter that --gradients trains, beside the frozen weights"
    )
    golden.add_argument(
        "--mean", choices=MEANS, help="what the loss of --gradients is the mean of (default: the learned tokens)"
    )
    golden.add_argument("--smoothing", type=share, metavar="X", help="label smoothing for --gradients (default: 0)")


def share(text: str) -> float:
    """A number of 0 or more, below 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share of the probability; use 0 or more, and less than 1")
    return value


def check_gradients(a: argparse.Namespace) -> None:
    """A usage error for flags that do not go together."""
    others = {"--suffix": a.suffix, "--label": a.label, "--train": a.train, "--mean": a.mean, "--adapter": a.adapter}
    given = [flag for flag, value in others.items() if value] + ["--smoothing"] * (a.smoothing is not None)
    if given and not a.gradients:
        a.usage_error(f"{given[0]} is for --gradients; leave it out")
    if a.gradients and (a.taps or a.steps == 0):
        a.usage_error("--gradients takes no --taps, and --steps counts from 1; leave them out")


def record_answers(a: argparse.Namespace, model: AnyModel, images: list[str], text: str | list[str]) -> None:
    """Record gradients. WrongUsage for flags that are those of another kind of model, and for lack of an answer."""
    flag = ANSWERS[type(model)]
    given = {"--suffix": a.suffix, "--label": a.label}
    if flag and not given[flag]:
        raise WrongUsage(f"argument --gradients: {a.model or 'this model'} needs {flag}, what it should answer")
    if wrong := [each for each, value in given.items() if value and each != flag]:
        raise WrongUsage(f"argument {wrong[0]}: {a.model} has no such answers; leave it out")
    options = GradientOptions(a.mean, a.smoothing or 0.0, tuple(a.train or ()), a.adapter, a.steps)
    record_gradients(model, images, text, given[flag] if flag else [], a.output, a.level, options, a.rounding, a.truth)


def compare_answers(a: argparse.Namespace, golden: Golden, dump: Dump) -> int:
    """Compare gradients and print the report; returns the exit status."""
    if a.suggest_map:
        raise WrongUsage("argument --suggest-map: it does not draft names of gradients; write a mapping file")
    names = gradient_preset(a.preset, golden) if a.preset else read_mapping(a.map) if a.map else SAME_NAMES
    report = compare_gradients(golden, dump, names, a.dtype, a.allow_missing)
    if a.replay:
        report = replay_gradients(load(a.model or embedded_of(golden)), golden, dump, report, a.adapter)
    as_report = gradients_as_text(report, golden, a.verbose)
    say(json_text(gradients_as_json(report, golden)) if a.format == "json" else as_report)
    if a.chart:
        write_picture(draw_chart(report), a.chart)
    return report.status


def embedded_of(golden: Golden) -> str | None:
    """The embedded model of the kind that was recorded: of a pair, of a language model, or else the default."""
    if "input_ids" in golden.taps:
        return EMBEDDED_PAIR.name
    return None if golden.has_pictures else EMBEDDED_LANGUAGE.name
