"""Files of jobs and files of results: one JSON object per line.

Results are appended line by line, and each is on disk before the next begins. So if the process ends for any reason,
the file contains every finished result and at most one incomplete line, which is removed when the work continues.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from npgemma.errors import BadJobs
from npgemma.io.atomic_write import replace_file
from npgemma.io.strict_json import parse_json

MAX_LINE = 1_000_000  # bytes; a longer line is an invalid job
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}


@dataclass(frozen=True)
class Job:
    """A prompt about one or more pictures, for `answer_jobs`.

    Parameters
    ----------
    id : str or int
        Identifies the job and its answer.
    images : tuple of str
        Paths of the pictures, relative to `folder`.
    prompt : str
        The prompt, without a newline at its end.
    folder : Path
        The folder that relative paths start from.

    Examples
    --------
    >>> from pathlib import Path
    >>> import npgemma
    >>> job = npgemma.Job("first", ("a.png",), "caption en", Path("pictures"))
    >>> job.image
    'a.png'
    """

    id: str | int
    images: tuple[str, ...]
    prompt: str
    folder: Path

    @property
    def image(self) -> str | list[str]:
        """The pictures as a line of JSON has them: one path, or a list of paths."""
        return self.images[0] if len(self.images) == 1 else list(self.images)


@dataclass(frozen=True)
class InvalidJob:
    """A line that is not a valid job, and the reason."""

    id: str | int
    error: str


def read_jobs(path: Path) -> list[Job | InvalidJob]:
    """The jobs in a file of lines {"id": ..., "image": ..., "prompt": ...}.

    `id` is text or a whole number; a job without an id, or with an invalid one, is called 'line N'. `image` is a path
    or a list of paths, relative to the file's folder. Other keys and empty lines are ignored. BadJobs if the file
    cannot be read.
    """
    jobs: list[Job | InvalidJob] = []
    seen: dict[str | int, str] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(lines(file), 1):
                if not line.strip() and len(line) <= MAX_LINE:
                    continue
                name = f"line {number}"
                job = read_job(line, name, path.parent)
                if job.id in seen:
                    job = InvalidJob(name, f"{name}: the id {job.id!r} is already used in {seen[job.id]}")
                seen[job.id] = name
                jobs.append(job)
    except OSError as error:
        raise BadJobs(f"{path} cannot be read: {error.strerror}") from None
    return jobs


def folder_jobs(folder: Path, prompt: str) -> list[Job | InvalidJob]:
    """One job per picture in a folder, sorted by file name, which is the id. BadJobs without pictures."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise BadJobs(f"{folder} cannot be read: {error.strerror}") from None
    if not names:
        raise BadJobs(f"{folder} contains no pictures: no file name ends in {', '.join(sorted(SUFFIXES))}")
    return [Job(name, (name,), prompt, folder) for name in names]


def lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file, each cut to about MAX_LINE bytes."""
    while line := file.readline(MAX_LINE + 1):
        rest = line
        while rest and not rest.endswith(b"\n") and len(rest) > MAX_LINE:
            rest = file.readline(MAX_LINE + 1)
        yield line


def read_job(line: bytes, where: str, folder: Path) -> Job | InvalidJob:
    """Parse one line; an InvalidJob says what is wrong with it."""
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"it is longer than {MAX_LINE} bytes")
        values = parse_json(line)
        if not isinstance(values, dict):
            raise ValueError(f"it is {json.dumps(values)[:60]}")
    except (ValueError, RecursionError) as error:
        return InvalidJob(where, f"{where} is not a JSON object: {error}")
    name, image, prompt = values.get("id", where), values.get("image"), values.get("prompt")
    images = [each for each in (image if isinstance(image, list) else [image]) if isinstance(each, str)]
    if type(name) not in (str, int):
        return InvalidJob(where, f"{where}: id is {name!r}, not text or a whole number")
    if name != where and re.fullmatch(r"line \d+", str(name)):
        return InvalidJob(where, f"{where}: the id {name!r} is reserved for a line without an id; choose another")
    if not images or (isinstance(image, list) and len(images) < len(image)):
        return InvalidJob(name, f"{where}: image is {image!r}, not a path or a list of paths")
    if not isinstance(prompt, str):
        return InvalidJob(name, f"{where}: prompt is {prompt!r}, not text")
    return Job(name, tuple(images), prompt, folder)


class Results:
    """An open file of results. `done` holds the prompt and image of each finished job, by id."""

    def __init__(self, file: IO[bytes], done: Mapping[str | int, Mapping[str, Any]]) -> None:
        self.file = file
        self.done = done

    def write(self, result: Mapping[str, Any]) -> None:
        """Append one result, and return when it is on disk. BadJobs if it cannot be written."""
        try:
            line = memoryview(json.dumps(result).encode("ascii") + b"\n")
            while line:  # unbuffered, since a buffer would retry a failed write when the file is closed
                line = line[os.write(self.file.fileno(), line) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            raise BadJobs(f"{self.file.name} cannot be written: {error.strerror or error}") from None

    def remaining(self, jobs: Iterable[Job | InvalidJob], path: Path) -> list[Job | InvalidJob]:
        """The jobs without a result. BadJobs if a result has the id of a job, but another prompt or picture."""
        remaining = []
        for job in jobs:
            found = self.done.get(job.id)
            if found is None:
                remaining.append(job)
            if found is None or isinstance(job, InvalidJob):
                continue
            for key, asked in (("prompt", job.prompt), ("image", job.image)):
                if found.get(key, asked) != asked:
                    difference = f"has {key} {found[key]!r}, but the job has {asked!r}"
                    raise BadJobs(f"{path}: the result of {job.id!r} {difference}; write to another file")
        return remaining


@contextmanager
def open_results(path: Path) -> Iterator[Results]:
    """Open a file of results to continue it, or create it.

    An incomplete last line, left by an interrupted process, is removed, and so are errors, whose jobs are tried again.
    BadJobs if the file contains anything else, which is left unchanged, if it cannot be written, or if another process
    is writing it.
    """
    path = path.resolve()  # if it is a link, write to its target
    with ExitStack() as held:
        try:
            results = prepare(path, held)
        except OSError as error:
            raise BadJobs(f"{path} cannot be written: {error.strerror or error}") from None
        yield results


def prepare(path: Path, held: ExitStack) -> Results:
    """Open and lock the file until `held` closes, and remove errors and an incomplete last line from it."""
    while True:
        if path.exists() and not path.is_file():
            raise BadJobs(f"{path} is not a regular file; write results to a regular file")
        file = held.enter_context(path.open("a+b"))
        lock(file, path)
        file.seek(0)
        done: dict[str | int, Mapping[str, Any]] = {}
        end, errors = 0, False
        for line, result in complete_results(file, path):
            end += len(line)
            if "error" in result:
                errors = True
            else:
                done[result["id"]] = {key: result[key] for key in ("prompt", "image") if key in result}
        if not errors:
            if end < file.seek(0, os.SEEK_END):
                file.truncate(end)
            return Results(file, done)
        file.seek(0)
        with replace_file(path) as temporary:
            with temporary.open("wb") as cleaned:
                cleaned.writelines(line for line, result in complete_results(file, path) if "error" not in result)
            # Keep the old file locked, so that a process that has already opened it does not write to it. Windows
            # cannot replace an open file.
            if os.name == "nt":
                file.close()


def complete_results(file: IO[bytes], path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line and its result, without an incomplete last line. BadJobs for a line that is not a result."""
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n") and is_incomplete(line):
            return
        result: Any = None
        with suppress(ValueError, RecursionError):
            result = parse_json(line)
        if not is_result(result):
            raise BadJobs(f"{path}: line {number} is not the result of a job; write to another file")
        if line.endswith(b"\n"):
            yield line, result


def is_result(value: Any) -> bool:
    """Whether a JSON value has a job's id, and either a text or an error."""
    named = isinstance(value, dict) and type(value.get("id")) in (str, int)
    return named and ("text" in value) != ("error" in value)


def is_incomplete(line: bytes) -> bool:
    """Whether a line is the beginning of a result, but not valid JSON."""
    begin = b'{"id": '
    try:
        parse_json(line)
    except (ValueError, RecursionError):
        return line[: len(begin)] == begin[: len(line)]
    return False


def lock(file: IO[bytes], path: Path) -> None:
    """Lock `file` until it is closed or the process ends. BadJobs if another process has locked or just replaced it.

    Does nothing where such locks do not exist (Windows, some network drives).
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(file.fileno()), path.stat())  # no other process has replaced it meanwhile
    except (BlockingIOError, FileNotFoundError):
        mine = False
    except OSError:  # some network drives do not support locks
        return
    if not mine:
        raise BadJobs(f"{path} is being written by another process")
