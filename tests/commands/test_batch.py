"""npgemma batch: results on disk, one line for each job; a second run does what is left and retries errors."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from answers import assert_same, observed
from job_files import answered_lines, by_id, job_line, read_lines, summary_of_errors, write_jobs
from PIL import Image
from shape_world import draw_scene

import npgemma
from npgemma.commands.cli import main
from npgemma.commands.notes import DRAWN_ONLY
from npgemma.commands.progress import duration
from npgemma.io.jobs import Job

PROMPTS = ["caption en", "ocr", "answer en how many shapes are there?", "detect star ; circle"]
SAMPLE = npgemma.sample_picture()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(8):
        draw_scene(Random(i), side=96).image.save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def jobs(pictures) -> list[Job]:
    return [Job(f"job {i}", (f"{i}.png",), PROMPTS[i % 4], pictures) for i in range(8)]


@pytest.fixture(scope="module")
def alone(model, jobs) -> dict[str | int, npgemma.Generation]:
    """What `generate` answers to each job."""
    return {job.id: model.generate(job.folder / job.images[0], job.prompt) for job in jobs}


@pytest.fixture
def batch(capsys) -> Callable[..., tuple[int, str]]:
    """batch(*arguments): exit status and stderr of a command, which never writes to stdout."""

    def batch(*arguments: object, **options: object) -> tuple[int, str]:
        status = main(["batch", *map(str, arguments)], **options)
        out, err = capsys.readouterr()
        assert out == ""
        err = err.removeprefix(f"{DRAWN_ONLY}\n")
        assert err.startswith("npgemma: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return status, err

    return batch


def assert_right(result: dict, job: Job, expected: npgemma.Generation) -> None:
    assert {name: result[name] for name in ("id", "image", "prompt")} == job_line(job)
    fields = ("text", "token_ids", "finish_reason", "logprobs")
    assert_same([npgemma.Generation(*(result[name] for name in fields))], [expected])
    assert "error" not in result


# ------------------------------------------------------------------------------------------------------------- results


def test_results_are_those_of_the_library(jobs, alone, tmp_path, batch):
    out = tmp_path / "out.jsonl"
    status, err = batch(write_jobs(tmp_path / "jobs.jsonl", *map(job_line, jobs)), "-o", out)
    assert status == 0
    assert err.startswith("npgemma: 8 of 8 done, 8 now in ")
    assert err.endswith(" a second)\n")
    assert [result["id"] for result in read_lines(out)] != [job.id for job in jobs]  # in the order of their ends
    results = by_id(out)
    assert len(results) == len(jobs)
    for job in jobs:
        assert_right(results[job.id], job, alone[job.id])


def test_flags_reach_the_model(model, jobs, tmp_path, batch):
    flags = ("--max-new-tokens", 3, "--temperature", 5, "--top-k", 40, "--top-p", 0.9, "--seed", 17, "--stop", "e")
    path = write_jobs(tmp_path / "jobs.jsonl", *map(job_line, jobs))
    assert batch(path, "-o", tmp_path / "out.jsonl", *flags)[0] == 0
    options = {"max_new_tokens": 3, "temperature": 5.0, "top_k": 40, "top_p": 0.9, "seed": 17, "stop": ["e"]}
    results = by_id(tmp_path / "out.jsonl")
    for job in jobs:
        assert_right(results[job.id], job, model.generate(job.folder / job.images[0], job.prompt, **options))


@pytest.mark.parametrize(("flags", "most"), [(["--in-flight", 1], 1), (["--in-flight", 5], 5), ([], 8)], ids=str)
def test_in_flight_is_how_many_jobs_run_at_a_time(flags, most, model, jobs, tmp_path, batch):
    watched, guard = observed(model)
    path = write_jobs(tmp_path / "jobs.jsonl", *map(job_line, jobs))
    assert batch(path, "-o", tmp_path / "out.jsonl", *flags, load=lambda *_: watched)[0] == 0
    assert max(guard.running) == most


def test_the_boxes_of_detect_are_in_pixels_of_the_first_picture(model, tmp_path, batch, run):
    """They are those of `npgemma detect`, here for a picture that is not square."""
    wide = tmp_path / "wide.png"
    Image.open(SAMPLE).resize((200, 100)).save(wide)
    prompt = "detect green circle ; blue star"
    lines = [
        {"id": "detect", "image": "wide.png", "prompt": prompt},
        {"id": "caption", "image": "wide.png", "prompt": "caption en"},
        {"id": "gone", "image": "gone.png", "prompt": prompt},
        {"id": "two", "image": ["wide.png", str(SAMPLE)], "prompt": prompt},
    ]
    assert batch(write_jobs(tmp_path / "jobs.jsonl", *lines), "-o", tmp_path / "out.jsonl")[0] == 1
    results = by_id(tmp_path / "out.jsonl")
    flags = ("--format", "json")
    expected = json.loads(run("detect", wide, "green circle", "blue star", *flags, note="the embedded model knows"))
    assert expected["prompt"] == prompt
    assert results["detect"]["boxes"] == expected["boxes"]
    assert any(box["x1"] > 100 for box in expected["boxes"])
    assert "boxes" not in results["caption"]
    assert "boxes" not in results["gone"]
    boxes = npgemma.parse_boxes(model.generate([wide, SAMPLE], prompt).text, 200, 100)
    assert results["two"]["image"] == ["wide.png", str(SAMPLE)]
    assert results["two"]["boxes"] == [dataclasses.asdict(box) for box in boxes]


def test_a_folder_needs_one_prompt(model, pictures, tmp_path, batch):
    for i in range(3):
        (tmp_path / f"{i}.PNG").write_bytes((pictures / f"{i}.png").read_bytes())
    (tmp_path / "notes.txt").write_text("not a picture")
    out = tmp_path / "out.jsonl"
    assert batch(tmp_path, "caption en", "-o", out)[0] == 0
    results = by_id(out)
    assert sorted(results) == ["0.PNG", "1.PNG", "2.PNG"]
    for name, result in results.items():
        assert (result["image"], result["prompt"]) == (name, "caption en")
        assert result["text"] == model.generate(tmp_path / name, "caption en").text
    status, err = batch(tmp_path, "ocr", "-o", out)
    difference = "has prompt 'caption en', but the job has 'ocr'; write to another file"
    assert (status, err) == (1, f"npgemma: {out}: the result of '0.PNG' {difference}\n")
    assert by_id(out) == results


def test_paths_of_pictures_start_from_the_file_of_jobs(pictures, tmp_path, monkeypatch, batch):
    """Wherever the command runs; and the results have them as the jobs do."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.png").write_bytes((pictures / "0.png").read_bytes())
    write_jobs(tmp_path / "far" / "jobs.jsonl", {"image": "a.png", "prompt": "ocr"})
    monkeypatch.chdir(tmp_path)
    assert batch("far/jobs.jsonl", "-o", "out.jsonl")[0] == 0
    (result,) = read_lines(tmp_path / "out.jsonl")
    assert (result["id"], result["image"], result["prompt"]) == ("line 1", "a.png", "ocr")


# -------------------------------------------------------------------------------------------------- errors and retries


def test_errors_have_lines_of_their_own_and_the_status_is_1(jobs, alone, tmp_path, batch):
    lines = [
        job_line(jobs[0]),
        "broken",
        {"id": "gone", "image": "gone.png", "prompt": "ocr"},
        {"id": "mute", "image": "gone.png"},
        job_line(jobs[1]),
        {"id": "line 1", "image": "gone.png", "prompt": "ocr"},
        job_line(jobs[0]),
    ]
    path, out = write_jobs(tmp_path / "jobs.jsonl", *lines), tmp_path / "out.jsonl"
    status, err = batch(path, "-o", out)
    assert status == 1
    assert err.startswith("npgemma: 7 of 7 done, 7 now in ")
    assert err.endswith(f" a second){summary_of_errors(5, out)}\n")
    results = by_id(out)
    assert len(results) == 7
    for job in jobs[:2]:
        assert_right(results.pop(job.id), job, alone[job.id])
    assert results["gone"].pop("error").endswith("gone.png was not found")
    assert results.pop("line 2")["error"].startswith("line 2 is not a JSON object: ")
    assert results.pop("gone") == {"id": "gone", "image": "gone.png", "prompt": "ocr"}
    assert all(result.keys() == {"id", "error"} for result in results.values())
    assert {name: result["error"] for name, result in results.items()} == {
        "mute": "line 4: prompt is None, not text",
        "line 6": "line 6: the id 'line 1' is reserved for a line without an id; choose another",
        "line 7": "line 7: the id 'job 0' is already used in line 1",
    }


def test_a_job_with_a_result_is_not_done_again(model, jobs, alone, tmp_path, batch):
    out, first, every = tmp_path / "out.jsonl", tmp_path / "first.jsonl", tmp_path / "all.jsonl"
    assert batch(write_jobs(first, *map(job_line, jobs[:3])), "-o", out)[0] == 0
    before = out.read_bytes()
    watched, guard = observed(model)
    write_jobs(every, *map(job_line, jobs))
    for now in (5, 0):
        status, err = batch(every, "-o", out, load=lambda *_: watched)
        assert status == 0
        assert err.startswith(f"npgemma: 8 of 8 done, {now} now in ")
        assert out.read_bytes().startswith(before)
        assert len(guard.prompts) == 5
        before = out.read_bytes()
    assert by_id(out).keys() == alone.keys()


def test_the_same_command_retries_errors_and_nothing_else(jobs, tmp_path, batch):
    """If nothing was corrected, each error is there again, once."""
    gone = {"id": "gone", "image": "gone.png", "prompt": "ocr"}
    lines = [job_line(jobs[0]), "broken", gone, {"id": "mute", "image": "gone.png"}, job_line(jobs[1])]
    path, out = write_jobs(tmp_path / "jobs.jsonl", *lines), tmp_path / "out.jsonl"
    assert batch(path, "-o", out)[0] == 1
    before, answered = sorted(out.read_bytes().splitlines()), answered_lines(out)
    assert (len(before), len(answered)) == (5, 2)
    for _ in range(2):
        status, err = batch(path, "-o", out)
        assert status == 1
        assert err.startswith("npgemma: 5 of 5 done, 3 now in ")
        assert err.endswith(f" a second){summary_of_errors(3, out)}\n")
        assert out.read_bytes().startswith(b"".join(answered))
        assert sorted(out.read_bytes().splitlines()) == before


def test_corrected_jobs_are_answered_by_the_same_command(jobs, alone, pictures, tmp_path, batch):
    """First a picture that was missing; then one that was damaged, and two lines."""
    (tmp_path / "torn.png").write_bytes(b"not a picture")
    named = [{"id": f"job {i}", "image": f"{name}.png", "prompt": PROMPTS[i]} for i, name in ((1, "gone"), (2, "torn"))]
    lines = [job_line(jobs[0]), *named, {"id": "job 3", "prompt": jobs[3].prompt}, "broken"]
    path, out = write_jobs(tmp_path / "jobs.jsonl", *lines), tmp_path / "out.jsonl"
    assert batch(path, "-o", out)[0] == 1
    assert sorted(name for name, result in by_id(out).items() if "error" in result) == [
        "job 1",
        "job 2",
        "job 3",
        "line 5",
    ]
    (first,) = answered_lines(out)

    (tmp_path / "gone.png").write_bytes((pictures / "1.png").read_bytes())
    status, err = batch(path, "-o", out)
    assert status == 1
    assert err.startswith("npgemma: 5 of 5 done, 4 now in ")
    assert err.endswith(summary_of_errors(3, out) + "\n")

    (tmp_path / "torn.png").write_bytes((pictures / "2.png").read_bytes())
    write_jobs(path, *lines[:3], job_line(jobs[3]), {"image": str(pictures / "4.png"), "prompt": jobs[4].prompt})
    status, err = batch(path, "-o", out)
    assert status == 0
    assert err.startswith("npgemma: 5 of 5 done, 3 now in ")
    results = by_id(out)
    assert out.read_bytes().startswith(first)
    assert_right(results["job 3"], jobs[3], alone["job 3"])
    assert_right(results["line 5"], dataclasses.replace(jobs[4], id="line 5"), alone["job 4"])
    for line in named:
        assert {name: results[line["id"]][name] for name in line} == line
        assert results[line["id"]]["text"] == alone[line["id"]].text


# --------------------------------------------------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["."], "batch takes a folder and a prompt, or a file of jobs"),
        (["jobs.jsonl", "ocr"], "batch takes a folder and a prompt, or a file of jobs"),
        (["-"], "batch reads jobs from a file and writes results to a file"),
        (["jobs.jsonl", "--num-beams", "2"], "unrecognized arguments: --num-beams 2"),
        (["jobs.jsonl", "--top-k", "5"], "--top-k needs a --temperature above 0"),
        (["jobs.jsonl", "--in-flight", "0"], "argument --in-flight: '0' is not a whole number above 0"),
        (["jobs.jsonl", "--in-flight", "many"], "argument --in-flight: 'many' is not a whole number above 0"),
        ([], "the following arguments are required: JOBS"),
    ],
)
def test_wrong_usage_exits_with_2_and_writes_nothing(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jobs(tmp_path / "jobs.jsonl", {"image": "a.png", "prompt": "ocr"})
    try:
        status = main(["batch", *arguments, "-o", "out.jsonl"])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_file_is_required(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["batch", str(write_jobs(tmp_path / "jobs.jsonl"))])
    assert end.value.code == 2
    assert "required: -o/--output" in capsys.readouterr().err


def test_a_batch_that_cannot_start_is_one_sentence(jobs, tmp_path, refused):
    path, out = write_jobs(tmp_path / "jobs.jsonl", job_line(jobs[0])), tmp_path / "out.jsonl"
    assert "nowhere.jsonl cannot be read: No such file" in refused("batch", tmp_path / "nowhere.jsonl", "-o", out)
    assert "contains no pictures" in refused("batch", tmp_path, "ocr", "-o", out)
    assert "cannot be written: No such file" in refused("batch", path, "-o", tmp_path / "no" / "out.jsonl")
    assert "nomodel" in refused("batch", path, "-o", out, "-m", tmp_path / "nomodel")
    assert "more than the 0.00 GB allowed; use " in refused("batch", path, "-o", out, "--max-memory", "1MB")
    assert not out.exists()
    assert "is not a regular file" in refused("batch", path, "-o", tmp_path)
    (tmp_path / "notes.txt").write_text("my notes\n")
    assert "line 1 is not the result of a job" in refused("batch", path, "-o", tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "my notes\n"


# ------------------------------------------------------------------------------------------------------------- summary


def test_control_characters_in_a_file_name_are_escaped(tmp_path, batch):
    path = write_jobs(tmp_path / "jobs.jsonl", "broken", {"image": "gone.png", "prompt": "ocr"})
    status, err = batch(path, "-o", tmp_path / "out\x1b[2J.jsonl")
    assert status == 1
    assert err.rstrip("\n").isprintable()
    assert err.endswith(summary_of_errors(2, tmp_path / "out\\x1b[2J.jsonl") + "\n")


def test_the_rate_of_no_time_is_not_a_division_by_zero(tmp_path, monkeypatch, batch):
    """Windows' clock moves every 16 ms, and there may be nothing left to do."""
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    status, err = batch(write_jobs(tmp_path / "jobs.jsonl"), "-o", tmp_path / "out.jsonl")
    assert status == 0
    assert err.startswith("npgemma: 0 of 0 done, 0 now in 0 s")


@pytest.mark.parametrize(
    ("seconds", "text"),
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
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text
