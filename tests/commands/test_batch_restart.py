"""npgemma batch that is killed, interrupted, locked out or short of disk: the same command finishes the work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
from answers import LOGPROBS, Observer
from job_files import answered_lines, by_id, read_lines, summary_of_errors, write_jobs
from processes import ROOT
from shape_world import draw_scene

import npgemma
from npgemma.commands.cli import main
from npgemma.commands.notes import DRAWN_ONLY

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals, terminals and limits")
JOBS, ERRORS = 100, 6


class Run:
    """A file of jobs, some of them invalid, and what an uninterrupted run of them writes."""

    def __init__(self, folder: Path) -> None:
        rng = Random(7)
        self.path = folder / "jobs.jsonl"
        lines = []
        for i in range(JOBS):
            scene = draw_scene(rng, side=96)
            scene.image.save(folder / f"{i}.png")
            asks = ["caption en", "ocr", "answer en how many shapes are there?", f"detect {scene.things[0].label}"]
            lines.append({"id": f"p{i}", "image": f"{i}.png", "prompt": asks[i % 4]})
        lines[20]["image"] = "gone.png"
        lines[40]["prompt"] = "<image><image>"
        lines[59] = "broken"
        del lines[70]["prompt"]
        lines[80]["image"] = 80
        (folder / "91.png").write_bytes(b"not a picture")
        write_jobs(self.path, *lines)
        status, _ = self.run(folder / "whole.jsonl")
        assert status == 1
        self.expected = by_id(folder / "whole.jsonl")
        assert len(self.expected) == JOBS
        assert sum("error" in result for result in self.expected.values()) == ERRORS

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
        return process.returncode, err.removeprefix(f"{DRAWN_ONLY}\n")

    def assert_finished(self, out: Path) -> None:
        """One result for every job, that of the uninterrupted run; logprobs differ by rounding."""
        found = by_id(out)
        assert found.keys() == self.expected.keys()
        for name, result in found.items():
            expected = dict(self.expected[name])
            logprobs = (result.pop("logprobs", []), expected.pop("logprobs", []))
            assert result == expected
            np.testing.assert_allclose(*logprobs, rtol=0, atol=LOGPROBS, strict=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("many"))


def wait_for_answers(process: subprocess.Popen, out: Path, count: int) -> None:
    """Until the process has written so many answers, or has ended."""
    until = time.monotonic() + 60
    while len(answered_lines(out)) < count and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.002)


@POSIX
def test_a_batch_killed_five_times_has_one_correct_line_for_every_job(many, tmp_path):
    """By SIGKILL: once while the process starts, then after some results and a moment more."""
    rng, out = Random(1), tmp_path / "out.jsonl"
    kept = [[]]
    for moment in (None, *(rng.randint(1, 20) for _ in range(4))):
        with many.start(out, "--in-flight", rng.choice((1, 3, 8))) as process:
            if moment is None:
                time.sleep(rng.uniform(0.05, 0.4))
            else:
                wait_for_answers(process, out, len(kept[-1]) + moment)
                time.sleep(rng.uniform(0, 0.02))
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        now = answered_lines(out)
        assert now[: len(kept[-1])] == kept[-1]
        assert len(now) >= len(kept[-1]) + (moment or 0)
        kept.append(now)
    assert 4 <= len(kept[-1]) < JOBS - ERRORS
    for _ in range(2):  # the second run has only errors to retry
        status, err = many.run(out)
        assert status == 1
        assert err.startswith(f"npgemma: {JOBS} of {JOBS} done, {JOBS - len(kept[-1])} now in ")
        assert err.endswith(f" a second){summary_of_errors(ERRORS, out)}\n")
        many.assert_finished(out)
        now = answered_lines(out)
        assert now[: len(kept[-1])] == kept[-1]
        kept.append(now)
    assert len(kept[-1]) == JOBS - ERRORS


@POSIX
def test_a_batch_interrupted_by_control_c_continues(many, tmp_path):
    out = tmp_path / "out.jsonl"
    with many.start(out, "--in-flight", 1) as process:
        wait_for_answers(process, out, 10)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    err = err.removeprefix(f"{DRAWN_ONLY}\n")
    assert err.count("\n") == 1
    assert err.endswith("; interrupted; the same command continues from here\n")
    kept, answered = by_id(out), answered_lines(out)
    assert 10 <= len(answered) < len(kept) < JOBS
    counted = int(err.removeprefix("npgemma: ").split(f" of {JOBS} done")[0])
    assert counted in (len(kept), len(kept) - 1)  # one may be written and not be counted yet
    status, err = many.run(out)
    assert status == 1
    assert err.startswith(f"npgemma: {JOBS} of {JOBS} done, {JOBS - len(answered)} now in ")
    assert answered_lines(out)[: len(answered)] == answered
    many.assert_finished(out)


class ControlC(Observer):
    """Ctrl-C is pressed while the third job is read."""

    def check_length(self, input_ids, max_new_tokens):
        super().check_length(input_ids, max_new_tokens)
        if len(self.prompts) == 3:
            raise KeyboardInterrupt


def test_an_interrupted_batch_exits_with_130_and_keeps_its_results(many, tmp_path, capsys):
    model = npgemma.load()
    model.guard = ControlC(**vars(model.guard))
    out = tmp_path / "out.jsonl"
    command = ["batch", str(many.path), "-o", str(out), "--in-flight", "1"]
    assert main(command, lambda *_: model) == 130
    invalid = 3  # the lines that are not jobs come first
    done = f"npgemma: {invalid + 2} of {JOBS} done, {invalid + 2} now in "
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.removeprefix(f"{DRAWN_ONLY}\n").startswith(done)
    assert captured.err.endswith("; interrupted; the same command continues from here\n")
    assert len(answered_lines(out)) == 2


@POSIX
def test_two_batches_cannot_write_one_file(many, tmp_path):
    out = tmp_path / "out.jsonl"
    with many.start(out, "--in-flight", 1) as first:
        wait_for_answers(first, out, 5)
        status, err = many.run(out)
        first.kill()
        first.communicate()
    assert (status, err) == (1, f"npgemma: {out} is being written by another process\n")


@POSIX
def test_a_full_disk_is_one_sentence_and_loses_no_result(many, tmp_path):
    """The disk is full in the middle of a line; once there is space again, the work continues."""
    import resource

    out, space = tmp_path / "out.jsonl", 4000
    status, err = many.run(out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (space, space)))
    assert (status, err) == (1, f"npgemma: {out} cannot be written: File too large\n")
    assert out.stat().st_size <= space
    answered = answered_lines(out)
    assert len(answered) >= 3
    assert many.run(out)[0] == 1
    assert answered_lines(out)[: len(answered)] == answered
    many.assert_finished(out)


# ------------------------------------------------------------------------------------------------------------ progress


def on_a_terminal(jobs: Path, out: Path) -> tuple[int, str]:
    """The exit status of a batch whose stderr is a terminal, and what is sent to the terminal."""
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
        except OSError:  # Linux's sign that the other end is closed
            pass
        finally:
            os.close(ours)
        assert process.stdout.read() == b""
    return process.returncode, sent.decode()


@POSIX
def test_a_terminal_shows_progress_and_a_restart_counts_from_where_it_was(many, tmp_path):
    lines = many.path.read_text().splitlines(keepends=True)
    path, out = many.path.with_name("few.jsonl"), tmp_path / "out.jsonl"
    path.write_text("broken\n" + "".join(lines[:3]))
    status, sent = on_a_terminal(path, out)
    assert status == 1
    start, *shown, end = sent.split("\r\x1b[K")
    assert start.splitlines() == [DRAWN_ONLY]
    assert [line.split(",")[0] for line in shown] == [f"{i} of 4" for i in (1, 2, 3, 4)]
    assert all(" a second, " in line and line.endswith(" left, 1 errors") for line in shown)
    assert shown[-1].endswith(", 0 s left, 1 errors")
    assert end.startswith("npgemma: 4 of 4 done, 4 now in ")
    assert end.endswith(summary_of_errors(1, out) + "\r\n")

    path.write_text("".join([lines[3], *lines[:3]]))  # the line that was broken is corrected
    status, sent = on_a_terminal(path, out)
    assert status == 0
    _, *shown, end = sent.split("\r\x1b[K")
    assert [line.split(",")[0] for line in shown] == ["4 of 4"]
    assert end.startswith("npgemma: 4 of 4 done, 1 now in ")
    assert {result["id"] for result in read_lines(out)} == {json.loads(line)["id"] for line in lines[:4]}
