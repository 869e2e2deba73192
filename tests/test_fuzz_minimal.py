"""The smallest part of a broken case is what breaks it."""

import json
import sys

import fuzz
import pytest
from fuzz_changes import Files
from fuzz_minimal import minimal

CASE = {"a": bytes(range(200)), "b": b"not needed", "argv.json": json.dumps(["run", "x", "--bad", "7", "y"]).encode()}


def words(files: Files) -> list[str]:
    return json.loads(files.get("argv.json", b"[]"))


@pytest.mark.parametrize(
    ("is_broken", "expected"),
    [
        (lambda files: b"\x07" in files.get("a", b""), {"a": b"\x07"}),
        (lambda files: {3, 150} <= {*files.get("a", b"")}, {"a": b"\x03\x96"}),
        (lambda files: {"--bad", "y"} <= {*words(files)}, {"argv.json": b'["--bad", "y"]'}),
        (lambda files: "b" in files, {"b": b""}),
        (lambda files: True, {}),
    ],
)
def test_what_is_not_needed_is_left_out(is_broken, expected):
    assert minimal(CASE, is_broken, 60.0) == expected


def test_after_its_time_a_case_stays_as_it_is():
    assert minimal(CASE, lambda files: True, -1.0) == CASE


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a case is read from /proc")
def test_broken_cases_are_kept_with_their_smallest_part(tmp_path):
    def read(folder):
        assert b"w" not in (folder / "x").read_bytes(), "there are 12 of them"

    fuzz.fuzz("new", fuzz.Kind(1, lambda rng: {"x": b"some words", "y": b"others"}, read), 1, 1, tmp_path)
    assert (tmp_path / "new-0" / "x").read_bytes() == b"some words"
    assert {path.name: path.read_bytes() for path in (tmp_path / "new-0-minimal").iterdir()} == {"x": b"w"}
