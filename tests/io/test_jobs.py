"""Files of jobs and of results: a wrong line is told and passed over, and no end of the process costs a result."""

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
from npgemma.io.jobs import MAX_LINE, SUFFIXES, Job, NoJob, folder_jobs, open_results, read_jobs

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


# ---------------------------------------------------------------------------------------------------------------- jobs


def test_a_job_is_its_id_its_pictures_and_its_prompt(tmp_path):
    path = write_jobs(
        tmp_path,
        {"id": "first", "image": "a.png", "prompt": "caption en"},
        {"id": 17, "image": ["b.png", "/tmp/c.png"], "prompt": "two\nlines"},
        {"image": "d.png", "prompt": "", "more": {"keys": [1, None]}},
    )
    assert read_jobs(path) == [
        Job("first", ("a.png",), "caption en", tmp_path),
        Job(17, ("b.png", "/tmp/c.png"), "two\nlines", tmp_path),
        Job("line 3", ("d.png",), "", tmp_path),
    ]


def test_text_of_any_script_is_read_as_utf_8(tmp_path):
    path = write_jobs(tmp_path, json.dumps({"id": "猫", "image": "é.png", "prompt": "😀"}, ensure_ascii=False).encode())
    assert read_jobs(path) == [Job("猫", ("é.png",), "😀", tmp_path)]


def test_empty_lines_are_passed_over_and_counted(tmp_path):
    path = write_jobs(tmp_path, b"", GOOD, b" \t\r", GOOD, b"")
    assert [job.id for job in read_jobs(path)] == ["line 2", "line 4"]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_the_last_line_may_end_in_any_way(ending, tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + ending)
    assert read_jobs(path) == [Job("line 1", ("a.png",), "caption en", tmp_path)]


def test_a_file_of_nothing_has_no_jobs(tmp_path):
    assert read_jobs(write_jobs(tmp_path)) == []


WRONG = {
    "not JSON": (b"caption en", "is no JSON object"),
    "half an object": (b'{"image": "a.png", ', "is no JSON object"),
    "a list": (b'["a.png", "caption en"]', "it is a JSON list, not an object"),
    "text": (b'"a.png"', "it is a JSON str, not an object"),
    "null": (b"null", "it is a JSON NoneType, not an object"),
    "no prompt": ({"image": "a.png"}, "prompt is None, not text"),
    "a prompt of two": ({"image": "a.png", "prompt": ["a", "b"]}, "prompt is ['a', 'b'], not text"),
    "no picture": ({"prompt": "ocr"}, "image is None, neither a path nor a list of paths"),
    "a picture that is a number": ({"image": 7, "prompt": "ocr"}, "image is 7,"),
    "a picture that is an object": ({"image": {"path": "a.png"}, "prompt": "ocr"}, "image is {'path': 'a.png'},"),
    "a number among pictures": ({"image": ["a.png", 7], "prompt": "ocr"}, "image is ['a.png', 7],"),
    "no picture in a list": ({"image": [], "prompt": "ocr"}, "image is [],"),
    "a list in a list": ({"image": [["a.png"]], "prompt": "ocr"}, "image is [['a.png']],"),
    "an id that is a float": ({"id": 1.0, **GOOD}, "id is 1.0, neither text nor a whole number"),
    "an id that is true": ({"id": True, **GOOD}, "id is True, neither"),
    "an id that is null": ({"id": None, **GOOD}, "id is None, neither"),
    "an id that is a list": ({"id": ["a"], **GOOD}, "id is ['a'], neither"),
    "an id of too many digits": (b'{"id": %s, "image": "a.png", "prompt": "ocr"}' % (b"9" * 9999), "is no JSON object"),
    "a key twice": (b'{"image": "a.png", "image": "b.png", "prompt": "ocr"}', "a key appears twice"),
    "NaN": (b'{"image": "a.png", "prompt": "ocr", "more": NaN}', "nan is no finite number"),
    "infinity": (b'{"image": "a.png", "prompt": "ocr", "more": 1e999}', "1e999 is no finite number"),
    "invalid UTF-8": (b'{"image": "\xff.png", "prompt": "ocr"}', "is no JSON object"),
    "100,000 lists in lists": (b'{"image": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is no JSON object"),
    "100,000 objects in objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is no JSON object"),
    "bytes that are none": (b"\x00\x01\x02", "is no JSON object"),
}


@pytest.mark.parametrize(("line", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_line_is_told_by_its_number_and_harms_no_other(line, says, tmp_path):
    first, wrong, last = read_jobs(write_jobs(tmp_path, {"id": "a", **GOOD}, line, {"id": "b", **GOOD}))
    assert isinstance(wrong, NoJob)
    assert wrong.id == "line 2"
    assert wrong.error.startswith("line 2")
    assert says.lower() in wrong.error.lower()
    assert [first, last] == [Job(name, ("a.png",), "caption en", tmp_path) for name in "ab"]


def test_a_wrong_line_with_a_name_keeps_it(tmp_path):
    wrong = read_jobs(write_jobs(tmp_path, {"id": "a", "prompt": "ocr"}, {"id": 17, "image": "a.png"}))
    assert wrong == [
        NoJob("a", "line 1: image is None, neither a path nor a list of paths"),
        NoJob(17, "line 2: prompt is None, not text"),
    ]


def padded(length: int) -> bytes:
    """A good line of `length` bytes with its newline, less that newline."""
    line = json.dumps(GOOD | {"more": ""}).encode()
    return line.replace(b'"more": ""', b'"more": "%s"' % (b"x" * (length - 1 - len(line))))


def test_a_line_may_have_max_line_bytes_and_no_more(tmp_path):
    lengths = [MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE + 2, 2 * MAX_LINE + 3, 3 * MAX_LINE, 80]
    jobs = read_jobs(write_jobs(tmp_path, *map(padded, lengths)))
    assert [type(job) for job in jobs] == [Job, NoJob, NoJob, NoJob, NoJob, Job]
    assert [job.id for job in jobs] == [f"line {n}" for n in (1, 2, 3, 4, 5, 6)]
    said = [job.error for job in jobs if isinstance(job, NoJob)]
    assert said == [f"line {n} is no JSON object: it is longer than {MAX_LINE} bytes" for n in (2, 3, 4, 5)]


@pytest.mark.parametrize("length", [MAX_LINE + 1, MAX_LINE + 2, 2 * MAX_LINE + 2, 2 * MAX_LINE + 3])
def test_a_long_last_line_without_a_newline_is_one_line(length, tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(padded(length + 1))
    (job,) = read_jobs(path)
    assert job == NoJob("line 1", f"line 1 is no JSON object: it is longer than {MAX_LINE} bytes")


def test_an_id_may_be_there_once(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": "a", **GOOD}, {"id": "b", **GOOD}, {"id": "a", **GOOD}))
    assert [type(job) for job in jobs] == [Job, Job, NoJob]
    assert jobs[2] == NoJob("line 3", "line 3: the id 'a' is that of line 1 already")


def test_the_id_of_a_line_that_is_no_job_may_not_be_there_again(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": "a", "prompt": "ocr"}, {"id": "a", **GOOD}))
    assert [(type(job), job.id) for job in jobs] == [(NoJob, "a"), (NoJob, "line 2")]
    assert jobs[1].error == "line 2: the id 'a' is that of line 1 already"


def test_a_number_as_id_is_never_that_of_a_line(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": 2, **GOOD}, GOOD, {"id": 1, **GOOD}, b"broken", {"id": 4, **GOOD}))
    assert [job.id for job in jobs] == [2, "line 2", 1, "line 4", 4]
    assert [type(job) for job in jobs] == [Job, Job, Job, NoJob, Job]


@pytest.mark.parametrize("name", ["line 1", "line 3", "line 0", "line 02", "line 20", "line 99999999999999999999"])
def test_an_id_as_another_line_is_called_is_refused(name, tmp_path):
    first, second, third = read_jobs(write_jobs(tmp_path, GOOD, {"id": name, **GOOD}, GOOD))
    says = f"line 2: id is {name!r}, as lines without one are called; call it otherwise"
    assert second == NoJob("line 2", says)
    assert [first, third] == [Job(f"line {n}", ("a.png",), "caption en", tmp_path) for n in (1, 3)]


def test_a_wrong_line_called_as_another_does_not_keep_that_name(tmp_path):
    first, second = read_jobs(write_jobs(tmp_path, {"id": "line 2", "image": 7}, {"id": "a", **GOOD}))
    assert (type(first), first.id) == (NoJob, "line 1")
    assert second == Job("a", ("a.png",), "caption en", tmp_path)


NO_NAMES = [
    "line",
    "line ",
    "line two",
    "line -1",
    "line 1.0",
    "Line 1",
    " line 1",
    "line 1 ",
    "line  1",
    "line 1\n",
    "1",
]


@pytest.mark.parametrize("name", ["line 2", *NO_NAMES])
def test_an_id_as_its_own_line_is_called_or_no_line_at_all_is_one(name, tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, GOOD, {"id": name, **GOOD}))
    assert jobs == [Job(each, ("a.png",), "caption en", tmp_path) for each in ("line 1", name)]


def test_a_number_and_its_digits_are_two_ids(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": 7, **GOOD}, {"id": "7", **GOOD}))
    assert [job.id for job in jobs] == [7, "7"]
    assert all(isinstance(job, Job) for job in jobs)


@pytest.mark.parametrize(
    ("lines", "jobs", "others"),
    [
        ([{"id": 2, **GOOD}, b"broken"], [2], ["line 2"]),
        ([b"broken", {"id": 1, **GOOD}], [1], ["line 1"]),
        ([{"id": 3, **GOOD}, {"id": "a", **GOOD}, {"id": "a", **GOOD}], [3, "a"], ["line 3"]),
        ([{"id": 1, **GOOD}, {"id": 1, **GOOD}, {"id": 2, **GOOD}], [1, 2], ["line 2"]),
        ([{"id": "line 2", **GOOD}, b"broken"], [], ["line 1", "line 2"]),
        ([b"broken", {"id": "line 1", **GOOD}], [], ["line 1", "line 2"]),
        ([{"id": "line 2", **GOOD}, GOOD], ["line 2"], ["line 1"]),
        ([GOOD, {"id": "line 1", **GOOD}], ["line 1"], ["line 2"]),
        ([b"broken", {"id": "line 2", **GOOD}], ["line 2"], ["line 1"]),
    ],
)
def test_a_wrong_line_never_takes_the_id_of_a_job(lines, jobs, others, tmp_path):
    """Else its result stands for that of the job: after an interruption the job would count as done."""
    found = read_jobs(write_jobs(tmp_path, *lines))
    assert [job.id for job in found if isinstance(job, Job)] == jobs
    assert [job.id for job in found if isinstance(job, NoJob)] == others


NAMES = (1, 2, 3, 4, "1", "line 2", "line 4")
MUTE = {"id": 3, "image": "a.png"}
KINDS = st.sampled_from([b"broken", b"", *({"id": name, **GOOD} for name in NAMES), GOOD, MUTE])


@settings(max_examples=300)
@given(st.lists(KINDS, max_size=6))
def test_every_line_has_an_id_of_its_own(tmp_path_factory, lines):
    """The id that it is given, unless it is that of a line before or looks like another line's; else its own name."""
    jobs = read_jobs(write_jobs(tmp_path_factory.mktemp("jobs"), *lines))
    there = [(f"line {number}", line) for number, line in enumerate(lines, 1) if line != b""]
    assert len(jobs) == len(there)
    assert len({job.id for job in jobs}) == len(jobs)
    free = {1, 2, 3, 4, "1"}
    for job, (own, line) in zip(jobs, there, strict=True):
        name = line.get("id", own) if isinstance(line, dict) else None
        keeps = name == own or name in free
        assert job.id == (name if keeps else own)
        assert isinstance(job, Job) == (keeps and line != MUTE)
        free -= {name}


def test_jobs_that_cannot_be_read_are_said(tmp_path):
    with pytest.raises(BadJobs, match=r"nowhere.jsonl cannot be read: No such file"):
        read_jobs(tmp_path / "nowhere.jsonl")
    with pytest.raises(BadJobs, match="cannot be read"):
        read_jobs(tmp_path)


# -------------------------------------------------------------------------------------------------------------- folder


def test_a_folder_is_a_job_for_every_picture_by_name(tmp_path):
    names = ["b.png", "a.JPG", "c.webp", "é猫.Tiff"]
    for name in [*names, "notes.txt", "png", "out.jsonl"]:
        (tmp_path / name).write_bytes(b"")
    assert folder_jobs(tmp_path, "ocr") == [Job(name, (name,), "ocr", tmp_path) for name in sorted(names)]


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_kind_of_picture_is_found(suffix, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(b"")
    assert [job.id for job in folder_jobs(tmp_path, "ocr")] == [f"a{suffix}"]


def test_a_folder_without_pictures_is_said(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(BadJobs, match=r"holds no picture: no file that ends in \.bmp, \.gif"):
        folder_jobs(tmp_path, "ocr")
    with pytest.raises(BadJobs, match=r"nowhere cannot be read"):
        folder_jobs(tmp_path / "nowhere", "ocr")


# ------------------------------------------------------------------------------------------------------------- results

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
    jobs = [Job(2, ("b.png",), "ocr", tmp_path), Job("new", ("n.png",), "ocr", tmp_path), NoJob("line 5", "broken")]
    path = tmp_path / "out.jsonl"
    write_results(path, *THREE)
    with open_results(path) as results:
        assert results.left(jobs, path) == jobs[1:]
        assert results.left(jobs[:1], path) == []
    with open_results(tmp_path / "none.jsonl") as results:
        assert results.left(jobs, path) == jobs


def test_a_wrong_line_adds_no_second_line_to_a_result(tmp_path):
    """A job that was answered and is no job any more: one line a job, and the answer stays."""
    wrong = [NoJob(2, "line 1: prompt is None, not text"), NoJob("line 2", "line 2 is no JSON object")]
    path = tmp_path / "out.jsonl"
    write_results(path, THREE[1], {"id": "line 2", "image": "a.png", "prompt": "ocr", "text": ""})
    with open_results(path) as results:
        assert results.left(wrong, path) == []


@pytest.mark.parametrize("missing", [("prompt",), ("image",), ("prompt", "image")])
def test_what_a_result_does_not_say_is_as_asked(missing, tmp_path):
    path = tmp_path / "out.jsonl"
    write_results(path, {key: value for key, value in THREE[1].items() if key not in missing})
    with open_results(path) as results:
        assert results.left([Job(2, ("b.png",), "ocr", tmp_path)], path) == []
        for key, other in (
            ("prompt", Job(2, ("b.png",), "caption en", tmp_path)),
            ("image", Job(2, ("x.png",), "ocr", tmp_path)),
        ):
            if key in missing:
                assert results.left([other], path) == []
            else:
                with pytest.raises(BadJobs, match=f"the result of 2 is for {key} "):
                    results.left([other], path)


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
        assert results.left(jobs, path) == jobs[:1]
        other = Job("g", ("other.png",), "caption en", tmp_path)
        assert results.left([other], path) == [other]


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
        (left,) = results.left([Job(2, ("b.png",), "ocr", tmp_path), Job("2", ("b.png",), "ocr", tmp_path)], path)
    assert left.id == "2"


def test_the_result_of_another_prompt_is_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    was = write_results(path, *THREE)
    with (
        pytest.raises(
            BadJobs,
            match=r"out\.jsonl: the result of 2 is for prompt 'ocr', where 'caption en' is asked now; write to another",
        ),
        open_results(path) as results,
    ):
        results.left([Job(2, ("b.png",), "caption en", tmp_path)], path)
    assert path.read_bytes() == was


@pytest.mark.parametrize(
    ("name", "images", "says"),
    [
        (2, ("x.png",), "the result of 2 is for image 'b.png', where 'x.png' is asked now; write to another file"),
        (2, ("b.png", "x.png"), "is for image 'b.png', where ['b.png', 'x.png'] is asked now"),
        ("c", ("c.png",), "the result of 'c' is for image ['c.png', 'd.png'], where 'c.png' is asked now"),
        ("c", ("d.png", "c.png"), "is for image ['c.png', 'd.png'], where ['d.png', 'c.png'] is asked now"),
    ],
)
def test_the_result_of_another_picture_is_refused(name, images, says, tmp_path):
    """As one of another prompt is: it is the answer to something else."""
    path = tmp_path / "out.jsonl"
    was = write_results(path, *THREE)
    with pytest.raises(BadJobs, match=re.escape(says)), open_results(path) as results:
        results.left([Job(name, images, "ocr", tmp_path)], path)
    assert path.read_bytes() == was


def test_the_result_of_the_same_pictures_is_taken(tmp_path):
    path = tmp_path / "out.jsonl"
    write_results(path, *THREE)
    with open_results(path) as results:
        assert results.left([Job("c", ("c.png", "d.png"), "ocr", tmp_path)], path) == []


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
    with pytest.raises(BadJobs, match=r"out\.jsonl: line \d is no result of a job"), open_results(path):
        pass
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == before
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_where_no_results_can_be_written_is_said(tmp_path):
    with pytest.raises(BadJobs) as refusal:
        write_results(tmp_path)
    assert str(refusal.value) == f"{tmp_path} is no file; results are written to one"
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
    assert str(refusal.value) == f"{pipe} is no file; results are written to one"
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(BadJobs) as refusal, open_results(pipe) as results:
            results.write(THREE[0])
        assert str(refusal.value) == f"{pipe} is no file; results are written to one"
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
    assert done.stdout == "/dev/full is no file; results are written to one\n"


# ---------------------------------------------------------------------------------------------------- two at the same


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


# ------------------------------------------------------------------------------------------------------------ anything

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
