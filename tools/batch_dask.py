"""`npgemma batch` on a Dask cluster: jobs are independent lines, so any engine that deals out work can run them.

    pip install distributed
    python tools/batch_dask.py jobs.jsonl -o out.jsonl                              # a process for each core here
    python tools/batch_dask.py jobs.jsonl -o out.jsonl --scheduler tcp://host:8786 -m /shared/paligemma-3b-mix-224

Every worker process loads the model once and answers chunks of jobs, several pictures in flight, on one core, since
Dask gives workers no more. Model and pictures must lie under the same paths everywhere; on one machine the workers
share the weights, which are one memory map. Results are written here, in the form of `npgemma batch` and with its
promise: stopped and started again, it goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from dask.distributed import Client, LocalCluster, as_completed, get_worker

import npgemma
from npgemma.api.batch import IN_FLIGHT, answer_jobs
from npgemma.commands.batch import as_line
from npgemma.decoding.options import GenerationOptions
from npgemma.io.jobs import InvalidJob, Job, read_jobs
from npgemma.io.results import open_results


def answer_chunk(model: str | None, jobs: list[Job], in_flight: int, max_new_tokens: int) -> list[dict[str, Any]]:
    """What a worker does with some of the jobs; it keeps the model for the next."""
    kept = vars(get_worker()).setdefault("npgemma_models", {})
    if model not in kept:
        kept[model] = npgemma.load(model)
    answers = answer_jobs(kept[model], jobs, in_flight, max_new_tokens=max_new_tokens)
    return [as_line(answer, model or "embedded") for answer in answers]


def run(client: Client, a: argparse.Namespace) -> int:
    """Deal out what has no result yet; write results chunk by chunk as they come. How many of them are errors."""
    model = str(Path(a.model).resolve()) if a.model and os.path.exists(a.model) else a.model
    failed = 0
    with open_results(a.output) as results:
        left = results.remaining(read_jobs(a.jobs.resolve()), a.output)  # workers have folders of their own
        for job in left:
            if isinstance(job, InvalidJob):
                results.write({"id": job.id, "error": job.error})
                failed += 1
        jobs = [job for job in left if isinstance(job, Job)]
        chunks = [jobs[i : i + a.chunk] for i in range(0, len(jobs), a.chunk)]
        futures = [client.submit(answer_chunk, model, chunk, a.in_flight, a.max_new_tokens) for chunk in chunks]
        for future, answers in as_completed(futures, with_results=True):
            for answer in answers:
                results.write(answer)
                failed += "error" in answer
            future.release()
    return failed


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 if any result is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("-m", "--model")
    parser.add_argument("--scheduler", help="the address of a running cluster (default: one of this machine)")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes of a cluster of this machine (default: its cores)",
    )
    parser.add_argument("--chunk", type=int, default=16, help="jobs that a worker takes at a time (default: 16)")
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT)
    parser.add_argument("--max-new-tokens", type=int, default=GenerationOptions.max_new_tokens)
    a = parser.parse_args(arguments)
    if a.scheduler:
        with Client(a.scheduler) as client:
            failed = run(client, a)
    else:
        options = dict(n_workers=a.workers, threads_per_worker=1, processes=True, dashboard_address=None)
        with LocalCluster(**options) as cluster, Client(cluster) as client:
            failed = run(client, a)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except npgemma.NpgemmaError as error:
        sys.exit(f"npgemma: {error}")
