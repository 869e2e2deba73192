"""The flags that commands share, and the model and the answers that they ask for."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from npgemma.api import generation
from npgemma.api.classifier import Classifier
from npgemma.api.dual_encoder import DualEncoder
from npgemma.api.generation import Model
from npgemma.api.language import LanguageModel
from npgemma.api.load import AnyModel
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.commands.output import INTERRUPTED, say, tell, working
from npgemma.decoding.options import GenerationOptions
from npgemma.decoding.text import Generation, Transcript
from npgemma.errors import BadModel
from npgemma.io.picture import MAX_PIXELS
from npgemma.io.system_memory import parse_size

AddParser = Callable[..., argparse.ArgumentParser]


def loading_flags() -> argparse.ArgumentParser:
    """Which model, and how it computes."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.set_defaults(adapter=None, max_pixels=None)
    flags.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        help="a folder in Hugging Face layout, a .safetensors file in one, or org/name[@revision] in the Hugging Face "
        "cache; nothing is downloaded (default: for search the model that made the file, else an embedded model: "
        "tiny-gemma for chat and to continue a text, tiny-siglip for classify and embed, else a PaliGemma)",
    )
    flags.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="a tokenizer file, such as a tokenizer.json, for a folder without one (default: the folder's)",
    )
    flags.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="what is computed in (default: float32)"
    )
    flags.add_argument(
        "--resident",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="widen all weights to that dtype in memory first: for long answers (12 GB for a 3B model). Without either "
        "flag, batch and chat keep the weights that many tokens have needed, as many as fit; other commands keep none",
    )
    flags.add_argument(
        "--max-memory",
        type=memory,
        metavar="SIZE",
        help="the most memory to use, such as 8GB: runs that need more are refused (default: what is available)",
    )
    return flags


def encoder_flags() -> argparse.ArgumentParser:
    """The same for models that read pictures."""
    flags = argparse.ArgumentParser(add_help=False, parents=[loading_flags()])
    flags.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help=f"the most pixels of a picture (default: {MAX_PIXELS:,}); a larger file may be made to fill memory",
    )
    return flags


def strict_flag(what: str) -> argparse.ArgumentParser:
    """What to do about a text that is too long; `what` it is called."""
    flags = argparse.ArgumentParser(add_help=False)
    flags.add_argument(
        "--strict",
        action="store_true",
        help=f"refuse a {what} that is longer than the model reads (default: leave out its end, and say so)",
    )
    return flags


def chat_flags() -> argparse.ArgumentParser:
    """`loading_flags` for models that write, which take adapters."""
    return with_adapter(loading_flags())


def model_flags() -> argparse.ArgumentParser:
    """The same for models that write about pictures as well."""
    return with_adapter(encoder_flags())


def with_adapter(flags: argparse.ArgumentParser) -> argparse.ArgumentParser:
    flags.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter, as PEFT saves it, or its org/name")
    return flags


def answer_flags(*parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of every command that has a model answer. Their names are those of GenerationOptions."""
    flags = argparse.ArgumentParser(add_help=False, parents=parents)

    def add(name: str, kind: Callable[[str], Any], metavar: str, text: str) -> None:
        default = getattr(DEFAULTS, name)
        shown = "" if default is None else f" (default: {default:g})"
        flags.add_argument(
            f"--{name.replace('_', '-')}", type=option(name, kind), default=default, metavar=metavar, help=text + shown
        )

    add("max_new_tokens", int, "N", "stop after N tokens")
    add("temperature", float, "T", "0 takes the likeliest token; above 0, tokens are drawn")
    add("top_k", int, "K", "with a temperature: draw from the K likeliest tokens")
    add("top_p", float, "P", "with a temperature: draw from the fewest tokens whose probabilities reach P")
    add("min_p", float, "P", "with a temperature: leave out tokens less likely than P times the likeliest")
    add("repetition_penalty", float, "R", "above 1: tokens that were read or written become less likely")
    add("seed", int, "S", "seed of the draws")
    flags.add_argument(
        "--stop",
        type=option("stop", str),
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be repeated",
    )
    flags.add_argument(
        "--no-lookup",
        dest="lookup",
        action="store_false",
        help="run one token in each step, without guesses from prompt and answer: slower, and the same tokens",
    )
    return flags


def search_flags(form: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """`answer_flags`, and beam search, for the commands that answer one prompt at a time."""
    flags = answer_flags(form, model_flags())
    flags.add_argument(
        "--num-beams",
        type=option("num_beams", int),
        default=DEFAULTS.num_beams,
        metavar="K",
        help="search for the answer that is likeliest as a whole, with K at a time (default: 1, no search)",
    )
    return flags


class Version(argparse.Action):
    """--version, looked up when it is asked for: a checkout that is not installed runs, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, *_: Any) -> None:
        try:
            say(f"npgemma {version('npgemma')}")
        except PackageNotFoundError:
            say("npgemma, not installed")
        raise SystemExit(0)


def memory(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def option(name: str, kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type for a field of GenerationOptions: a value out of its range is a usage error."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            kinds = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {kinds}") from None
        try:
            GenerationOptions(**{name: value})
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return parse


class WrongUsage(Exception):
    """Flags that exclude each other: the command line says so and ends with 2."""


def load_any_model(a: argparse.Namespace) -> AnyModel:
    """The model that the flags ask for."""
    loaded: AnyModel = a.load(a.model, a.dtype, a.resident, a.adapter, a.max_memory, a.tokenizer)
    if a.max_pixels:
        loaded.processor.max_pixels = a.max_pixels
    return loaded


def load_model(a: argparse.Namespace) -> VisionLanguageModel | LanguageModel:
    """The same, for commands that have a model write. BadModel as for `require_writer`."""
    return require_writer(load_any_model(a))


def require_writer(loaded: AnyModel) -> VisionLanguageModel | LanguageModel:
    """The model. BadModel for one that does not write."""
    if isinstance(loaded, DualEncoder | Classifier):
        raise BadModel(
            f"{loaded.folder} ranks labels (npgemma classify) and writes no text; load a PaliGemma or a Gemma"
        )
    return loaded


def load_vision_language_model(a: argparse.Namespace) -> VisionLanguageModel:
    """The same, for commands about pictures. BadModel for a language model."""
    loaded = load_model(a)
    if not isinstance(loaded, VisionLanguageModel):
        raise BadModel(f"{loaded.folder} holds a language model, which reads no pictures; load a PaliGemma")
    return loaded


def load_dual_encoder(a: argparse.Namespace) -> DualEncoder:
    """The same, for commands that compare pictures and texts. BadModel for a model of another kind."""
    loaded = load_any_model(a)
    if not isinstance(loaded, DualEncoder):
        raise BadModel(f"{loaded.folder} does not compare pictures with texts; load a SigLIP or a CLIP")
    return loaded


def options(a: argparse.Namespace) -> GenerationOptions:
    """The options that the flags set. WrongUsage if they exclude each other, or if one would have no effect."""
    idle = [name for name in DRAWING if getattr(a, name) != getattr(DEFAULTS, name)]
    if idle and a.temperature == 0:
        raise WrongUsage(f"--{idle[0].replace('_', '-')} needs a --temperature above 0")
    samples = getattr(a, "samples", 1)
    if samples > 1 and (a.temperature == 0 or a.num_beams > 1):
        raise WrongUsage("--samples needs a --temperature above 0, and excludes --num-beams")
    if getattr(a, "num_beams", 1) > 1 and (a.temperature or a.repetition_penalty != 1):
        raise WrongUsage("--num-beams excludes --temperature and --repetition-penalty")
    names = ("max_new_tokens", "stop", "temperature", "repetition_penalty", "seed", "lookup", *DRAWING)
    values = {name: getattr(a, name) for name in names}
    return GenerationOptions(**values, num_beams=getattr(a, "num_beams", 1), num_return_sequences=samples)


DEFAULTS = GenerationOptions()
DRAWING = ("top_k", "top_p", "min_p")


def generate(
    model: Model, images: Any, prompt: str, chosen: GenerationOptions, ends: Sequence[int] | None = None
) -> tuple[list[Generation], int]:
    """The answers to one prompt, and the exit status.

    After Ctrl-C, the answers so far and 130. A beam search has none yet.
    """
    transcript = Transcript(generation.detokenizer(model, chosen), chosen.num_return_sequences)
    with working(reading(images)):
        try:
            if chosen.num_beams > 1:
                return generation.search(model, images, prompt, chosen), 0
            for token in generation.tokens(model, [images], [prompt], chosen, ends):
                transcript.add(token)
        except KeyboardInterrupt:
            if chosen.num_beams > 1:
                raise
            tell("interrupted")
            so_far = transcript.generations()
            return [replace(each, finish_reason=each.finish_reason or "interrupted") for each in so_far], INTERRUPTED
    return transcript.generations(), 0


def reading(images: Sequence[object]) -> str:
    """What a model does before it answers."""
    return "reading the picture" if images else "reading the prompt"
