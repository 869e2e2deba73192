"""The commands `golden` and `compare`: their flags, and what they run.

Exit status of compare: 0 if rounding explains every tap, 1 if a tap is wrong, 2 if something cannot be read, 3 if taps
are missing or names are unknown, 4 if a tap is borderline.

What is recorded depends on the model: a prompt, after pictures if it reads any; pictures, then texts, for a SigLIP or a
CLIP; pictures alone for a ViT.
"""

import argparse
import json
import sys
from itertools import takewhile
from pathlib import Path

from npgemma.api.classifier import Classifier
from npgemma.api.dual_encoder import DualEncoder
from npgemma.api.load import AnyModel, load
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.commands.ask import is_file, require_text
from npgemma.commands.flags import AddParser, WrongUsage
from npgemma.commands.gradients import add_gradients, check_gradients, compare_answers, embedded_of, record_answers
from npgemma.commands.output import as_json as json_text
from npgemma.commands.output import say
from npgemma.commands.streams import DUMP, PICTURE, PROMPT, shown
from npgemma.errors import BadGolden
from npgemma.golden.cases import STEPS
from npgemma.golden.chart import draw_chart
from npgemma.golden.compare import compare
from npgemma.golden.dump import read_dump
from npgemma.golden.file import EMBEDDED, read_golden
from npgemma.golden.mapping import SAME_NAMES
from npgemma.golden.mapping_file import read_mapping
from npgemma.golden.names import LEVELS, TABLES
from npgemma.golden.port_presets import PORTS
from npgemma.golden.presets import PRESETS, preset
from npgemma.golden.record import record
from npgemma.golden.replay import replay
from npgemma.golden.report import as_json, as_text
from npgemma.golden.rounding import SCHEDULES
from npgemma.golden.suggest import Suggestion, suggest_map
from npgemma.io.atomic_write import replace_file
from npgemma.io.model_folder import EMBEDDED_LANGUAGE
from npgemma.io.picture import write_picture, written_format
from npgemma.io.picture_kinds import SUFFIXES


def add_golden(add_parser: AddParser) -> None:
    """The command that records a golden file."""
    golden = add_parser("golden", help="record a golden file: the float64 truth of a run, to compare a port with")
    golden.add_argument(
        "case",
        nargs="*",
        metavar="IMAGE ... TEXT",
        help="the prompt, after pictures if any; for a SigLIP or a CLIP pictures, then texts; for a ViT pictures alone",
    )
    golden.add_argument("-o", "--output", type=Path, metavar="FILE", help="the .safetensors file to write")
    golden.add_argument(
        "-m", "--model", metavar="FOLDER", help="default: the embedded model; without a picture, that for text alone"
    )
    golden.add_argument(
        "--level",
        choices=LEVELS,
        default="blocks",
        help="io: ids, pixels, features, scores; blocks (default): each layer's result too; ops: everything",
    )
    golden.add_argument(
        "--taps", action="append", metavar="GLOB", help="record only taps whose names match; may be repeated"
    )
    add_gradients(golden)
    golden.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help=f"tokens to decode after the prefill (default: {STEPS}); with --gradients, steps of AdamW to record the "
        "losses of (default: none)",
    )
    golden.add_argument(
        "--rounding",
        choices=SCHEDULES,
        default="hf_eager",
        help="emulate bfloat16 as transformers computes it with eager (default) or with sdpa attention",
    )
    golden.add_argument(
        "--truth",
        choices=("float64", "float32"),
        help="what the truth is stored as (default: float64, or float32 for a model of 100 million parameters or more)",
    )
    golden.add_argument(
        "--list", action="store_true", help="print all taps with their axes, levels and meanings, and record nothing"
    )
    golden.set_defaults(
        run=run_golden,
        usage_error=golden.error,
        stdin={"case": (PICTURE, PROMPT)},
        stdout={"output": ".safetensors"},
        reads={"case": "a picture"},
    )


def add_compare(add_parser: AddParser) -> None:
    """The command that compares a dump with a golden file."""
    parser = add_parser(
        "compare",
        help="compare a port's dump with a golden file: does rounding explain the differences, and where not?",
    )
    parser.add_argument(
        "golden",
        metavar="GOLDEN",
        help="a golden file, or one of the embedded model: 'embedded', or 'embedded-long' (300 rows, 8 steps)",
    )
    parser.add_argument(
        "dump",
        metavar="DUMP",
        help="a .safetensors or .npz file, or a folder of .npy files or of transformers' model debugger",
    )
    add_names(parser)
    parser.add_argument(
        "--dtype",
        choices=("float32", "tf32", "bfloat16", "float16"),
        help="the precision the port computes in (default: the one that holds most of the dump's numbers)",
    )
    parser.add_argument(
        "--replay",
        action="store_true",
        help="run the model on the port's tensors, to find the block that makes a mistake",
    )
    parser.add_argument(
        "-m",
        "--model",
        metavar="FOLDER",
        help="the model for --replay (default: the embedded model of the kind that was recorded)",
    )
    parser.add_argument(
        "--adapter", metavar="FOLDER", help="the LoRA adapter that a file of gradients was recorded with, for --replay"
    )
    parser.add_argument(
        "--format", choices=("text", "json"), default="text", help="format of the report (default: text)"
    )
    parser.add_argument("--verbose", action="store_true", help="list every missing tap and unknown name")
    parser.add_argument(
        "--chart", type=Path, metavar="FILE", help="draw the error of every tap over its limit as a picture"
    )
    reads = {"golden": "the golden file", "dump": "the dump", "map": "the mapping"}
    writes = {"suggest_map": ".json", "chart": ".png"}
    parser.set_defaults(run=run_compare, failed=2, stdin={"dump": (DUMP,)}, stdout=writes, reads=reads)


def add_names(parser: argparse.ArgumentParser) -> None:
    """The flags that say which tensor of the dump is which tap."""
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--preset", choices=[*PRESETS, *PORTS], help="map the names of a known framework")
    names.add_argument("--map", metavar="FILE", help="a JSON file that maps the port's names to taps")
    names.add_argument(
        "--suggest-map", type=Path, metavar="FILE", help="write a draft of a mapping file, and do not compare"
    )
    parser.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="GLOB",
        help="taps that the dump may lack; may be repeated",
    )


def run_golden(a: argparse.Namespace) -> None:
    """Record a golden file, or print the table of taps."""
    if a.list:
        print_taps()
        return
    if not a.case or a.output is None:
        a.usage_error("it needs a prompt, or pictures and texts, and -o FILE")
    if a.steps is not None and a.steps < 0:
        a.usage_error(f"argument --steps: {a.steps} is negative; use 0 or more")
    check_gradients(a)
    if a.model is None and len(a.case) == 1:
        require_text(a.case[0])
        a.model = EMBEDDED_LANGUAGE.name
    model = load(a.model)
    images, text = case_of(a, model)
    if a.gradients:
        record_answers(a, model, images, text)
    else:
        record(model, images, text, a.output, a.level, a.taps or ["*"], a.steps, a.rounding, a.truth)
    say(f"wrote {shown(a.output)}, {a.output.stat().st_size:,} bytes", file=sys.stderr)


def case_of(a: argparse.Namespace, model: AnyModel) -> tuple[list[str], str | list[str]]:
    """The pictures and the text, or texts, that a model of this kind reads. WrongUsage for what it does not read."""
    if isinstance(model, DualEncoder | Classifier):
        if a.steps is not None and not a.gradients:
            raise WrongUsage(f"argument --steps: {a.model} writes no tokens; leave it out")
        images = list(takewhile(is_file, a.case))
        texts = a.case[len(images) :]
        return (images, pair_texts(a, images, texts)) if isinstance(model, DualEncoder) else (vit_images(a, texts), [])
    *images, prompt = a.case
    if not images:
        require_text(prompt)
    if not images and isinstance(model, VisionLanguageModel):
        raise WrongUsage(f"{a.model} answers about pictures; name one before the prompt")
    return images, prompt


def pair_texts(a: argparse.Namespace, images: list[str], texts: list[str]) -> list[str]:
    """The texts after the pictures for a SigLIP or a CLIP. WrongUsage if one of both is missing, or texts are files."""
    compares = f"{a.model} compares pictures with texts"
    if not texts:
        raise WrongUsage(f"{compares}; give texts after the pictures, such as 'a cat' 'a dog'")
    for text in texts:
        if is_file(text):
            raise WrongUsage(f"{compares}, and {text} is a file; name pictures before the first text")
        if Path(text).suffix.lower() in SUFFIXES:
            raise WrongUsage(f"{text} is not a file; {compares}, which are not called like pictures")
    if not images:
        raise WrongUsage(f"{compares}; name a picture before the texts")
    return texts


def vit_images(a: argparse.Namespace, others: list[str]) -> list[str]:
    """The pictures for a ViT. WrongUsage if `others`, the arguments from the first that is not a file, are any."""
    if others:
        raise WrongUsage(f"{others[0]} is not a file; {a.model} reads pictures alone")
    images: list[str] = a.case
    return images


def print_taps() -> None:
    """Print the taps of each kind of model, one a line: name, axes (- for a single number), level and meaning."""
    entries = [entry for table in TABLES.values() for entry in table]
    names, letters = (max(map(len, column)) for column in zip(*((e.pattern, e.axes) for e in entries), strict=True))
    for kind, table in TABLES.items():
        say(f"{kind}:")
        for entry in table:
            say(f"{entry.pattern:<{names}}  {entry.axes or '-':<{letters}}  {entry.level:<6}  {entry.meaning}")


def run_compare(a: argparse.Namespace) -> int:
    """Compare and print the report; returns the exit status."""
    if a.chart:
        written_format(a.chart)
    golden = read_golden(EMBEDDED.get(a.golden, a.golden))
    dump = read_dump(a.dump)
    if "gradients" in golden.metadata:
        return compare_answers(a, golden, dump)
    if a.adapter:
        raise WrongUsage(f"argument --adapter: {a.golden} has no gradients, and was recorded without one; leave it out")
    if a.suggest_map:
        return write_suggestion(a.suggest_map, suggest_map(golden, dump))
    names = preset(a.preset, golden) if a.preset else read_mapping(a.map) if a.map else SAME_NAMES
    report = compare(golden, dump, names, a.dtype, a.allow_missing)
    if a.replay:
        report = replay(load(a.model or embedded_of(golden)), golden, dump, report)
    say(json_text(as_json(report, golden)) if a.format == "json" else as_text(report, golden, a.verbose))
    if a.chart:
        write_picture(draw_chart(report), a.chart)
    return report.status


def write_suggestion(path: Path, found: Suggestion) -> int:
    """Write the draft of a mapping file. BadGolden if `path` cannot be written."""
    try:
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(found.mapping, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise BadGolden(f"{path} cannot be written: {error.strerror}") from None
    say(f"wrote {shown(path)}; check it, correct it, and pass it with --map\n{found.summary}", file=sys.stderr)
    return 0
