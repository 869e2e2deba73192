"""Files of results: whenever the process ends, at most one unfinished result is lost."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgemma.errors import BadJobs
from npgemma.io.jobs import InvalidJob, Job, open_results

ROOT = Path(__file__).resolve().parents[2]
GOOD = {"image": "a.png", "prompt": "caption en"}
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fcntl")


def write_jobs(folder: Path, *lines: object) -> Path:
    """A file of jobs: bytes as they are, anything else as JSON."""
    path = folder / "jobs.jsonl"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def write_results(path: Path, *results: dict) -> bytes:
    """Add results to a file; returns what is in it then."""
    with open_results(path) as file:
        for result in results:
            file.write(result)
    return path.read_bytes()


def read_results(path: Path) -> list[dict]:
    with open_results(path) as results:
        found = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert results.done.keys() == {result["id"] for result in found}
        return found


# -------------------------------------------------------------------------------------------------------------- results

THREE = [
    {"id": "a", "image": "a.png", "prompt": "caption en", "text": "a \x1b[31mé猫😀\u2028\udcff", "logprobs": [-0.125]},
    {"id": 2, "image": "b.png", "prompt": "ocr", "text": "open", "token_ids": [5, 1], "finish_reason": "stop"},
    {"id": "c", "image": ["c.png", "d.png"], "prompt": "ocr", "text": "", "token_ids": [1], "logprobs": [-1e-17]},
]


GONE = {"id": "g", "image": "g.png", "prompt": "ocr", "error": "g.png is missing \udcff"}
MUTED = {"id": "line 7", "error": "line 7: prompt is None, not text"}


def as_lines(*results: dict) -> bytes:
    return b"".join(json.dumps(result).encode() + b"\n" for result in results)


def test_results_are_lines_of_ascii_json_in_the_order_they_came(tmp_path):
    path = tmp_path / "out.jsonl"
    results = [GONE, *THREE, MUTED]
    written = write_results(path, *results)
    assert written.isascii()
    assert [json.loads(line) for line in written.splitlines()] == results
    assert written.count(b"\n") == 5
    assert written.endswith(b"\n")


def test_results_are_read_back_and_the_file_is_not_touched(tmp_path):
    path = tmp_path / "out.jsonl"
    written = write_results(path, *THREE)
    before = path.stat()
    assert read_results(path) == THREE
    assert path.read_bytes() == written
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_more_results_are_put_behind_those_that_are_there(tmp_path):
    path = tmp_path / "out.jsonl"
    first = write_results(path, *THREE[:2])
    assert write_results(path, THREE[2]) == first + json.dumps(THREE[2]).encode() + b"\n"


def test_what_has_a_result_is_not_left(tmp_path):
    jobs = [
        Job(2, ("b.png",), "ocr", tmp_path),
        Job("new", ("n.png",), "ocr", tmp_path),
        InvalidJob("line 5", "broken"),
    ]
    path = tmp_path / "out.jsonl"
    write_results(path, *THREE)
    with open_results(path) as results:
        assert results.remaining(jobs, path) == jobs[1:]
        assert results.remaining(jobs[:1], path) == []
    with open_results(tmp_path / "none.jsonl") as results:
        assert results.remaining(jobs, path) == jobs


def test_a_wrong_line_adds_no_second_line_to_a_result(tmp_path):
    """A job that was answered and is no job any more: one line a job, and the answer stays."""
    wrong = [InvalidJob(2, "line 1: prompt is None, not text"), InvalidJob("line 2", "line 2 is no JSON object")]
    path = tmp_path / "out.jsonl"
    write_results(path, THREE[1], {"id": "line 2", "image": "a.png", "prompt": "ocr", "text": ""})
    with open_results(path) as results:
        assert results.remaining(wrong, path) == []


@pytest.mark.parametrize("missing", [("prompt",), ("image",), ("prompt", "image")])
def test_what_a_result_does_not_say_is_as_asked(missing, tmp_path):
    path = tmp_path / "out.jsonl"
    write_results(path, {key: value for key, value in THREE[1].items() if key not in missing})
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


# the errors, among what stays: at the beginning, between, at the end, alone, two with one id
WITH_ERRORS = {
    "first": ([GONE, *THREE], THREE),
    "between": ([THREE[0], GONE, MUTED, *THREE[1:]], THREE),
    "last": ([*THREE, MUTED, GONE], THREE),
    "alone": ([GONE], []),
    "everywhere": ([GONE, THREE[0], MUTED, THREE[1], GONE, THREE[2], MUTED], THREE),
    "of what has a result": ([THREE[0], {"id": "a", "error": "line 1: prompt is None, not text"}], THREE[:1]),
}


@pytest.mark.parametrize("torn", [b"", b'{"id": "d", "image": "d.p', json.dumps(THREE[0]).encode()])
@pytest.mark.parametrize(("results", "stay"), WITH_ERRORS.values(), ids=WITH_ERRORS)
def test_errors_are_taken_away_and_every_other_line_stays_as_it_is(results, stay, torn, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(as_lines(*results) + torn)
    with open_results(path) as opened:
        assert opened.done == {r["id"]: {key: r[key] for key in ("prompt", "image") if key in r} for r in stay}
        assert path.read_bytes() == as_lines(*stay)
        opened.write(MUTED)
        opened.write({"id": "n", "text": "new"})
    assert path.read_bytes() == as_lines(*stay, MUTED, {"id": "n", "text": "new"})
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_lines_stay_byte_for_byte_when_errors_go(tmp_path):
    """Also those that another program has written: with other spaces, and with letters as they are."""
    first = b'{ "text":"x" ,"id":1}\r\n'
    last = json.dumps({"text": "猫", "id": "é"}, ensure_ascii=False).encode() + b"  \n"
    path = tmp_path / "out.jsonl"
    path.write_bytes(first + as_lines(GONE) + last)
    assert read_results(path) == [{"id": 1, "text": "x"}, {"id": "é", "text": "猫"}]
    assert path.read_bytes() == first + last


def test_the_job_of_an_error_is_left_whatever_it_was_asked(tmp_path):
    path = tmp_path / "out.jsonl"
    jobs = [Job("g", ("g.png",), "ocr", tmp_path), Job("a", ("a.png",), "caption en", tmp_path)]
    write_results(path, *THREE, GONE)
    with open_results(path) as results:
        assert results.remaining(jobs, path) == jobs[:1]
        other = Job("g", ("other.png",), "caption en", tmp_path)
        assert results.remaining([other], path) == [other]


@POSIX
def test_errors_go_in_one_step(tmp_path):
    """Who reads the file meanwhile has all that was there, not a part."""
    path = tmp_path / "out.jsonl"
    whole = write_results(path, GONE, *THREE)
    with path.open("rb") as old:
        assert read_results(path) == THREE
        assert old.read() == whole
    assert path.read_bytes() == as_lines(*THREE)


@POSIX
def test_errors_stay_if_there_is_no_room_to_write_what_stays(tmp_path):
    path = tmp_path / "out.jsonl"
    whole = write_results(path, GONE, *({"id": i, "text": "x" * 50} for i in range(50)))
    program = f"""
import resource
from pathlib import Path
from npgemma.errors import BadJobs
from npgemma.io.jobs import open_results
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
    said = f"{path} cannot be written: File too large\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_number_and_its_digits_are_two_results(tmp_path):
    path = tmp_path / "out.jsonl"
    write_results(path, THREE[1])
    with open_results(path) as results:
        (left,) = results.remaining([Job(2, ("b.png",), "ocr", tmp_path), Job("2", ("b.png",), "ocr", tmp_path)], path)
    assert left.id == "2"


def test_the_result_of_another_prompt_is_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    was = write_results(path, *THREE)
    with (
        pytest.raises(
            BadJobs,
            match=r"out\.jsonl: the result of 2 has prompt 'ocr', but the job has 'caption en'; write to another",
        ),
        open_results(path) as results,
    ):
        results.remaining([Job(2, ("b.png",), "caption en", tmp_path)], path)
    assert path.read_bytes() == was


@pytest.mark.parametrize(
    ("name", "images", "says"),
    [
        (2, ("x.png",), "the result of 2 has image 'b.png', but the job has 'x.png'; write to another file"),
        (2, ("b.png", "x.png"), "has image 'b.png', but the job has ['b.png', 'x.png']"),
        ("c", ("c.png",), "the result of 'c' has image ['c.png', 'd.png'], but the job has 'c.png'"),
        ("c", ("d.png", "c.png"), "has image ['c.png', 'd.png'], but the job has ['d.png', 'c.png']"),
    ],
)
def test_the_result_of_another_picture_is_refused(name, images, says, tmp_path):
    """As one of another prompt is: it is the answer to something else."""
    path = tmp_path / "out.jsonl"
    was = write_results(path, *THREE)
    with pytest.raises(BadJobs, match=re.escape(says)), open_results(path) as results:
        results.remaining([Job(name, images, "ocr", tmp_path)], path)
    assert path.read_bytes() == was


def test_the_result_of_the_same_pictures_is_taken(tmp_path):
    path = tmp_path / "out.jsonl"
    write_results(path, *THREE)
    with open_results(path) as results:
        assert results.remaining([Job("c", ("c.png", "d.png"), "ocr", tmp_path)], path) == []


def test_a_result_is_on_the_disk_when_write_returns(tmp_path, monkeypatch):
    """Read through another file, and by then the kernel was told to put it on the disk."""
    path = tmp_path / "out.jsonl"
    synced = []
    with open_results(path) as results:
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append((fd, path.read_bytes())))
        for i, result in enumerate(THREE, 1):
            results.write(result)
            lines = path.read_bytes().splitlines()
            assert [json.loads(line) for line in lines] == THREE[:i]
            assert synced[-1] == (results.file.fileno(), path.read_bytes())
    assert len(synced) == 3


def test_an_end_without_a_goodbye_loses_nothing_that_was_written(tmp_path):
    """os._exit closes nothing and flushes nothing."""
    path = tmp_path / "out.jsonl"
    program = f"""
import os
from pathlib import Path
from npgemma.io.jobs import open_results
with open_results(Path({str(path)!r})) as results:
    for i in range(5):
        results.write({{"id": i, "text": "x"}})
    os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 7
    assert [result["id"] for result in read_results(path)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "torn",
    [
        b"{",
        b'{"id":',
        b'{"id": ',
        b'{"id": "d',
        b'{"id": "d", "image": "d.p',
        json.dumps(THREE[1]).encode()[:-1],
        json.dumps(THREE[1]).encode(),
        json.dumps(GONE).encode(),
    ],
)
def test_a_torn_last_line_is_cut_off_and_nothing_else(torn, tmp_path):
    """Also if all is there but the newline: its job is done again."""
    path = tmp_path / "out.jsonl"
    whole = write_results(path, THREE[0], THREE[2])
    for kept in (whole, b""):
        path.write_bytes(kept + torn)
        assert read_results(path) == ([THREE[0], THREE[2]] if kept else [])
        assert path.read_bytes() == kept


@pytest.mark.parametrize("results", [THREE, [*THREE[:2], GONE, THREE[2]]], ids=["right", "with an error"])
def test_cut_off_at_any_byte_at_most_the_last_result_is_lost(results, tmp_path):
    """Whatever part of the last line reached the disk: all results before it are read, and it can be written again."""
    path = tmp_path / "out.jsonl"
    whole = write_results(path, *results)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = whole[:length].count(b"\n")
        stay = [result for result in results[:complete] if "error" not in result]
        assert read_results(path) == stay
        assert path.read_bytes() == as_lines(*stay)
        assert write_results(path, *results[complete:]) == as_lines(*stay, *results[complete:])


REFUSED = {
    "text": b"my notes\nof today\n",
    "text without a newline": b"my only copy",
    "text behind results": b'{"id": 1, "text": "x"}\nmy notes\n',
    "text without a newline behind results": b'{"id": 1, "text": "x"}\nmy notes',
    "a picture": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "bytes without a newline": b"\xff\xd8\xff\xe0" * 30,
    "JSON of another kind": b"[1, 2]\n",
    "an object without an id": b'{"text": "x"}\n',
    "an id that is true": b'{"id": true, "text": "x"}\n',
    "an id that is a float": b'{"id": 1.0, "text": "x"}\n',
    "a key twice": b'{"id": 1, "id": 2, "text": "x"}\n',
    "an empty line": b'{"id": 1, "text": "x"}\n\n',
    "too deep": b"[" * 100_000 + b"\n",
    "neither text nor error": b'{"id": 1, "boxes": []}\n',
    "text and error": b'{"id": 1, "text": "x", "error": "y"}\n',
    "an object without a newline": b'{"id": 1, "answer": 7}',
    "text behind errors": b'{"id": 1, "text": "x"}\n{"id": 2, "error": "y"}\nmy notes\n',
    "text without a newline behind errors": b'{"id": 2, "error": "y"}\nmy notes',
    "a torn result that goes on": b'{"id": 1, "text": "x"}\n{"id": 2, "te\n{"id": 3, "text": "x"}\n',
    "a torn object of another kind": b'{"id": 1, "text": "x"}\n{"name": "a", "te',
    "a torn object with other spaces": b'{"id": 1, "text": "x"}\n{"id":2,"text":',
    "a torn list": b"[1, 2",
    # npgemma batch jobs.jsonl -o jobs.jsonl: everything would be done, and a last line cut off
    "jobs": b'{"id": 1, "image": "a.png", "prompt": "ocr"}\n',
    "jobs without a last newline": b'{"id": 1, "image": "a.png", "prompt": "ocr"}',
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_no_results_is_refused_and_left_as_it_was(content, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    before = path.stat().st_mtime_ns
    with pytest.raises(BadJobs, match=r"out\.jsonl: line \d is not the result of a job"), open_results(path):
        pass
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == before
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_where_no_results_can_be_written_is_said(tmp_path):
    with pytest.raises(BadJobs) as refusal:
        write_results(tmp_path)
    assert str(refusal.value) == f"{tmp_path} is not a regular file; write results to a regular file"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadJobs, match=r"out\.jsonl cannot be written: No such file"):
        write_results(tmp_path / "no" / "out.jsonl")


@POSIX
def test_what_is_no_file_is_refused_with_a_reason(tmp_path):
    """A pipe has no end to go on from; and nobody waits for who would read it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BadJobs) as refusal, open_results(pipe) as results:
        results.write(THREE[0])
    assert str(refusal.value) == f"{pipe} is not a regular file; write results to a regular file"
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(BadJobs) as refusal, open_results(pipe) as results:
            results.write(THREE[0])
        assert str(refusal.value) == f"{pipe} is not a regular file; write results to a regular file"
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device here that is always full")
def test_a_device_that_never_ends_is_refused():
    """It reads as zeros without end, so it must not be looked through for results."""
    program = """
import resource
from pathlib import Path
from npgemma.errors import BadJobs
from npgemma.io.jobs import open_results
resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))
try:
    with open_results(Path("/dev/full")) as results:
        results.write({"id": 1, "text": "x"})
except BadJobs as error:
    print(error)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "/dev/full is not a regular file; write results to a regular file\n"


# ------------------------------------------------------------------------------------------------------ two at the same


@POSIX
def test_one_process_writes_results_at_a_time(tmp_path):
    path = tmp_path / "out.jsonl"
    with open_results(path) as results:
        results.write(THREE[0])
        was = path.read_bytes()
        with pytest.raises(BadJobs, match=r"out\.jsonl is being written by another process"), open_results(path):
            pass
        results.write(THREE[1])
    assert path.read_bytes() == was + as_lines(THREE[1])
    assert read_results(path) == THREE[:2]


@POSIX
def test_one_process_writes_results_at_a_time_with_errors_among_them(tmp_path):
    """Errors that are there are not taken away under who writes, and who takes them away has the file for itself."""
    path = tmp_path / "out.jsonl"
    write_results(path, GONE, THREE[0])
    with open_results(path) as results:
        results.write(MUTED)
        for was in (as_lines(THREE[0], MUTED), as_lines(THREE[0], MUTED, THREE[1])):
            assert path.read_bytes() == was
            with pytest.raises(BadJobs, match=r"out\.jsonl is being written by another process"), open_results(path):
                pass
            assert path.read_bytes() == was
            results.write(THREE[1])
    assert path.read_bytes() == as_lines(THREE[0], MUTED, THREE[1], THREE[1])


@POSIX
def test_another_process_is_refused_until_the_first_has_ended_in_whatever_way(tmp_path):
    path = tmp_path / "out.jsonl"
    program = f"""
import sys, time
from pathlib import Path
from npgemma.io.jobs import open_results
with open_results(Path({str(path)!r})) as results:
    results.write({{"id": 0, "text": "x"}})
    print("open", flush=True)
    time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(BadJobs, match="another process"), open_results(path):
            pass
        other.send_signal(signal.SIGKILL)
    assert read_results(path) == [{"id": 0, "text": "x"}]


# ------------------------------------------------------------------------------------------------------------- anything

# with the halves of pairs that Python makes of the name of a file that is no UTF-8
TEXT = st.text(st.characters(codec="utf-8") | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def lists_of_results(draw: st.DrawFn) -> list[dict]:
    ids = draw(st.lists(TEXT | st.integers(), max_size=6, unique=True))
    made = []
    for name in ids:
        what = draw(st.sampled_from(("text", "error")))
        made.append({"id": name, "prompt": draw(TEXT), what: draw(TEXT), "more": draw(JSON)})
    return made


@settings(max_examples=60)
@given(results=lists_of_results(), data=st.data())
def test_any_results_are_read_back_and_so_are_those_of_a_part(tmp_path_factory, results, data):
    path = tmp_path_factory.mktemp("results") / "out.jsonl"
    whole = write_results(path, *results)
    assert whole == as_lines(*results)
    right = [result for result in results if "error" not in result]
    assert read_results(path) == right
    assert path.read_bytes() == as_lines(*right)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    stay = [result for result in results[:complete] if "error" not in result]
    assert read_results(path) == stay
    assert path.read_bytes() == as_lines(*stay)
    rest = [result for result in results if result not in stay]
    write_results(path, *rest)
    assert path.read_bytes() == as_lines(*stay, *rest)
