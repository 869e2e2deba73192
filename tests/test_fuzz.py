"""Damaged files of every kind are answered or refused, soon and in 300 MB; tools/fuzz.py runs more."""

import os
import re
import signal
import sys

import fuzz
import numpy as np
import pytest

# How many cases of each kind take about a third of a second.
CASES = {"pictures": 60, "safetensors": 80, "dumps": 20, "golden": 8, "mappings": 20, "adapters": 80, "lines": 80}
CASES |= {"codecs": 40, "configs": 8, "tokenizers": 8}


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a case is read from /proc")
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damaged_files_are_answered_or_refused(kind, monkeypatch):
    """Within two seconds, or ten where other work takes the processor."""
    monkeypatch.setattr(fuzz, "SECONDS", 10.0)
    found = fuzz.fuzz(kind, "tests", CASES[kind])
    assert found.broken == []
    assert found.answered + found.refused == CASES[kind]


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a case is read from /proc")
@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda folder: 1 / 0, "ZeroDivisionError"),
        (lambda folder: np.ones(50_000_000), "it takes [34].. MB"),
        (lambda folder: spin(), "it takes 1"),
        (lambda folder: os.kill(os.getpid(), signal.SIGKILL), "the process ended"),
    ],
    ids=["another exception", "memory", "time", "a crash"],
)
def test_a_broken_case_is_counted(read, what, monkeypatch):
    monkeypatch.setitem(fuzz.KINDS, "new", fuzz.Kind(lambda: [{"x": b"123"}], read))
    monkeypatch.setattr(fuzz, "SECONDS", 1.0)
    ((_, number, said),) = fuzz.fuzz("new", 1, 1).broken
    assert number == 0
    assert re.match(what, said)


def spin():
    while True:
        pass
