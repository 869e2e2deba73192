"""`-` is stdin where a command has a picture, a text or a dump, and stdout where it writes one file."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from processes import ROOT, process

import npgemma
from npgemma.commands.cli import main
from npgemma.golden import read_golden
from npgemma.golden.file import EMBEDDED_GOLDEN

SAMPLE = npgemma.sample_picture()
BYTES = SAMPLE.read_bytes()
STAR = "answer en what color is the star?"
BOX = "<loc0000><loc0256><loc0512><loc1023> cat"


class Closed(io.BytesIO):
    """Something that must not be read."""

    def read(self, *_: object) -> bytes:
        raise AssertionError("it was read")


@pytest.fixture
def stdin(monkeypatch) -> Callable[[bytes], None]:
    """stdin(content) is what the next command reads."""
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "ascii"))


# ---------------------------------------------------------------------------------------------------------------- stdin


@pytest.mark.parametrize(
    ("arguments", "content", "same"),
    [
        (["caption", "-"], BYTES, ["caption", SAMPLE]),
        (["ocr", "-"], BYTES, ["ocr", SAMPLE]),
        (["answer", "-", "what color is the star?"], BYTES, ["answer", SAMPLE, "what color is the star?"]),
        (["generate", "-", "ocr"], BYTES, ["generate", SAMPLE, "ocr"]),
        (["generate", "-", SAMPLE, "ocr"], BYTES, ["generate", SAMPLE, SAMPLE, "ocr"]),
        (["detect", "-", "blue star"], BYTES, ["detect", SAMPLE, "blue star"]),
        (["segment", "-", "blue star"], BYTES, ["segment", SAMPLE, "blue star"]),
        (["score", "-", "ocr", "FNY"], BYTES, ["score", SAMPLE, "ocr", "FNY"]),
        (["generate", SAMPLE, "-"], b"ocr\n", ["generate", SAMPLE, "ocr"]),
        (["generate", SAMPLE, "-"], b"\xef\xbb\xbfocr\r\n", ["generate", SAMPLE, "ocr"]),
        (["answer", SAMPLE, "-"], b"what color is the star?", ["answer", SAMPLE, "what color is the star?"]),
        (["score", SAMPLE, "-", "FNY"], b"ocr\n", ["score", SAMPLE, "ocr", "FNY"]),
        (["score", SAMPLE, STAR, "-"], b"blue\n\nred\r\n", ["score", SAMPLE, STAR, "blue", "red"]),
        (["score", SAMPLE, STAR, "-", "green"], b"blue\nred", ["score", SAMPLE, STAR, "blue", "red", "green"]),
    ],
    ids=lambda value: " ".join(map(str, value)).replace(str(SAMPLE), "SAMPLE") if isinstance(value, list) else None,
)
def test_what_stdin_holds_takes_the_place_of_the_dash(arguments, content, same, stdin, run):
    stdin(content)
    found = run(*arguments)
    assert found == run(*same)
    assert found


def test_a_text_in_utf_8_is_the_prompt(stdin, answering, run):
    asked = answering("yes")
    stdin("è un gatto?\nsi o no".encode())
    run("generate", SAMPLE, "-")
    assert asked == ["è un gatto?\nsi o no"]


def test_a_real_pipe(tmp_path):
    """cat sample.png | npgemma caption -"""
    with SAMPLE.open("rb") as file:
        done = process("caption", "-", stdin=file, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "a blue star, an orange ring and a green circle\n")
    assert (done.stderr, list(tmp_path.iterdir())) == ("", [])


def test_a_photograph_on_stdin_is_upright_and_not_for_the_embedded_model(stdin, answering, run):
    answering("<loc0000><loc0000><loc0512><loc0512> cat")
    exif, made = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200)).save(made, "PNG", exif=exif)
    stdin(made.getvalue())
    assert run("detect", "-", "cat", note="the embedded model knows") == "cat\t0\t0\t100\t200\n"


@pytest.mark.parametrize(
    ("arguments", "content", "says"),
    [
        (["caption", "-"], b"", "stdin is empty; '-' expects the picture there"),
        (["caption", "-"], b"hello", "the picture on stdin is not a picture: it is text"),
        (["caption", "-"], BYTES[:900], "the picture on stdin cannot be read: "),
        (["generate", SAMPLE, "-"], b"\n", "stdin is empty; '-' expects the prompt there"),
        (["generate", SAMPLE, "-"], b"\xff\xfe", "the prompt on stdin is not UTF-8 text"),
        (["generate", SAMPLE, "-"], b"a" * (2 << 20), "the prompt on stdin has more than 1,048,576 bytes"),
        (["score", SAMPLE, "ocr", "-"], b"\n \n", "stdin is empty; '-' expects the answers, one a line there"),
    ],
    ids=str,
)
def test_what_stdin_lacks_is_one_sentence(arguments, content, says, stdin, refused):
    stdin(content)
    assert says in refused(*arguments)


def test_a_closed_stdin_is_one_sentence(monkeypatch, refused):
    monkeypatch.setattr(sys, "stdin", None)
    assert refused("caption", "-") == "stdin is closed; '-' expects the picture there"


@pytest.mark.parametrize(
    "arguments", [["generate", "-", "-"], ["generate", "-", "-", "ocr"], ["score", "-", "ocr", "-"]], ids=str
)
def test_stdin_is_read_once(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Closed()))
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "npgemma: '-' stands for stdin, which can be read only once; name files for the other arguments\n",
    )


def test_a_dash_that_is_a_file_has_a_path(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    Path("-").write_bytes(BYTES)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Closed()))
    assert run("ocr", "./-") == "FNY\n"


def on_a_terminal(*arguments: object, typed: bytes = b"") -> tuple[int, bytes, bytes]:
    """The exit status, stdout and stderr of a command whose stdin is a terminal, where something is typed."""
    ours, theirs = pytest.importorskip("pty").openpty()
    command = [sys.executable, "-m", "npgemma", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=theirs, stdout=-1, stderr=-1, env=environment) as process:
        os.close(theirs)
        os.write(ours, typed)
        out, err = process.communicate(timeout=60)
    os.close(ours)
    return process.returncode, out, err


def test_a_picture_cannot_be_typed():
    status, out, err = on_a_terminal("caption", "-")
    assert (status, out) == (2, b"")
    assert err == (b"npgemma: '-' reads the picture from stdin, which is a terminal; put '< FILE' behind the command\n")


def test_a_prompt_can_be_typed():
    status, out, err = on_a_terminal("generate", SAMPLE, "-", typed=b"ocr\n\x04")
    assert (status, out) == (0, b"FNY\n")
    assert err == b"npgemma: type the prompt; Ctrl-D on a line of its own ends it\n"


# --------------------------------------------------------------------------------------------------------------- stdout


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_drawing_goes_to_stdout_and_the_lines_to_stderr(form, answering, tmp_path, capfdbinary):
    answering(BOX)
    assert main(["detect", str(SAMPLE), "cat", "--format", form, "--draw", str(tmp_path / "drawn.png")]) == 0
    lines, _ = capfdbinary.readouterr()
    assert main(["detect", str(SAMPLE), "cat", "--format", form, "--draw", "-"]) == 0
    out, err = capfdbinary.readouterr()
    assert err == lines
    assert out == (tmp_path / "drawn.png").read_bytes()
    assert out.startswith(b"\x89PNG")


def test_masks_go_to_stdout(capfdbinary):
    assert main(["segment", str(SAMPLE), "blue star", "--masks", "-"]) == 0
    out, err = capfdbinary.readouterr()
    found = np.load(io.BytesIO(out))
    assert (found["labels"].tolist(), found["masks"].shape) == (["blue star"], (1, 448, 448))
    assert err.startswith(b"blue star\t42\t294\t154\t406\t")


def test_the_picture_of_the_demo_goes_to_stdout(tmp_path):
    done = process("demo", "--draw", "-", text=False, encoding=None, cwd=tmp_path)
    assert done.returncode == 0
    assert Image.open(io.BytesIO(done.stdout)).size == (448, 448)
    assert b"a blue star" in done.stderr
    assert done.stderr.endswith(b"wrote stdout, the sample picture with masks and boxes drawn\n")
    assert list(tmp_path.iterdir()) == []


def test_a_picture_comes_from_stdin_and_goes_to_stdout(tmp_path):
    command = f"{sys.executable} -m npgemma detect - 'blue star' --draw - | {sys.executable} -m npgemma ocr -"
    with SAMPLE.open("rb") as file:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(["sh", "-c", command], stdin=file, capture_output=True, env=environment, timeout=60)
    assert done.stdout == b"FNY\n"
    assert b"blue star\t42\t294\t154\t406\n" in done.stderr


def test_two_outputs_cannot_share_stdout(capsys):
    assert main(["segment", str(SAMPLE), "cat", "--masks", "-", "--draw", "-"]) == 2
    says = "npgemma: --draw and --masks cannot both go to stdout; name a file for one of them\n"
    assert capsys.readouterr() == ("", says)


def test_a_terminal_shows_no_picture(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["detect", str(SAMPLE), "cat", "--draw", "-"]) == 2
    says = "npgemma: --draw - writes to stdout, which is a terminal; put '> FILE' behind the command\n"
    assert capsys.readouterr() == ("", says)


def test_an_error_leaves_stdout_empty(refused):
    assert "give one or more labels" in refused("detect", SAMPLE, "", "--draw", "-")


def test_a_closed_pipe_exits_with_141():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process("detect", SAMPLE, "blue star", "--draw", "-", stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "blue star\t42\t294\t154\t406\n")


# --------------------------------------------------------------------------------------------------- golden and compare


def test_a_golden_file_goes_to_stdout(tmp_path, stdin, capfdbinary):
    """A picture from stdin, too: it is the first of the arguments, and the prompt is the last."""
    command = ["golden", str(SAMPLE), "ocr", "--level", "io", "--steps", "0", "-o"]
    assert main([*command, str(tmp_path / "g.safetensors")]) == 0
    capfdbinary.readouterr()
    for arguments, content in (([SAMPLE, "ocr"], b""), (["-", "ocr"], BYTES), ([SAMPLE, "-"], b"ocr\n")):
        stdin(content)
        command[1:3] = map(str, arguments)
        assert main([*command, "-"]) == 0
        out, err = capfdbinary.readouterr()
        assert out == (tmp_path / "g.safetensors").read_bytes()
        assert err == f"wrote stdout, {len(out):,} bytes\n".encode()


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_a_dump_comes_from_stdin(kind, stdin, tmp_path, run):
    logits = read_golden(EMBEDDED_GOLDEN).truth["logits"].astype(np.float32)
    path = tmp_path / f"dump.{kind}"
    {"safetensors": tiny.save, "npz": lambda tensors, path: np.savez(path, **tensors)}[kind]({"logits": logits}, path)
    stdin(path.read_bytes())
    found = json.loads(run("compare", "embedded", "-", "--format", "json", "--allow-missing", "*"))
    assert [tap["explained"] for tap in found["taps"] if tap["name"] == "logits"] == [True]


def test_a_dump_that_cannot_be_read_is_named_after_stdin(stdin, capsys):
    stdin(b"hello")
    assert main(["compare", "embedded", "-"]) == 2
    assert capsys.readouterr().err.startswith("npgemma: the dump on stdin is not a valid safetensors file")
