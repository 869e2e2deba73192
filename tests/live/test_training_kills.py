"""npgemma train, killed and interrupted at random moments: in the end, every byte is that of an undisturbed run.

The undisturbed run has one thread; the others have two, and so another process that takes part when it has started.

NPGEMMA_KILLS=50 kills it more often.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_model
from training_data import content, write_data

pytestmark = pytest.mark.live

KILLS = int(os.environ.get("NPGEMMA_KILLS", 6))
LONGEST = 1.0  # seconds from the first line of the log to a kill


def threads(count: int) -> dict[str, str]:
    return os.environ | {"OPENBLAS_NUM_THREADS": str(count)}


def command(folder: Path, output: Path, *arguments: str) -> list[str]:
    how = ("--lora", "3", "--epochs", "20", "--batch", "2", "--augment", "flip", "--eval-every", "9")
    data = folder / "data" / "data.jsonl"
    files = ("-m", str(folder / "model"), "-o", str(output), "--eval", str(data), "--curve", str(output / "loss.png"))
    return [sys.executable, "-m", "npgemma", "train", str(data), *files, *how, "--save-every", "3", *arguments]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    (folder / "model").mkdir()
    small_model.write_folder(folder / "model")
    write_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[str, bytes]:
    subprocess.run(command(folder, folder / "undisturbed"), check=True, capture_output=True, env=threads(1))
    return content(folder / "undisturbed")


def begun(folder: Path, output: Path) -> subprocess.Popen:
    """A run that has written to its log."""
    log = output / "log.jsonl"
    was = log.stat().st_mtime_ns if log.exists() else 0
    streams = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command(folder, output), env=threads(2), **streams)

    def has_written() -> bool:
        return log.exists() and log.stat().st_size > 0 and log.stat().st_mtime_ns > was

    while process.poll() is None and not has_written():
        time.sleep(0.01)
    return process


def finished(folder: Path, output: Path) -> dict[str, bytes]:
    subprocess.run(command(folder, output), check=True, capture_output=True, env=threads(2))
    assert not [path for path in output.iterdir() if path.is_dir()]  # what killed writers have left
    return content(output)


def test_a_run_that_is_killed_ends_with_the_same_bytes(folder: Path, undisturbed: dict, tmp_path: Path) -> None:
    """A run that ends before its next kill is followed by another one."""
    moments, runs, statuses = random.Random(0), [tmp_path / "0"], []
    for _ in range(KILLS):
        process = begun(folder, runs[-1])
        time.sleep(moments.uniform(0, LONGEST))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        statuses.append(process.returncode)
        if process.returncode == 0:
            runs.append(tmp_path / str(len(runs)))
    assert {*statuses} <= {0, -signal.SIGKILL}
    assert -signal.SIGKILL in statuses
    for run in runs:
        assert finished(folder, run) == undisturbed


def test_ctrl_c_says_one_sentence_and_loses_no_step(folder: Path, undisturbed: dict, tmp_path: Path) -> None:
    process = begun(folder, tmp_path / "run")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    last = err.decode().splitlines()[-1]
    assert process.returncode == 130
    assert last.startswith("npgemma: interrupted; the same command continues after step ")
    step = int(last.rpartition(" ")[2])
    assert (tmp_path / "run" / f"state-{step:08d}.safetensors").exists()
    assert finished(folder, tmp_path / "run") == undisturbed
