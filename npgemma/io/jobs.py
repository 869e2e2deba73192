"""Files of jobs and of their results: one JSON object a line.

Results are appended, a whole line at a time, and each is on the disk before the next begins. So whatever ends the
process, the file holds every finished result and at most a part of one more, which is cut off when work goes on.
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
from npgemma.io.atomic_write import beside
from npgemma.io.strict_json import parse_json

MAX_LINE = 1_000_000  # bytes; a longer line is no job
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}


@dataclass(frozen=True)
class Job:
    """A prompt about pictures, which are as they are written: paths from `folder`."""

    id: str | int
    images: tuple[str, ...]
    prompt: str
    folder: Path

    @property
    def image(self) -> str | list[str]:
        """The pictures as a line of JSON has them."""
        return self.images[0] if len(self.images) == 1 else list(self.images)


@dataclass(frozen=True)
class NoJob:
    """A line that is no job, and why."""

    id: str | int
    error: str


def read_jobs(path: Path) -> list[Job | NoJob]:
    """The jobs in a file of lines {"id": ..., "image": ..., "prompt": ...}.

    `id` is text or a whole number; without one a job is called 'line N', as what is no job. `image` is a path or a list
    of paths, from the file's folder. Other keys are passed over, and so are empty lines. BadJobs if the file cannot be
    read.
    """
    jobs: list[Job | NoJob] = []
    seen: dict[str | int, str] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(lines(file), 1):
                if not line.strip() and len(line) <= MAX_LINE:
                    continue
                name = f"line {number}"
                job = read_job(line, name, path.parent)
                if job.id in seen:
                    job = NoJob(name, f"{name}: the id {job.id!r} is that of {seen[job.id]} already")
                seen[job.id] = name
                jobs.append(job)
    except OSError as error:
        raise BadJobs(f"{path} cannot be read: {error.strerror}") from None
    return jobs


def folder_jobs(folder: Path, prompt: str) -> list[Job | NoJob]:
    """The same prompt about every picture in a folder, by name, which is its id. BadJobs if it holds none."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise BadJobs(f"{folder} cannot be read: {error.strerror}") from None
    if not names:
        raise BadJobs(f"{folder} holds no picture: no file that ends in {', '.join(sorted(SUFFIXES))}")
    return [Job(name, (name,), prompt, folder) for name in names]


def lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file, none of them longer in memory than MAX_LINE and a little."""
    while line := file.readline(MAX_LINE + 1):
        rest = line
        while rest and not rest.endswith(b"\n") and len(rest) > MAX_LINE:
            rest = file.readline(MAX_LINE + 1)
        yield line


def read_job(line: bytes, where: str, folder: Path) -> Job | NoJob:
    """One line as a job, or as the reason why it is none."""
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"it is longer than {MAX_LINE} bytes")
        values = parse_json(line)
        if not isinstance(values, dict):
            raise ValueError(f"it is a JSON {type(values).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        return NoJob(where, f"{where} is no JSON object: {error}")
    name, image, prompt = values.get("id", where), values.get("image"), values.get("prompt")
    images = [each for each in (image if isinstance(image, list) else [image]) if isinstance(each, str)]
    if type(name) not in (str, int):
        return NoJob(where, f"{where}: id is {name!r}, neither text nor a whole number")
    if name != where and re.fullmatch(r"line \d+", str(name)):
        return NoJob(where, f"{where}: id is {name!r}, as lines without one are called; call it otherwise")
    if not images or (isinstance(image, list) and len(images) < len(image)):
        return NoJob(name, f"{where}: image is {image!r}, neither a path nor a list of paths")
    if not isinstance(prompt, str):
        return NoJob(name, f"{where}: prompt is {prompt!r}, not text")
    return Job(name, tuple(images), prompt, folder)


class Results:
    """A file of results: the prompt and the image of each job that has one, and a place for more."""

    def __init__(self, file: IO[bytes], done: Mapping[str | int, Mapping[str, Any]]) -> None:
        self.file = file
        self.done = done

    def write(self, result: Mapping[str, Any]) -> None:
        """Append one result, and return when it is on the disk. BadJobs if it cannot be written."""
        try:
            line = memoryview(json.dumps(result).encode("ascii") + b"\n")
            while line:  # past the file's buffer, which would try again what could not be written
                line = line[os.write(self.file.fileno(), line) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            raise BadJobs(f"{self.file.name} cannot be written: {error.strerror or error}") from None

    def left(self, jobs: Iterable[Job | NoJob], path: Path) -> list[Job | NoJob]:
        """The jobs that have no result yet. BadJobs if one has the result of something else."""
        left = []
        for job in jobs:
            found = self.done.get(job.id)
            if found is None:
                left.append(job)
            if found is None or isinstance(job, NoJob):
                continue
            for key, asked in (("prompt", job.prompt), ("image", job.image)):
                if found.get(key, asked) != asked:
                    answered = f"{key} {found[key]!r}, where {asked!r} is asked now"
                    raise BadJobs(f"{path}: the result of {job.id!r} is for {answered}; write to another file")
        return left


@contextmanager
def open_results(path: Path) -> Iterator[Results]:
    """The results in `path`, none if there is no such file yet.

    What is no result any more is taken away: a part of one at the end, left by a process that was ended, and errors,
    since their jobs are to be tried again. BadJobs if the file holds anything else, which is left as it is, if it
    cannot be written, or if another process writes it.
    """
    path = path.resolve()  # a link stays one: what it leads to is written
    with ExitStack() as held:
        try:
            results = prepare(path, held)
        except OSError as error:
            raise BadJobs(f"{path} cannot be written: {error.strerror or error}") from None
        yield results


def prepare(path: Path, held: ExitStack) -> Results:
    """The file, open and locked until `held` ends, with right and whole results alone in it."""
    while True:
        if path.exists() and not path.is_file():
            raise BadJobs(f"{path} is no file; results are written to one")
        file = held.enter_context(path.open("a+b"))
        lock(file, path)
        file.seek(0)
        done: dict[str | int, Mapping[str, Any]] = {}
        end, errors = 0, False
        for line, result in whole_results(file, path):
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
        with beside(path) as temporary:
            with temporary.open("wb") as cleaned:
                cleaned.writelines(line for line, result in whole_results(file, path) if "error" not in result)
            # Elsewhere the old file stays locked, so that whoever has opened it already does not write to it any more;
            # on Windows a file that is open cannot be replaced.
            if os.name == "nt":
                file.close()


def whole_results(file: IO[bytes], path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line and what it says, but for a part of one at the end. BadJobs if there is anything else."""
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n") and is_part(line):
            return
        result: Any = None
        with suppress(ValueError, RecursionError):
            result = parse_json(line)
        if not is_result(result):
            raise BadJobs(f"{path}: line {number} is no result of a job; write to another file")
        if line.endswith(b"\n"):
            yield line, result


def is_result(value: Any) -> bool:
    """A job's id with a text or an error."""
    named = isinstance(value, dict) and type(value.get("id")) in (str, int)
    return named and ("text" in value) != ("error" in value)


def is_part(line: bytes) -> bool:
    """Whether a line is the beginning of a result and no more."""
    begin = b'{"id": '
    try:
        parse_json(line)
    except (ValueError, RecursionError):
        return line[: len(begin)] == begin[: len(line)]
    return False


def lock(file: IO[bytes], path: Path) -> None:
    """Keep others from writing to `file` until it is closed or the process ends. BadJobs if one does, or did just now.

    Where there are no such locks (Windows, some network drives), nothing is kept.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(file.fileno()), path.stat())  # it was not replaced in the meantime
    except (BlockingIOError, FileNotFoundError):
        mine = False
    except OSError:  # some network drives have none
        return
    if not mine:
        raise BadJobs(f"{path} is being written by another process")
