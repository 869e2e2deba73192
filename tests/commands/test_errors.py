"""Errors and wrong usage: one sentence, and the exit status that says which it was."""

import json
import shutil

import numpy as np
import pytest
import tiny
from processes import process

import npgemma
from npgemma.checkpoints.paligemma import read_config
from npgemma.commands.cli import main

PICTURE = str(npgemma.sample_picture())


def test_a_missing_picture_is_one_sentence(tmp_path, refused):
    for command in (["ocr"], ["caption"], ["answer"], ["detect"], ["generate", PICTURE]):
        rest = ["why?"] if command[0] not in ("ocr", "caption") else []
        assert "nowhere.png was not found" in refused(*command, tmp_path / "nowhere.png", *rest)


def test_a_file_that_is_not_a_picture_is_one_sentence(tmp_path, refused):
    (tmp_path / "text.png").write_text("hello")
    assert "text.png is not a picture" in refused("ocr", tmp_path / "text.png")
    assert "cannot be read" in refused("ocr", tmp_path)


def test_a_folder_that_is_not_a_model_is_one_sentence(tmp_path, refused):
    for command in (["ocr", PICTURE, "-m"], ["detect", PICTURE, "cat", "-m"], ["inspect"]):
        assert "nowhere was not found: there is no such folder" in refused(*command, tmp_path / "nowhere")
        assert "is neither a folder nor" in refused(*command, PICTURE)
        assert "config.json is missing" in refused(*command, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model"])
@pytest.mark.parametrize("content", [b"", b"damaged", None], ids=["empty", "damaged", "cut off"])
def test_a_damaged_model_is_one_sentence_that_names_the_file(name, content, folder, tmp_path, refused):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    for command in (["ocr", PICTURE, "-m"], ["inspect"]):
        assert str(path) in refused(*command, tmp_path / "model")


def test_a_model_that_does_not_fit_its_config_lists_every_tensor(folder, tmp_path, capsys):
    """The one error of several lines: someone who converts a checkpoint needs all of them."""
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 4
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path / "model")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "(9 missing, 0 unexpected, 0 mis-shaped)" in err.splitlines()[0]
    assert len(err.splitlines()) == 10


def test_weights_that_are_not_finite_are_one_sentence(folder, tmp_path):
    """In a process of its own, where NumPy would warn of what it makes of infinity."""
    shutil.copytree(folder, tmp_path / "model")
    tensors = {tiny.spell(name, "saved 5.x"): x for name, x in tiny.random_tensors(read_config(folder)).items()}
    tensors["vision_tower.encoder.layers.0.mlp.fc2.weight"][0, 0] = np.inf
    tiny.save(tensors, tmp_path / "model" / "model.safetensors")
    done = process("ocr", PICTURE, "-m", tmp_path / "model")
    assert (done.returncode, done.stdout) == (1, "")
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_invalid_prompt_is_one_sentence(refused):
    assert "<image> 2 times" in refused("generate", PICTURE, "<image><image>")
    assert "the prompt is not valid text" in refused("generate", PICTURE, "\udcff")


@pytest.mark.parametrize("count", [10**15, 10**30])
def test_a_huge_max_new_tokens_gives_no_traceback(count, model, capsys):
    """The answer ends long before; or the number is refused, in a sentence or as wrong usage."""
    try:
        status = main(["ocr", PICTURE, "--max-new-tokens", str(count)])
    except SystemExit as usage:
        status = usage.code
    out, err = capsys.readouterr()
    assert (status, out) in ((0, model.generate(PICTURE, "ocr").text + "\n"), (1, ""), (2, ""))
    assert "Traceback" not in err


USAGE = [
    [],
    ["draw"],
    ["ocr"],
    ["ocr", PICTURE, PICTURE],
    ["generate"],
    ["answer", PICTURE],
    ["detect", PICTURE],
    ["inspect", "a", "b"],
    ["ocr", PICTURE, "--nothing"],
    ["ocr", PICTURE, "--temperature", "-1"],
    ["ocr", PICTURE, "--temperature", "nan"],
    ["ocr", PICTURE, "--temperature", "inf"],
    ["ocr", PICTURE, "--temperature", "warm"],
    ["ocr", PICTURE, "--top-k", "0"],
    ["ocr", PICTURE, "--top-k", "1.5"],
    ["ocr", PICTURE, "--top-p", "0"],
    ["ocr", PICTURE, "--top-p", "1.1"],
    ["ocr", PICTURE, "--seed", "-1"],
    ["ocr", PICTURE, "--seed", "x"],
    ["ocr", PICTURE, "--max-new-tokens", "0"],
    ["ocr", PICTURE, "--max-new-tokens", "-5"],
    ["ocr", PICTURE, "--max-new-tokens", "many"],
    ["ocr", PICTURE, "--dtype", "bfloat16"],
    ["ocr", PICTURE, "--format", "xml"],
    ["inspect", "--format", "xml"],
    ["demo", PICTURE],
]


@pytest.mark.parametrize("arguments", USAGE, ids=lambda arguments: " ".join(arguments[2:] or arguments))
def test_wrong_usage_exits_with_2_and_prints_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: npgemma")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--temperature", "-1", "temperature is -1.0; it must be 0 (greedy) or a positive number"),
        ("--top-k", "0", "top_k is 0; it must be a whole number, 1 or more"),
        ("--top-p", "2", "top_p is 2.0; it must be above 0 and at most 1"),
        ("--max-new-tokens", "0", "max_new_tokens is 0; it must be a whole number, 1 or more"),
    ],
)
def test_a_flag_out_of_range_is_told_its_range(flag, value, says, capsys):
    with pytest.raises(SystemExit):
        main(["ocr", PICTURE, flag, value])
    assert f"argument {flag}: {says}" in capsys.readouterr().err


def test_version_and_help_go_to_stdout(capsys):
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as end:
            main([flag])
        assert end.value.code == 0
    out, err = capsys.readouterr()
    assert "npgemma" in out
    assert err == ""


def test_a_memory_error_without_a_message_is_one_sentence(capsys):
    def load(*_):
        raise MemoryError

    assert main(["ocr", PICTURE], load) == 1
    assert capsys.readouterr() == ("", "npgemma: out of memory\n")
