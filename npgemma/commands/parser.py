"""The parser of a command, in which options may stand between the other arguments."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from npgemma.commands.output import printable, say


class Parser(argparse.ArgumentParser):
    """argparse, which repeats arguments without control characters, and does not hide that help cannot be written."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def print_help(self, file: Any = None) -> None:
        say(self.format_help(), end="", file=file)


class CommandParser(Parser):
    """Reads `classify cat.jpg -m MODEL 'a cat' 'a dog'`, which argparse alone refuses.

    It takes the arguments before an option for all that there are. parse_intermixed_args is not for subcommands, and
    in Python 3.11 it takes what follows `--` for options.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read the options before `--`, and then all the rest."""
        args = sys.argv[1:] if args is None else list(args)
        end = args.index("--") if "--" in args else len(args)
        names = [action for action in self._actions if action.option_strings]
        places = [action for action in self._actions if not action.option_strings]
        with replaced([self], usage=self.format_usage().removeprefix("usage: ")):
            with replaced(places, nargs=argparse.SUPPRESS, default=argparse.SUPPRESS):
                namespace, left = super().parse_known_args(args[:end], namespace)
            with replaced(names, required=False):
                return super().parse_known_args(left + args[end:], namespace)


@contextmanager
def replaced(objects: Sequence[Any], **values: Any) -> Iterator[None]:
    """Give attributes of all objects other values for a while."""
    were = [(each, {name: getattr(each, name) for name in values}) for each in objects]
    try:
        for each in objects:
            vars(each).update(values)
        yield
    finally:
        for each, own in were:
            vars(each).update(own)
