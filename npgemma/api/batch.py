"""Many prompts: several jobs run at a time, decoded together as rows; when one ends, the next takes its place.

Every step of the decoder reads all weights, for one row or for many, so N answers at once take hardly longer than one.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import numpy as np

from npgemma.api import generation
from npgemma.api.finite import Overflows, watched
from npgemma.api.generation import Model
from npgemma.api.processor import Inputs
from npgemma.api.read_ahead import read_ahead
from npgemma.decoding.loop import RunningSequence, choose_next, generate_tokens, prefill_sequences, step_sequences
from npgemma.decoding.options import GenerationOptions, StreamKeywords, require_count
from npgemma.decoding.scoring import Score, score_answers
from npgemma.decoding.text import Generation
from npgemma.errors import BadPicture, BadPrompt, TooLittleMemory
from npgemma.io.jobs import Job
from npgemma.layers.taps import Tap
from npgemma.models.prefix_lm import Prompt

IN_FLIGHT = 8  # how many jobs run at a time by default
READ_AHEAD = 1 << 25  # bytes of the pixel values of jobs that are read and wait for their turn, about


def jobs_ahead(model: Model, in_flight: int) -> int:
    """How many jobs a command reads ahead: none under a limit of memory, all of which a picture may take to be read."""
    if model.guard.budget.allowed is not None:
        return 0
    return min(in_flight, READ_AHEAD // max(1, model.processor.picture_bytes))


@dataclass(frozen=True)
class JobResult:
    """The result of a job: an answer, or an error.

    Attributes
    ----------
    job : Job
        The job.
    generation : Generation or None
        The answer; None after an error.
    size : tuple of int
        Width and height of the job's first picture, in pixels; (0, 0) without one.
    error : str or None
        What prevented an answer, in one sentence; None if there is an answer.
    score : Score or None
        How likely the model finds the job's suffix; None unless asked for.

    Examples
    --------
    >>> import npgemma
    >>> picture = npgemma.sample_picture()
    >>> job = npgemma.Job("a", (picture.name,), "ocr", picture.parent)
    >>> (result,) = npgemma.answer_jobs(npgemma.load(), [job])
    >>> result.generation.text, result.size, result.error
    ('FNY', (448, 448), None)
    """

    job: Job
    generation: Generation | None = None
    size: tuple[int, int] = (0, 0)
    error: str | None = None
    score: Score | None = None


class ReadJob(NamedTuple):
    """A job whose pictures and prompt are read, the size of its first picture, and the suffix to score, if any."""

    job: Job
    size: tuple[int, int]
    inputs: Inputs
    suffix: list[int]


class RunningJob(NamedTuple):
    """A job that is being answered."""

    job: Job
    size: tuple[int, int]
    sequence: RunningSequence
    score: Score | None


def answer_jobs(
    model: Model,
    jobs: Iterable[Job],
    in_flight: int = IN_FLIGHT,
    score: bool = False,
    **options: Unpack[StreamKeywords],
) -> Iterator[JobResult]:
    """Answer many jobs, several at a time; each result comes as soon as its answer ends.

    The order of the results depends on the jobs and the model alone: of jobs that start together, answers of fewer
    steps come first, and of equally many the first job. A picture that cannot be read, a prompt that does not fit, and
    a job that needs more memory than there is give an error as the result of that job. Where several jobs together need
    too much, fewer run at a time.

    Parameters
    ----------
    model : VisionLanguageModel or LanguageModel
        The model that answers.
    jobs : iterable of Job
        Each is read only when it can start.
    in_flight : int
        How many run at a time.
    score : bool
        Also score each job's suffix, as the model's `score` does; a job without one is an error.
    **options
        As for the model's `stream`.

    Returns
    -------
    iterator of JobResult
        One for each job.

    Raises
    ------
    BadModel
        If the logits are not finite, or the model's files have been written to.
    ValueError
        If an option is out of range.

    Examples
    --------
    >>> import npgemma
    >>> picture = npgemma.sample_picture()
    >>> jobs = [npgemma.Job(prompt, (picture.name,), prompt, picture.parent) for prompt in ("caption en", "ocr")]
    >>> for result in npgemma.answer_jobs(npgemma.load(), jobs):
    ...     print(result.job.id, "->", result.generation.text)
    ocr -> FNY
    caption en -> a blue star, an orange ring and a green circle
    """
    require_count("in_flight", in_flight)
    return Batch(model, GenerationOptions(**options).single(), in_flight, score).run(iter(jobs))


class Batch:
    """The jobs that run, and those that are read and wait for memory.

    `ahead` jobs are read by a thread while others run. That changes the filters of warnings and a limit of Pillow for
    the whole process meanwhile, so it is for a program that is npgemma's own.
    """

    def __init__(self, model: Model, options: GenerationOptions, in_flight: int, score: bool, ahead: int = 0) -> None:
        self.model = model
        self.options = options
        self.in_flight = in_flight
        self.score = score
        self.ahead = ahead
        self.limits = generation.limits(model, options)
        self.detokenizer = generation.detokenizer(model, options)
        self.drafter = generation.drafter(model, options)
        self.running: list[RunningJob] = []
        self.deferred: list[ReadJob] = []
        self.overflows = Overflows()

    def run(self, jobs: Iterator[Job]) -> Iterator[JobResult]:
        """The results of all jobs, in the order in which they end. BadModel if the logits are not finite."""
        return watched(self.model, self.results(read_ahead(jobs, self.read, self.ahead)), self.again, self.overflows)

    def again(self, tap: Tap) -> None:
        """The jobs that were started last, from their pictures to the ends of their answers."""
        prompts = generation.embed(self.model, self.started, tap)
        deque(generate_tokens(self.model.decoder, prompts, self.limits, self.options, tap=tap), maxlen=0)

    def results(self, jobs: Iterator[tuple[Job, Future[ReadJob]]]) -> Iterator[JobResult]:
        """Start up to `in_flight` jobs, run one step of all, and repeat until no job is left."""
        while True:
            read, self.deferred = self.deferred, []
            while len(self.running) + len(read) < self.in_flight and (found := next(jobs, None)) is not None:
                job, reading = found
                try:
                    read.append(reading.result())
                except (BadPicture, BadPrompt) as error:
                    yield JobResult(job, error=str(error))
            if not read and not self.running:
                return
            yield from self.start(read)
            yield from self.choose()
            if self.running:
                step_sequences(self.model.decoder, [job.sequence for job in self.running], self.limits)

    def read(self, job: Job) -> ReadJob:
        """Pictures and prompt of one job. BadPicture, BadPrompt."""
        if self.score and job.suffix is None:
            raise BadPrompt("the job has no suffix to score")
        pictures = [self.model.processor.read(job.folder / image) for image in job.images]
        inputs = self.model.processor([pictures], [job.prompt])
        self.model.guard.check_length(inputs.input_ids, self.options.max_new_tokens)
        suffix = self.model.processor.suffix_ids(job.suffix) if self.score and job.suffix is not None else []
        self.model.guard.check_scored([len(inputs.input_ids[0]) + len(suffix)])
        return ReadJob(job, pictures[0].size if pictures else (0, 0), inputs, suffix)

    def start(self, read: list[ReadJob]) -> Iterator[JobResult]:
        """Prefill as many of these jobs as memory allows, all at once, and defer the others.

        A job that does not fit with nothing else running never will: its result is the error.
        """
        while read:
            try:
                self.running += self.prefill(read)
                return
            except TooLittleMemory as error:
                last = read.pop()
                if read or self.running:
                    self.deferred.insert(0, last)
                else:
                    yield JobResult(last.job, error=str(error))

    def prefill(self, read: list[ReadJob]) -> list[RunningJob]:
        """Run the prompts of jobs, beside those that run already. TooLittleMemory."""
        ids = [job.inputs.input_ids[0] for job in read]
        lengths = [len(job.sequence.input_ids) for job in self.running] + list(map(len, ids))
        scored = [len(job.inputs.input_ids[0]) + len(job.suffix) for job in read if job.suffix]
        pixels = np.concatenate([job.inputs.pixel_values for job in read])
        most = max(len(job.suffix) for job in read)
        self.model.guard.check_memory(lengths + scored, len(pixels), self.options.max_new_tokens, logit_rows=most)
        self.overflows.harmless = False  # nothing is known of new jobs
        types, images = [job.inputs.token_type_ids[0] for job in read], [job.inputs.images[0] for job in read]
        self.started = Inputs(ids, types, pixels, images)
        prompts = generation.embed(self.model, self.started)
        scores = [self.scored(job, prompt) for job, prompt in zip(read, prompts, strict=True)]
        sequences = prefill_sequences(self.model.decoder, prompts, self.limits, self.options, drafter=self.drafter)
        together = zip(read, sequences, scores, strict=True)
        return [RunningJob(job.job, job.size, sequence, score) for job, sequence, score in together]

    def scored(self, job: ReadJob, prompt: Prompt) -> Score | None:
        """The score of a job's suffix, if asked for: a pass of its own over prompt and suffix."""
        if not job.suffix:
            return None
        (logprobs,) = score_answers(self.model.decoder, [prompt], [job.suffix])
        return Score(job.suffix, logprobs.tolist())

    def choose(self) -> Iterator[JobResult]:
        """Choose the next tokens of each running job; yields the results of those that end."""
        running, self.running = self.running, []
        for job in running:
            *_, (_, reason, _) = choose_next(job.sequence, self.limits, self.options)
            if reason is None:
                self.running.append(job)
            else:
                answer = self.detokenizer.generation(job.sequence.written, reason, job.sequence.logprobs)
                yield JobResult(job.job, answer, job.size, score=job.score)
