"""The command line. stdout carries the result alone, everything else goes to stderr.

Exit status: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C, 141 when the reader of stdout has closed it.
`compare` has its own; see commands.golden.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable

from npgemma.api.load import AnyModel, load
from npgemma.commands.ask import add_ask
from npgemma.commands.batch import add_batch
from npgemma.commands.chat import add_chat
from npgemma.commands.classify import add_classify
from npgemma.commands.convert import add_convert
from npgemma.commands.demo import add_demo
from npgemma.commands.embed import add_embed
from npgemma.commands.flags import Version, WrongUsage
from npgemma.commands.golden import add_compare, add_golden
from npgemma.commands.inspect import add_inspect
from npgemma.commands.objects import add_objects
from npgemma.commands.output import INTERRUPTED, tell
from npgemma.commands.outputs import check_outputs
from npgemma.commands.parser import CommandParser, Parser
from npgemma.commands.prepare import add_prepare
from npgemma.commands.search import add_search
from npgemma.commands.streams import standard_streams
from npgemma.commands.train import add_train
from npgemma.commands.verify import add_verify
from npgemma.errors import NpgemmaError


def main(arguments: list[str] | None = None, load: Callable[..., AnyModel] = load) -> int:
    """Run one command; returns the exit status. `load` is how commands get a model."""
    failed = 1  # the exit status for a NpgemmaError
    if sys.stderr is None:  # a closed stderr
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - to the end of the process
    try:
        if sys.stdout is None:
            raise OSError("stdout is closed")
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII terminal gets escapes, not an error
        try:
            a = build_parser().parse_args(arguments)
            a.load, failed = load, getattr(a, "failed", failed)
            with standard_streams(a):
                check_outputs(a)
                status = a.run(a) or 0
        finally:
            sys.stdout.flush()  # of --version too, which exits
    except WrongUsage as error:
        tell(str(error))
        return 2
    except NpgemmaError as error:
        tell(str(error))
        return failed
    except BrokenPipeError:  # the reader of stdout, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, MemoryError) as error:  # a full disk, a closed stdout, a machine too small
        tell(str(error) or "out of memory")
        return 1
    except KeyboardInterrupt:
        tell("interrupted")
        return INTERRUPTED
    return int(status)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="npgemma",
        description="PaliGemma, Gemma, SigLIP, CLIP and ViT in plain NumPy, on a CPU: questions about pictures, chat, "
        "and labels. No downloads.",
    )
    parser.add_argument("--version", action=Version, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=CommandParser)
    form = argparse.ArgumentParser(add_help=False)
    form.add_argument("--format", choices=("text", "json"), default="text", help="what goes to stdout (default: text)")
    add_demo(commands.add_parser)
    add_ask(commands.add_parser, form)
    add_objects(commands.add_parser, form)
    add_classify(commands.add_parser, form)
    add_embed(commands.add_parser)
    add_search(commands.add_parser, form)
    add_chat(commands.add_parser, form)
    add_batch(commands.add_parser)
    add_train(commands.add_parser)
    add_inspect(commands.add_parser, form)
    add_verify(commands.add_parser, form)
    add_convert(commands.add_parser)
    add_prepare(commands.add_parser)
    add_golden(commands.add_parser)
    add_compare(commands.add_parser)
    return parser
