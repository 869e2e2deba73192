"""The loop: a run that is killed, interrupted or stopped goes on as if nothing had happened, or says why not."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training_runs import FACTS, STEPS, learn, result

from npgemma.errors import BadData
from npgemma.training.state import states

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    learn(folder)
    return result(folder)


def interrupt_at(step: int):
    def before(now: int) -> None:
        if now == step:
            raise KeyboardInterrupt

    return before


def test_the_log_has_a_line_for_each_step_and_each_evaluation(undisturbed: tuple) -> None:
    lines = undisturbed[0].decode().splitlines()
    assert len(lines) == 1 + STEPS + STEPS // 10 + 1
    assert lines[1].startswith('{"step": 0, "eval"')
    assert '"rate": 0.0,' in lines[2]


def test_clipping_rates_and_decay_reach_the_optimizer(tmp_path: Path) -> None:
    """The first step has the rate 0, and the second moves every number by about half the rate."""
    arrays = learn(tmp_path / "run", steps=2)
    assert 0.03 < np.abs(arrays["matrix"] - 2).max() < 0.1
    np.testing.assert_allclose(arrays["vector"][0], 0)


@pytest.mark.parametrize("step", [0, 1, 10, 29, 39])
def test_a_run_after_ctrl_c_goes_on_from_the_step_it_was_at(tmp_path: Path, undisturbed: tuple, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "run", save_every=None, before=interrupt_at(step))
    begun = []
    learn(tmp_path / "run", before=begun.append)
    assert begun[0] == step
    assert result(tmp_path / "run") == undisturbed


def test_kill_9_loses_nothing(tmp_path: Path, undisturbed: tuple) -> None:
    """Three processes in turn are killed within a step, or while they save; the last one ends undisturbed."""
    for kill_after in (2, 9, 13):
        command = [sys.executable, str(TESTS / "training_runs.py"), str(tmp_path / "run"), "0.002"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(TESTS.parent)})
        process.stdout.read(kill_after)
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        process.wait()
    learn(tmp_path / "run")
    assert result(tmp_path / "run") == undisturbed
    assert [path.name[:6] for path in (tmp_path / "run").iterdir() if path.name.startswith(".")] == []


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path: Path, undisturbed: tuple) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "run", before=interrupt_at(20))
    newest, older = states(tmp_path / "run")
    newest.write_bytes(newest.read_bytes()[:-1])
    learn(tmp_path / "run")
    assert older.name == "state-00000018.safetensors"
    assert result(tmp_path / "run") == undisturbed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0.2}, "its rate is 0.1, not 0.2"),
        ({"data sha256": "e"}, "the data is not the one that it began with"),
        ({"model sha256": "e"}, "the model is not the one that it began with"),
        ({"epochs": 3}, "its epochs is null, not 3"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    learn(tmp_path / "run", steps=2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(BadData, match=message):
        learn(tmp_path / "run", FACTS | change, steps=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": "{}"},
        {"log.jsonl": "another program's log\n"},
        {"log.jsonl": '{"run": ', "mine.txt": "text"},
        {"run.json": "{}"},
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BadData, match="not empty"):
        learn(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("text", ["", '{"ru', '{"run": {"rate"'])
def test_a_run_that_was_killed_before_its_first_state_begins_again(tmp_path, undisturbed: tuple, text: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    learn(tmp_path)
    assert result(tmp_path) == undisturbed


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    def begin_another(step: int) -> None:
        learn(tmp_path / "run")

    with pytest.raises(BadData, match="written by another process"):
        learn(tmp_path / "run", before=begin_another)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_step_before(tmp_path: Path, value: float) -> None:
    with pytest.raises(BadData, match=r"in step 6, which begins at the tap text\.x; the state before it is kept"):
        learn(tmp_path / "run", loss_at={5: value})
    assert states(tmp_path / "run")[0].name == "state-00000005.safetensors"


def test_weights_that_overflow_are_not_saved(tmp_path: Path) -> None:
    with np.errstate(all="ignore"), pytest.raises(BadData, match=r"after step 2, weights\.matrix is not finite"):
        learn(tmp_path / "run", FACTS | {"rate": 3e38}, steps=3, save_every=1000)
    assert states(tmp_path / "run")[0].name == "state-00000000.safetensors"


def test_a_full_disk_is_one_sentence_and_the_state_stays(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "run", before=interrupt_at(7))
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, was[1]))
    try:
        with pytest.raises(BadData, match="cannot be written: File too large; the same command continues"):
            learn(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
        signal.signal(signal.SIGXFSZ, handler)
    assert states(tmp_path / "run")[0].name == "state-00000007.safetensors"
