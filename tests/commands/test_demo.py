"""demo: the embedded model on the sample picture."""

import numpy as np
import pytest
from PIL import Image

import npgemma
from npgemma.commands.cli import main

SAMPLE = npgemma.sample_picture()


def test_demo_answers_and_writes_its_picture(tmp_path, monkeypatch, capsys):
    """What the first line of README runs: in any folder, with nothing but what is installed."""
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    out, err = capsys.readouterr()
    assert err == "wrote npgemma-demo.png, the sample picture with masks and boxes drawn\n"
    assert out.startswith("caption en\n    ")
    assert "a blue star, an orange ring and a green circle" in out
    assert "detect blue star ; orange ring ; green circle\n" in out
    assert "segment blue star ; orange ring ; green circle\n    blue star " in out
    assert [path.name for path in tmp_path.iterdir()] == ["npgemma-demo.png"]
    with Image.open("npgemma-demo.png") as drawn, Image.open(SAMPLE) as sample:
        assert drawn.size == sample.size
        assert not np.array_equal(np.asarray(drawn), np.asarray(sample.convert("RGB")))


@pytest.mark.parametrize("name", ["out.xyz", "nowhere/out.png"])
def test_demo_refuses_an_output_that_cannot_be_written(name, tmp_path, capsys):
    assert main(["demo", "--draw", str(tmp_path / name)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"npgemma: {tmp_path / name} cannot be written")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_demo_prints_what_the_library_returns(model, tmp_path, capsys):
    assert main(["demo", "--draw", str(tmp_path / "out.jpg")]) == 0
    out = capsys.readouterr().out
    for prompt in ("caption en", "answer en what color is the star?", "ocr"):
        assert f"{prompt}\n    {model.generate(SAMPLE, prompt).text}\n" in out
    assert (tmp_path / "out.jpg").exists()
