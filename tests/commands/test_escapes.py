"""Names from files and arguments reach the terminal without control characters, and on one line."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, process
from safetensors.numpy import save_file

import npgemma.commands
from npgemma.commands.cli import main

STEERING = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f"
FORGED = "x\nEXPLAINED: rounding in float32 explains 9 of 9 taps"


@pytest.fixture
def dump(tmp_path: Path) -> str:
    """A dump with names that would steer a terminal, and one that would write a line of the report."""
    tensors = {name: np.zeros((1, 1792), "f4") for name in (STEERING, FORGED, f"logits{STEERING}")}
    save_file(tensors, tmp_path / "dump.safetensors")
    rules = [{"theirs": r"logits\W.*", "ours": "logits"}]
    (tmp_path / "map.json").write_text(json.dumps({"rules": rules}))
    return str(tmp_path / "dump.safetensors")


def test_names_in_a_report_are_escaped(dump, tmp_path, capsys):
    assert main(["compare", "embedded", dump, "--map", str(tmp_path / "map.json"), "--verbose"]) == 1
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert "(logits\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\x7f): " in out
    assert r"x\nEXPLAINED" in out
    assert "\nEXPLAINED" not in out


def test_a_report_in_json_says_the_names_as_they_are(dump, tmp_path, capsys):
    main(["compare", "embedded", dump, "--map", str(tmp_path / "map.json"), "--format", "json"])
    out = capsys.readouterr().out
    assert out.rstrip("\n").isprintable()
    assert json.loads(out)["unmapped"] == [STEERING, FORGED]


ERRORS = {
    "a picture": ["ocr", f"{STEERING}\nx.png"],
    "a model": ["generate", "a.png", "b", "-m", f"{STEERING}\nx"],
    "a dump": ["compare", "embedded", f"{STEERING}\nx.npz"],
    "a map": ["compare", "embedded", "x.npz", "--map", f"{STEERING}\nx"],
}


@pytest.mark.parametrize("command", ERRORS.values(), ids=ERRORS)
def test_an_error_is_one_line_whatever_the_names(command, capsys):
    assert main(command) in (1, 2)
    err = capsys.readouterr().err
    assert err.removesuffix("\n").isprintable()
    assert err.startswith("npgemma: ")


def test_wrong_arguments_are_repeated_without_control_characters(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["ocr", "a.png", f"--num-beams={STEERING}"])
    assert capsys.readouterr().err.replace("\n", "").isprintable()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["caption", "--help"]], ids=" ".join)
def test_help_that_cannot_be_written_is_an_error(arguments):
    with open("/dev/full", "w") as full:
        found = process(*arguments, stdout=full)
    assert found.returncode == 1
    assert "No space left" in found.stderr


def test_commands_print_through_say():
    """The progress lines alone, which move the cursor, are printed as they are."""
    folder = Path(npgemma.commands.__file__).parent
    found = {
        path.name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert found == {"output.py", "progress.py", "training_progress.py"}


@pytest.mark.skipif(sys.platform != "linux", reason="whether a process waits with SIGINT is read from /proc")
def test_ctrl_c_while_modules_are_imported_is_no_traceback():
    command = [sys.executable, "-m", "npgemma", "ocr", str(npgemma.sample_picture())]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while child.poll() is None and not waits_with_interrupts(child.pid):
        time.sleep(0.001)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, "", "npgemma: interrupted\n")


def waits_with_interrupts(pid: int) -> bool:
    """Whether a process has blocked SIGINT."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigBlk:")[2].split()[0], 16) & 1 << signal.SIGINT - 1)


@pytest.mark.parametrize(
    "command", ["caption IMAGE", "embed IMAGE -o e.npz", "search e.npz IMAGE", "golden IMAGE x -o g.x"]
)
def test_a_newline_in_a_name_does_not_make_two_lines_of_a_sentence(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main([word.replace("IMAGE", "a\nb.png") for word in command.split()])
    said = [line for line in capsys.readouterr().err.splitlines() if "not found" in line]
    assert all(line.startswith("npgemma: ") for line in said)
