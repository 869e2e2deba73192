"""Files of results: one JSON object per line.

Results are appended line by line, and each is on disk before the next begins. So if the process ends for any reason,
the file contains every finished result and at most one incomplete line, which is removed when the work continues.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from npgemma.errors import BadJobs, NpgemmaError, shortened
from npgemma.io.atomic_write import replace_file
from npgemma.io.jobs import MAX_LINE, InvalidJob, Job
from npgemma.io.regular_files import open_to_continue
from npgemma.io.strict_json import parse_json

LONGEST_LINE = 16 * MAX_LINE  # bytes: a result repeats its job in ASCII, and has an answer and its scores
COMPARED = ("prompt", "image", "suffix")  # what a result has of its job


class Results:
    """An open file of results. `done` holds what each finished job asked, by id, and whether it has a score."""

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

    def remaining(self, jobs: Iterable[Job | InvalidJob], path: Path, score: bool = False) -> list[Job | InvalidJob]:
        """The jobs without a result.

        BadJobs if a result has the id of a job, but another prompt, picture or suffix, or lacks the `score` asked for.
        """
        remaining = []
        for job in jobs:
            found = self.done.get(job.id)
            if found is None:
                remaining.append(job)
                continue
            name = shortened(repr(job.id))
            if score and not found.get("score"):
                raise BadJobs(f"{path}: the result of {name} has no score; write to another file")
            for key in COMPARED if isinstance(job, Job) else ():
                asked = getattr(job, key)
                if found.get(key, asked) != asked:
                    difference = f"has {key} {shortened(repr(found[key]))}, but the job has {shortened(repr(asked))}"
                    raise BadJobs(f"{path}: the result of {name} {difference}; write to another file")
        return remaining


@contextmanager
def open_results(path: Path) -> Iterator[Results]:
    """Open a file of results to continue it, or create it.

    An incomplete last line, left by an interrupted process, is removed, and so are errors, whose jobs are tried again.
    BadJobs if the file contains anything else, which is left unchanged, if it cannot be written, or if another process
    is writing it.
    """
    path = Path(os.path.realpath(path))  # if it is a link, write to its target
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
        file = held.enter_context(open_to_continue(path))
        lock(file, path, BadJobs)
        file.seek(0)
        done: dict[str | int, dict[str, Any]] = {}
        end, errors = 0, False
        for line, result in complete_results(file, path):
            end += len(line)
            if "error" in result:
                errors = True
            else:
                done[result["id"]] = {key: result[key] for key in COMPARED if key in result}
                if "score" in result:
                    done[result["id"]] |= {"score": True}
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
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
        result: Any = None
        if len(line) <= LONGEST_LINE:
            if not line.endswith(b"\n") and is_incomplete(line):
                return
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


def lock(file: IO[bytes], path: Path, error: type[NpgemmaError]) -> None:
    """Lock `file` until it is closed or the process ends. An `error` if another process has locked or just replaced it.

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
        raise error(f"{path} is being written by another process")
