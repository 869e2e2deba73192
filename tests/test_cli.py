"""The command line as a person meets it: results on stdout, one sentence on stderr where something is wrong."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import npgemma
from npgemma.cli import SAMPLE, main, printable


@pytest.fixture(scope="module")
def model():
    return npgemma.load()


def said(capsys, *arguments: str) -> str:
    """stdout of a command that succeeds and says nothing else."""
    assert main(list(arguments)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize(
    ("command", "prompt"),
    [
        (["caption", SAMPLE], "caption en"),
        (["caption", SAMPLE, "--language", "de"], "caption de"),
        (["answer", SAMPLE, "what color is the star?"], "answer en what color is the star?"),
        (["ocr", SAMPLE], "ocr"),
        (["generate", SAMPLE, "answer en how many shapes are there?"], "answer en how many shapes are there?"),
    ],
    ids=str,
)
def test_a_prompt_prints_what_the_library_answers(capsys, model, command, prompt):
    expected = model.generate(SAMPLE, prompt)
    assert said(capsys, *map(str, command)) == expected.text + "\n"
    whole = json.loads(said(capsys, *map(str, command), "--format", "json"))
    assert whole == {"prompt": prompt, **vars(expected)}


def test_several_pictures_make_one_prompt(capsys, model):
    text = said(capsys, "generate", str(SAMPLE), str(SAMPLE), "caption en", "--max-new-tokens", "4")
    assert text == model.generate([SAMPLE, SAMPLE], "caption en", max_new_tokens=4).text + "\n"


def test_sampling_flags_reach_the_model(capsys, model):
    flags = ["--temperature", "2", "--top-k", "50", "--top-p", "0.9", "--seed", "7", "--max-new-tokens", "9"]
    options = {"temperature": 2.0, "top_k": 50, "top_p": 0.9, "seed": 7, "max_new_tokens": 9}
    assert said(capsys, "caption", str(SAMPLE), *flags) == model.generate(SAMPLE, "caption en", **options).text + "\n"


def test_detect_prints_a_line_a_box_and_draws(capsys, model, tmp_path):
    drawn = tmp_path / "boxes.png"
    out = said(capsys, "detect", str(SAMPLE), "blue star", "orange ring", "--draw", str(drawn))
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == ["blue star", "orange ring"]
    answer = model.generate(SAMPLE, "detect blue star ; orange ring")
    boxes = npgemma.parse_boxes(answer.text, 448, 448)
    assert [[int(n) for n in line[1:]] for line in lines] == [
        [round(n) for n in (b.x0, b.y0, b.x1, b.y1)] for b in boxes
    ]
    with Image.open(drawn) as image:
        assert image.size == (448, 448)
    whole = json.loads(said(capsys, "detect", str(SAMPLE), "blue star", "orange ring", "--format", "json"))
    assert whole["boxes"] == [vars(box) for box in boxes]


def test_nothing_found_is_said_beside_an_empty_result(capsys, tmp_path):
    blank = tmp_path / "blank.png"
    Image.new("RGB", (100, 100), "white").save(blank)
    assert main(["detect", str(blank), "red cross", "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr() == ("", "npgemma: nothing found\n")


def test_the_demo_describes_and_draws(capsys, tmp_path):
    drawn = tmp_path / "demo.png"
    assert main(["demo", "--draw", str(drawn)]) == 0
    out, err = capsys.readouterr()
    assert "a blue star, an orange ring and a green circle" in out
    assert str(drawn) in err
    with Image.open(drawn) as image, Image.open(SAMPLE) as sample:
        assert image.size == sample.size
        assert not np.array_equal(np.asarray(image), np.asarray(sample.convert("RGB")))


def test_inspect_tells_people_and_machines_the_same(capsys, model):
    facts = json.loads(said(capsys, "inspect", "--format", "json"))
    assert facts["stored_as"] == {"bfloat16": facts["parameters"]}
    assert facts["bytes"] == 2 * facts["parameters"]
    assert facts["tokens_per_image"] == model.config.vision.num_patches
    assert f"{facts['parameters']:,} parameters" in said(capsys, "inspect")


BAD = {
    "no picture": ["caption", "nowhere.png"],
    "a folder": ["caption", "."],
    "no model": ["caption", str(SAMPLE), "-m", "nowhere"],
    "no model to inspect": ["inspect", "nowhere"],
    "two questions in one label": ["detect", str(SAMPLE), "a;b"],
    "an empty label": ["detect", str(SAMPLE), ""],
    "a prompt that names another number of pictures": ["generate", str(SAMPLE), "<image><image> a"],
    "nowhere to draw": ["demo", "--draw", "nowhere/x.png"],
    "no format to draw in": ["demo", "--draw", "x.abc"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_one_sentence_and_exit_1(capsys, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert err.startswith("npgemma: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert out == "" or arguments[0] == "demo"
    assert list(tmp_path.iterdir()) == []


USAGE = {
    "no command": [],
    "an unknown command": ["paint"],
    "a negative temperature": ["caption", str(SAMPLE), "--temperature", "-1"],
    "a top-p above one": ["caption", str(SAMPLE), "--top-p", "2"],
    "no tokens": ["caption", str(SAMPLE), "--max-new-tokens", "0"],
    "a seed that is none": ["caption", str(SAMPLE), "--seed", "x"],
    "no prompt": ["generate", str(SAMPLE)],
}


@pytest.mark.parametrize("arguments", USAGE.values(), ids=USAGE.keys())
def test_wrong_usage_is_exit_2(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: npgemma")


def test_control_characters_are_written_out():
    assert printable("a\x1b[2Jb\tc\nd\x9b\x7f") == "a\\x1b[2Jb\tc\nd\\x9b\\x7f"


def test_an_interrupt_is_exit_130(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("npgemma.cli.load", interrupt)
    assert main(["caption", str(SAMPLE)]) == 130


def test_it_runs_as_a_module_and_a_closed_pipe_is_quiet():
    command = [sys.executable, "-m", "npgemma", "inspect", "--format", "json"]
    whole = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(whole.stdout)["tokens_per_image"] == 36
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""
