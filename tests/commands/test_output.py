"""Output: control characters are escaped, and streams may be closed, full or of any encoding."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from processes import ROOT, process

import npgemma
from npgemma.checkpoints.paligemma import read_config
from npgemma.commands.cli import main
from npgemma.commands.output import printable

PICTURE = str(npgemma.sample_picture())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\r\x00\x07\x08\x0b\x0c", "\\x0d\\x00\\x07\\x08\\x0b\\x0c"),
        ("\x7f\x80\x9b\x9f\xa0", "\\x7f\\x80\\x9b\\x9f\xa0"),
        ("é😀\N{REPLACEMENT CHARACTER}", "é😀\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_printable_escapes_control_characters(text, shown):
    assert printable(text) == shown


STEERING = "a\x1b]0:title\x07b\x9b31mc\x7f\r"


def test_answers_cannot_control_the_terminal(answering, run):
    answering(STEERING)
    assert run("ocr", PICTURE) == "a\\x1b]0:title\\x07b\\x9b31mc\\x7f\\x0d\n"
    answering("<loc0000><loc0000><loc0512><loc0512>" + STEERING)
    out = run("detect", PICTURE, "cat")
    assert out.startswith("a\\x1b]0:title\\x07b\\x9b31mc\\x7f")
    assert not set(STEERING) & set(out) - set("abc]0:title31m")


@pytest.mark.parametrize("command", [["ocr", PICTURE], ["detect", PICTURE, "cat"]], ids=["ocr", "detect"])
def test_answers_cannot_control_the_terminal_in_json(command, answering, run):
    """0x9b is a whole escape sequence's beginning to some terminals; JSON can say it as \\u009b."""
    answering("<loc0000><loc0000><loc0512><loc0512>" + STEERING)
    out = run(*command, "--format", "json")
    assert json.loads(out)["text"].endswith(STEERING)
    assert out.rstrip("\n").isprintable()


@pytest.mark.parametrize("label", ["two\nlines", "two\tfields"])
def test_labels_with_newlines_and_tabs_stay_on_one_line(label, answering, run):
    """What reads the lines splits them at newlines and tabs."""
    answering(f"<loc0000><loc0000><loc0512><loc0512> {label} ; <loc0000><loc0000><loc0512><loc0512> cat")
    out = run("detect", PICTURE, "cat")
    assert [len(line.split("\t")) for line in out.splitlines()] == [5, 5]


def test_file_names_cannot_control_the_terminal(tmp_path, refused):
    for name in ("\x1b[2J.png", "\x9b2J.png"):
        said = refused("ocr", tmp_path / name)
        assert said.isprintable()
        assert f"\\x{ord(name[0]):02x}" in said


def test_tensor_names_cannot_control_the_terminal(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "model")
    tensors = {tiny.spell(name, "saved 5.x"): x for name, x in tiny.random_tensors(read_config(folder)).items()}
    tiny.save(tensors | {"\x1b[2J\x9b": np.ones(1, np.float32)}, tmp_path / "model" / "model.safetensors")
    assert main(["inspect", str(tmp_path / "model")]) == 1
    err = capsys.readouterr().err
    assert "\\x1b[2J" in err
    assert err.replace("\n", "").isprintable()


def test_it_runs_as_a_module(model, tmp_path):
    done = process("ocr", PICTURE, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == model.generate(PICTURE, "ocr").text + "\n"


def test_an_error_is_the_exit_status_of_the_process(tmp_path):
    done = process("ocr", "nowhere.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "npgemma: nowhere.png was not found\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is told otherwise on Windows")
@pytest.mark.parametrize("command", [["inspect"], ["ocr", PICTURE], ["caption", PICTURE, "--format", "json"]])
def test_a_closed_pipe_exits_with_141(command):
    """npgemma ... | head -0: whether it is noticed while writing or only when the last of it is flushed."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process(*command, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device here that is always full")
@pytest.mark.parametrize("command", [["inspect"], ["ocr", PICTURE]])
def test_a_full_disk_is_one_sentence(command):
    with open("/dev/full", "w") as full:
        done = process(*command, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("npgemma: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no device here that is always full")
@pytest.mark.parametrize("command", [["--version"]])
def test_version_on_a_full_disk_is_one_sentence(command):
    with open("/dev/full", "w") as full:
        done = process(*command, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("npgemma: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no shell here that closes a stream")
@pytest.mark.parametrize("command", ["caption", "detect"])
def test_a_closed_stderr_does_no_harm(command, model, run):
    """npgemma ... 2>&-"""
    labels = ["blue star"] if command == "detect" else []
    line = [sys.executable, "-m", "npgemma", command, PICTURE, *labels]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *line], stdout=subprocess.PIPE, timeout=60, env=environment)
    assert done.returncode == 0
    assert b"blue star" in done.stdout


def test_an_encoding_without_the_character_gives_no_traceback(tmp_path):
    """As on a Windows console, or in a pipe there: the character is written out or replaced."""
    options = {"environment": {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}}
    done = process("generate", PICTURE, "é猫", "--format", "json", **options)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["prompt"] == "é猫"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_control_c_ends_a_long_answer_with_130(folder):
    """Interrupted once it has begun to write: with 900 tokens to go, it has not ended by itself."""
    command = [sys.executable, "-u", "-m", "npgemma", "generate", PICTURE, "x", "-m", str(folder)]
    command += ["--max-new-tokens", "900", "--temperature", "1e6"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as running:
        assert running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.decode() == "npgemma: interrupted\n"
