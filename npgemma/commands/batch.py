"""batch: many prompts, several at a time, each result on the disk as soon as it is there."""

import argparse
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npgemma.api.batch import IN_FLIGHT, Batch, JobResult, jobs_ahead
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.commands.flags import (
    AddParser,
    WrongUsage,
    answer_flags,
    load_model,
    load_vision_language_model,
    model_flags,
    options,
    positive,
)
from npgemma.commands.notes import note_embedded
from npgemma.commands.output import INTERRUPTED, model_name, score_fields
from npgemma.commands.progress import Progress
from npgemma.errors import BadJobs, shortened
from npgemma.io.jobs import InvalidJob, Job, read_jobs, require_jobs
from npgemma.io.picture_folder import folder_jobs
from npgemma.io.results import open_results
from npgemma.tasks.objects import parse_objects

FINDS = re.compile(r"(?:<image>|\s)*(?:detect|segment)\b", re.IGNORECASE)  # a prompt whose answer may hold no object


def add_batch(add_parser: AddParser) -> None:
    batch = add_parser(
        "batch",
        parents=[answer_flags(model_flags())],
        help="answer prompts about many pictures, or continue many texts",
    )
    batch.add_argument(
        "jobs",
        type=Path,
        metavar="JOBS",
        help='a file of lines {"id": ..., "image": ..., "prompt": ...} (or "prefix", and a "suffix" to score; no '
        '"image" for a language model), or a folder of pictures (not of folders)',
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
        help=f"prompts answered at a time (default: {IN_FLIGHT})",
    )
    batch.add_argument(
        "--score",
        action="store_true",
        help="also score the suffix of each job, as `npgemma score` does: how likely the model finds that answer",
    )
    batch.set_defaults(run=run_batch, resident="auto", continued="output", reads={"jobs": "the file of jobs"})


def run_batch(a: argparse.Namespace) -> int:
    """Answer the jobs that have no result yet. Returns 1 if any result is an error."""
    chosen = options(a)
    jobs, others = asked(a)
    model = load_vision_language_model(a) if a.jobs.is_dir() else load_model(a)
    if isinstance(model, VisionLanguageModel):
        jobs = [with_picture(job) for job in jobs]
        require_jobs(jobs, a.jobs)
    with open_results(a.output) as results:
        left = results.remaining(jobs, a.output, a.score)
        note_embedded(model, (job.folder / image for job in left if isinstance(job, Job) for image in job.images))
        progress = Progress(len(jobs), len(jobs) - len(left))
        try:
            for job in left:
                if isinstance(job, InvalidJob):
                    results.write({"id": job.id, "error": job.error})
                    progress.count(failed=True)
            batch = Batch(model, chosen, a.in_flight, a.score, jobs_ahead(model, a.in_flight))
            for result in batch.run(job for job in left if isinstance(job, Job)):
                results.write(as_line(result, model_name(a)))
                progress.count(failed=result.error is not None)
        except KeyboardInterrupt:
            progress.end("interrupted; the same command continues from here")
            return INTERRUPTED
        except BaseException:
            progress.wipe()
            raise
    failed = f"{progress.failed} of them errors, which the same command retries; see {a.output}"
    progress.end("; ".join(note for note in (others, failed if progress.failed else "") if note))
    return 1 if progress.failed else 0


def asked(a: argparse.Namespace) -> tuple[list[Job | InvalidJob], str]:
    """The jobs of a file or a folder, and a sentence about files that are not pictures.

    WrongUsage, or BadJobs if there is nothing to do.
    """
    if "-" in (str(a.jobs), str(a.output)):
        raise WrongUsage("batch reads jobs from a file and writes results to a file, to continue it later; name them")
    if a.prompt is not None and not a.jobs.exists():
        raise BadJobs(f"{a.jobs} was not found; give a folder of pictures")
    if a.jobs.is_dir() != (a.prompt is not None):
        raise WrongUsage("batch takes a folder and a prompt, or a file of jobs, which hold their own prompts")
    if a.jobs.is_dir():
        if a.score:
            raise WrongUsage("--score needs a file of jobs with a suffix each; a folder has none")
        found, others = folder_jobs(a.jobs, a.prompt, a.output)
        return list(found), others
    jobs = [with_suffix(job) if a.score else job for job in read_jobs(a.jobs)]
    require_jobs(jobs, a.jobs)
    return jobs, ""


def with_suffix(job: Job | InvalidJob) -> Job | InvalidJob:
    """The job, if it has a suffix to score."""
    if isinstance(job, InvalidJob) or job.suffix is not None:
        return job
    return invalid(job, "has no suffix to score; add one, or leave out --score")


def with_picture(job: Job | InvalidJob) -> Job | InvalidJob:
    """The job, if it has a picture."""
    if isinstance(job, InvalidJob) or job.images:
        return job
    return invalid(job, "has no image, a path or a list of paths; add one, or load a language model")


def invalid(job: Job, problem: str) -> InvalidJob:
    """The job as one that cannot be answered."""
    return InvalidJob(job.id, f"the job {shortened(repr(job.id))} {problem}", problem)


def as_line(result: JobResult, model: str) -> dict[str, Any]:
    """A line of the output file: the job, its answer or error, boxes in pixels where the answer has any, the score.

    `model` is what the user calls the model that answered.
    """
    job = result.job
    line: dict[str, Any] = {"id": job.id} | ({"image": job.image} if job.images else {}) | {"prompt": job.prompt}
    if job.suffix is not None:
        line["suffix"] = job.suffix
    if result.generation is None:
        return line | {"error": result.error}
    line |= {"model": model} | asdict(result.generation)
    objects = parse_objects(result.generation.text)
    if objects or FINDS.match(job.prompt):
        line["boxes"] = [asdict(each.box(*result.size)) for each in objects]
        line["objects"] = [asdict(each) for each in objects]
    if result.score is not None:
        line["score"] = score_fields(result.score)
    return line
