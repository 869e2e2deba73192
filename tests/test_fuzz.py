"""A tenth of the budget of tools/fuzz.py breaks nothing; and what breaks the bar is counted."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import fuzz
import numpy as np
import pytest
from processes import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the memory of a case is read from /proc")


def test_a_tenth_of_the_budget_breaks_nothing():
    """Without the checks of annotations, which tests have and users have not."""
    command = [sys.executable, "tools/fuzz.py", "--share", "0.1", "--seed", "tests"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stdout + found.stderr
    assert {line.rsplit(maxsplit=6)[0] for line in found.stdout.splitlines()[1:-1]} == {*fuzz.kinds()}


@pytest.mark.parametrize(
    ("read", "seconds", "what"),
    [
        (lambda folder: 1 / 0, 60.0, "ZeroDivisionError"),
        (lambda folder: len(np.ones(50_000_000)), 60.0, "it takes [34].. MB"),
        (lambda folder: spin(), 0.5, "it takes longer than 0.5 s"),
        (lambda folder: os.kill(os.getpid(), signal.SIGKILL), 60.0, "the process ended with status 9"),
        (lambda folder: sleep_on(), 0.1, "the process ended with status 256"),
    ],
    ids=["another exception", "memory", "time", "a crash", "a hang that no signal ends"],
)
def test_a_broken_case_is_counted_and_the_next_one_runs(read, seconds, what, tmp_path):
    def make(rng: random.Random) -> dict[str, bytes]:
        return {"x": b"%d" % rng.randrange(10)}

    def second(folder):
        return read(folder) if folder.name == "1" else None

    found = fuzz.fuzz("new", fuzz.Kind(3, make, second, seconds), 1, 3, tmp_path)
    assert (found.answered, found.refused) == (2, 0)
    ((_, number, said),) = found.broken
    assert number == 1
    assert re.match(what, said)
    assert (tmp_path / "new-1" / "x").read_bytes() == make(random.Random("1-new-1"))["x"]


def spin() -> None:
    while True:
        pass


def sleep_on() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGPROF})
    time.sleep(60)
