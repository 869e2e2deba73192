"""Files of jobs and of their results: one JSON object a line.

Results are appended, a whole line at a time, and each is on the disk before the next begins. So whatever ends the
process, the file holds every finished result and at most a part of one more, which is cut off when work goes on.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from npgemma.errors import BadJobs
from npgemma.io.config import parse_json

MAX_LINE = 1_000_000  # bytes; a longer line is no job
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}


@dataclass(frozen=True)
class Job:
    """A prompt about pictures. `id` is what its maker calls it, or its line (from 1) where it has no name.

    Pictures are as they are written, paths from `folder`.
    """

    id: str | int
    images: tuple[str, ...]
    prompt: str
    folder: Path


@dataclass(frozen=True)
class NoJob:
    """A line that is no job, and why."""

    id: str | int
    error: str


def read_jobs(path: Path) -> list[Job | NoJob]:
    """The jobs in a file of lines {"id": ..., "image": ..., "prompt": ...}.

    `id` is text or a whole number, and may be missing; `image` is a path or a list of paths, from the file's folder;
    other keys are passed over, and so are empty lines. BadJobs if the file cannot be read.
    """
    jobs: list[Job | NoJob] = []
    seen: dict[str | int, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(lines(file), 1):
                if not line.strip():
                    continue
                job = read_job(line, number, path.parent)
                if job.id in seen:
                    job = NoJob(number, f"line {number}: the id {job.id!r} is that of line {seen[job.id]} already")
                seen[job.id] = number
                jobs.append(job)
    except OSError as error:
        raise BadJobs(f"{path} cannot be read: {error.strerror}") from None
    return jobs


def folder_jobs(folder: Path, prompt: str) -> list[Job | NoJob]:
    """The same prompt about every picture in a folder, by name, which is its id. BadJobs if it holds none."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
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


def read_job(line: bytes, number: int, folder: Path) -> Job | NoJob:
    """One line as a job, or as the reason why it is none."""
    try:
        if len(line) > MAX_LINE:
            raise ValueError(f"it is longer than {MAX_LINE} bytes")
        values = parse_json(line)
        if not isinstance(values, dict):
            raise ValueError(f"it is a JSON {type(values).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        return NoJob(number, f"line {number} is no JSON object: {error}")
    name, image, prompt = values.get("id", number), values.get("image"), values.get("prompt")
    if type(name) not in (str, int):
        return NoJob(number, f"line {number}: id is {name!r}, neither text nor a whole number")
    images = [each for each in (image if isinstance(image, list) else [image]) if isinstance(each, str)]
    if not images or (isinstance(image, list) and len(images) < len(image)):
        return NoJob(name, f"line {number}: image is {image!r}, neither a path nor a list of paths")
    if not isinstance(prompt, str):
        return NoJob(name, f"line {number}: prompt is {prompt!r}, not text")
    return Job(name, tuple(images), prompt, folder)


class Results:
    """A file of results: which jobs it has already, and a place for more."""

    def __init__(self, file: IO[bytes], done: Mapping[str | int, Mapping[str, Any]]) -> None:
        self.file = file
        self.done = done

    def write(self, result: Mapping[str, Any]) -> None:
        """Append one result, and return when it is on the disk."""
        self.file.write(json.dumps(result).encode("ascii") + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def left(self, jobs: Iterable[Job | NoJob], path: Path) -> list[Job | NoJob]:
        """The jobs that have no result yet. BadJobs if one has the result of something else."""
        left = []
        for job in jobs:
            found = self.done.get(job.id)
            if found is None:
                left.append(job)
            elif isinstance(job, Job) and found.get("prompt", job.prompt) != job.prompt:
                asked = f"{found['prompt']!r}, where {job.prompt!r} is asked now"
                raise BadJobs(f"{path}: the result of {job.id!r} answers {asked}; write to another file")
        return left


@contextmanager
def open_results(path: Path) -> Iterator[Results]:
    """The results in `path`, none if there is no such file yet; what is cut off at its end is taken away.

    BadJobs if it holds anything else, which is left as it is, if it cannot be written, or if another process writes it.
    """
    try:
        with path.open("a+b") as file:
            lock(file, path)
            file.seek(0)
            done: dict[str | int, Mapping[str, Any]] = {}
            end = 0
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # the process was ended while it wrote this
                end += len(line)
                result = read_result(line)
                if result is None:
                    raise BadJobs(f"{path}: line {number} is no result of a job; write to another file")
                done[result["id"]] = result
            file.truncate(end)
            yield Results(file, done)
    except OSError as error:
        raise BadJobs(f"{path} cannot be written: {error.strerror}") from None


def read_result(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        result = parse_json(line)
        if isinstance(result, dict) and type(result.get("id")) in (str, int):
            return result
    return None


def lock(file: IO[bytes], path: Path) -> None:
    """Keep others from writing to `file` until it is closed or the process ends. BadJobs if one does."""
    try:
        import fcntl
    except ImportError:  # Windows has another way
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadJobs(f"{path} is being written by another process") from None
