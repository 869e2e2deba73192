"""Files of results: other files are refused, and only one process can write a file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT
from result_files import ANSWERS, JOB_ERROR, LINE_ERROR, as_lines, read_results, write_results

from npgemma.errors import BadJobs
from npgemma.io.results import open_results

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fcntl")

NOT_RESULTS = {
    "text": b"my notes\nof today\n",
    "text without a newline": b"my only copy",
    "text after a result": b'{"id": 1, "text": "x"}\nmy notes\n',
    "text without a newline after a result": b'{"id": 1, "text": "x"}\nmy notes',
    "a picture": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "bytes without a newline": b"\xff\xd8\xff\xe0" * 30,
    "a JSON list": b"[1, 2]\n",
    "an object without an id": b'{"text": "x"}\n',
    "an id that is true": b'{"id": true, "text": "x"}\n',
    "an id that is a float": b'{"id": 1.0, "text": "x"}\n',
    "a repeated key": b'{"id": 1, "id": 2, "text": "x"}\n',
    "an empty line": b'{"id": 1, "text": "x"}\n\n',
    "100,000 nested lists": b"[" * 100_000 + b"\n",
    "neither text nor error": b'{"id": 1, "boxes": []}\n',
    "text and error": b'{"id": 1, "text": "x", "error": "y"}\n',
    "an object without a newline": b'{"id": 1, "answer": 7}',
    "text after an error": b'{"id": 1, "text": "x"}\n{"id": 2, "error": "y"}\nmy notes\n',
    "text without a newline after an error": b'{"id": 2, "error": "y"}\nmy notes',
    "an incomplete result before another": b'{"id": 1, "text": "x"}\n{"id": 2, "te\n{"id": 3, "text": "x"}\n',
    "an incomplete object without an id": b'{"id": 1, "text": "x"}\n{"name": "a", "te',
    "an incomplete object with other spaces": b'{"id": 1, "text": "x"}\n{"id":2,"text":',
    "an incomplete list": b"[1, 2",
    # `npgemma batch jobs.jsonl -o jobs.jsonl` must not count the jobs as done, nor remove an incomplete last line
    "jobs": b'{"id": 1, "image": "a.png", "prompt": "ocr"}\n',
    "jobs without a last newline": b'{"id": 1, "image": "a.png", "prompt": "ocr"}',
}


@pytest.mark.parametrize("content", NOT_RESULTS.values(), ids=NOT_RESULTS)
def test_a_file_with_anything_but_results_is_refused_and_not_changed(content, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    before = path.stat().st_mtime_ns
    with pytest.raises(BadJobs, match=r"out\.jsonl: line \d is not the result of a job"), open_results(path):
        pass
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == before
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(BadJobs) as refusal:
        write_results(tmp_path)
    assert str(refusal.value) == f"{tmp_path} is not a regular file; write results to a regular file"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BadJobs, match=r"out\.jsonl cannot be written: No such file"):
        write_results(tmp_path / "no" / "out.jsonl")


@POSIX
def test_a_pipe_is_refused(tmp_path):
    """A pipe cannot be read back to continue it, and opening one without a reader must not block."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BadJobs) as refusal, open_results(pipe) as results:
        results.write(ANSWERS[0])
    assert str(refusal.value) == f"{pipe} is not a regular file; write results to a regular file"
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(BadJobs) as refusal, open_results(pipe) as results:
            results.write(ANSWERS[0])
        assert str(refusal.value) == f"{pipe} is not a regular file; write results to a regular file"
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this machine has no /dev/full")
def test_an_endless_device_is_refused():
    """Reading /dev/full for results would never end, and would fill the memory."""
    program = """
import resource
from pathlib import Path
from npgemma.errors import BadJobs
from npgemma.io.results import open_results
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


# --------------------------------------------------------------------------------------------------------------- locks


@POSIX
def test_a_file_that_is_being_written_cannot_be_opened(tmp_path):
    path = tmp_path / "out.jsonl"
    with open_results(path) as results:
        results.write(ANSWERS[0])
        before = path.read_bytes()
        with pytest.raises(BadJobs, match=r"out\.jsonl is being written by another process"), open_results(path):
            pass
        results.write(ANSWERS[1])
    assert path.read_bytes() == before + as_lines(ANSWERS[1])
    assert read_results(path) == ANSWERS[:2]


@POSIX
def test_a_file_that_is_being_written_keeps_its_errors(tmp_path):
    """A second process must not remove the errors of the first, nor continue the file that the first has replaced."""
    path = tmp_path / "out.jsonl"
    write_results(path, JOB_ERROR, ANSWERS[0])
    with open_results(path) as results:
        results.write(LINE_ERROR)
        for before in (as_lines(ANSWERS[0], LINE_ERROR), as_lines(ANSWERS[0], LINE_ERROR, ANSWERS[1])):
            assert path.read_bytes() == before
            with pytest.raises(BadJobs, match=r"out\.jsonl is being written by another process"), open_results(path):
                pass
            assert path.read_bytes() == before
            results.write(ANSWERS[1])
    assert path.read_bytes() == as_lines(ANSWERS[0], LINE_ERROR, ANSWERS[1], ANSWERS[1])


@POSIX
def test_a_killed_process_releases_the_file(tmp_path):
    path = tmp_path / "out.jsonl"
    program = f"""
import sys, time
from pathlib import Path
from npgemma.io.results import open_results
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
