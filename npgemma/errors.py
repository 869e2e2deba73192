"""The errors that npgemma raises for bad input: each message says what is wrong, where, and what to do about it."""


class NpgemmaError(Exception):
    """Base class of every error that npgemma raises for bad input; catch it to catch them all.

    Examples
    --------
    >>> import npgemma
    >>> try:
    ...     npgemma.load().generate("missing.png", "caption en")
    ... except npgemma.NpgemmaError as error:
    ...     print(f"{type(error).__name__}: {error}")
    BadPicture: missing.png is missing: there is no such picture
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
    """A picture cannot be read or written, or an array does not have the dtype and shape of a picture."""


class BadPrompt(NpgemmaError):
    """A prompt, its token ids or its number of pictures is invalid."""


class BadJobs(NpgemmaError):
    """A file of jobs cannot be read, or a file of results cannot be continued."""


class TooLittleMemory(NpgemmaError):
    """A run needs more memory than is available or allowed."""


class BadGolden(NpgemmaError):
    """A golden file, a dump to compare with it, or a name mapping is invalid."""
