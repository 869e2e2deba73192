"""What npgemma raises when something from outside is wrong: a sentence on what, where, why and what to do."""


class NpgemmaError(Exception):
    """The base of every error below; catch it to catch them all."""


class BadModel(NpgemmaError):
    """A model folder cannot be used: a file is missing, damaged, or does not fit its config."""


class BadPicture(NpgemmaError):
    """A picture cannot be read, or an array is not a picture."""


class BadPrompt(NpgemmaError):
    """A prompt, its ids or its number of pictures cannot be used."""


class BadJobs(NpgemmaError):
    """A file of jobs cannot be read, or a file of results cannot be gone on with."""


class TooLittleMemory(NpgemmaError):
    """A run would need more memory than there is, or than is allowed."""


class BadGolden(NpgemmaError):
    """A golden file, a dump to compare with one, or a mapping of names cannot be used."""
