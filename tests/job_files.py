"""Files of jobs and of results, for the tests of `npgemma batch`."""

import json
from pathlib import Path

from npgemma.io.jobs import Job


def write_jobs(path: Path, *lines: object) -> Path:
    """A file of jobs: text is written as it is, anything else as JSON."""
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def job_line(job: Job) -> dict[str, object]:
    return {"id": job.id, "image": str(job.folder / job.images[0]), "prompt": job.prompt}


def read_lines(path: Path) -> list[dict]:
    """The results in a file, whose lines must all be complete."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def by_id(path: Path) -> dict[str | int, dict]:
    """The results in a file by id, none of which has two."""
    results = read_lines(path)
    found = {result["id"]: result for result in results}
    assert len(found) == len(results)
    return found


def answered_lines(path: Path) -> list[bytes]:
    """The complete lines of a file that are not errors: those that stay when the work continues."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n") and "error" not in json.loads(line)]


def summary_of_errors(errors: int, out: Path) -> str:
    """The end of the summary of a batch with errors."""
    return f"; {errors} of them errors, which the same command retries; see {out}"
