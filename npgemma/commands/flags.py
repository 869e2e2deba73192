"""The flags that commands share, what their values may be, and the model and the answer they ask for."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from npgemma.api.load import load
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.commands.output import INTERRUPTED, working
from npgemma.decoding.sampling import Sampling
from npgemma.decoding.text import Generation
from npgemma.io.system_memory import parse_size

AddParser = Callable[..., argparse.ArgumentParser]


def model_flags() -> argparse.ArgumentParser:
    """Which model, and how it computes."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="a folder in Hugging Face layout, a .safetensors file in one, or org/name[@revision] in the Hugging Face "
        "cache (default: the small model inside npgemma); nothing is downloaded",
    )
    flags.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter for it, as PEFT saves them, or its org/name")
    flags.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="what is computed in (default: float32)"
    )
    flags.add_argument(
        "--resident",
        action="store_true",
        help="widen all weights to that first, in memory: for long answers (12 GB for a 3B model)",
    )
    flags.add_argument(
        "--max-memory",
        type=memory,
        metavar="SIZE",
        help="refuse what would need more, such as 8GB (default: what is available)",
    )
    return flags


def answer_flags(form: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of every command that has a model answer."""
    common = argparse.ArgumentParser(add_help=False, parents=[form, model_flags()])
    common.add_argument(
        "--max-new-tokens", type=positive, default=256, metavar="N", help="stop after N tokens (default: 256)"
    )
    common.add_argument(
        "--temperature",
        type=checked("temperature", float),
        default=0.0,
        metavar="T",
        help="0 takes the likeliest token (default)",
    )
    common.add_argument(
        "--top-k", type=checked("top_k", int), metavar="K", help="with a temperature: draw from the K likeliest tokens"
    )
    common.add_argument(
        "--top-p",
        type=checked("top_p", float),
        default=1.0,
        metavar="P",
        help="with a temperature: draw from the likeliest tokens that make up P",
    )
    common.add_argument(
        "--min-p",
        type=checked("min_p", float),
        default=0.0,
        metavar="P",
        help="with a temperature: drop tokens less likely than P times the likeliest",
    )
    common.add_argument(
        "--repetition-penalty",
        type=checked("repetition_penalty", float),
        default=1.0,
        metavar="R",
        help="above 1: tokens that were read or written already are less likely",
    )
    common.add_argument(
        "--stop",
        type=some_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be repeated",
    )
    common.add_argument(
        "--seed", type=checked("seed", int), default=0, metavar="S", help="seed of the draws (default: 0)"
    )
    return common


def add_num_beams(common: argparse.ArgumentParser) -> None:
    """For the commands that answer one prompt at a time."""
    common.add_argument(
        "--num-beams",
        type=positive,
        default=1,
        metavar="K",
        help="search for the answer that is likeliest as a whole, with K at a time (default: 1, none)",
    )


class Version(argparse.Action):
    """--version; looked up when it is asked for, so that a checkout which is not installed runs too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, *_: Any) -> None:
        try:
            print(f"npgemma {version('npgemma')}")
        except PackageNotFoundError:
            print("npgemma, not installed")
        raise SystemExit(0)


def some_text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty, and so everywhere")
    return text


def memory(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def checked(name: str, kind: Callable[[str], float]) -> Callable[[str], float]:
    """An argparse type that holds a number against the rules of Sampling, so that a wrong one is a usage error."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            kinds = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {kinds}") from None
        try:
            Sampling(**{name: number})  # type: ignore[arg-type]
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return number

    return parse


class WrongUsage(Exception):
    """Flags that do not go together: the command line says so and ends with 2."""


def load_model(a: argparse.Namespace) -> VisionLanguageModel:
    """The model that `model_flags` ask for."""
    return load(a.model, a.dtype, a.resident, a.adapter, a.max_memory)


def sampling(a: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `generate` that `answer_flags` set. WrongUsage where one would have no effect."""
    drawn = [flag for flag, plain in DRAWING.items() if getattr(a, flag) != plain]
    if drawn and a.temperature == 0:
        raise WrongUsage(f"--{drawn[0].replace('_', '-')} is about drawing; it wants a --temperature above 0")
    if getattr(a, "num_beams", 1) > 1 and (a.temperature or a.repetition_penalty != 1):
        raise WrongUsage("--num-beams looks for the likeliest answer; --temperature and --repetition-penalty do not")
    names = ("max_new_tokens", "stop", "temperature", "repetition_penalty", "seed", *DRAWING)
    return {name: getattr(a, name) for name in names}


DRAWING = {"top_k": None, "top_p": 1.0, "min_p": 0.0}


def answer(a: argparse.Namespace, model: VisionLanguageModel, images: Any, prompt: str) -> tuple[Generation, int]:
    """What the flags ask for of one prompt, and the exit status: Ctrl-C leaves what is written so far, and 130."""
    options = sampling(a)
    written = Generation("", [], "interrupted")
    with working("reading the picture"):
        if a.num_beams > 1:
            best, *_ = model.beams(images, prompt, a.num_beams, a.max_new_tokens, a.stop)
            return best, 0
        try:
            for so_far in model.growing(images, prompt, **options):
                written = so_far
        except KeyboardInterrupt:
            print("npgemma: interrupted", file=sys.stderr)
            return replace(written, finish_reason="interrupted"), INTERRUPTED
    return written, 0
