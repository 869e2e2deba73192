"""Many pictures at a time: each is answered as it is alone, and no end of the process costs a result or writes two."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from shape_world import draw_scene

import npgemma
from npgemma.api import batch
from npgemma.api.batch import Answer, answer_jobs
from npgemma.checkpoints.footprint import plan_memory
from npgemma.commands import batch as command
from npgemma.commands.cli import main
from npgemma.commands.demo import SAMPLE
from npgemma.errors import BadModel
from npgemma.io.jobs import Job

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals, terminals and limits")
# Rows of one matrix product are summed in another order than one row is: float32, through all layers.
LOGPROB = {"rtol": 1e-3, "atol": 1e-4}
IN_FLIGHT = [1, 2, 3, 8, 99]


@pytest.fixture(scope="module")
def model() -> npgemma.VisionLanguageModel:
    return npgemma.load()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """0.png to 11.png, drawn small, with what the embedded model knows."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        draw_scene(Random(i), side=96).image.save(folder / f"{i}.png")
    return folder


PROMPTS = ["caption en", "ocr", "answer en how many shapes are there?", "detect star ; circle"]


@pytest.fixture(scope="module")
def jobs(pictures) -> list[Job]:
    """Twelve, whose answers are of very different lengths."""
    return [Job(f"job {i}", (f"{i}.png",), PROMPTS[i % 4], pictures) for i in range(12)]


@pytest.fixture(scope="module")
def alone(model, jobs) -> dict[str | int, npgemma.Generation]:
    """What `generate` says to each job."""
    return {job.id: model.generate(job.folder / job.images[0], job.prompt) for job in jobs}


def assert_same(found: npgemma.Generation, expected: npgemma.Generation) -> None:
    assert (found.text, found.token_ids, found.finish_reason) == (
        expected.text,
        expected.token_ids,
        expected.finish_reason,
    )
    np.testing.assert_allclose(found.logprobs, expected.logprobs, **LOGPROB)


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("in_flight", IN_FLIGHT)
def test_every_job_is_answered_as_it_is_alone(in_flight, model, jobs, alone):
    answers = list(answer_jobs(model, jobs, in_flight))
    assert Counter(answer.job.id for answer in answers) == Counter(job.id for job in jobs)
    for answer in answers:
        assert answer.error is None
        assert answer.size == (96, 96)
        assert_same(answer.generation, alone[answer.job.id])


def test_the_answers_are_not_all_alike(alone):
    """Else the tests here could not tell one job's answer from another's."""
    assert len({answer.text for answer in alone.values()}) >= 8
    assert len({len(answer.token_ids) for answer in alone.values()}) >= 3


def schedule(lengths: Sequence[int], in_flight: int) -> tuple[list[int], list[int]]:
    """Jobs in the order of their ends, and how many rows each step has; a length of 0 is a job that cannot be read."""
    ended, steps, going, waiting = [], [], {}, list(range(len(lengths)))
    while going or waiting:
        while waiting and len(going) < in_flight:
            job = waiting.pop(0)
            if lengths[job]:
                going[job] = lengths[job]
            else:
                ended.append(job)
        going = {job: left - 1 for job, left in going.items()}
        ended += [job for job, left in going.items() if not left]
        going = {job: left for job, left in going.items() if left}
        steps += [len(going)] if going else []
    return ended, steps


def test_the_schedule_by_hand():
    """Jobs 0 and 1 begin; 1 ends after one token, and 2 cannot be read, so 3 joins 0."""
    assert schedule([3, 1, 0, 2], 2) == ([1, 2, 0, 3], [1, 2])
    assert schedule([2, 2], 1) == ([0, 1], [1, 1])


@pytest.mark.parametrize("in_flight", IN_FLIGHT)
def test_answers_come_in_the_order_of_their_ends(in_flight, model, jobs, alone):
    """A job that cannot be read, the fourth, is told before what is written beside it."""
    bad = Job("bad", ("nowhere.png",), "ocr", Path())
    mixed = [*jobs[:3], bad, *jobs[3:]]
    lengths = [len(alone[job.id].token_ids) if job is not bad else 0 for job in mixed]
    found = [answer.job for answer in answer_jobs(model, mixed, in_flight)]
    assert found == [mixed[i] for i in schedule(lengths, in_flight)[0]]


def test_of_jobs_that_begin_together_shorter_answers_come_first(model, jobs, alone):
    lengths = [len(answer.generation.token_ids) for answer in answer_jobs(model, jobs, len(jobs))]
    assert lengths == sorted(len(answer.token_ids) for answer in alone.values())


@pytest.mark.parametrize("in_flight", [1, 2, 3, 8])
def test_a_job_begins_when_another_ends(in_flight, model, jobs, alone, monkeypatch):
    """No step has more rows than `in_flight`, and fewer only where some have just ended or no job waits."""
    rows, advance = [], batch.advance

    def counted(weights, going) -> None:
        rows.append(len(going))
        advance(weights, going)

    monkeypatch.setattr(batch, "advance", counted)
    list(answer_jobs(model, jobs, in_flight))
    assert rows == schedule([len(alone[job.id].token_ids) for job in jobs], in_flight)[1]
    assert max(rows) <= in_flight


def test_jobs_are_taken_when_there_is_room_for_them(model, jobs, alone):
    """So an endless source of jobs can be answered as it comes."""
    taken = []

    def source() -> Iterator[Job]:
        for job in jobs:
            taken.append(job.id)
            yield job

    for done, _ in enumerate(answer_jobs(model, source(), 3), 1):
        assert len(taken) <= done + 2
    assert len(taken) == len(jobs)


def test_no_jobs_have_no_answers(model):
    assert list(answer_jobs(model, [])) == []


def test_nothing_but_what_fails_has_no_answers_but_errors(model, tmp_path):
    bad = [Job(i, (f"{i}.png",), "ocr", tmp_path) for i in range(20)]
    answers = list(answer_jobs(model, bad, 2))
    assert [(answer.job, answer.generation) for answer in answers] == [(job, None) for job in bad]


@pytest.mark.parametrize("in_flight", [0, -1, 1.5, True])
def test_in_flight_is_at_least_one(in_flight, model, jobs):
    with pytest.raises(ValueError, match=f"in_flight is {in_flight}; it is a whole number from 1 up"):
        next(answer_jobs(model, jobs, in_flight))


# --------------------------------------------------------------------------------------------------- pictures, prompts


def test_what_is_wrong_with_one_job_is_its_own_answer(model, jobs, alone, pictures, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    whole = (pictures / "0.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    picture = str(pictures / "0.png")
    wrong = {
        ("nowhere.png",): ("ocr", "is missing"),
        ("text.png",): ("ocr", "is not a picture that npgemma reads"),
        ("torn.png",): ("ocr", "cannot be read"),
        (".",): ("ocr", "cannot be read"),
        ("\0.png",): ("ocr", "cannot be read"),
        ("\ud800.png",): ("ocr", "cannot be read"),
        ("a" * 5000,): ("ocr", "cannot be read"),
        (picture, "gone.png"): ("ocr", "gone.png is missing"),
        (picture,): ("<image><image> ocr", "<image> 2 times"),
        (picture, picture): ("\udcff", "no valid text"),
        (picture, picture, picture): ("word " * 5000, "positions of this model"),
    }
    bad = [Job(i, images, prompt, tmp_path) for i, (images, (prompt, _)) in enumerate(wrong.items())]
    mixed = [job for pair in zip(bad, jobs, strict=False) for job in pair]
    answers = {answer.job.id: answer for answer in answer_jobs(model, mixed, 3)}
    assert len(answers) == len(mixed)
    for job, (_, says) in zip(bad, wrong.values(), strict=True):
        assert answers[job.id].generation is None
        assert says in answers[job.id].error
    for job in mixed[1::2]:
        assert_same(answers[job.id].generation, alone[job.id])


def test_a_job_may_have_several_pictures_or_none(model, pictures):
    first, second = pictures / "wide.png", pictures / "1.png"
    Image.open(pictures / "2.png").resize((60, 30)).save(first)
    jobs = [
        Job("two", ("wide.png", "1.png"), "caption en", pictures),
        Job("one", ("1.png",), "caption en", pictures),
        Job("none", (), "caption en", pictures),
        Job("turned", ("1.png", "wide.png"), "caption en", pictures),
    ]
    answers = {answer.job.id: answer for answer in answer_jobs(model, jobs, 8, max_new_tokens=12)}
    expected = {"two": [first, second], "one": second, "none": [], "turned": [second, first]}
    for name, images in expected.items():
        assert_same(answers[name].generation, model.generate(images, "caption en", max_new_tokens=12))
    sizes = {name: answer.size for name, answer in answers.items()}
    assert sizes == {"two": (60, 30), "one": (96, 96), "none": (0, 0), "turned": (96, 96)}


def test_text_alone_needs_no_picture_beside_it(model, tmp_path):
    (answer,) = answer_jobs(model, [Job(1, (), "ocr", tmp_path)], max_new_tokens=5)
    assert_same(answer.generation, model.generate([], "ocr", max_new_tokens=5))


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("in_flight", [1, 3, 99])
def test_an_answer_ends_at_a_stop_string_or_at_its_length(in_flight, model, jobs):
    options = {"max_new_tokens": 4, "stop": ["a ", "1"]}
    reasons = Counter()
    for answer in answer_jobs(model, jobs, in_flight, **options):
        job = answer.job
        expected = model.generate(job.folder / job.images[0], job.prompt, **options)
        assert_same(answer.generation, expected)
        assert not any(stop in answer.generation.text for stop in options["stop"])
        reasons[expected.finish_reason] += 1
    assert reasons.keys() == {"stop", "length"}


@pytest.mark.parametrize("in_flight", IN_FLIGHT)
def test_draws_depend_on_the_seed_and_not_on_what_runs_beside(in_flight, model, jobs):
    options = {"temperature": 3.0, "top_k": 50, "max_new_tokens": 5, "seed": 17}
    for answer in answer_jobs(model, jobs, in_flight, **options):
        expected = model.generate(answer.job.folder / answer.job.images[0], answer.job.prompt, **options)
        assert_same(answer.generation, expected)


def test_another_seed_draws_something_else(model, jobs):
    def drawn(seed: int) -> dict[str | int, str]:
        answers = answer_jobs(model, jobs[:4], temperature=3.0, max_new_tokens=4, seed=seed)
        return {answer.job.id: answer.generation.text for answer in answers}

    first = drawn(1)
    assert drawn(1) == first
    assert sum(drawn(2)[name] != text for name, text in first.items()) >= 2


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"top_k": 0}, {"stop": ""}, {"max_new_tokens": 0}, {"repetition_penalty": 0}]
)
def test_options_out_of_range_are_no_answers(options, model, jobs):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
        next(answer_jobs(model, jobs, **options))


def test_a_model_that_is_broken_is_no_answer(model, jobs):
    """It would be the same error for every job that is left."""
    nan = dataclasses.replace(model.weights.projector, bias=np.full_like(model.weights.projector.bias, np.nan))
    broken = npgemma.load()
    broken.weights = dataclasses.replace(model.weights, projector=nan)
    with pytest.raises(BadModel, match="not finite"), np.errstate(all="ignore"):
        next(answer_jobs(broken, jobs))


def test_so_many_at_a_time_as_memory_holds(jobs, monkeypatch):
    """Memory for two at a time: of more, the others wait, and none is an error."""
    model = npgemma.load()
    rows = [len(batch.read_job(model, job, 256).inputs.input_ids[0]) for job in jobs]
    budget = dataclasses.replace(model.budget, allowed=None)
    plan = plan_memory(model.config, budget.weights, model.dtype.itemsize, 2, [max(rows)] * 2, 256)
    tight = npgemma.load(max_memory=plan.total)
    most, advance = [], batch.advance
    monkeypatch.setattr(batch, "advance", lambda weights, rows: most.append(len(rows)) or advance(weights, rows))
    found = {answer.job.id: answer for answer in answer_jobs(tight, jobs, 5)}
    assert max(most) == 2
    assert {name: answer.generation.token_ids for name, answer in found.items()} == {
        answer.job.id: answer.generation.token_ids for answer in answer_jobs(model, jobs, 2)
    }


def test_a_job_that_needs_more_memory_than_there_is_is_an_error_on_its_line(jobs):
    """Of many pictures, say; the others are answered."""
    model = npgemma.load()
    big = Job("big", jobs[0].images * 30, "caption en", jobs[0].folder)
    rows = [len(batch.read_job(model, job, 256).inputs.input_ids[0]) for job in jobs]
    enough = plan_memory(model.config, model.budget.weights, 4, 1, [max(rows)], 256).total
    found = {
        answer.job.id: answer for answer in answer_jobs(npgemma.load(max_memory=enough), [jobs[0], big, *jobs[1:]])
    }
    assert "more than the" in found["big"].error
    assert [answer.error for name, answer in found.items() if name != "big"] == [None] * len(jobs)


# ------------------------------------------------------------------------------------------------------- command line


def write_jobs(path: Path, *lines: object) -> Path:
    """A file of jobs: text as it is, anything else as JSON."""
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def as_line(job: Job) -> dict[str, object]:
    return {"id": job.id, "image": str(job.folder / job.images[0]), "prompt": job.prompt}


def read_lines(path: Path) -> list[dict]:
    """The results in a file, each a whole line."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def told(errors: int, out: Path) -> str:
    """How a summary ends."""
    return f"; {errors} of them errors, which the same command tries again; see {out}"


def run(capsys, *arguments: object) -> tuple[int, str]:
    """Status and stderr of a command, which never writes to stdout."""
    status = main(["batch", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return status, err


def assert_right(result: dict, job: Job, expected: npgemma.Generation) -> None:
    assert {name: result[name] for name in ("id", "image", "prompt")} == as_line(job)
    fields = ("text", "token_ids", "finish_reason", "logprobs")
    assert_same(npgemma.Generation(*(result[name] for name in fields)), expected)
    assert "error" not in result


@pytest.fixture
def asked(monkeypatch) -> list[str | int]:
    """The ids of the jobs that the model is asked."""
    ids = []

    def counted(model, jobs, *options, **more) -> Iterator[Answer]:
        ids.extend(job.id for job in jobs)
        return answer_jobs(model, jobs, *options, **more)

    monkeypatch.setattr(command, "answer_jobs", counted)
    return ids


def test_results_are_those_of_the_library_and_the_status_is_0(jobs, alone, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    status, err = run(capsys, write_jobs(tmp_path / "jobs.jsonl", *map(as_line, jobs)), "-o", out)
    assert status == 0
    assert err.startswith("npgemma: 12 of 12 done, 12 now in ")
    assert err.endswith(" a second)\n")
    assert err.count("\n") == 1
    results = read_lines(out)
    assert [r["id"] for r in results] != [job.id for job in jobs]  # as they came
    by_id = {result["id"]: result for result in results}
    assert len(by_id) == len(results) == len(jobs)
    for job in jobs:
        assert_right(by_id[job.id], job, alone[job.id])


def test_flags_reach_the_model(model, jobs, tmp_path, capsys):
    flags = ("--max-new-tokens", 3, "--temperature", 5, "--top-k", 40, "--top-p", 0.9, "--seed", 17, "--stop", "e")
    path = write_jobs(tmp_path / "jobs.jsonl", *map(as_line, jobs))
    assert run(capsys, path, "-o", tmp_path / "out.jsonl", "--in-flight", 5, *flags)[0] == 0
    options = {"max_new_tokens": 3, "temperature": 5.0, "top_k": 40, "top_p": 0.9, "seed": 17, "stop": ["e"]}
    by_id = {job.id: job for job in jobs}
    for result in read_lines(tmp_path / "out.jsonl"):
        job = by_id[result["id"]]
        assert_right(result, job, model.generate(job.folder / job.images[0], job.prompt, **options))


@pytest.mark.parametrize("number", [1, 5])
def test_in_flight_reaches_the_model(number, jobs, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(command, "answer_jobs", lambda model, jobs, in_flight, **_: seen.append(in_flight) or iter(()))
    run(capsys, write_jobs(tmp_path / "jobs.jsonl"), "-o", tmp_path / "out.jsonl", "--in-flight", number)
    run(capsys, write_jobs(tmp_path / "jobs.jsonl"), "-o", tmp_path / "out.jsonl")
    assert seen == [number, 8]


def test_what_has_a_result_is_not_done_again(jobs, alone, asked, tmp_path, capsys):
    out, first, all_jobs = tmp_path / "out.jsonl", tmp_path / "first.jsonl", tmp_path / "all.jsonl"
    assert run(capsys, write_jobs(first, *map(as_line, jobs[:5])), "-o", out)[0] == 0
    assert asked == [job.id for job in jobs[:5]]
    was = out.read_bytes()
    asked.clear()
    status, err = run(capsys, write_jobs(all_jobs, *map(as_line, jobs)), "-o", out)
    assert (status, asked) == (0, [job.id for job in jobs[5:]])
    assert err.startswith("npgemma: 12 of 12 done, 7 now in ")
    assert out.read_bytes().startswith(was)
    asked.clear()
    was = out.read_bytes()
    status, err = run(capsys, all_jobs, "-o", out)
    assert (status, asked, out.read_bytes()) == (0, [], was)
    assert err.startswith("npgemma: 12 of 12 done, 0 now in ")
    assert Counter(result["id"] for result in read_lines(out)) == Counter(list(alone))


def test_errors_stay_on_their_line_and_the_status_is_1(jobs, alone, asked, tmp_path, capsys):
    lines = [
        as_line(jobs[0]),
        "broken",
        {"id": "gone", "image": "gone.png", "prompt": "ocr"},
        {"id": "mute", "image": "gone.png"},
        as_line(jobs[1]),
        {"id": "line 1", "image": "gone.png", "prompt": "ocr"},
        as_line(jobs[0]),
    ]
    path, out = write_jobs(tmp_path / "jobs.jsonl", *lines), tmp_path / "out.jsonl"
    status, err = run(capsys, path, "-o", out)
    assert status == 1
    assert err.startswith("npgemma: 7 of 7 done, 7 now in ")
    assert err.endswith(f" a second){told(5, out)}\n")
    assert err.count("\n") == 1
    assert asked == ["job 0", "gone", "job 1"]
    results = read_lines(out)
    by_id = {result["id"]: result for result in results}
    assert len(results) == len(by_id) == 7
    for job in jobs[:2]:
        assert_right(by_id.pop(job.id), job, alone[job.id])
    assert by_id["gone"].pop("error").endswith("gone.png is missing: there is no such picture")
    assert by_id.pop("line 2")["error"].startswith("line 2 is no JSON object: ")
    assert by_id == {
        "gone": {"id": "gone", "image": "gone.png", "prompt": "ocr"},
        "mute": {"id": "mute", "error": "line 4: prompt is None, not text"},
        "line 6": {
            "id": "line 6",
            "error": "line 6: id is 'line 1', as lines without one are called; call it otherwise",
        },
        "line 7": {"id": "line 7", "error": "line 7: the id 'job 0' is that of line 1 already"},
    }


def test_the_same_command_tries_errors_again_and_nothing_else(jobs, asked, tmp_path, capsys):
    """And if nothing was mended they are there again, once."""
    gone = {"id": "gone", "image": "gone.png", "prompt": "ocr"}
    lines = [as_line(jobs[0]), "broken", gone, {"id": "mute", "image": "gone.png"}, as_line(jobs[1])]
    path, out = write_jobs(tmp_path / "jobs.jsonl", *lines), tmp_path / "out.jsonl"
    assert run(capsys, path, "-o", out)[0] == 1
    was = out.read_bytes().splitlines()
    right = [line for line in was if b'"error"' not in line]
    assert (len(was), len(right)) == (5, 2)
    for _ in range(3):
        asked.clear()
        status, err = run(capsys, path, "-o", out)
        assert (status, asked) == (1, ["gone"])
        assert err.startswith("npgemma: 5 of 5 done, 3 now in ")
        assert err.endswith(f" a second){told(3, out)}\n")
        now = out.read_bytes().splitlines()
        assert now[:2] == right
        assert Counter(now) == Counter(was)


def test_what_was_mended_is_answered_by_the_same_command(jobs, alone, asked, pictures, tmp_path, capsys):
    """A picture that was missing, one that was none, a line: first one of them, then the others."""
    (tmp_path / "torn.png").write_bytes(b"no picture")
    mended = [Job(f"job {i}", (f"{name}.png",), PROMPTS[i], tmp_path) for i, name in ((1, "gone"), (2, "torn"))]
    named = [{"id": job.id, "image": job.images[0], "prompt": job.prompt} for job in mended]
    lines = [as_line(jobs[0]), *named, {"id": "job 3", "prompt": jobs[3].prompt}, "broken"]
    path, out = write_jobs(tmp_path / "jobs.jsonl", *lines), tmp_path / "out.jsonl"
    status, err = run(capsys, path, "-o", out)
    assert (status, err.endswith(told(4, out) + "\n")) == (1, True)
    first = next(line for line in out.read_bytes().splitlines() if b'"error"' not in line)

    asked.clear()
    (tmp_path / "gone.png").write_bytes((pictures / "1.png").read_bytes())
    status, err = run(capsys, path, "-o", out)
    assert (status, asked) == (1, ["job 1", "job 2"])
    assert err.startswith("npgemma: 5 of 5 done, 4 now in ")
    assert err.endswith(told(3, out) + "\n")
    results = {result["id"]: result for result in read_lines(out)}
    assert sorted(results) == ["job 0", "job 1", "job 2", "job 3", "line 5"]
    assert sorted(name for name, result in results.items() if "error" in result) == ["job 2", "job 3", "line 5"]

    asked.clear()
    (tmp_path / "torn.png").write_bytes((pictures / "2.png").read_bytes())
    write_jobs(path, *lines[:3], as_line(jobs[3]), {"image": str(pictures / "4.png"), "prompt": jobs[4].prompt})
    status, err = run(capsys, path, "-o", out)
    assert (status, asked) == (0, ["job 2", "job 3", "line 5"])
    assert err.startswith("npgemma: 5 of 5 done, 3 now in ")
    assert err.endswith(" a second)\n")
    results = read_lines(out)
    by_id = {result["id"]: result for result in results}
    assert len(results) == len(by_id) == 5
    for job, name in ((jobs[0], "job 0"), (jobs[3], "job 3"), (dataclasses.replace(jobs[4], id="line 5"), "job 4")):
        assert_right(by_id[job.id], job, alone[name])
    for job, line in zip(mended, named, strict=True):
        assert {key: by_id[job.id][key] for key in line} == line
        assert by_id[job.id]["text"] == alone[job.id].text
        assert "error" not in by_id[job.id]
    assert out.read_bytes().splitlines()[0] == first

    asked.clear()
    was = out.read_bytes()
    assert run(capsys, path, "-o", out)[0] == 0
    assert (asked, out.read_bytes()) == ([], was)


def test_an_answer_of_detect_has_its_boxes_in_pixels(model, tmp_path, capsys):
    """Those of `npgemma detect`, of a picture that is no square; of several pictures, in the first."""
    wide = tmp_path / "wide.png"
    Image.open(SAMPLE).resize((200, 100)).save(wide)
    prompt = "detect green circle ; blue star"
    lines = [
        {"id": "detect", "image": "wide.png", "prompt": prompt},
        {"id": "caption", "image": "wide.png", "prompt": "caption en"},
        {"id": "gone", "image": "gone.png", "prompt": prompt},
        {"id": "two", "image": ["wide.png", str(SAMPLE)], "prompt": prompt},
    ]
    assert run(capsys, write_jobs(tmp_path / "jobs.jsonl", *lines), "-o", tmp_path / "out.jsonl")[0] == 1
    results = {result["id"]: result for result in read_lines(tmp_path / "out.jsonl")}
    assert main(["detect", str(wide), "green circle", "blue star", "--format", "json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert expected["prompt"] == prompt
    assert len(expected["boxes"]) >= 1
    assert results["detect"]["boxes"] == expected["boxes"]
    assert any(box["x1"] > 100 for box in expected["boxes"])
    assert "boxes" not in results["caption"]
    assert "boxes" not in results["gone"]
    assert results["two"]["image"] == ["wide.png", str(SAMPLE)]
    text = model.generate([wide, SAMPLE], prompt).text
    boxes = npgemma.parse_boxes(text, 200, 100)
    assert results["two"]["boxes"] == [dataclasses.asdict(box) for box in boxes]


def test_a_folder_is_asked_one_prompt(model, pictures, tmp_path, capsys):
    for i in range(3):
        (tmp_path / f"{i}.PNG").write_bytes((pictures / f"{i}.png").read_bytes())
    (tmp_path / "notes.txt").write_text("no picture")
    assert run(capsys, tmp_path, "caption en", "-o", tmp_path / "out.jsonl")[0] == 0
    results = {result["id"]: result for result in read_lines(tmp_path / "out.jsonl")}
    assert sorted(results) == ["0.PNG", "1.PNG", "2.PNG"]
    for name, result in results.items():
        assert (result["image"], result["prompt"]) == (name, "caption en")
        assert result["text"] == model.generate(tmp_path / name, "caption en").text
    status, err = run(capsys, tmp_path, "ocr", "-o", tmp_path / "out.jsonl")
    assert status == 1
    out = tmp_path / "out.jsonl"
    says = "the result of '0.PNG' is for prompt 'caption en', where 'ocr' is asked now; write to another file"
    assert err == f"npgemma: {out}: {says}\n"
    assert {result["id"]: result for result in read_lines(out)} == results


def test_pictures_are_found_from_the_file_of_jobs(pictures, tmp_path, monkeypatch, capsys):
    """Wherever the command runs; and the results name them as the jobs do."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.png").write_bytes((pictures / "0.png").read_bytes())
    write_jobs(tmp_path / "far" / "jobs.jsonl", {"image": "a.png", "prompt": "ocr"})
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "far/jobs.jsonl", "-o", "out.jsonl")[0] == 0
    (result,) = read_lines(tmp_path / "out.jsonl")
    assert (result["id"], result["image"], result["prompt"]) == ("line 1", "a.png", "ocr")


# -------------------------------------------------------------------------------------------------- usage and refusals


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["."], "batch takes a folder and a prompt, or a file of jobs"),
        (["jobs.jsonl", "ocr"], "batch takes a folder and a prompt, or a file of jobs"),
        (["jobs.jsonl", "--num-beams", "2"], "unrecognized arguments: --num-beams 2"),
        (["jobs.jsonl", "--top-k", "5"], "--top-k is about drawing"),
        (["jobs.jsonl", "--in-flight", "0"], "argument --in-flight: '0' is not a whole number from 1 up"),
        (["jobs.jsonl", "--in-flight", "many"], "argument --in-flight: 'many' is not a whole number from 1 up"),
        ([], "the following arguments are required: JOBS"),
    ],
)
def test_wrong_usage_is_2(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jobs(tmp_path / "jobs.jsonl", {"image": "a.png", "prompt": "ocr"})
    try:
        status = main(["batch", *arguments, "-o", "out.jsonl"])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_results_must_have_a_place(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["batch", str(write_jobs(tmp_path / "jobs.jsonl"))])
    assert end.value.code == 2
    assert "required: -o/--output" in capsys.readouterr().err


def refused(capsys, *arguments: object) -> str:
    status, err = run(capsys, *arguments)
    assert status == 1
    assert err.startswith("npgemma: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err


def test_what_cannot_begin_is_one_sentence(tmp_path, capsys):
    path, out = write_jobs(tmp_path / "jobs.jsonl"), tmp_path / "out.jsonl"
    assert "nowhere.jsonl cannot be read: No such file" in refused(capsys, tmp_path / "nowhere.jsonl", "-o", out)
    assert "holds no picture" in refused(capsys, tmp_path, "ocr", "-o", out)
    assert "cannot be written: No such file" in refused(capsys, path, "-o", tmp_path / "no" / "out.jsonl")
    assert "nomodel" in refused(capsys, path, "-o", out, "-m", tmp_path / "nomodel")
    assert not out.exists()
    assert refused(capsys, path, "-o", tmp_path) == f"npgemma: {tmp_path} is no file; results are written to one\n"
    (tmp_path / "notes.txt").write_text("my notes\n")
    assert "line 1 is no result of a job" in refused(capsys, path, "-o", tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "my notes\n"


def test_too_little_memory_is_one_sentence(jobs, tmp_path, capsys):
    path, out = write_jobs(tmp_path / "jobs.jsonl", *map(as_line, jobs)), tmp_path / "out.jsonl"
    said = refused(capsys, path, "-o", out, "--max-memory", "1MB")
    assert "more than the 0.00 GB allowed; smaller pictures, fewer of them at once" in said
    assert not out.exists()


def test_a_file_name_cannot_steer_the_terminal(tmp_path, capsys):
    path = write_jobs(tmp_path / "jobs.jsonl", "broken")
    status, err = run(capsys, path, "-o", tmp_path / "out\x1b[2J.jsonl")
    assert status == 1
    assert err.rstrip("\n").isprintable()
    assert err.endswith(told(1, tmp_path / "out\\x1b[2J.jsonl") + "\n")


def test_a_clock_that_stands_still_divides_nothing(tmp_path, monkeypatch, capsys):
    """Windows' moves every 16 ms, and there may be nothing left to do."""
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: 5.0))
    status, err = run(capsys, write_jobs(tmp_path / "jobs.jsonl"), "-o", tmp_path / "out.jsonl")
    assert status == 0
    assert err.startswith("npgemma: 0 of 0 done, 0 now in 0 s")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 0 s"),
        (200.2, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7505, "2 h 5 min"),
        (90 * 3600, "90 h 0 min"),
    ],
)
def test_durations_are_told_in_two_units(seconds, said):
    assert command.duration(seconds) == said


# ------------------------------------------------------------------------------------------------------- interruptions


def test_an_interruption_is_130_and_keeps_what_is_done(jobs, monkeypatch, tmp_path, capsys):
    def interrupted(model, jobs, *options, **more) -> Iterator[Answer]:
        answers = answer_jobs(model, jobs, *options, **more)
        yield next(answers)
        yield next(answers)
        raise KeyboardInterrupt

    path, out = write_jobs(tmp_path / "jobs.jsonl", *map(as_line, jobs)), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(command, "answer_jobs", interrupted)
        status, err = run(capsys, path, "-o", out)
    assert status == 130
    assert err.startswith("npgemma: 2 of 12 done, 2 now in ")
    assert err.endswith("; interrupted; the same command goes on from here\n")
    assert len(read_lines(out)) == 2
    assert run(capsys, path, "-o", out)[0] == 0
    assert Counter(result["id"] for result in read_lines(out)) == Counter(job.id for job in jobs)


class Many:
    """200 jobs, six of them wrong, and what an uninterrupted run of them has written."""

    def __init__(self, folder: Path) -> None:
        rng = Random(7)
        self.folder, self.path = folder, folder / "jobs.jsonl"
        self.ids, lines = [], []
        for i in range(200):
            scene = draw_scene(rng, side=96)
            scene.image.save(folder / f"{i}.png")
            asks = ["caption en", "ocr", "answer en how many shapes are there?", f"detect {scene.things[0].label}"]
            lines.append({"id": f"p{i}", "image": f"{i}.png", "prompt": asks[i % 4]})
        lines[20]["image"] = "gone.png"
        lines[60]["prompt"] = "<image><image>"
        lines[99] = "broken"
        del lines[130]["prompt"]
        lines[150]["image"] = 150
        (folder / "181.png").write_bytes(b"no picture")
        write_jobs(self.path, *lines)
        status, _ = self.run(folder / "whole.jsonl")
        assert status == 1
        self.expected = self.read(folder / "whole.jsonl")
        assert len(self.expected) == 200
        assert sum("error" in result for result in self.expected.values()) == 6

    def start(self, out: Path, *flags: object, **options: object) -> subprocess.Popen:
        """`npgemma batch` in a process of its own."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        arguments = [sys.executable, "-m", "npgemma", "batch", str(self.path), "-o", str(out), *map(str, flags)]
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True} | options
        return subprocess.Popen(arguments, env=environment, **options)

    def run(self, out: Path, *flags: object, **options: object) -> tuple[int, str]:
        with self.start(out, *flags, **options) as process:
            _, err = process.communicate(timeout=120)
        assert "Traceback" not in err
        return process.returncode, err

    def read(self, out: Path) -> dict[str | int, dict]:
        """By id; a job that has two results fails here."""
        results = read_lines(out)
        by_id = {result["id"]: result for result in results}
        assert len(by_id) == len(results)
        return by_id

    def assert_finished(self, out: Path) -> None:
        """A result for every job, that of the uninterrupted run; logprobs differ in what ran beside it."""
        found = self.read(out)
        assert found.keys() == self.expected.keys()
        for name, result in found.items():
            was = self.expected[name]
            assert {k: v for k, v in result.items() if k != "logprobs"} == {
                k: v for k, v in was.items() if k != "logprobs"
            }
            np.testing.assert_allclose(result.get("logprobs", []), was.get("logprobs", []), **LOGPROB)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Many:
    return Many(tmp_path_factory.mktemp("many"))


def right_lines(path: Path) -> list[bytes]:
    """The whole lines in a file that are no errors: what stays when work goes on."""
    whole = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in whole if line.endswith(b"\n") and "error" not in json.loads(line)]


def wait_for_lines(process: subprocess.Popen, out: Path, count: int) -> None:
    """Until the process has written so many results that are no errors, or has ended."""
    until = time.monotonic() + 60
    while len(right_lines(out)) < count and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.002)


@POSIX
def test_killed_five_times_and_finished_there_is_one_right_line_for_every_job(many, tmp_path):
    """SIGKILL asks nobody: once while the process begins, then after some results and a moment more."""
    rng, out = Random(1), tmp_path / "out.jsonl"
    kept = [[]]
    for moment in (None, *(rng.randint(1, 40) for _ in range(4))):
        with many.start(out, "--in-flight", rng.choice((1, 3, 8))) as process:
            if moment is None:
                time.sleep(rng.uniform(0.05, 0.4))
            else:
                wait_for_lines(process, out, len(kept[-1]) + moment)
                time.sleep(rng.uniform(0, 0.02))
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        now = right_lines(out)
        assert now[: len(kept[-1])] == kept[-1]
        assert len(now) >= len(kept[-1]) + (moment or 0)
        kept.append(now)
    assert 4 <= len(kept[-1]) < 194
    for _ in range(2):  # the second finds errors alone to do
        status, err = many.run(out)
        assert status == 1
        assert err.startswith(f"npgemma: 200 of 200 done, {200 - len(kept[-1])} now in ")
        assert err.endswith(f" a second){told(6, out)}\n")
        many.assert_finished(out)
        now = right_lines(out)
        assert now[: len(kept[-1])] == kept[-1]
        kept.append(now)
    assert len(kept[-1]) == 194


@POSIX
def test_control_c_is_130_and_the_same_command_goes_on(many, tmp_path):
    out = tmp_path / "out.jsonl"
    with many.start(out, "--in-flight", 1) as process:
        wait_for_lines(process, out, 10)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") == 1
    assert err.endswith("; interrupted; the same command goes on from here\n")
    kept, right = many.read(out), right_lines(out)
    assert 10 <= len(right) < len(kept) < 200
    counted = int(err.removeprefix("npgemma: ").split(" of 200 done")[0])
    assert counted in (len(kept), len(kept) - 1)  # one may be written and not be counted yet
    status, err = many.run(out)
    assert status == 1
    assert err.startswith(f"npgemma: 200 of 200 done, {200 - len(right)} now in ")
    assert err.endswith(told(6, out) + "\n")
    assert right_lines(out)[: len(right)] == right
    many.assert_finished(out)


@POSIX
def test_two_at_once_are_one_and_a_sentence(many, tmp_path):
    out = tmp_path / "out.jsonl"
    with many.start(out, "--in-flight", 1) as first:
        wait_for_lines(first, out, 5)
        status, err = many.run(out)
        first.kill()
        first.communicate()
    assert (status, err) == (1, f"npgemma: {out} is being written by another process\n")
    assert many.run(out)[0] == 1
    many.assert_finished(out)


@POSIX
def test_a_full_disk_is_one_sentence_and_costs_no_result(many, tmp_path):
    """The disk is full in the middle of a line; once there is room again, the work goes on."""
    import resource

    out, room = tmp_path / "out.jsonl", 3000
    status, err = many.run(out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)))
    assert (status, err) == (1, f"npgemma: {out} cannot be written: File too large\n")
    assert out.stat().st_size <= room
    right = right_lines(out)
    assert len(right) >= 3
    assert many.run(out)[0] == 1
    assert right_lines(out)[: len(right)] == right
    many.assert_finished(out)


# ------------------------------------------------------------------------------------------------------------ progress


def on_a_terminal(jobs: Path, out: Path) -> tuple[int, str]:
    """Status of a command whose stderr is a terminal, and what that is sent."""
    import pty

    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    arguments = [sys.executable, "-m", "npgemma", "batch", str(jobs), "-o", str(out)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        sent = b""
        try:
            while piece := os.read(ours, 65536):
                sent += piece
        except OSError:  # how Linux says that the other end is closed
            pass
        finally:
            os.close(ours)
        assert process.stdout.read() == b""
    return process.returncode, sent.decode()


@POSIX
def test_a_terminal_is_told_how_far_it_is(jobs, tmp_path):
    lines = ["broken", *map(as_line, jobs[:3])]
    path, out = write_jobs(tmp_path / "jobs.jsonl", *lines), tmp_path / "out.jsonl"
    status, sent = on_a_terminal(path, out)
    assert status == 1
    start, *shown, end = sent.split("\r\x1b[K")
    assert start == ""
    assert [line.split(",")[0] for line in shown] == [f"{i} of 4" for i in (1, 2, 3, 4)]
    assert all(" a second, " in line and line.endswith(" left, 1 errors") for line in shown)
    assert shown[-1].endswith(", 0 s left, 1 errors")
    assert end.startswith("npgemma: 4 of 4 done, 4 now in ")
    assert end.endswith(told(1, out) + "\r\n")


@POSIX
def test_a_terminal_is_told_from_where_it_goes_on(jobs, tmp_path):
    path, out = write_jobs(tmp_path / "jobs.jsonl", *map(as_line, jobs[:3])), tmp_path / "out.jsonl"
    assert main(["batch", str(path), "-o", str(out)]) == 0
    write_jobs(path, *map(as_line, jobs[:5]))
    status, sent = on_a_terminal(path, out)
    assert status == 0
    _, *shown, end = sent.split("\r\x1b[K")
    assert [line.split(",")[0] for line in shown] == ["4 of 5", "5 of 5"]
    assert end.startswith("npgemma: 5 of 5 done, 2 now in ")


def test_without_a_terminal_there_is_one_line(jobs, tmp_path, capsys):
    path = write_jobs(tmp_path / "jobs.jsonl", *map(as_line, jobs[:3]))
    _, err = run(capsys, path, "-o", tmp_path / "out.jsonl")
    assert err.count("\n") == 1
    assert "\r" not in err
    assert "\x1b" not in err
