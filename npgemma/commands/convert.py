"""convert: big_vision's .npz file as a folder in Hugging Face layout."""

import argparse
import sys
from pathlib import Path

from npgemma.checkpoints.convert import convert
from npgemma.commands.flags import AddParser
from npgemma.errors import BadModel
from npgemma.io.tokenizers import TOKENIZER


def add_convert(add_parser: AddParser) -> None:
    parser = add_parser("convert", help="write big_vision's .npz file as a folder in Hugging Face layout")
    parser.add_argument(
        "npz", type=Path, metavar="FILE.npz", help="PaliGemma 1 or 2 as big_vision or Kaggle publish it"
    )
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="the folder to write, new or empty; its disk needs room for twice the model",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help=f"PaliGemma's {TOKENIZER}, to be copied (default: the one beside the .npz file, if there is one)",
    )
    parser.set_defaults(run=run_convert)


def run_convert(a: argparse.Namespace) -> None:
    """Convert, and say what is missing to run the model."""
    beside = a.npz.parent / TOKENIZER
    tokenizer = a.tokenizer or (beside if beside.is_file() else None)
    if tokenizer is not None and not tokenizer.is_file():
        raise BadModel(f"{tokenizer} is missing: --tokenizer must name a {TOKENIZER}")
    convert(a.npz, a.folder, tokenizer)
    print(f"wrote {a.folder}", file=sys.stderr)
    if tokenizer is None:
        hint = f"copy PaliGemma's {TOKENIZER} into {a.folder} before you ask it anything"
        print(f"npgemma: {a.folder} has no {TOKENIZER}, since none was beside {a.npz}; {hint}", file=sys.stderr)
