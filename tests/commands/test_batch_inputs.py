"""What npgemma batch is given: spellings of prompts, folders with other files, data sets with suffixes, other files."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from answers import LOGPROBS
from job_files import by_id, read_lines, write_jobs
from PIL import Image

import npgemma
from npgemma.api.batch import JobResult
from npgemma.commands.batch import as_line
from npgemma.commands.cli import main
from npgemma.io.jobs import Job

SAMPLE = npgemma.sample_picture()
LOCATIONS = "<loc0100><loc0200><loc0300><loc0400>"


@pytest.fixture
def batch(capsys) -> Callable[..., tuple[int, str]]:
    """batch(*arguments): exit status and stderr of a command."""

    def batch(*arguments: object, **options: object) -> tuple[int, str]:
        status = main(["batch", *map(str, arguments)], **options)
        return status, capsys.readouterr().err

    return batch


def no_model(*_: object) -> npgemma.VisionLanguageModel:
    raise AssertionError("the model was loaded")


# --------------------------------------------------------------------------------------------------------------- boxes


PROMPTS = [
    "detect ring",
    "<image>detect ring",
    "<image> detect ring",
    "  detect ring",
    "\ndetect ring",
    "Detect ring",
    "DETECT ring",
    "detect  ring",
    "segment ring",
    "Segment ring",
    "find the ring",
    "detectar anillo",
    "answer en where is the ring?",
    "",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_result_has_the_boxes_of_its_answer_however_the_prompt_is_spelled(prompt):
    job = Job("a", ("a.png",), prompt, Path())
    for text in (
        f"{LOCATIONS} ring",
        f"{LOCATIONS} ring ; {LOCATIONS} ring",
        f"here: {LOCATIONS}{'<seg001>' * 16} ring",
    ):
        line = as_line(JobResult(job, npgemma.Generation(text, [], "stop", []), (200, 100)), "embedded")
        assert line["boxes"] == [dataclasses.asdict(box) for box in npgemma.parse_boxes(text, 200, 100)]
        assert line["objects"] == [dataclasses.asdict(each) for each in npgemma.parse_objects(text)]
        assert len(line["boxes"]) == text.count("ring")


@pytest.mark.parametrize(
    ("prompt", "listed"), [*((p, True) for p in PROMPTS[:10]), *((p, False) for p in PROMPTS[10:])]
)
def test_a_prompt_that_asks_for_objects_has_an_empty_list_if_there_are_none(prompt, listed):
    line = as_line(
        JobResult(Job("a", ("a.png",), prompt, Path()), npgemma.Generation("", [], "stop", []), (2, 1)), "embedded"
    )
    assert line["model"] == "embedded"
    assert ("boxes" in line, "objects" in line) == (listed, listed)


def test_spellings_of_detect_give_the_same_boxes(tmp_path, batch):
    lines = [
        {"id": p, "image": str(SAMPLE), "prompt": p} for p in ("detect ring", "<image>detect ring", " detect ring")
    ]
    assert batch(write_jobs(tmp_path / "jobs.jsonl", *lines), "-o", tmp_path / "out.jsonl")[0] == 0
    results = by_id(tmp_path / "out.jsonl")
    assert results["detect ring"]["boxes"] == results["<image>detect ring"]["boxes"]
    assert all(result["boxes"] for result in results.values())


# ------------------------------------------------------------------------------------------------------------- folders


def test_the_last_line_counts_the_files_that_are_passed_over(tmp_path, batch):
    for name in ("a.png", "b.jfif", "c"):
        (tmp_path / name).write_bytes(SAMPLE.read_bytes())
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (tmp_path / "d.avif").write_bytes(b"\0\0\0\x1cftypavif")
    (tmp_path / "e.tif").write_bytes(b"II*\0damaged")
    out = tmp_path / "out.jsonl"
    for now in (4, 1):
        status, err = batch(tmp_path, "ocr", "-o", out, "--max-new-tokens", 2)
        assert status == 1
        assert f"npgemma: 4 of 4 done, {now} now in " in err
        passed_over = "3 files passed over: 2 hidden, 1 AVIF picture; convert AVIF to PNG or JPEG"
        assert f" a second); {passed_over}; 1 of them errors, which the same command retries" in err
        assert err.count("\n") == 1 + err.count("npgemma: the embedded model knows drawn shapes")
    assert {name for name, result in by_id(out).items() if "text" in result} == {"a.png", "b.jfif", "c"}


# ---------------------------------------------------------------------------------------------------------- data sets


def test_a_suffix_is_kept_and_scored_as_score_scores_it(model, tmp_path, batch, run):
    lines = [
        {"image": str(SAMPLE), "prefix": "ocr", "suffix": "FNY"},
        {"image": str(SAMPLE), "prefix": "ocr", "suffix": "no"},
        {"image": str(SAMPLE), "prompt": "caption en", "suffix": "a blue star"},
        {"image": str(SAMPLE), "prefix": "caption en", "suffix": ""},
    ]
    assert batch(write_jobs(tmp_path / "jobs.jsonl", *lines), "--score", "-o", tmp_path / "out.jsonl")[0] == 0
    results = by_id(tmp_path / "out.jsonl")
    for number, line in enumerate(lines, 1):
        result, prompt = results[f"line {number}"], line.get("prefix", line.get("prompt"))
        assert (result["prompt"], result["suffix"]) == (prompt, line["suffix"])
        assert result["text"] == model.generate(SAMPLE, prompt).text
        expected = json.loads(run("score", SAMPLE, prompt, line["suffix"], "--format", "json"))
        assert result["score"].keys() == expected.keys() - {"model", "prompt", "suffix"}
        assert result["score"]["token_ids"] == expected["token_ids"]
        for key in ("logprobs", "total", "loss"):
            np.testing.assert_allclose(result["score"][key], expected[key], rtol=0, atol=4 * LOGPROBS, strict=True)
    assert results["line 1"]["score"]["total"] > results["line 2"]["score"]["total"] + 1


def test_a_suffix_is_kept_without_being_scored(tmp_path, batch):
    lines = [{"image": str(SAMPLE), "prefix": "ocr", "suffix": "x"}, {"image": "gone", "prefix": "ocr", "suffix": "y"}]
    assert batch(write_jobs(tmp_path / "jobs.jsonl", *lines), "-o", tmp_path / "out.jsonl")[0] == 1
    results = by_id(tmp_path / "out.jsonl")
    assert [results[f"line {n}"]["suffix"] for n in (1, 2)] == ["x", "y"]
    assert not any("score" in result for result in results.values())


def test_a_job_without_a_suffix_is_an_error_if_scores_are_asked_for(tmp_path, batch):
    lines = [{"image": str(SAMPLE), "prefix": "ocr", "suffix": "x"}, {"id": "b", "image": str(SAMPLE), "prompt": "ocr"}]
    path, out = write_jobs(tmp_path / "jobs.jsonl", *lines), tmp_path / "out.jsonl"
    for _ in range(2):
        assert batch(path, "--score", "-o", out)[0] == 1
        error = "the job 'b' has no suffix to score; add one, or leave out --score"
        assert by_id(out)["b"] == {"id": "b", "error": error}
    write_jobs(path, lines[1])
    status, err = batch(path, "--score", "-o", tmp_path / "new.jsonl", load=no_model)
    assert (status, err.count("\n")) == (1, 1)
    assert f"{path} holds no job: {error}" in err


def test_results_without_scores_are_not_taken_for_results_with_them(tmp_path, batch):
    line = {"id": "a", "image": str(SAMPLE), "prefix": "ocr", "suffix": "x"}
    path, out = write_jobs(tmp_path / "jobs.jsonl", line), tmp_path / "out.jsonl"
    assert batch(path, "-o", out)[0] == 0
    before = out.read_bytes()
    status, err = batch(path, "--score", "-o", out)
    assert (status, err) == (1, f"npgemma: {out}: the result of 'a' has no score; write to another file\n")
    assert out.read_bytes() == before
    assert batch(path, "--score", "-o", tmp_path / "scored.jsonl")[0] == 0
    for flags in (["--score"], []):
        status, err = batch(path, "-o", tmp_path / "scored.jsonl", *flags)
        assert (status, err.startswith("npgemma: 1 of 1 done, 0 now in ")) == (0, True)
    write_jobs(path, line | {"suffix": "y"})
    status, err = batch(path, "--score", "-o", tmp_path / "scored.jsonl")
    assert status == 1
    assert "the result of 'a' has suffix 'x', but the job has 'y'; write to another file" in err


def test_a_suffix_that_is_too_long_is_an_error_of_its_job(model, tmp_path, batch):
    long = "word " * model.config.text.max_position_embeddings
    lines = [{"id": i, "image": str(SAMPLE), "prefix": "ocr", "suffix": s} for i, s in enumerate(("x", long))]
    assert batch(write_jobs(tmp_path / "jobs.jsonl", *lines), "--score", "-o", tmp_path / "out.jsonl")[0] == 1
    results = by_id(tmp_path / "out.jsonl")
    assert "a prompt with its suffix has" in results[1]["error"]
    assert "score" in results[0]


def test_scores_of_a_folder_are_wrong_usage(tmp_path, batch):
    status, err = batch(tmp_path, "ocr", "--score", "-o", tmp_path / "out.jsonl", load=no_model)
    assert (status, err) == (2, "npgemma: --score needs a file of jobs with a suffix each; a folder has none\n")


# --------------------------------------------------------------------------------------------------------- other files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[{"image": "a.png", "prompt": "ocr"}]', "is a JSON list; write one JSON object a line"),
        ('{"image": "a.png", "prompt": "ocr"}\n'.encode("utf-16"), "is text in UTF-16 or UTF-32; save it as UTF-8"),
        (b"image,prompt\na.png,ocr\n", "is a table (CSV); write one JSON object a line"),
        (b"PAR1" + bytes(50), "is a table in a binary format (Parquet, Arrow or such)"),
        (
            b'{"file_name": "a.png", "text": "b"}\n' * 4,
            "'file_name' is not read; rename it to 'image' (and so in all 4",
        ),
        (
            b'{"image": "https://x.org/a.png", "prompt": "b"}\n' * 4,
            "https://x.org/a.png is a URL; npgemma does not downl",
        ),
    ],
    ids=["list", "UTF-16", "CSV", "Parquet", "file_name", "URLs"],
)
def test_a_file_without_jobs_is_one_sentence_before_a_model_is_loaded(content, says, tmp_path, batch):
    (tmp_path / "jobs.jsonl").write_bytes(content)
    status, err = batch(tmp_path / "jobs.jsonl", "-o", tmp_path / "out.jsonl", load=no_model)
    assert (status, err.count("\n")) == (1, 1)
    assert says in err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_picture_in_a_line_is_not_repeated_in_the_results(tmp_path, batch):
    lines = [
        {"id": "data", "image": "data:image/png;base64," + "A" * 900_000, "prompt": "ocr"},
        {"id": "good", "image": str(SAMPLE), "prompt": "ocr"},
    ]
    assert batch(write_jobs(tmp_path / "jobs.jsonl", *lines), "-o", tmp_path / "out.jsonl")[0] == 1
    assert (tmp_path / "out.jsonl").stat().st_size < 2000
    first, _ = read_lines(tmp_path / "out.jsonl")
    assert first["error"].startswith("line 1: image data:image/png;base64,AAAA")
    assert first["error"].endswith("holds its picture itself: save it as a file")


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("command", ["ocr", "caption", "detect", "score"])
def test_max_pixels_replaces_the_limit_of_a_command(command, tmp_path, refused):
    Image.open(SAMPLE).resize((60, 50)).save(tmp_path / "a.png")
    rest = {"detect": ["ring"], "score": ["ocr", "x"]}.get(command, [])
    says = refused(command, tmp_path / "a.png", *rest, "--max-pixels", 2999)
    assert "a.png has 60 x 50 pixels; the limit is 2,999: raise the limit with --max-pixels (in Python: " in says
    assert main([command, str(tmp_path / "a.png"), *rest, "--max-pixels", "3000"]) == 0


def test_max_pixels_replaces_the_limit_of_a_batch_and_of_a_model(tmp_path, batch):
    Image.open(SAMPLE).resize((60, 50)).save(tmp_path / "a.png")
    assert batch(tmp_path, "ocr", "-o", tmp_path / "out.jsonl", "--max-pixels", 2999)[0] == 1
    assert "the limit is 2,999" in by_id(tmp_path / "out.jsonl")["a.png"]["error"]
    assert batch(tmp_path, "ocr", "-o", tmp_path / "out.jsonl", "--max-pixels", 3000)[0] == 0
    model = npgemma.load()
    model.processor.max_pixels = 2999
    with pytest.raises(npgemma.BadPicture, match="has 60 x 50 pixels; the limit is 2,999"):
        model.generate(tmp_path / "a.png", "ocr")
