"""The parsers of other projects may raise anything for a damaged file.

Every call of one of them (NumPy, zipfile, Pillow, safetensors, SentencePiece) stands in `parsing`, so that callers have
one error to turn into theirs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from npgemma.errors import NpgemmaError


class Damaged(Exception):
    """A file cannot be parsed; the text says why."""


@contextmanager
def parsing() -> Iterator[None]:
    """Damaged, with its words, for whatever the block raises, but for a missing file and an error of npgemma's own."""
    try:
        yield
    except (FileNotFoundError, NpgemmaError, Damaged):
        raise
    except Exception as error:
        silent = "it ends too early" if isinstance(error, EOFError) else "it is damaged"
        raise Damaged(getattr(error, "strerror", None) or str(error) or silent) from error
