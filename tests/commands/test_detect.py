"""detect: boxes in pixels, printed and drawn."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import npgemma
from npgemma.commands.cli import main

PICTURE = str(npgemma.sample_picture())
BOXES = "<loc0000><loc0256><loc0512><loc1023> cat ; <loc0100><loc0100><loc0200><loc0200> big dog"


def test_detect_prints_one_line_a_box_with_tabs(answering, folder, tmp_path, run):
    """label, x0, y0, x1, y1, rounded to pixels of the picture as it is, not as the model saw it."""
    answering(BOXES)
    Image.new("RGB", (512, 1024)).save(tmp_path / "picture.png")
    out = run("detect", tmp_path / "picture.png", "cat", "big dog", "-m", folder)
    assert out == "cat\t128\t0\t512\t512\nbig dog\t50\t100\t100\t200\n"


def test_detect_in_json_adds_boxes_and_objects(answering, folder, tmp_path, run):
    answering(BOXES)
    Image.new("RGB", (512, 1024)).save(tmp_path / "picture.png")
    found = json.loads(run("detect", tmp_path / "picture.png", "cat", "big dog", "--format", "json", "-m", folder))
    assert found.keys() == {"model", "prompt", "text", "token_ids", "finish_reason", "logprobs", "boxes", "objects"}
    assert found["prompt"] == "detect cat ; big dog"
    assert found["boxes"][0] == {"label": "cat", "x0": 128.0, "y0": 0.0, "x1": 511.5, "y1": 512.0}
    assert found["objects"][0] == {"label": "cat", "bins": [0, 256, 512, 1023], "codes": []}


def test_detect_asks_for_all_objects_in_one_prompt(model, run):
    found = json.loads(run("detect", PICTURE, "blue star", "orange ring", "--format", "json"))
    expected = model.generate(PICTURE, "detect blue star ; orange ring")
    with Image.open(PICTURE) as sample:
        boxes = npgemma.parse_boxes(expected.text, *sample.size)
    assert found["text"] == expected.text
    assert found["boxes"] == [dataclasses.asdict(box) for box in boxes]
    assert [box.label for box in boxes] == ["blue star", "orange ring"]


def test_boxes_of_a_photograph_are_those_of_the_upright_picture(answering, folder, tmp_path, run):
    answering("<loc0000><loc0000><loc0512><loc0512> cat")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200)).save(tmp_path / "picture.png", exif=exif)
    assert run("detect", tmp_path / "picture.png", "cat", "-m", folder) == "cat\t0\t0\t100\t200\n"


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_found_prints_no_line_and_succeeds(form, answering, tmp_path, capsys):
    answering("nothing")
    assert main(["detect", PICTURE, "cat", "--format", form, "--draw", str(tmp_path / "out.png")]) == 0
    out, err = capsys.readouterr()
    if form == "text":
        assert (out, err) == ("", "npgemma: nothing found\n")
    else:
        assert json.loads(out)["boxes"] == []
    with Image.open(tmp_path / "out.png") as drawn, Image.open(PICTURE) as sample:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(sample.convert("RGB")), strict=True)


def test_draw_writes_the_picture_with_boxes(answering, tmp_path, run):
    answering(BOXES)
    out = run("detect", PICTURE, "cat", "--draw", tmp_path / "out.png")
    assert len(out.splitlines()) == 2
    with Image.open(PICTURE) as sample, Image.open(tmp_path / "out.png") as drawn:
        expected = npgemma.draw_boxes(sample, npgemma.parse_boxes(BOXES, *sample.size))
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected), strict=True)


@pytest.mark.parametrize("name", ["out.xyz", "out", "out.psd", "", "nowhere/out.png"])
def test_an_output_that_cannot_be_written_is_one_sentence(name, answering, tmp_path, refused):
    answering(BOXES)
    path = tmp_path / name if name else ""
    assert "cannot be written" in refused("detect", PICTURE, "cat", "--draw", path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("things", [[""], [" "], ["cat", ""], ["cat;dog"]])
def test_an_invalid_object_name_is_one_sentence(things, refused):
    assert "give one or more labels" in refused("detect", PICTURE, *things)


def test_boxes_may_be_1023rds(answering, folder, tmp_path, run):
    answering(BOXES)
    Image.new("RGB", (1023, 1023)).save(tmp_path / "picture.png")
    assert run("detect", tmp_path / "picture.png", "cat", "--bins", 1023, "-m", folder).startswith(
        "cat\t256\t0\t1023\t512\n"
    )


def test_control_c_keeps_whole_boxes(answering, capsys):
    box = "<loc0000><loc0256><loc0512><loc1023> cat ; "
    answering(box + box, interrupted_after=len(box) + 5)
    assert main(["detect", PICTURE, "cat"]) == 130
    assert capsys.readouterr().out.count("cat\t") == 1


def test_control_c_while_drawing_leaves_no_picture(answering, monkeypatch, tmp_path):
    answering(BOXES)

    def save(self, path, *_):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save)
    assert main(["detect", PICTURE, "cat", "--draw", str(tmp_path / "out.png")]) == 130
    assert list(tmp_path.iterdir()) == []
