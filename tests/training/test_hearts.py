"""A short training on drawn hearts: what the embedded model learns from some pictures holds for others."""

import json
from pathlib import Path
from random import Random

import pytest
from draw_examples import is_new, known_scene, new_scene, write_examples

from npgemma.commands.cli import main

RUN = ("--full", "--rate", "1e-3", "--batch", "8", "--epochs", "4")
PICTURES = 4


def test_hearts_are_learned_from_other_pictures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_examples(tmp_path, PICTURES)
    data, held_out, run = tmp_path / "new.jsonl", tmp_path / "held-out.jsonl", tmp_path / "run"
    assert main(["train", str(data), "-o", str(run), "--eval", str(held_out), *RUN]) == 0
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    before, after = (line["eval"]["loss"] for line in lines if "eval" in line and "step" in line)
    assert after < 0.8 * before


def test_a_new_scene_has_one_new_thing_and_a_known_scene_has_none() -> None:
    for seed in range(50):
        assert sum(map(is_new, new_scene(Random(seed)).things)) == 1
        assert not any(map(is_new, known_scene(Random(seed)).things))
