"""Files of jobs: one JSON object per line."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from npgemma.errors import BadJobs, shortened
from npgemma.io.picture_kinds import url_problem
from npgemma.io.regular_files import open_argument
from npgemma.io.strict_json import parse_json

MOST_BYTES = 1 << 30  # of a file of jobs
MAX_LINE = 1_000_000  # bytes; a longer line is an invalid job
BOM = b"\xef\xbb\xbf"
EXAMPLE = '{"id": "a", "image": "a.png", "prompt": "caption en"}'
ALONE = rb"(?!.*\n\{)"  # no line after the first begins an object
COLUMNS = rb"(?i:image|file_?name|path|prompt|prefix|suffix|question|caption|text|label)"
# Files that are not lines of JSON, by their first bytes: what they are, and what to do.
OTHER_FILES = [
    (re.compile(pattern, re.DOTALL), what)
    for pattern, what in (
        (rb"\xff\xfe|\xfe\xff|\0?[{\[]\0", "is text in UTF-16 or UTF-32; save it as UTF-8"),
        (rb"\x1f\x8b|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd", "is compressed; decompress it first"),
        (rb"PK\x03\x04|\xd0\xcf\x11\xe0", "is an Excel workbook or a zip archive"),
        (rb"PAR1|ARROW1|Obj\x01|SQLite format 3|\x89HDF", "is a table in a binary format (Parquet, Arrow or such)"),
        (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF", "is a picture; for one picture, use npgemma generate"),
        (rb"%PDF", "is a PDF"),
        (rb"[^\n]{0,999}\0", "is binary data"),
        (rb"\s*\[\s*(?:\{|\[|$)", "is a JSON list"),
        (rb"\s*\{\s*\n|" + ALONE + rb"\s*\{[^\n]*[\[{,]\s*\n", "is one JSON object over several lines"),
        (rb"\s*<", "is XML or a web page"),
        (ALONE + rb"[^{\[\n]*\b(?:" + COLUMNS + rb")\b[^{\[\n]*[,;\t]", "is a table (CSV)"),
        (ALONE + rb"[^{\[\n]*[,;\t]\W?(?:" + COLUMNS + rb")\b[^{\[\n]*\n", "is a table (CSV)"),
    )
]
# Keys of other programs' files, which are not read: their meaning there may be another one.
OTHER_KEYS = {
    "image": (
        *("file_name", "filename", "file", "path", "image_path", "image_file", "img", "picture", "images"),
        *("image_url", "url", "image_id"),
    ),
    "prompt": ("text", "question", "instruction", "query", "input", "caption", "conversations", "messages"),
}


@dataclass(frozen=True)
class Job:
    """A prompt with its pictures, for `answer_jobs`.

    Parameters
    ----------
    id : str or int
        Identifies the job and its answer.
    images : tuple of str
        Paths of the pictures, relative to `folder`; none for a language model.
    prompt : str
        The prompt, without a newline at its end.
    folder : Path
        The folder that relative paths start from.
    suffix : str, optional
        The answer that is expected, which can be scored.

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
    suffix: str | None = None

    @property
    def image(self) -> str | list[str]:
        """The pictures as a line of JSON has them: one path, or a list of paths."""
        return self.images[0] if len(self.images) == 1 else list(self.images)


@dataclass(frozen=True)
class InvalidJob:
    """A line that is not a valid job, and what is wrong with it; `fault` is equal where that is the same."""

    id: str | int
    error: str
    fault: str = field(default="", compare=False)


def read_jobs(path: Path) -> list[Job | InvalidJob]:
    """The jobs in a file of lines {"id": ..., "image": ..., "prompt": ...}, or {"image", "prefix", "suffix"}.

    `id` is text or a whole number; a job without an id, or with an invalid one, is called 'line N'. `image` is a path
    or a list of paths, relative to the file's folder; a job for a language model has none. Other keys and empty lines
    are ignored. BadJobs if the file cannot be read, or is of another kind.
    """
    jobs: list[Job | InvalidJob] = []
    seen: dict[str | int, str] = {}
    try:
        with open_argument(path, MOST_BYTES) as file:
            check_file(path, file.peek(1))  # of a pipe of the shell, too
            for number, line in enumerate(lines(file), 1):
                if not line.removeprefix(BOM).strip() and len(line) <= MAX_LINE:
                    continue
                name = f"line {number}"
                job = read_job(line.removeprefix(BOM) if number == 1 else line, name, path.parent)
                if job.id in seen:
                    problem = f"the id {shortened(repr(job.id))} is already used in {seen[job.id]}"
                    job = InvalidJob(name, f"{name}: {problem}", "id")
                seen[job.id] = name
                jobs.append(job)
    except OSError as error:
        raise BadJobs(f"{path} cannot be read: {error.strerror}") from None
    return jobs


def check_file(path: Path, head: bytes) -> None:
    """BadJobs if the first bytes of a file are not those of lines of JSON."""
    if problem := other_file(head, EXAMPLE):
        raise BadJobs(f"{path} {problem}")


def other_file(head: bytes, example: str) -> str | None:
    """What the file with these first bytes is, and what to do, if it is not lines of JSON such as `example`."""
    what = next((what for pattern, what in OTHER_FILES if pattern.match(head.removeprefix(BOM))), None)
    return what if what is None or ";" in what else f"{what}; write one JSON object a line: {example}"


def require_jobs(jobs: Sequence[Job | InvalidJob], path: Path) -> None:
    """BadJobs if every line of a file has the same fault."""
    faults = {job.fault if isinstance(job, InvalidJob) else None for job in jobs}
    if len(faults) != 1 or None in faults:
        return
    (first, *rest) = (job.error for job in jobs if isinstance(job, InvalidJob))
    others = f" (and so in all {len(jobs)} lines)" if rest else ""
    raise BadJobs(f"{path} holds no job: {first}{others}; a job is a line such as {EXAMPLE}")


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
        return InvalidJob(where, shortened(f"{where} is not a JSON object: {error}"), "JSON")
    name, image = values.get("id", where), values.get("image", [])
    if type(name) not in (str, int):
        return InvalidJob(where, f"{where}: id is {shown(name)}, not text or a whole number", "id")
    if name != where and re.fullmatch(r"line \d+", str(name)):
        problem = f"the id {name!r} is reserved for a line without an id; choose another"
        return InvalidJob(where, shortened(f"{where}: {problem}"), "id")
    if wrong := image_problem(values) or text_problem(values):
        key, clause = wrong.split()[0], re.split("[,;] ", wrong)[-1]
        return InvalidJob(name, f"{where}: {wrong}", f"{key}: {clause}")
    images = tuple(image) if isinstance(image, list) else (image,)
    return Job(name, images, values["prompt" if "prompt" in values else "prefix"], folder, values.get("suffix"))


def image_problem(values: Mapping[str, Any]) -> str | None:
    """What is wrong with the pictures of a line, which may have none."""
    if "image" not in values:
        return other_key("image", values)
    image = values["image"]
    given = image if isinstance(image, list) else [image]
    images = [each for each in given if isinstance(each, str)]
    if images and len(images) == len(given):
        urls = map(url_problem, images)
        return next((f"image {problem}" for problem in urls if problem), None)
    return f"image is {shown(image)}, not a path or a list of paths"


def text_problem(values: Mapping[str, Any]) -> str | None:
    """What is wrong with the prompt or the suffix of a line."""
    if "prompt" in values and "prefix" in values:
        return "prompt and prefix are both there, and mean the same; keep one of them"
    key = "prefix" if "prefix" in values else "prompt"
    if not isinstance(values.get(key), str):
        return other_key("prompt", values) or f"{key} is {shown(values.get(key))}, not text"
    suffix = values.get("suffix")
    return None if suffix is None or isinstance(suffix, str) else f"suffix is {shown(suffix)}, not text"


def other_key(key: str, values: Mapping[str, Any]) -> str | None:
    """What to do about a key that is missing while another one seems to have its value."""
    found = next((other for other in OTHER_KEYS[key] if other in values), None)
    if found is None or values.get(key) is not None or (key == "prompt" and "prefix" in values):
        return None
    return f"{key} is missing, and {found!r} is not read; rename it to {key!r}"


def shown(value: object) -> str:
    """A value as a message repeats it."""
    return shortened(repr(value), 60)
