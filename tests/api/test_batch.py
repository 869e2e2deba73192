"""answer_jobs: each job is answered as it is alone, in an order that can be predicted; a bad job is its own error."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from answers import LOGPROBS, assert_same, observed
from PIL import Image
from shape_world import draw_scene

import npgemma
from npgemma.api.batch import Batch, JobResult, answer_jobs
from npgemma.checkpoints.footprint import Run
from npgemma.checkpoints.paligemma import footprint
from npgemma.decoding.options import GenerationOptions
from npgemma.errors import BadModel
from npgemma.io.jobs import Job

PROMPTS = ["caption en", "ocr", "answer en how many shapes are there?", "detect star ; circle"]
IN_FLIGHT = [1, 3, 8, 99]
MAX_NEW_TOKENS = 256  # the default


@pytest.fixture(scope="module")
def model() -> npgemma.VisionLanguageModel:
    return npgemma.load()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """0.png to 11.png: small scenes of the kind that the embedded model is trained on."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        draw_scene(Random(i), side=96).image.save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def jobs(pictures) -> list[Job]:
    """Twelve jobs, whose answers have very different lengths; the fourth has no picture."""
    made = [Job(f"job {i}", (f"{i}.png",), PROMPTS[i % 4], pictures) for i in range(12)]
    return [*made[:3], Job("bad", ("nowhere.png",), "ocr", pictures), *made[3:]]


@pytest.fixture(scope="module")
def good(jobs) -> list[Job]:
    return [job for job in jobs if job.id != "bad"]


@pytest.fixture(scope="module")
def alone(model, good) -> dict[str | int, npgemma.Generation]:
    """What `generate` answers to each job."""
    return {job.id: generate(model, job) for job in good}


@pytest.fixture(scope="module")
def lengths(jobs, alone) -> list[int]:
    return [len(alone[job.id].token_ids) if job.id in alone else 0 for job in jobs]


@pytest.fixture(scope="module", params=IN_FLIGHT)
def in_flight(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def run(in_flight, model, jobs) -> tuple[list[JobResult], list[int]]:
    """The results of all jobs, and how many run at a time whenever some of them start."""
    watched, guard = observed(model)
    return list(answer_jobs(watched, jobs, in_flight)), guard.running


def generate(model: npgemma.VisionLanguageModel, job: Job, **options) -> npgemma.Generation:
    return model.generate([job.folder / image for image in job.images], job.prompt, **options)


def budget_for(model: npgemma.VisionLanguageModel, jobs: Sequence[Job], count: int) -> int:
    """The bytes that any `count` of these jobs with one picture need together."""
    longest = max(len(model.processor([job.folder / job.images[0]], [job.prompt]).input_ids[0]) for job in jobs)
    run = Run(model.guard.budget.weights, model.dtype.itemsize, count, [longest] * count, MAX_NEW_TOKENS)
    return footprint(model.config, run).total


# ------------------------------------------------------------------------------------------------------------- results


def test_every_job_is_answered_as_it_is_alone(run, jobs, alone):
    results = {result.job.id: result for result in run[0]}
    assert Counter(result.job.id for result in run[0]) == Counter(job.id for job in jobs)
    assert "was not found" in results.pop("bad").error
    for result in results.values():
        assert (result.error, result.size) == (None, (96, 96))
        assert_same([result.generation], [alone[result.job.id]])


def test_the_answers_differ(alone):
    """Otherwise the tests here could not tell one job's answer from another's."""
    assert len({answer.text for answer in alone.values()}) >= 8
    assert len({len(answer.token_ids) for answer in alone.values()}) >= 3


def schedule(lengths: Sequence[int], in_flight: int) -> tuple[list[int], list[int]]:
    """Jobs in the order of their ends, and how many run whenever some start; length 0 is a job that cannot be read."""
    ended, starts, running, waiting = [], [], {}, list(range(len(lengths)))
    while running or waiting:
        before = len(running)
        while waiting and len(running) < in_flight:
            job = waiting.pop(0)
            if lengths[job]:
                running[job] = lengths[job]
            else:
                ended.append(job)
        starts += [len(running)] if len(running) > before else []
        running = {job: left - 1 for job, left in running.items()}
        ended += [job for job, left in running.items() if not left]
        running = {job: left for job, left in running.items() if left}
    return ended, starts


def test_the_schedule_by_hand():
    """Jobs 0 and 1 start; 1 ends after one token, and 2 cannot be read, so 3 joins 0."""
    assert schedule([3, 1, 0, 2], 2) == ([1, 2, 0, 3], [2, 2])
    assert schedule([2, 2], 1) == ([0, 1], [1, 1])


def test_results_come_in_the_order_in_which_answers_end(run, in_flight, jobs, lengths):
    """A job that cannot be read comes before the answers that are written beside it."""
    assert [result.job for result in run[0]] == [jobs[i] for i in schedule(lengths, in_flight)[0]]


def test_a_job_starts_as_soon_as_another_ends(run, in_flight, lengths):
    assert run[1] == schedule(lengths, in_flight)[1]
    assert max(run[1]) <= in_flight


@pytest.mark.parametrize("ahead", [0, 3])
def test_jobs_are_read_only_when_there_is_room_for_them_or_so_many_ahead(model, good, ahead):
    """So an endless source of jobs can be answered as it comes."""
    taken = []

    def source() -> Iterator[Job]:
        for job in good:
            taken.append(job.id)
            yield job

    batch = Batch(model, GenerationOptions(), 3, score=False, ahead=ahead)
    for done, _ in enumerate(batch.run(source()), 1):
        assert len(taken) <= done + 2 + ahead
    assert len(taken) == len(good)


def test_no_jobs_have_no_results(model):
    assert list(answer_jobs(model, [])) == []


def test_if_every_job_fails_every_result_is_an_error(model, tmp_path):
    bad = [Job(i, (f"{i}.png",), "ocr", tmp_path) for i in range(20)]
    results = list(answer_jobs(model, bad, 2))
    assert [(result.job, result.generation) for result in results] == [(job, None) for job in bad]


# ------------------------------------------------------------------------------------------------ pictures and prompts


def test_an_invalid_job_is_an_error_and_the_others_are_answered(model, good, alone, pictures, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    whole = (pictures / "0.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    picture = str(pictures / "0.png")
    wrong = {
        ("nowhere.png",): ("ocr", "was not found"),
        ("text.png",): ("ocr", "text.png"),
        ("torn.png",): ("ocr", "cannot be read"),
        (".",): ("ocr", "cannot be read"),
        ("https://example.com/a.png",): (
            "ocr",
            "https://example.com/a.png is a URL; npgemma does not download pictures",
        ),
        ("\0.png",): ("ocr", "cannot be read"),
        ("\ud800.png",): ("ocr", "cannot be read"),
        ("a" * 5000,): ("ocr", "cannot be read"),
        (picture, "gone.png"): ("ocr", "gone.png was not found"),
        (picture,): ("<image><image> ocr", "<image> 2 times"),
        (picture, picture): ("\udcff", "valid text"),
        (picture, picture, picture): ("word " * 5000, "positions of this model"),
    }
    bad = [Job(i, images, prompt, tmp_path) for i, (images, (prompt, _)) in enumerate(wrong.items())]
    mixed = [job for pair in zip(bad, good, strict=False) for job in pair]
    results = {result.job.id: result for result in answer_jobs(model, mixed, 3)}
    assert len(results) == len(mixed)
    for job, (_, says) in zip(bad, wrong.values(), strict=True):
        assert results[job.id].generation is None
        assert says in results[job.id].error
    assert_same([results[job.id].generation for job in mixed[1::2]], [alone[job.id] for job in mixed[1::2]])


def test_a_job_may_have_several_pictures_or_none(model, pictures, tmp_path):
    """The size is that of the first picture."""
    Image.open(pictures / "2.png").resize((60, 30)).save(tmp_path / "wide.png")
    wide, square = str(tmp_path / "wide.png"), str(pictures / "1.png")
    sizes = {(wide, square): (60, 30), (square,): (96, 96), (): (0, 0), (square, wide): (96, 96)}
    jobs = [Job(i, images, "caption en", tmp_path) for i, images in enumerate(sizes)]
    results = {result.job.images: result for result in answer_jobs(model, jobs, max_new_tokens=12)}
    assert {images: result.size for images, result in results.items()} == sizes
    assert_same(
        [results[job.images].generation for job in jobs], [generate(model, job, max_new_tokens=12) for job in jobs]
    )


def test_a_job_without_a_picture_needs_no_others_beside_it(model, tmp_path):
    job = Job(1, (), "ocr", tmp_path)
    (result,) = answer_jobs(model, [job], max_new_tokens=5)
    assert_same([result.generation], [generate(model, job, max_new_tokens=5)])


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        ({"max_new_tokens": 4, "stop": ["a ", "1"]}, {"stop", "length"}),
        # draws depend on the seed, and not on what runs beside them
        ({"max_new_tokens": 5, "temperature": 3.0, "top_k": 50, "seed": 17}, {"length"}),
    ],
    ids=["stop", "sampling"],
)
@pytest.mark.parametrize("in_flight", [1, 3, 99])
def test_options_mean_what_they_mean_in_generate(options, reasons, in_flight, model, good):
    results = list(answer_jobs(model, good, in_flight, **options))
    expected = [generate(model, result.job, **options) for result in results]
    assert_same([result.generation for result in results], expected)
    assert {each.finish_reason for each in expected} >= reasons
    assert not any(stop in each.text for each in expected for stop in options.get("stop", ()))


def test_another_seed_gives_other_draws(model, good):
    def drawn(seed: int) -> dict[str | int, str]:
        results = answer_jobs(model, good[:4], temperature=3.0, max_new_tokens=4, seed=seed)
        return {result.job.id: result.generation.text for result in results}

    first = drawn(1)
    assert drawn(1) == first
    assert sum(drawn(2)[name] != text for name, text in first.items()) >= 2


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"top_k": 0}, {"stop": ""}, {"max_new_tokens": 0}, {"repetition_penalty": 0}]
)
def test_an_option_out_of_range_raises_at_once(options, model):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
        answer_jobs(model, [], **options)


@pytest.mark.parametrize("in_flight", [0, -1, 1.5, True])
def test_in_flight_must_be_a_positive_whole_number(in_flight, model):
    with pytest.raises(ValueError, match=f"in_flight is {in_flight}; it must be a whole number, 1 or more"):
        answer_jobs(model, [], in_flight)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "temperature": 1.0}], ids=str)
def test_a_job_has_one_answer(options, model):
    with pytest.raises(ValueError, match="only one answer is written at a time"):
        answer_jobs(model, [], **options)


# -------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("in_flight", [1, 5])
def test_a_score_is_that_of_the_model(in_flight, model, good):
    """Beside other jobs, and for suffixes of any length, an empty one among them; the answers are as they were."""
    suffixes = ["", "a", "STAR", "a blue star and an orange ring"]
    jobs = [dataclasses.replace(job, suffix=suffixes[i % 4]) for i, job in enumerate(good[:6])]
    results = list(answer_jobs(model, jobs, in_flight, score=True, max_new_tokens=5))
    assert Counter(result.job for result in results) == Counter(jobs)
    for result in results:
        picture = result.job.folder / result.job.images[0]
        expected = model.score(picture, result.job.prompt, result.job.suffix)
        assert result.score.token_ids == expected.token_ids
        np.testing.assert_allclose(result.score.logprobs, expected.logprobs, rtol=0, atol=LOGPROBS)
        assert_same([result.generation], [generate(model, result.job, max_new_tokens=5)])
    assert not any(result.score for result in answer_jobs(model, jobs[:3], max_new_tokens=1))


def test_a_job_without_a_suffix_cannot_be_scored(model, good):
    jobs = [good[0], dataclasses.replace(good[1], suffix="a")]
    results = {result.job.id: result for result in answer_jobs(model, jobs, score=True, max_new_tokens=1)}
    assert results[jobs[0].id].error == "the job has no suffix to score"
    assert results[jobs[1].id].score.total < 0


def test_a_score_needs_memory_too(model, good):
    """A job whose suffix does not fit is its own error, in memory or in the positions of the model."""
    long = [dataclasses.replace(good[1], id=times, suffix="word " * times) for times in (250, 2000)]
    tight = npgemma.load(max_memory=budget_for(model, good, 1))
    results = {result.job.id: result for result in answer_jobs(tight, long, score=True)}
    assert "more than the" in results[250].error
    assert "a prompt with its suffix has" in results[2000].error


# ------------------------------------------------------------------------------------------------- a model, and memory


def test_logits_that_are_not_finite_end_the_batch(model, good):
    """Every job that is left would have the same error."""
    nan = dataclasses.replace(model.weights.projector, bias=np.full_like(model.weights.projector.bias, np.nan))
    broken = npgemma.load()
    broken.weights = dataclasses.replace(model.weights, projector=nan)
    with pytest.raises(BadModel, match="not finite"), np.errstate(all="ignore"):
        next(answer_jobs(broken, good))


def test_jobs_that_do_not_fit_together_run_one_after_the_other(model, good, alone):
    """With memory for two at a time, the others are deferred, and none is an error."""
    tight, guard = observed(npgemma.load(max_memory=budget_for(model, good, 2)))
    results = list(answer_jobs(tight, good, 5))
    assert max(guard.running) == 2
    order, _ = schedule([len(alone[job.id].token_ids) for job in good], 2)
    assert [result.job for result in results] == [good[i] for i in order]
    assert_same([result.generation for result in results], [alone[result.job.id] for result in results])


def test_a_job_that_never_fits_is_an_error_and_the_others_are_answered(model, good):
    big = Job("big", good[0].images * 30, "caption en", good[0].folder)
    tight = npgemma.load(max_memory=budget_for(model, good, 1))
    results = {result.job.id: result for result in answer_jobs(tight, [good[0], big, *good[1:]])}
    assert "more than the" in results.pop("big").error
    assert [result.error for result in results.values()] == [None] * len(good)
