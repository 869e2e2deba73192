"""npgemma prepare: COCO's annotations as lines to train on."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from coco_files import annotation, write_coco

import npgemma
from npgemma.commands.cli import main

CAT = "<loc0170><loc0170><loc0852><loc0512> cat"


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_boxes_are_written_with_pictures_relative_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "pictures").mkdir()
    path, out = write_coco(tmp_path / "pictures", annotation(1)), tmp_path / "data.jsonl"
    assert main(["prepare", str(path), "-o", str(out)]) == 0
    assert read(out) == [{"image": "pictures/a.png", "prefix": "detect cat", "suffix": CAT}]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        f"wrote {out}: 1 example with 1 object",
        "npgemma: left out: pictures without objects (1)",
        "npgemma: read back, the edges of boxes are at most 0.03 pixels off",
    ]


def test_pictures_may_be_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    path = write_coco(tmp_path / "pictures", annotation(1)).rename(tmp_path / "coco.json")
    out = tmp_path / "data.jsonl"
    assert main(["prepare", str(path), "-o", str(out), "--pictures", str(tmp_path / "pictures")]) == 0
    assert read(out)[0]["image"] == "pictures/a.png"


def test_masks_are_written_in_the_codes_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The embedded codec gives a square back."""
    path, out = write_coco(tmp_path, annotation(1)), tmp_path / "data.jsonl"
    assert main(["prepare", str(path), "-o", str(out), "--task", "segment"]) == 0
    (line,) = read(out)
    mask = np.zeros((30, 60), bool)
    mask[5:25, 10:30] = True
    folder = npgemma.load().folder
    codec = npgemma.read_mask_codec(folder / "vae-oid.npz")
    assert line["prefix"] == "segment cat"
    assert line["suffix"] == npgemma.write_objects([npgemma.encode_object(codec, "cat", mask)])
    assert "masks have an IoU of 0.8" in capsys.readouterr().err
    again = tmp_path / "again.jsonl"
    named = ["--codec", str(folder / "vae-oid.npz")]
    assert main(["prepare", str(path), "-o", str(again), "--task", "segment", *named]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_a_problem_stops_it(tmp_path: Path, refused: Callable[..., str]) -> None:
    path, out = write_coco(tmp_path, annotation(1), annotation(2, bbox=None)), tmp_path / "data.jsonl"
    problem = "annotation 2: bbox is None, not x, y, width and height"
    assert f"{problem}; correct it, or leave it out with --skip-bad" in refused("prepare", path, "-o", out)
    assert not out.exists()


def test_a_problem_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, out = write_coco(tmp_path, annotation(1), annotation(2, bbox=None)), tmp_path / "data.jsonl"
    assert main(["prepare", str(path), "-o", str(out), "--skip-bad"]) == 0
    assert read(out)[0]["suffix"] == CAT
    assert "left out: pictures without objects (1), problems (1)" in capsys.readouterr().err


def test_an_output_does_not_replace_its_input(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = write_coco(tmp_path, annotation(1))
    assert "is the file of annotations and an output" in refused("prepare", path, "-o", path)


def test_a_model_without_a_codec_is_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = write_coco(tmp_path, annotation(1))
    said = refused("prepare", path, "-o", tmp_path / "data.jsonl", "--task", "segment", "-m", "tiny-gemma")
    assert "vae-oid.npz is missing; masks need the weights" in said


def test_lines_go_to_stdout(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pictures relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path, annotation(1))
    assert main(["prepare", "coco.json", "-o", "-"]) == 0
    said = capfdbinary.readouterr()
    assert json.loads(said.out) == {"image": "a.png", "prefix": "detect cat", "suffix": CAT}
    assert said.err.startswith(b"wrote stdout: 1 example with 1 object\n")
