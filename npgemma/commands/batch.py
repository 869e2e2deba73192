"""batch: many pictures, several at a time, with results on disk as they come."""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npgemma.api.batch import Answer, answer_jobs
from npgemma.commands.flags import AddParser, WrongUsage, answer_flags, load_model, positive, sampling
from npgemma.commands.output import INTERRUPTED, WIPE, printable
from npgemma.io.jobs import InvalidJob, Job, folder_jobs, open_results, read_jobs
from npgemma.tasks.objects import parse_objects


def add_batch(add_parser: AddParser) -> None:
    batch = add_parser(
        "batch", parents=[answer_flags(argparse.ArgumentParser(add_help=False))], help="many pictures, a line a result"
    )
    batch.add_argument(
        "jobs",
        type=Path,
        metavar="JOBS",
        help='a file of lines {"id": ..., "image": ..., "prompt": ...}, or a folder of pictures (not of folders)',
    )
    batch.add_argument("prompt", nargs="?", metavar="PROMPT", help="for a folder: what every picture is asked")
    batch.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="where results go, a line of JSON each; what it holds already is not done again, but errors are",
    )
    batch.add_argument(
        "--in-flight", type=positive, default=8, metavar="N", help="pictures answered at a time (default: 8)"
    )
    batch.set_defaults(run=run_batch)


def run_batch(a: argparse.Namespace) -> int:
    """Answer what has no result yet; 1 if the results hold an error, after all others are done."""
    options = sampling(a)
    if a.jobs.is_dir() != (a.prompt is not None):
        raise WrongUsage("batch takes a folder and a prompt, or a file of jobs, which have prompts of their own")
    jobs = folder_jobs(a.jobs, a.prompt) if a.jobs.is_dir() else read_jobs(a.jobs)
    model = load_model(a)
    with open_results(a.output) as results:
        left = results.remaining(jobs, a.output)
        progress = Progress(len(jobs), len(jobs) - len(left))
        try:
            for job in left:
                if isinstance(job, InvalidJob):
                    results.write({"id": job.id, "error": job.error})
                    progress.count(failed=True)
            for answer in answer_jobs(model, [job for job in left if isinstance(job, Job)], a.in_flight, **options):
                results.write(as_result(answer))
                progress.count(failed=answer.error is not None)
        except KeyboardInterrupt:
            progress.end("interrupted; the same command goes on from here")
            return INTERRUPTED
        except BaseException:
            progress.wipe()
            raise
    failed = f"{progress.failed} of them errors, which the same command tries again; see {printable(str(a.output))}"
    progress.end(failed if progress.failed else "")
    return 1 if progress.failed else 0


def as_result(answer: Answer) -> dict[str, Any]:
    """A line of the results: the job, and its generation or error; boxes in pixels where they were asked for."""
    job = answer.job
    result: dict[str, Any] = {"id": job.id, "image": job.image, "prompt": job.prompt}
    if answer.generation is None:
        return result | {"error": answer.error}
    result |= asdict(answer.generation)
    if job.prompt.startswith(("detect ", "segment ")):
        things = parse_objects(answer.generation.text)
        result["boxes"] = [asdict(thing.box(*answer.size)) for thing in things]
        result["objects"] = [asdict(thing) for thing in things]
    return result


class Progress:
    """How far it is, on a terminal's stderr: results, rate, time left. At the end a line in any case."""

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
