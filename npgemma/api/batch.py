"""Many pictures: several in flight, decoded together as rows; when one is done, the next takes its place.

Every step of the decoder reads all weights, for one row or for many: so N answers at once take hardly longer than one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import numpy as np

from npgemma.api.processor import Inputs
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.decoding.loop import Limits, Row, advance, begin, write_next
from npgemma.decoding.sampling import Sampling, SamplingOptions
from npgemma.decoding.text import Generation
from npgemma.errors import BadPicture, BadPrompt, TooLittleMemory
from npgemma.io.jobs import Job
from npgemma.io.picture import read_picture


@dataclass(frozen=True)
class Answer:
    """What came of a job: a Generation, and the (width, height) of its first picture; or why there is none."""

    job: Job
    generation: Generation | None = None
    size: tuple[int, int] = (0, 0)
    error: str | None = None


class Ready(NamedTuple):
    """A job whose pictures are read."""

    job: Job
    size: tuple[int, int]
    inputs: Inputs


class Flight(NamedTuple):
    """A job that is being answered."""

    job: Job
    size: tuple[int, int]
    row: Row


def answer_jobs(
    model: VisionLanguageModel,
    jobs: Iterable[Job],
    in_flight: int = 8,
    max_new_tokens: int = 256,
    stop: str | Sequence[str] = (),
    **sampling: Unpack[SamplingOptions],
) -> Iterator[Answer]:
    """An Answer for every job, each as soon as it is there, with `in_flight` jobs at a time.

    So answers come in the order in which they end: of jobs that began together, the shorter answers first, and of equal
    ones the first job first. That depends on the jobs and the model alone. A picture that cannot be read, a prompt that
    does not fit, or a job that needs more memory than there is, is the Answer to its own job; where several together
    need too much, fewer are in flight. Raises BadModel, and ValueError for options that are none.
    """
    if type(in_flight) is not int or in_flight < 1:
        raise ValueError(f"in_flight is {in_flight}; it is a whole number from 1 up")
    answers, rules = model.answers(stop), Sampling(**sampling)
    limits = model.limits(max_new_tokens, answers)
    waiting = iter(jobs)
    going: list[Flight] = []
    held: list[Ready] = []  # back, for want of memory
    while True:
        fresh, held = held, []
        while len(going) + len(fresh) < in_flight and (job := next(waiting, None)) is not None:
            try:
                fresh.append(read_job(model, job, max_new_tokens))
            except (BadPicture, BadPrompt) as error:
                yield Answer(job, error=str(error))
        read_any = bool(fresh)
        while fresh:
            try:
                going += take_off(model, fresh, going, limits, rules)
                break
            except TooLittleMemory as error:  # one fewer; or alone, later; or never
                last = fresh.pop()
                if fresh or going:
                    held.insert(0, last)
                else:
                    yield Answer(last.job, error=str(error))
        if not going:
            if read_any:  # and none of it fits: there may be more
                continue
            return
        still: list[Flight] = []
        for flight in going:
            _, reason, _ = write_next(flight.row, limits, rules)
            if reason is None:
                still.append(flight)
            else:
                written = answers.generation(flight.row.written, reason, flight.row.logprobs)
                yield Answer(flight.job, written, flight.size)
        going = still
        if going:
            advance(model.weights, [flight.row for flight in going])


def read_job(model: VisionLanguageModel, job: Job, max_new_tokens: int) -> Ready:
    """Pictures and prompt of one job. BadPicture, BadPrompt."""
    pictures = [read_picture(job.folder / image) for image in job.images]
    inputs = model.processor([pictures], [job.prompt])
    model.check_length(inputs.input_ids, max_new_tokens)
    return Ready(job, pictures[0].size if pictures else (0, 0), inputs)


def take_off(
    model: VisionLanguageModel, fresh: Sequence[Ready], going: Sequence[Flight], limits: Limits, rules: Sampling
) -> list[Flight]:
    """Read the prompts of all fresh jobs at once, beside those that are in flight already."""
    lengths = [len(flight.row.input_ids) for flight in going] + [len(each.inputs.input_ids[0]) for each in fresh]
    pixels = np.concatenate([each.inputs.pixel_values for each in fresh])
    model.check_memory(lengths, len(pixels), limits.max_new_tokens)
    ids = [each.inputs.input_ids[0] for each in fresh]
    prompts = model.make_prompts(ids, pixels, [each.inputs.images[0] for each in fresh])
    rows = begin(model.weights, prompts, limits, rules)
    return [Flight(each.job, each.size, row) for each, row in zip(fresh, rows, strict=True)]
