"""batch: many pictures, several at a time, each result on the disk as soon as it is there."""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npgemma.api.batch import IN_FLIGHT, Batch, JobResult
from npgemma.commands.flags import AddParser, WrongUsage, answer_flags, load_model, options, positive
from npgemma.commands.notes import note_embedded
from npgemma.commands.output import INTERRUPTED, WIPE, printable
from npgemma.io.jobs import InvalidJob, Job, folder_jobs, open_results, read_jobs
from npgemma.tasks.objects import parse_objects


def add_batch(add_parser: AddParser) -> None:
    batch = add_parser(
        "batch",
        parents=[answer_flags(argparse.ArgumentParser(add_help=False))],
        help="answer prompts about many pictures",
    )
    batch.add_argument(
        "jobs",
        type=Path,
        metavar="JOBS",
        help='a file of lines {"id": ..., "image": ..., "prompt": ...}, or a folder of pictures (not of folders)',
    )
    batch.add_argument("prompt", nargs="?", metavar="PROMPT", help="for a folder: the prompt for every picture")
    batch.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="where results go, one line of JSON each; jobs with a result there are skipped, errors are retried",
    )
    batch.add_argument(
        "--in-flight",
        type=positive,
        default=IN_FLIGHT,
        metavar="N",
        help=f"pictures answered at a time (default: {IN_FLIGHT})",
    )
    batch.set_defaults(run=run_batch)


def run_batch(a: argparse.Namespace) -> int:
    """Answer the jobs that have no result yet. Returns 1 if any result is an error."""
    chosen = options(a)
    if a.jobs.is_dir() != (a.prompt is not None):
        raise WrongUsage("batch takes a folder and a prompt, or a file of jobs, which hold their own prompts")
    jobs = folder_jobs(a.jobs, a.prompt) if a.jobs.is_dir() else read_jobs(a.jobs)
    model = load_model(a)
    with open_results(a.output) as results:
        left = results.remaining(jobs, a.output)
        note_embedded(model, (job.folder / image for job in left if isinstance(job, Job) for image in job.images))
        progress = Progress(len(jobs), len(jobs) - len(left))
        try:
            for job in left:
                if isinstance(job, InvalidJob):
                    results.write({"id": job.id, "error": job.error})
                    progress.count(failed=True)
            batch = Batch(model, chosen, a.in_flight)
            for result in batch.run(job for job in left if isinstance(job, Job)):
                results.write(as_line(result))
                progress.count(failed=result.error is not None)
        except KeyboardInterrupt:
            progress.end("interrupted; the same command continues from here")
            return INTERRUPTED
        except BaseException:
            progress.wipe()
            raise
    failed = f"{progress.failed} of them errors, which the same command retries; see {printable(str(a.output))}"
    progress.end(failed if progress.failed else "")
    return 1 if progress.failed else 0


def as_line(result: JobResult) -> dict[str, Any]:
    """A line of the output file: the job, and its answer or error; for detect and segment, boxes in pixels, too."""
    job = result.job
    line: dict[str, Any] = {"id": job.id, "image": job.image, "prompt": job.prompt}
    if result.generation is None:
        return line | {"error": result.error}
    line |= asdict(result.generation)
    if job.prompt.startswith(("detect ", "segment ")):
        objects = parse_objects(result.generation.text)
        line["boxes"] = [asdict(each.box(*result.size)) for each in objects]
        line["objects"] = [asdict(each) for each in objects]
    return line


class Progress:
    """Progress on a terminal's stderr: results, rate, time left; and one line at the end, terminal or not."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.before, self.done, self.failed = total, done, done, 0
        self.began = time.monotonic()
        self.shown = sys.stderr.isatty()

    def count(self, failed: bool) -> None:
        self.done += 1
        self.failed += failed
        if self.shown:
            rate = (self.done - self.before) / max(1e-9, time.monotonic() - self.began)
            left = duration((self.total - self.done) / rate)
            errors = f", {self.failed} errors" if self.failed else ""
            line = f"{self.done} of {self.total}, {rate:.2f} a second, {left} left{errors}"
            print(f"{WIPE}{line}", end="", file=sys.stderr, flush=True)

    def wipe(self) -> None:
        if self.shown:
            print(WIPE, end="", file=sys.stderr, flush=True)

    def end(self, note: str) -> None:
        took, answered = time.monotonic() - self.began, self.done - self.before
        self.wipe()
        rate = f"{answered / max(1e-9, took):.2f} a second"
        facts = f"{self.done} of {self.total} done, {answered} now in {duration(took)} ({rate})"
        print(f"npgemma: {facts}{'; ' if note else ''}{note}", file=sys.stderr)


def duration(seconds: float) -> str:
    """'4 s', '3 min 20 s', '2 h 5 min'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
