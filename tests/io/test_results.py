"""Files of results: whenever the process ends, at most one unfinished result is lost."""

import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import ROOT
from result_files import ANSWERS, JOB_ERROR, LINE_ERROR, as_lines, read_results, write_results

from npgemma.errors import BadJobs
from npgemma.io.jobs import InvalidJob, Job
from npgemma.io.results import open_results

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fcntl")


def test_results_are_lines_of_ascii_json_in_the_order_of_writing(tmp_path):
    path = tmp_path / "out.jsonl"
    results = [JOB_ERROR, *ANSWERS, LINE_ERROR]
    written = write_results(path, *results)
    assert written.isascii()
    assert [json.loads(line) for line in written.splitlines()] == results
    assert written.count(b"\n") == 5
    assert written.endswith(b"\n")


def test_results_are_read_back_without_changing_the_file(tmp_path):
    path = tmp_path / "out.jsonl"
    written = write_results(path, *ANSWERS)
    before = path.stat()
    assert read_results(path) == ANSWERS
    assert path.read_bytes() == written
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_new_results_are_appended(tmp_path):
    path = tmp_path / "out.jsonl"
    first = write_results(path, *ANSWERS[:2])
    assert write_results(path, ANSWERS[2]) == first + json.dumps(ANSWERS[2]).encode() + b"\n"


def test_jobs_with_a_result_do_not_remain(tmp_path):
    jobs = [
        Job(2, ("b.png",), "ocr", tmp_path),
        Job("new", ("n.png",), "ocr", tmp_path),
        InvalidJob("line 5", "broken"),
    ]
    path = tmp_path / "out.jsonl"
    write_results(path, *ANSWERS)
    with open_results(path) as results:
        assert results.remaining(jobs, path) == jobs[1:]
        assert results.remaining(jobs[:1], path) == []
    with open_results(tmp_path / "none.jsonl") as results:
        assert results.remaining(jobs, path) == jobs


def test_an_invalid_line_whose_id_has_a_result_does_not_remain(tmp_path):
    """The job was valid when it was answered; it keeps its answer and gets no second line."""
    invalid = [InvalidJob(2, "line 1: prompt is None, not text"), InvalidJob("line 2", "line 2 is not a JSON object")]
    path = tmp_path / "out.jsonl"
    write_results(path, ANSWERS[1], {"id": "line 2", "image": "a.png", "prompt": "ocr", "text": ""})
    with open_results(path) as results:
        assert results.remaining(invalid, path) == []


@pytest.mark.parametrize("missing", [("prompt",), ("image",), ("prompt", "image")])
def test_keys_that_a_result_lacks_are_not_compared(missing, tmp_path):
    path = tmp_path / "out.jsonl"
    write_results(path, {key: value for key, value in ANSWERS[1].items() if key not in missing})
    with open_results(path) as results:
        assert results.remaining([Job(2, ("b.png",), "ocr", tmp_path)], path) == []
        for key, other in (
            ("prompt", Job(2, ("b.png",), "caption en", tmp_path)),
            ("image", Job(2, ("x.png",), "ocr", tmp_path)),
        ):
            if key in missing:
                assert results.remaining([other], path) == []
            else:
                with pytest.raises(BadJobs, match=f"the result of 2 has {key} "):
                    results.remaining([other], path)


# By position of the errors: all results of a file, and those that remain without the errors.
WITH_ERRORS = {
    "first": ([JOB_ERROR, *ANSWERS], ANSWERS),
    "between": ([ANSWERS[0], JOB_ERROR, LINE_ERROR, *ANSWERS[1:]], ANSWERS),
    "last": ([*ANSWERS, LINE_ERROR, JOB_ERROR], ANSWERS),
    "alone": ([JOB_ERROR], []),
    "everywhere": ([JOB_ERROR, ANSWERS[0], LINE_ERROR, ANSWERS[1], JOB_ERROR, ANSWERS[2], LINE_ERROR], ANSWERS),
    "with the id of an answer": ([ANSWERS[0], {"id": "a", "error": "line 1: prompt is None, not text"}], ANSWERS[:1]),
}


@pytest.mark.parametrize("incomplete", [b"", b'{"id": "d", "image": "d.p', json.dumps(ANSWERS[0]).encode()])
@pytest.mark.parametrize(("results", "kept"), WITH_ERRORS.values(), ids=WITH_ERRORS)
def test_errors_are_removed_and_every_other_line_is_kept(results, kept, incomplete, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(as_lines(*results) + incomplete)
    with open_results(path) as opened:
        assert opened.done == {r["id"]: {key: r[key] for key in ("prompt", "image") if key in r} for r in kept}
        assert path.read_bytes() == as_lines(*kept)
        opened.write(LINE_ERROR)
        opened.write({"id": "n", "text": "new"})
    assert path.read_bytes() == as_lines(*kept, LINE_ERROR, {"id": "n", "text": "new"})
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_removing_errors_keeps_other_lines_byte_for_byte(tmp_path):
    """Even lines of another program, with other spaces and letters that are not ASCII."""
    first = b'{ "text":"x" ,"id":1}\r\n'
    last = json.dumps({"text": "猫", "id": "é"}, ensure_ascii=False).encode() + b"  \n"
    path = tmp_path / "out.jsonl"
    path.write_bytes(first + as_lines(JOB_ERROR) + last)
    assert read_results(path) == [{"id": 1, "text": "x"}, {"id": "é", "text": "猫"}]
    assert path.read_bytes() == first + last


def test_the_job_of_an_error_remains_even_if_it_has_changed(tmp_path):
    path = tmp_path / "out.jsonl"
    jobs = [Job("g", ("g.png",), "ocr", tmp_path), Job("a", ("a.png",), "caption en", tmp_path)]
    write_results(path, *ANSWERS, JOB_ERROR)
    with open_results(path) as results:
        assert results.remaining(jobs, path) == jobs[:1]
        other = Job("g", ("other.png",), "caption en", tmp_path)
        assert results.remaining([other], path) == [other]


@POSIX
def test_errors_are_removed_in_one_step(tmp_path):
    """A process that has opened the file before still reads all of the old content."""
    path = tmp_path / "out.jsonl"
    whole = write_results(path, JOB_ERROR, *ANSWERS)
    with path.open("rb") as old:
        assert read_results(path) == ANSWERS
        assert old.read() == whole
    assert path.read_bytes() == as_lines(*ANSWERS)


@POSIX
def test_errors_are_kept_if_the_file_cannot_be_rewritten(tmp_path):
    """RLIMIT_FSIZE makes the write fail, as a full disk does."""
    path = tmp_path / "out.jsonl"
    whole = write_results(path, JOB_ERROR, *({"id": i, "text": "x" * 50} for i in range(50)))
    program = f"""
import resource
from pathlib import Path
from npgemma.errors import BadJobs
from npgemma.io.results import open_results
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with open_results(Path({str(path)!r})):
        print("open")
except BadJobs as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    message = f"{path} cannot be written: File too large\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, message, "")
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_number_and_its_text_are_different_ids(tmp_path):
    path = tmp_path / "out.jsonl"
    write_results(path, ANSWERS[1])
    with open_results(path) as results:
        (remaining,) = results.remaining(
            [Job(2, ("b.png",), "ocr", tmp_path), Job("2", ("b.png",), "ocr", tmp_path)], path
        )
    assert remaining.id == "2"


def test_the_result_of_another_prompt_is_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    before = write_results(path, *ANSWERS)
    with (
        pytest.raises(
            BadJobs,
            match=r"out\.jsonl: the result of 2 has prompt 'ocr', but the job has 'caption en'; write to another",
        ),
        open_results(path) as results,
    ):
        results.remaining([Job(2, ("b.png",), "caption en", tmp_path)], path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "images", "message"),
    [
        (2, ("x.png",), "the result of 2 has image 'b.png', but the job has 'x.png'; write to another file"),
        (2, ("b.png", "x.png"), "has image 'b.png', but the job has ['b.png', 'x.png']"),
        ("c", ("c.png",), "the result of 'c' has image ['c.png', 'd.png'], but the job has 'c.png'"),
        ("c", ("d.png", "c.png"), "has image ['c.png', 'd.png'], but the job has ['d.png', 'c.png']"),
    ],
)
def test_the_result_of_another_picture_is_refused(name, images, message, tmp_path):
    path = tmp_path / "out.jsonl"
    before = write_results(path, *ANSWERS)
    with pytest.raises(BadJobs, match=re.escape(message)), open_results(path) as results:
        results.remaining([Job(name, images, "ocr", tmp_path)], path)
    assert path.read_bytes() == before


def test_the_result_of_the_same_pictures_is_accepted(tmp_path):
    path = tmp_path / "out.jsonl"
    write_results(path, *ANSWERS)
    with open_results(path) as results:
        assert results.remaining([Job("c", ("c.png", "d.png"), "ocr", tmp_path)], path) == []


def test_a_result_is_on_disk_when_write_returns(tmp_path, monkeypatch):
    """fsync was called, and the result can be read through another file descriptor."""
    path = tmp_path / "out.jsonl"
    synced = []
    with open_results(path) as results:
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append((fd, path.read_bytes())))
        for i, result in enumerate(ANSWERS, 1):
            results.write(result)
            lines = path.read_bytes().splitlines()
            assert [json.loads(line) for line in lines] == ANSWERS[:i]
            assert synced[-1] == (results.file.fileno(), path.read_bytes())
    assert len(synced) == 3


def test_an_abrupt_exit_loses_no_written_result(tmp_path):
    """os._exit does not flush or close files."""
    path = tmp_path / "out.jsonl"
    program = f"""
import os
from pathlib import Path
from npgemma.io.results import open_results
with open_results(Path({str(path)!r})) as results:
    for i in range(5):
        results.write({{"id": i, "text": "x"}})
    os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 7
    assert [result["id"] for result in read_results(path)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "incomplete",
    [
        b"{",
        b'{"id":',
        b'{"id": ',
        b'{"id": "d',
        b'{"id": "d", "image": "d.p',
        json.dumps(ANSWERS[1]).encode()[:-1],
        json.dumps(ANSWERS[1]).encode(),
        json.dumps(JOB_ERROR).encode(),
    ],
)
def test_an_incomplete_last_line_is_removed(incomplete, tmp_path):
    """Even if only the newline is missing: the job is run again."""
    path = tmp_path / "out.jsonl"
    whole = write_results(path, ANSWERS[0], ANSWERS[2])
    for kept in (whole, b""):
        path.write_bytes(kept + incomplete)
        assert read_results(path) == ([ANSWERS[0], ANSWERS[2]] if kept else [])
        assert path.read_bytes() == kept


@pytest.mark.parametrize("results", [ANSWERS, [*ANSWERS[:2], JOB_ERROR, ANSWERS[2]]], ids=["answers", "with an error"])
def test_a_file_truncated_at_any_byte_loses_at_most_its_last_result(results, tmp_path):
    """All complete lines are read, and the other results can be written again."""
    path = tmp_path / "out.jsonl"
    whole = write_results(path, *results)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = whole[:length].count(b"\n")
        kept = [result for result in results[:complete] if "error" not in result]
        assert read_results(path) == kept
        assert path.read_bytes() == as_lines(*kept)
        assert write_results(path, *results[complete:]) == as_lines(*kept, *results[complete:])


# Includes lone surrogates, which Python uses for file names that are not UTF-8.
TEXT = st.text(st.characters(codec="utf-8") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def lists_of_results(draw: st.DrawFn) -> list[dict]:
    ids = draw(st.lists(TEXT | st.integers(), max_size=6, unique=True))
    results = []
    for name in ids:
        kind = draw(st.sampled_from(("text", "error")))
        results.append({"id": name, "prompt": draw(TEXT), kind: draw(TEXT), "more": draw(JSON)})
    return results


@settings(max_examples=60)
@given(results=lists_of_results(), data=st.data())
def test_any_results_are_read_back_even_from_a_truncated_file(tmp_path_factory, results, data):
    path = tmp_path_factory.mktemp("results") / "out.jsonl"
    whole = write_results(path, *results)
    assert whole == as_lines(*results)
    answers = [result for result in results if "error" not in result]
    assert read_results(path) == answers
    assert path.read_bytes() == as_lines(*answers)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    kept = [result for result in results[:complete] if "error" not in result]
    assert read_results(path) == kept
    assert path.read_bytes() == as_lines(*kept)
    rest = [result for result in results if result not in kept]
    write_results(path, *rest)
    assert path.read_bytes() == as_lines(*kept, *rest)
