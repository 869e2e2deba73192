"""convert: an .npz file of Google's as a folder in Hugging Face layout."""

import argparse
import sys
from pathlib import Path

from npgemma.checkpoints.convert import convert
from npgemma.commands.flags import AddParser
from npgemma.commands.output import say, tell
from npgemma.errors import BadModel
from npgemma.io.siglip_tokenizer import SPIECE
from npgemma.io.tokenizers import TOKENIZER


def add_convert(add_parser: AddParser) -> None:
    parser = add_parser("convert", help="write an .npz file of Google's as a folder in Hugging Face layout")
    parser.add_argument(
        "npz",
        type=Path,
        metavar="FILE.npz",
        help="PaliGemma, SigLIP or SigLIP 2 as big_vision publishes them, or a ViT of vision_transformer",
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
        help=f"the model's {TOKENIZER}, or {SPIECE} of SigLIP 1, to be copied (default: the one beside the .npz file)",
    )
    parser.set_defaults(run=run_convert)


def run_convert(a: argparse.Namespace) -> None:
    """Convert, and say what is missing to run the model."""
    if a.tokenizer is not None and not a.tokenizer.is_file():
        raise BadModel(f"{a.tokenizer} is missing: --tokenizer must name a {TOKENIZER} or a {SPIECE}")
    needed = convert(a.npz, a.folder, a.tokenizer)
    say(f"wrote {a.folder}", file=sys.stderr)
    if needed:
        tell(needed)
