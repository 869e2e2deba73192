"""The errors that npgemma raises for bad input: each message says what is wrong, where, and what to do about it."""

import re
from collections import abc

SHOWN = 200  # how many characters of a value that may be long, such as a path, a message repeats


def shortened(value: object, limit: int = SHOWN) -> str:
    """A value as a message repeats it: whole, or its beginning and how long it is."""
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def why(error: Exception) -> str:
    """What an exception says, without the number and the path that an OSError puts around it."""
    return getattr(error, "strerror", None) or str(error)


def one_line(text: str) -> str:
    """A name from a file as a message or a report repeats it: on one line, control characters escaped."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: ascii(found[0])[1:-1], text)


def listed(names: abc.Iterable[str], most: int = 5) -> str:
    """The first few names as a message lists them, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


class NpgemmaError(Exception):
    """Base class of every error that npgemma raises for bad input; catch it to catch them all.

    Examples
    --------
    >>> import npgemma
    >>> try:
    ...     npgemma.load().generate("missing.png", "caption en")
    ... except npgemma.NpgemmaError as error:
    ...     print(f"{type(error).__name__}: {error}")
    BadPicture: missing.png was not found
    """


class BadModel(NpgemmaError):
    """A model is unusable: a file is missing or damaged, or does not fit config.json.

    Examples
    --------
    >>> import npgemma
    >>> try:
    ...     npgemma.load("no/such/model")
    ... except npgemma.BadModel as error:
    ...     print(str(error).split(":")[0])
    no/such/model was not found
    """


class BadPicture(NpgemmaError):
    """A picture cannot be read or written, or an array does not have the dtype and shape of a picture.

    Examples
    --------
    >>> import numpy as np
    >>> import npgemma
    >>> try:
    ...     npgemma.load().generate(np.zeros((8, 8, 3)), "caption en")
    ... except npgemma.BadPicture as error:
    ...     print(error)
    a picture array must be uint8 [H W], [H W 1], [H W 3] or [H W 4], not float64 [8, 8, 3]
    """


class BadPrompt(NpgemmaError):
    """A prompt, its token ids or its number of pictures is invalid.

    Examples
    --------
    >>> import npgemma
    >>> from npgemma.tasks.prompts import detect_prompt
    >>> try:
    ...     detect_prompt(["cat;dog"])
    ... except npgemma.BadPrompt as error:
    ...     print(error)
    give one or more labels; a label must not be empty or contain ';': ['cat;dog']
    """


class BadJobs(NpgemmaError):
    """A file of jobs cannot be read, or a file of results cannot be continued.

    Examples
    --------
    >>> from pathlib import Path
    >>> import npgemma
    >>> from npgemma.io.jobs import read_jobs
    >>> try:
    ...     read_jobs(Path("missing.jsonl"))
    ... except npgemma.BadJobs as error:
    ...     print(error)
    missing.jsonl cannot be read: No such file or directory
    """


class BadData(NpgemmaError):
    """A file of training examples, or of COCO annotations, cannot be read, or holds lines that cannot be learned.

    Examples
    --------
    >>> from pathlib import Path
    >>> import npgemma
    >>> from npgemma.training.examples import data_file
    >>> try:
    ...     data_file(Path("missing.jsonl"))
    ... except npgemma.BadData as error:
    ...     print(error)
    missing.jsonl was not found
    """


class BadEmbeddings(NpgemmaError):
    """A file of embeddings is damaged, holds something else, or was made with another model.

    Examples
    --------
    >>> from pathlib import Path
    >>> import npgemma
    >>> from npgemma.io.embeddings import read_embeddings
    >>> try:
    ...     read_embeddings(Path("missing.npz"))
    ... except npgemma.BadEmbeddings as error:
    ...     print(error)
    missing.npz was not found; npgemma embed makes such files
    """


class TooLittleMemory(NpgemmaError):
    """A run needs more memory than is available or allowed.

    Examples
    --------
    >>> import npgemma
    >>> try:
    ...     npgemma.load(max_memory=100_000_000)
    ... except npgemma.TooLittleMemory as error:
    ...     print(str(error).partition(" (")[0])
    this needs 0.15 GB
    """


class BadGolden(NpgemmaError):
    """A golden file, a dump to compare with it, or a name mapping is invalid.

    Examples
    --------
    >>> import npgemma
    >>> from npgemma.golden import read_golden
    >>> try:
    ...     read_golden("missing.safetensors")
    ... except npgemma.BadGolden as error:
    ...     print(error)
    missing.safetensors is missing
    """
