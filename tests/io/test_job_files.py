"""Files of jobs as other programs write them: big_vision's are read, others are refused in one sentence."""

import gzip
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from npgemma.errors import BadJobs
from npgemma.io.jobs import EXAMPLE, InvalidJob, Job, read_jobs, require_jobs

GOOD = {"image": "a.png", "prompt": "caption en"}


def write(folder: Path, content: bytes, name: str = "jobs.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def as_lines(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


# --------------------------------------------------------------------------------------------------- prefix and suffix


def test_lines_of_image_prefix_and_suffix_are_jobs(tmp_path):
    """The data sets of big_vision and of Roboflow."""
    lines = [
        {"image": "a.jpg", "prefix": "detect cat", "suffix": "<loc0001><loc0002><loc0003><loc0004> cat"},
        {"image": "b.jpg", "prefix": "caption en", "suffix": ""},
        {"image": "c.jpg", "prefix": ""},
        {"image": "d.jpg", "prompt": "ocr", "suffix": "STOP"},
        {"image": "e.jpg", "prompt": "ocr", "suffix": None},
    ]
    assert read_jobs(write(tmp_path, as_lines(*lines))) == [
        Job("line 1", ("a.jpg",), "detect cat", tmp_path, lines[0]["suffix"]),
        Job("line 2", ("b.jpg",), "caption en", tmp_path, ""),
        Job("line 3", ("c.jpg",), "", tmp_path),
        Job("line 4", ("d.jpg",), "ocr", tmp_path, "STOP"),
        Job("line 5", ("e.jpg",), "ocr", tmp_path),
    ]


WRONG = {
    "both": ({**GOOD, "prefix": "ocr"}, "prompt and prefix are both there, and mean the same; keep one of them"),
    "both, one of them null": ({**GOOD, "prefix": None}, "prompt and prefix are both there"),
    "a prefix that is a list": ({"image": "a.png", "prefix": ["a"]}, "prefix is ['a'], not text"),
    "a prefix that is null": ({"image": "a.png", "prefix": None}, "prefix is None, not text"),
    "a suffix that is a number": ({**GOOD, "suffix": 7}, "suffix is 7, not text"),
    "a suffix that is a list": ({**GOOD, "suffix": ["a", "b"]}, "suffix is ['a', 'b'], not text"),
    "file_name": (
        {"file_name": "a.png", "text": "b"},
        "image is missing, and 'file_name' is not read; rename it to 'image'",
    ),
    "images": (
        {"images": ["a.png"], "prompt": "b"},
        "image is missing, and 'images' is not read; rename it to 'image'",
    ),
    "image_path": ({"image_path": "a.png", "prompt": "b"}, "and 'image_path' is not read; rename it to 'image'"),
    "text": ({"image": "a.png", "text": "b"}, "prompt is missing, and 'text' is not read; rename it to 'prompt'"),
    "question": ({"image": "a.png", "question": "b"}, "and 'question' is not read; rename it to 'prompt'"),
    "conversations": ({"image": "a.png", "conversations": []}, "and 'conversations' is not read"),
    "a URL": (
        {**GOOD, "image": "https://x.org/a.png"},
        "image https://x.org/a.png is a URL; npgemma does not download",
    ),
    "a URL among paths": ({**GOOD, "image": ["a.png", "s3://b/a.png"]}, "image s3://b/a.png is a URL"),
    "data": ({**GOOD, "image": "data:image/png;base64," + "A" * 900_000}, "save it as a file"),
    "a picture in the line": ({**GOOD, "image": {"bytes": "A" * 900_000}}, "image is {'bytes': 'AAA"),
    "an id of 900,000 characters": ({"id": ["A" * 900_000], **GOOD}, "line 1: id is ['AAA"),
}


@pytest.mark.parametrize(("line", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_line_is_said_in_a_short_sentence(line, says, tmp_path):
    (job,) = read_jobs(write(tmp_path, as_lines(line)))
    assert isinstance(job, InvalidJob)
    assert job.error.startswith("line 1: ")
    assert says in job.error
    assert len(job.error) < 220


# ------------------------------------------------------------------------------------------------------- whole files


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_and_windows_line_ends_are_read(mark, ending, tmp_path):
    content = mark + as_lines(GOOD, GOOD).replace(b"\n", ending)
    jobs = [Job(f"line {n}", ("a.png",), "caption en", tmp_path) for n in (1, 2)]
    assert read_jobs(write(tmp_path, content)) == jobs
    assert read_jobs(write(tmp_path, mark + ending + content.removeprefix(mark)))[0].id == "line 2"
    assert read_jobs(write(tmp_path, mark)) == []


TEXT = as_lines(GOOD, GOOD).decode()
LIST = [GOOD, {"image": "b.png", "prompt": "ocr"}]
OTHER_FILES = {
    "UTF-16": (TEXT.encode("utf-16"), "is text in UTF-16 or UTF-32; save it as UTF-8"),
    "UTF-16, the other order": (
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        "is text in UTF-16 or UTF-32; save it as UTF-8",
    ),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), "is text in UTF-16 or UTF-32; save it as UTF-8"),
    "UTF-16 without a mark, the other order": (TEXT.encode("utf-16-be"), "is text in UTF-16 or UTF-32"),
    "UTF-32": (TEXT.encode("utf-32"), "is text in UTF-16 or UTF-32; save it as UTF-8"),
    "a list": (json.dumps(LIST).encode(), f"is a JSON list; write one JSON object a line: {EXAMPLE}"),
    "a list on several lines": (json.dumps(LIST, indent=2).encode(), "is a JSON list"),
    "a list after a mark": (b"\xef\xbb\xbf" + json.dumps(LIST).encode(), "is a JSON list"),
    "a list of lists": (b'[["a.png", "ocr"]]', "is a JSON list"),
    "a list that begins with lines": (b"\n[\n" + TEXT.encode(), "is a JSON list"),
    "an object on several lines": (json.dumps(GOOD, indent=4).encode(), "is one JSON object over several lines"),
    "an object whose first line has a key": (b'{"image": "a.png",\n "prompt": "ocr"}\n', "is one JSON object over"),
    "COCO": (json.dumps({"images": [], "annotations": []}, indent=1).encode(), "is one JSON object over several lines"),
    "CSV": (b"image,prompt\na.png,ocr\n", f"is a table (CSV); write one JSON object a line: {EXAMPLE}"),
    "CSV with quotes": (b'"id","image","prompt"\n"a","a.png","ocr"\n', "is a table (CSV)"),
    "CSV with semicolons": (b"id;file_name;text\n1;a.png;ocr\n", "is a table (CSV)"),
    "CSV with tabs": (b"path\tcaption\na.png\tocr\n", "is a table (CSV)"),
    "Parquet": (b"PAR1\x15\x04\x15\x10" + bytes(50), "is a table in a binary format (Parquet, Arrow or such)"),
    "Arrow": (b"ARROW1\0\0" + bytes(50), "is a table in a binary format (Parquet, Arrow or such)"),
    "SQLite": (b"SQLite format 3\0", "is a table in a binary format"),
    "Excel": (b"PK\3\4\x14\0\6\0" + bytes(50), "is an Excel workbook or a zip archive"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(50), "is an Excel workbook or a zip archive"),
    "gzip": (gzip.compress(TEXT.encode()), "is compressed; decompress it first"),
    "bzip2": (b"BZh91AY&SY", "is compressed; decompress it first"),
    "xz": (b"\xfd7zXZ\0", "is compressed; decompress it first"),
    "zstandard": (b"\x28\xb5\x2f\xfd\4", "is compressed; decompress it first"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "is a picture; for one picture, use npgemma generate"),
    "a PDF": (b"%PDF-1.7\n", "is a PDF"),
    "zeros": (bytes(5000), "is binary data"),
    "XML": (b'<?xml version="1.0"?><annotation/>', "is XML or a web page"),
}


@pytest.mark.parametrize(("content", "says"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_a_file_of_another_kind_is_refused_in_one_sentence(content, says, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(BadJobs) as error:
        read_jobs(path)
    assert str(error.value).startswith(f"{path} {says}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("piece", [b"text ", b",text", b"{,", b"[ ", b"{ ", b" ", b"\n", b"image,", b"{, \n", b"a;"])
def test_a_file_that_repeats_itself_is_classified_at_once(piece, tmp_path):
    path = write(tmp_path, piece * 3000)
    before = time.process_time()
    with suppress(BadJobs):
        read_jobs(path)
    assert time.process_time() - before < 1


FIRST_LINES = {
    "a sentence": b"caption en, please\n",
    "a list of texts": b'["a.png", "caption en"]\n',
    "an incomplete object": b'{"image": "a.png", \n',
}


@pytest.mark.parametrize("first", FIRST_LINES.values(), ids=FIRST_LINES)
def test_one_wrong_first_line_does_not_refuse_the_file(first, tmp_path):
    assert [type(job) for job in read_jobs(write(tmp_path, first + as_lines(GOOD)))] == [InvalidJob, Job]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
def test_jobs_may_come_through_a_pipe(tmp_path):
    """As from `npgemma batch <(jq ...)`; a pipe in a folder may never have a writer."""
    reader, writer = os.pipe()
    os.write(writer, as_lines(GOOD, GOOD))
    os.close(writer)
    assert [type(job) for job in read_jobs(Path(f"/dev/fd/{reader}"))] == [Job, Job]
    os.close(reader)
    os.mkfifo(tmp_path / "jobs")
    with pytest.raises(BadJobs, match="jobs cannot be read: it is not a regular file"):
        read_jobs(tmp_path / "jobs")


# ----------------------------------------------------------------------------------------------- one fault in all lines


SAME = {
    "file_name": ([{"file_name": f"{i}.png", "text": "a"} for i in range(5)], "'file_name' is not read; rename it"),
    "null for a picture": ([{"image": None, "prompt": "ocr"}] * 3, "line 1: image is None, not a path"),
    "no prompt": ([{"image": f"{i}.png", "label": i} for i in range(3)], "line 1: prompt is None, not text"),
    "pictures that are numbers": ([{"image": i, "prompt": "ocr"} for i in range(3)], "line 1: image is 0, not a path"),
    "URLs": ([{**GOOD, "image": f"https://x.org/{i}.png"} for i in range(3)], "https://x.org/0.png is a URL"),
    "no object": ([1, [], "a"], "line 1 is not a JSON object: it is 1"),
    "one line": ([{"file_name": "a.png"}], "line 1: image is missing, and 'file_name' is not read"),
}


@pytest.mark.parametrize(("lines", "says"), SAME.values(), ids=SAME)
def test_a_fault_of_every_line_is_said_once(lines, says, tmp_path):
    path = write(tmp_path, as_lines(*lines))
    with pytest.raises(BadJobs) as error:
        require_jobs(read_jobs(path), path)
    message = str(error.value)
    assert message.startswith(f"{path} holds no job: line 1")
    assert says in message
    assert (f"(and so in all {len(lines)} lines)" in message) == (len(lines) > 1)
    assert message.endswith(f"a job is a line such as {EXAMPLE}")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [GOOD],
        [GOOD, 1],
        [{"file_name": "a.png"}, {"image": "a.png"}],
        [1, {"image": 7}],
        [{**GOOD, "suffix": 7}, 1],
    ],
)
def test_lines_with_different_faults_are_errors_one_by_one(lines, tmp_path):
    path = write(tmp_path, as_lines(*lines))
    require_jobs(read_jobs(path), path)
