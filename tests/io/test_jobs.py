"""Files of jobs: an invalid line is reported, and does not affect the others."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgemma.errors import BadJobs
from npgemma.io.jobs import MAX_LINE, SUFFIXES, InvalidJob, Job, folder_jobs, open_results, read_jobs

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


# ----------------------------------------------------------------------------------------------------------------- jobs


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
    "not JSON": (b"caption en", "is not a JSON object"),
    "half an object": (b'{"image": "a.png", ', "is not a JSON object"),
    "a list": (b'["a.png", "caption en"]', 'it is ["a.png", "caption en"]'),
    "text": (b'"a.png"', 'it is "a.png"'),
    "null": (b"null", "it is null"),
    "no prompt": ({"image": "a.png"}, "prompt is None, not text"),
    "a prompt of two": ({"image": "a.png", "prompt": ["a", "b"]}, "prompt is ['a', 'b'], not text"),
    "no picture": ({"prompt": "ocr"}, "image is None, not a path or a list of paths"),
    "a picture that is a number": ({"image": 7, "prompt": "ocr"}, "image is 7,"),
    "a picture that is an object": ({"image": {"path": "a.png"}, "prompt": "ocr"}, "image is {'path': 'a.png'},"),
    "a number among pictures": ({"image": ["a.png", 7], "prompt": "ocr"}, "image is ['a.png', 7],"),
    "no picture in a list": ({"image": [], "prompt": "ocr"}, "image is [],"),
    "a list in a list": ({"image": [["a.png"]], "prompt": "ocr"}, "image is [['a.png']],"),
    "an id that is a float": ({"id": 1.0, **GOOD}, "id is 1.0, not text or a whole number"),
    "an id that is true": ({"id": True, **GOOD}, "id is True, not text"),
    "an id that is null": ({"id": None, **GOOD}, "id is None, not text"),
    "an id that is a list": ({"id": ["a"], **GOOD}, "id is ['a'], not text"),
    "an id of too many digits": (b'{"id": %s, "image": "a.png", "prompt": "ocr"}' % (b"9" * 9999), "not a JSON object"),
    "a key twice": (b'{"image": "a.png", "image": "b.png", "prompt": "ocr"}', "a key appears twice"),
    "NaN": (b'{"image": "a.png", "prompt": "ocr", "more": NaN}', "nan is not a finite number"),
    "infinity": (b'{"image": "a.png", "prompt": "ocr", "more": 1e999}', "1e999 is not a finite number"),
    "invalid UTF-8": (b'{"image": "\xff.png", "prompt": "ocr"}', "is not a JSON object"),
    "100,000 lists in lists": (b'{"image": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not a JSON object"),
    "100,000 objects in objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is not a JSON object"),
    "bytes that are none": (b"\x00\x01\x02", "is not a JSON object"),
}


@pytest.mark.parametrize(("line", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_line_is_told_by_its_number_and_harms_no_other(line, says, tmp_path):
    first, wrong, last = read_jobs(write_jobs(tmp_path, {"id": "a", **GOOD}, line, {"id": "b", **GOOD}))
    assert isinstance(wrong, InvalidJob)
    assert wrong.id == "line 2"
    assert wrong.error.startswith("line 2")
    assert says.lower() in wrong.error.lower()
    assert [first, last] == [Job(name, ("a.png",), "caption en", tmp_path) for name in "ab"]


def test_a_wrong_line_with_a_name_keeps_it(tmp_path):
    wrong = read_jobs(write_jobs(tmp_path, {"id": "a", "prompt": "ocr"}, {"id": 17, "image": "a.png"}))
    assert wrong == [
        InvalidJob("a", "line 1: image is None, not a path or a list of paths"),
        InvalidJob(17, "line 2: prompt is None, not text"),
    ]


def padded(length: int) -> bytes:
    """A good line of `length` bytes with its newline, less that newline."""
    line = json.dumps(GOOD | {"more": ""}).encode()
    return line.replace(b'"more": ""', b'"more": "%s"' % (b"x" * (length - 1 - len(line))))


def test_a_line_may_have_max_line_bytes_and_no_more(tmp_path):
    lengths = [MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE + 2, 2 * MAX_LINE + 3, 3 * MAX_LINE, 80]
    jobs = read_jobs(write_jobs(tmp_path, *map(padded, lengths)))
    assert [type(job) for job in jobs] == [Job, InvalidJob, InvalidJob, InvalidJob, InvalidJob, Job]
    assert [job.id for job in jobs] == [f"line {n}" for n in (1, 2, 3, 4, 5, 6)]
    said = [job.error for job in jobs if isinstance(job, InvalidJob)]
    assert said == [f"line {n} is not a JSON object: it is longer than {MAX_LINE} bytes" for n in (2, 3, 4, 5)]


@pytest.mark.parametrize("length", [MAX_LINE + 1, MAX_LINE + 2, 2 * MAX_LINE + 2, 2 * MAX_LINE + 3])
def test_a_long_last_line_without_a_newline_is_one_line(length, tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(padded(length + 1))
    (job,) = read_jobs(path)
    assert job == InvalidJob("line 1", f"line 1 is not a JSON object: it is longer than {MAX_LINE} bytes")


def test_an_id_may_be_there_once(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": "a", **GOOD}, {"id": "b", **GOOD}, {"id": "a", **GOOD}))
    assert [type(job) for job in jobs] == [Job, Job, InvalidJob]
    assert jobs[2] == InvalidJob("line 3", "line 3: the id 'a' is already used in line 1")


def test_the_id_of_a_line_that_is_no_job_may_not_be_there_again(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": "a", "prompt": "ocr"}, {"id": "a", **GOOD}))
    assert [(type(job), job.id) for job in jobs] == [(InvalidJob, "a"), (InvalidJob, "line 2")]
    assert jobs[1].error == "line 2: the id 'a' is already used in line 1"


def test_a_number_as_id_is_never_that_of_a_line(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": 2, **GOOD}, GOOD, {"id": 1, **GOOD}, b"broken", {"id": 4, **GOOD}))
    assert [job.id for job in jobs] == [2, "line 2", 1, "line 4", 4]
    assert [type(job) for job in jobs] == [Job, Job, Job, InvalidJob, Job]


@pytest.mark.parametrize("name", ["line 1", "line 3", "line 0", "line 02", "line 20", "line 99999999999999999999"])
def test_an_id_as_another_line_is_called_is_refused(name, tmp_path):
    first, second, third = read_jobs(write_jobs(tmp_path, GOOD, {"id": name, **GOOD}, GOOD))
    says = f"line 2: the id {name!r} is reserved for a line without an id; choose another"
    assert second == InvalidJob("line 2", says)
    assert [first, third] == [Job(f"line {n}", ("a.png",), "caption en", tmp_path) for n in (1, 3)]


def test_a_wrong_line_called_as_another_does_not_keep_that_name(tmp_path):
    first, second = read_jobs(write_jobs(tmp_path, {"id": "line 2", "image": 7}, {"id": "a", **GOOD}))
    assert (type(first), first.id) == (InvalidJob, "line 1")
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
    assert [job.id for job in found if isinstance(job, InvalidJob)] == others


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


# --------------------------------------------------------------------------------------------------------------- folder


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
    with pytest.raises(BadJobs, match=r"contains no pictures: no file name ends in \.bmp, \.gif"):
        folder_jobs(tmp_path, "ocr")
    with pytest.raises(BadJobs, match=r"nowhere cannot be read"):
        folder_jobs(tmp_path / "nowhere", "ocr")
