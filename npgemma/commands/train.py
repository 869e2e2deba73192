"""train: a model learns from examples, and goes on where it was if it is stopped."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from npgemma.api.language import LanguageModel
from npgemma.api.training_footprint import REMEDIES, without_lines
from npgemma.api.training_plan import Plan, plan_text, planned, summary, timed
from npgemma.api.transfer import Lines, Transfer, encoder_of
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.checkpoints.trained_model import save_adapter, save_model
from npgemma.commands.flags import AddParser, WrongUsage, model_flags, positive, require_writer
from npgemma.commands.output import INTERRUPTED, say, tell
from npgemma.commands.outputs import check_writable
from npgemma.commands.training_progress import EVALUATED, StepProgress, curve_of, results
from npgemma.errors import NpgemmaError, why
from npgemma.io.atomic_write import replace_file
from npgemma.io.hub_cache import is_repo_id
from npgemma.training.augment import Augmentation
from npgemma.training.examples import Example, read_examples, required, split_file
from npgemma.training.loop import Training
from npgemma.training.optimizers import OPTIMIZERS
from npgemma.training.options import TrainingOptions
from npgemma.training.parts import PRESETS
from npgemma.training.schedules import CURVES
from npgemma.training.state import Log, claimed, finish, is_finished

DEFAULT_RANK = 8
LEAST = 0.5  # of a picture's area that a crop keeps, unless a share is given
DEFAULTS = TrainingOptions()


def add_train(add_parser: AddParser) -> None:
    train = add_parser(
        "train",
        parents=[model_flags(), what_flags(), how_flags(), run_flags()],
        help="train an adapter or a model on pictures, prompts and answers",
    )
    train.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help='a file of lines {"image": ..., "prefix": ..., "suffix": ...} (no "image" for a language model), or a '
        "folder in the layout of Roboflow's exports",
    )
    train.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="where the adapter or the model goes, with a log; the same command continues a run there that was stopped",
    )
    train.set_defaults(run=run_train, reads={"data": "the data", "eval": "the data", "keep": "the data"})


def what_flags() -> argparse.ArgumentParser:
    """What is trained."""
    flags = argparse.ArgumentParser(add_help=False)
    how = flags.add_mutually_exclusive_group()
    how.add_argument(
        "--lora",
        type=positive,
        metavar="RANK",
        help=f"train a LoRA adapter of this rank (default: {DEFAULT_RANK}, unless --full or --train is given)",
    )
    how.add_argument("--full", action="store_true", help="train all arrays of the model")
    flags.add_argument(
        "--train",
        type=comma_separated,
        default=(),
        metavar="PARTS",
        help=f"what to train: presets ({', '.join(PRESETS)}) or patterns such as 'text.blocks.*.mlp.*', separated by "
        "commas; with --lora, the matrices that the adapter changes (default: all in the decoder's layers)",
    )
    flags.add_argument("--alpha", type=float, metavar="A", help="the adapter is scaled by alpha / rank (default: 8)")
    flags.add_argument(
        "--words",
        type=comma_separated,
        default=(),
        metavar="WORDS",
        help="words that the model has not learned, separated by commas: an adapter changes their tokens' rows, too",
    )
    flags.add_argument("--merge", action="store_true", help="write the model with the adapter merged into it")
    return flags


def how_flags() -> argparse.ArgumentParser:
    """How it is trained. The names are those of TrainingOptions."""
    flags = argparse.ArgumentParser(add_help=False)

    def add(name: str, kind: Any, metavar: str, text: str, **more: Any) -> None:
        default = getattr(DEFAULTS, name)
        shown = "" if default is None else f" (default: {default})"
        flag = f"--{name.replace('_', '-')}"
        flags.add_argument(flag, type=kind, default=default, metavar=metavar, help=text + shown, **more)

    add("epochs", float, "N", "how often every example is seen")
    add("batch", int, "N", "examples at a time")
    add("accumulate", int, "N", "batches to a step, whose gradients add up")
    add("rate", float, "R", "the highest rate; by default it depends on the optimizer and the width of the model")
    add("warmup", float, "SHARE", "the share of the steps in which the rate rises")
    add("decay", float, "W", "weight decay of matrices")
    add("smoothing", float, "E", "label smoothing")
    add("clip", float, "L", "the length that gradients are cut to; 0 for any length")
    add("seed", int, "S", "seed of the order of examples, of crops, and of a new adapter")
    for name, choices, text in (
        ("optimizer", tuple(OPTIMIZERS), "how gradients move weights"),
        ("schedule", tuple(CURVES), "how the rate falls"),
        ("loss_mean", ("token", "example"), "the mean over all tokens of a step, or over its examples"),
    ):
        flag, default = f"--{name.replace('_', '-')}", getattr(DEFAULTS, name)
        flags.add_argument(flag, choices=choices, default=default, help=f"{text} (default: {default})")
    flags.add_argument(
        "--augment",
        type=augmentation,
        default=Augmentation(),
        metavar="WHAT",
        help="crop, flip or crop,flip: change pictures at random, and move boxes along; crop=0.8 keeps at least that "
        f"share of the area (crop alone: {LEAST})",
    )
    return flags


def run_flags() -> argparse.ArgumentParser:
    """What is measured, shown and saved."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument("--eval", type=Path, metavar="DATA", help="held-out examples: answers are scored on them")
    flags.add_argument("--keep", type=Path, metavar="DATA", help="examples of what the model must not forget, likewise")
    flags.add_argument(
        "--eval-every",
        dest="evaluate_every",
        type=positive,
        metavar="N",
        help="score after every N steps, too (default: before and after)",
    )
    flags.add_argument("--save-every", type=positive, metavar="N", help="save every N steps (default: every minute)")
    flags.add_argument("--curve", type=Path, metavar="FILE", help="draw the loss, as a PNG file")
    flags.add_argument(
        "--checkpointing",
        choices=("auto", "on", "off"),
        default="auto",
        help="compute activations twice to save memory: the same bits (default: if memory is short)",
    )
    flags.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="where the pictures are (default: beside the file that names them)",
    )
    flags.add_argument("--skip-bad", action="store_true", help="leave out lines that cannot be learned")
    flags.add_argument("--plan", action="store_true", help="print memory, time and three examples, and stop")
    return flags


def comma_separated(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def augmentation(text: str) -> Augmentation:
    """'crop', 'crop=0.8', 'flip', or both, separated by a comma."""
    least, flip = 1.0, False
    for part in comma_separated(text):
        name, _, share = part.partition("=")
        if name == "crop":
            with suppress(ValueError):
                least = float(share or LEAST)
        if not ((name == "crop" and 0 < least < 1) or part == "flip"):
            raise argparse.ArgumentTypeError(f"{part!r} is not crop, flip, or crop=SHARE with a share below 1")
        flip = flip or part == "flip"
    return Augmentation(least, flip)


def run_train(a: argparse.Namespace) -> int:
    """Train, or go on; returns the exit status."""
    options = options_of(a)
    if "-" in (str(a.data), str(a.output)):
        raise WrongUsage("train reads a file and writes a folder, to continue it later; name them")
    model = require_writer(a.load(a.model, a.dtype, a.resident, None, a.max_memory, a.tokenizer))
    if a.max_pixels:
        model.processor.max_pixels = a.max_pixels
    transfer = Transfer(model, Lines((), {}), options, a.adapter)
    if a.merge and not transfer.has_updates:
        raise WrongUsage("--merge merges an adapter; with --full or --train, the model is written anyway")
    if not a.plan:
        model.guard.budget.require(without_lines(transfer), remedies=REMEDIES)  # long before all is read
    transfer.lines = lines_of(a, model)
    plan = planned(transfer, a.checkpointing)
    if a.plan:
        fits = plan.fits()
        say(plan_text(timed(plan) if fits else plan))
        return 0
    plan.require()
    facts = transfer.facts() | {"merge": a.merge}
    if a.curve is not None and a.curve.absolute().parent != a.output.absolute():
        check_writable(a.curve, in_place=False)
    with claimed(a.output, facts) as log:
        if is_finished(a.output):
            tell(f"{a.output} holds this run already, finished; name a new folder for another")
            return 0
        return trained(a, plan, log, facts)


def options_of(a: argparse.Namespace) -> TrainingOptions:
    """The options that the flags set. WrongUsage if one is out of range, or has no effect."""
    adapts = not (a.full or (a.train and a.lora is None)) and a.adapter is None
    if a.adapter is not None and (a.lora or a.full or a.train or a.alpha or a.words):
        wrong = "--lora, --full, --train, --alpha, --words"
        raise WrongUsage(f"--adapter goes on training that adapter as it is; leave out {wrong}")
    if a.alpha is not None and not adapts:
        raise WrongUsage("--alpha is for --lora")
    if a.words and not adapts:
        raise WrongUsage("--words is for --lora; without an adapter, the whole table can be trained")
    if a.full and a.train:
        raise WrongUsage("--full trains everything; leave it out, or --train")
    values = {field.name: getattr(a, field.name) for field in fields(TrainingOptions) if field.name in a}
    try:
        return TrainingOptions(**values | {"lora": (a.lora or DEFAULT_RANK) if adapts else None})
    except ValueError as error:
        raise WrongUsage(f"--{str(error).replace('_', '-', 1)}") from None


def lines_of(a: argparse.Namespace, model: VisionLanguageModel | LanguageModel) -> Lines:
    """The examples of all files. BadData, with file and line, for one that cannot be learned."""
    encoder = encoder_of(model)

    def examples(path: Path, split: str) -> tuple[Example, ...]:
        data = read_examples(path, encoder, split, a.pictures)
        found = required(data, a.skip_bad)
        if data.problems:
            tell(f"skipped {len(data.problems)} lines, such as {data.problems[0]}")
        return found

    held_out = {name: path for name, path in (("eval", a.eval), ("keep", a.keep)) if path is not None}
    if a.eval is None and a.data.is_dir() and split_file(a.data, "valid"):
        held_out = {"eval": a.data} | held_out
    return Lines(examples(a.data, "train"), {name: examples(path, "valid") for name, path in held_out.items()})


def trained(a: argparse.Namespace, plan: Plan, log: Log, facts: Mapping[str, Any]) -> int:
    """Run to the end, and write what was learned; returns the exit status."""
    transfer = plan.transfer
    plan = timed(plan)
    transfer.how = transfer.how._replace(recompute=plan.recompute)
    tell(summary(plan))
    progress = StepProgress(transfer.steps, plan.seconds)
    with transfer.recipe(a.output, plan.processes) as recipe:
        training = Training(recipe, transfer.trained, a.output, facts, log, a.save_every, progress.seen)
        try:
            training.run()
        except KeyboardInterrupt:
            progress.wipe()
            tell(f"interrupted; the same command continues after step {max(0, training.saved)}")
            return INTERRUPTED
        except BaseException:
            progress.wipe()
            raise
    progress.wipe()
    written = write_outputs(a, transfer)
    lines = log.lines()
    if a.curve is not None:
        draw_to(a.curve, lines, f"npgemma train {a.data.name}")
    scores = {name: line[name] for line in lines for name in EVALUATED if name in line}
    finish(a.output, facts, {"steps": transfer.steps, "scores": scores})
    say(results(lines), end="")
    progress.end(f"wrote {written} to {a.output}")
    return 0


def draw_to(path: Path, lines: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw the losses of a log. NpgemmaError if the file cannot be written."""
    try:
        with replace_file(path) as temporary:
            curve_of(lines, title).save(temporary, "PNG")
    except OSError as error:
        raise NpgemmaError(f"{path} cannot be written: {why(error)}") from None


def write_outputs(a: argparse.Namespace, transfer: Transfer) -> str:
    """Write the adapter or the model; returns what it is."""
    model = transfer.model
    if transfer.has_updates and not a.merge:
        base = a.model if a.model and is_repo_id(a.model.partition("@")[0]) else str(model.folder)
        save_adapter(a.output, transfer.tree, transfer.home, base)
        return "an adapter"
    save_model(a.output, transfer.tree, transfer.home, model.folder, model.named_tokenizer)
    return "a model"
