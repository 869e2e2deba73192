"""Files of jobs: an invalid line is reported, and does not affect the others."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgemma.errors import BadJobs
from npgemma.io.jobs import MAX_LINE, InvalidJob, Job, read_jobs

GOOD = {"image": "a.png", "prompt": "caption en"}


def write_jobs(folder: Path, *lines: object) -> Path:
    """Write a file of jobs: bytes as they are, anything else as JSON."""
    path = folder / "jobs.jsonl"
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


# -------------------------------------------------------------------------------------------------------- files of jobs


def test_a_job_has_an_id_pictures_and_a_prompt(tmp_path):
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


def test_a_file_of_jobs_is_read_as_utf_8(tmp_path):
    path = write_jobs(tmp_path, json.dumps({"id": "猫", "image": "é.png", "prompt": "😀"}, ensure_ascii=False).encode())
    assert read_jobs(path) == [Job("猫", ("é.png",), "😀", tmp_path)]


def test_empty_lines_are_skipped_but_counted(tmp_path):
    path = write_jobs(tmp_path, b"", GOOD, b" \t\r", GOOD, b"")
    assert [job.id for job in read_jobs(path)] == ["line 2", "line 4"]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_the_last_line_may_end_with_or_without_a_newline(ending, tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + ending)
    assert read_jobs(path) == [Job("line 1", ("a.png",), "caption en", tmp_path)]


def test_an_empty_file_has_no_jobs(tmp_path):
    assert read_jobs(write_jobs(tmp_path)) == []


INVALID = {
    "not JSON": (b"caption en", "is not a JSON object"),
    "an incomplete object": (b'{"image": "a.png", ', "is not a JSON object"),
    "a list": (b'["a.png", "caption en"]', 'it is ["a.png", "caption en"]'),
    "a string": (b'"a.png"', 'it is "a.png"'),
    "null": (b"null", "it is null"),
    "no prompt": ({"image": "a.png"}, "prompt is None, not text"),
    "a list of prompts": ({"image": "a.png", "prompt": ["a", "b"]}, "prompt is ['a', 'b'], not text"),
    "null for a picture": ({"image": None, "prompt": "ocr"}, "image is None, not a path or a list of paths"),
    "a picture that is a number": ({"image": 7, "prompt": "ocr"}, "image is 7,"),
    "a picture that is an object": ({"image": {"path": "a.png"}, "prompt": "ocr"}, "image is {'path': 'a.png'},"),
    "a number among pictures": ({"image": ["a.png", 7], "prompt": "ocr"}, "image is ['a.png', 7],"),
    "an empty list of pictures": ({"image": [], "prompt": "ocr"}, "image is [],"),
    "a nested list of pictures": ({"image": [["a.png"]], "prompt": "ocr"}, "image is [['a.png']],"),
    "an id that is a float": ({"id": 1.0, **GOOD}, "id is 1.0, not text or a whole number"),
    "an id that is true": ({"id": True, **GOOD}, "id is True, not text"),
    "an id that is null": ({"id": None, **GOOD}, "id is None, not text"),
    "an id that is a list": ({"id": ["a"], **GOOD}, "id is ['a'], not text"),
    "an id with too many digits": (
        b'{"id": %s, "image": "a.png", "prompt": "ocr"}' % (b"9" * 9999),
        "not a JSON object",
    ),
    "a repeated key": (b'{"image": "a.png", "image": "b.png", "prompt": "ocr"}', "a key appears twice"),
    "NaN": (b'{"image": "a.png", "prompt": "ocr", "more": NaN}', "nan is not a finite number"),
    "infinity": (b'{"image": "a.png", "prompt": "ocr", "more": 1e999}', "1e999 is not a finite number"),
    "invalid UTF-8": (b'{"image": "\xff.png", "prompt": "ocr"}', "is not a JSON object"),
    "100,000 nested lists": (b'{"image": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is not a JSON object"),
    "100,000 nested objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is not a JSON object"),
    "binary data": (b"\x00\x01\x02", "is not a JSON object"),
}


@pytest.mark.parametrize(("line", "message"), INVALID.values(), ids=INVALID)
def test_an_invalid_line_is_reported_by_number_and_affects_no_other(line, message, tmp_path):
    first, invalid, last = read_jobs(write_jobs(tmp_path, {"id": "a", **GOOD}, line, {"id": "b", **GOOD}))
    assert isinstance(invalid, InvalidJob)
    assert invalid.id == "line 2"
    assert invalid.error.startswith("line 2")
    assert message.lower() in invalid.error.lower()
    assert [first, last] == [Job(name, ("a.png",), "caption en", tmp_path) for name in "ab"]


def test_a_job_for_a_language_model_has_no_picture(tmp_path):
    path = write_jobs(tmp_path, {"id": "a", "prompt": "The cat is", "suffix": " red"})
    assert read_jobs(path) == [Job("a", (), "The cat is", tmp_path, " red")]


def test_an_invalid_line_keeps_a_valid_id(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": "a", "image": None, "prompt": "ocr"}, {"id": 17, "image": "a.png"}))
    assert jobs == [
        InvalidJob("a", "line 1: image is None, not a path or a list of paths"),
        InvalidJob(17, "line 2: prompt is None, not text"),
    ]


def padded(length: int) -> bytes:
    """A valid line that has `length` bytes with its newline; returned without the newline."""
    line = json.dumps(GOOD | {"more": ""}).encode()
    return line.replace(b'"more": ""', b'"more": "%s"' % (b"x" * (length - 1 - len(line))))


def test_a_line_has_at_most_max_line_bytes(tmp_path):
    lengths = [MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE + 2, 2 * MAX_LINE + 3, 3 * MAX_LINE, 80]
    jobs = read_jobs(write_jobs(tmp_path, *map(padded, lengths)))
    assert [type(job) for job in jobs] == [Job, InvalidJob, InvalidJob, InvalidJob, InvalidJob, Job]
    assert [job.id for job in jobs] == [f"line {n}" for n in (1, 2, 3, 4, 5, 6)]
    errors = [job.error for job in jobs if isinstance(job, InvalidJob)]
    assert errors == [f"line {n} is not a JSON object: it is longer than {MAX_LINE} bytes" for n in (2, 3, 4, 5)]


@pytest.mark.parametrize("length", [MAX_LINE + 1, MAX_LINE + 2, 2 * MAX_LINE + 2, 2 * MAX_LINE + 3])
def test_a_long_last_line_without_a_newline_is_one_line(length, tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(padded(length + 1))
    (job,) = read_jobs(path)
    assert job == InvalidJob("line 1", f"line 1 is not a JSON object: it is longer than {MAX_LINE} bytes")


def test_a_repeated_id_is_invalid(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": "a", **GOOD}, {"id": "b", **GOOD}, {"id": "a", **GOOD}))
    assert [type(job) for job in jobs] == [Job, Job, InvalidJob]
    assert jobs[2] == InvalidJob("line 3", "line 3: the id 'a' is already used in line 1")


def test_the_id_of_an_invalid_line_cannot_be_used_again(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": "a", "image": 7, "prompt": "ocr"}, {"id": "a", **GOOD}))
    assert [(type(job), job.id) for job in jobs] == [(InvalidJob, "a"), (InvalidJob, "line 2")]
    assert jobs[1].error == "line 2: the id 'a' is already used in line 1"


def test_a_number_is_never_the_id_of_a_line_without_an_id(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": 2, **GOOD}, GOOD, {"id": 1, **GOOD}, b"broken", {"id": 4, **GOOD}))
    assert [job.id for job in jobs] == [2, "line 2", 1, "line 4", 4]
    assert [type(job) for job in jobs] == [Job, Job, Job, InvalidJob, Job]


@pytest.mark.parametrize("name", ["line 1", "line 3", "line 0", "line 02", "line 20", "line 99999999999999999999"])
def test_an_id_reserved_for_another_line_is_refused(name, tmp_path):
    first, second, third = read_jobs(write_jobs(tmp_path, GOOD, {"id": name, **GOOD}, GOOD))
    error = f"line 2: the id {name!r} is reserved for a line without an id; choose another"
    assert second == InvalidJob("line 2", error)
    assert [first, third] == [Job(f"line {n}", ("a.png",), "caption en", tmp_path) for n in (1, 3)]


def test_an_invalid_line_does_not_keep_an_id_reserved_for_another_line(tmp_path):
    first, second = read_jobs(write_jobs(tmp_path, {"id": "line 2", "image": 7}, {"id": "a", **GOOD}))
    assert (type(first), first.id) == (InvalidJob, "line 1")
    assert second == Job("a", ("a.png",), "caption en", tmp_path)


UNRESERVED = [
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


@pytest.mark.parametrize("name", ["line 2", *UNRESERVED])
def test_the_name_of_its_own_line_and_unreserved_text_are_valid_ids(name, tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, GOOD, {"id": name, **GOOD}))
    assert jobs == [Job(each, ("a.png",), "caption en", tmp_path) for each in ("line 1", name)]


def test_a_number_and_its_text_are_different_ids(tmp_path):
    jobs = read_jobs(write_jobs(tmp_path, {"id": 7, **GOOD}, {"id": "7", **GOOD}))
    assert [job.id for job in jobs] == [7, "7"]
    assert all(isinstance(job, Job) for job in jobs)


@pytest.mark.parametrize(
    ("lines", "valid", "invalid"),
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
def test_an_invalid_line_never_takes_the_id_of_a_job(lines, valid, invalid, tmp_path):
    """After an interruption, the error of the line would count as the result of the job."""
    found = read_jobs(write_jobs(tmp_path, *lines))
    assert [job.id for job in found if isinstance(job, Job)] == valid
    assert [job.id for job in found if isinstance(job, InvalidJob)] == invalid


IDS = (1, 2, 3, 4, "1", "line 2", "line 4")
WITHOUT_PROMPT = {"id": 3, "image": "a.png"}
LINES = st.sampled_from([b"broken", b"", *({"id": name, **GOOD} for name in IDS), GOOD, WITHOUT_PROMPT])


@settings(max_examples=300)
@given(st.lists(LINES, max_size=6))
def test_every_line_gets_a_unique_id(tmp_path_factory, lines):
    """Its own id, unless an earlier line has it or it is reserved for another line; otherwise 'line N'."""
    jobs = read_jobs(write_jobs(tmp_path_factory.mktemp("jobs"), *lines))
    expected = [(f"line {number}", line) for number, line in enumerate(lines, 1) if line != b""]
    assert len(jobs) == len(expected)
    assert len({job.id for job in jobs}) == len(jobs)
    unused = {1, 2, 3, 4, "1"}
    for job, (default, line) in zip(jobs, expected, strict=True):
        name = line.get("id", default) if isinstance(line, dict) else None
        keeps = name == default or name in unused
        assert job.id == (name if keeps else default)
        assert isinstance(job, Job) == (keeps and line != WITHOUT_PROMPT)
        unused -= {name}


def test_an_unreadable_file_is_an_error(tmp_path):
    with pytest.raises(BadJobs, match=r"nowhere.jsonl cannot be read: No such file"):
        read_jobs(tmp_path / "nowhere.jsonl")
    with pytest.raises(BadJobs, match="cannot be read"):
        read_jobs(tmp_path)
