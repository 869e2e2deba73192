"""npgemma embed: the rows of encode_images and encode_texts in a file, whatever interrupts their making."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import encoder_folders
import numpy as np
import pytest
from embedding_files import read_arrays, write_pictures
from processes import ROOT

import npgemma
from npgemma.api.guard import DualEncoderGuard
from npgemma.commands.cli import main
from npgemma.io.embeddings import read_embeddings

COUNT = 11
# Each entry of a row of length 1 carries an error of a few thousand float32 roundings at most: the towers have a few
# layers of sums of at most 100 terms. Batches differ in the order of these sums.
ROUNDING = 2000 * np.finfo(np.float32).eps
LONG = "a photo of the red blue cat dogs running over the red blue cat dogs running"


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> Path:
    return encoder_folders.write_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return encoder_folders.write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), COUNT)


@pytest.fixture
def embed(capsys) -> Callable[..., tuple[int, list[str]]]:
    """embed(*arguments): exit status and the lines on stderr of a command, which never writes to stdout."""

    def embed(*arguments: object, **options: object) -> tuple[int, list[str]]:
        status = main(["embed", *map(str, arguments)], **options)
        out, err = capsys.readouterr()
        assert out == ""
        return status, [line.removeprefix("npgemma: ") for line in err.splitlines()]

    return embed


@dataclass(frozen=True)
class Observer(DualEncoderGuard):
    """Notes how many pictures each run has; before run number `interrupted_at`, Ctrl-C is pressed."""

    pictures: list[int] = field(default_factory=list)
    interrupted_at: int | None = None

    def check_memory(self, lengths, pictures, *rest, **options):
        super().check_memory(lengths, pictures, *rest, **options)
        if len(self.pictures) == self.interrupted_at:
            raise KeyboardInterrupt
        self.pictures.append(pictures)


def observed(folder: Path, **options: object) -> npgemma.DualEncoder:
    model = npgemma.DualEncoder.load(folder)
    model.guard = Observer(**vars(model.guard), **options)
    return model


def assert_rows(found: dict[str, np.ndarray], names: list[str], expected: np.ndarray) -> None:
    assert list(found) == names
    rows = np.stack(list(found.values()))
    np.testing.assert_allclose(rows, expected, rtol=0, atol=ROUNDING, strict=True)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=0, atol=ROUNDING)


# ---------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_rows_are_those_of_the_library_in_the_order_of_the_command(kind, pictures, tmp_path, embed, request):
    folder = request.getfixturevalue(kind)
    captions, out = tmp_path / "captions.txt", tmp_path / "out.npz"
    captions.write_text("\ufeff" + "\r\n\n".join(["a red cat", "blue dogs", "a red cat"]), encoding="utf-8")
    names = [*pictures[5:], *pictures[:2]]
    status, err = embed(*names, pictures[7], "--text", captions, "-m", folder, "-o", out, "--batch-size", 4)
    assert status == 0
    assert [line.split(" in ")[0] for line in err] == ["10 of 10 done, 10 now"]
    images, texts = read_arrays(out)
    model = npgemma.DualEncoder.load(folder)
    assert_rows(images, names, model.encode_images(names))
    assert_rows(texts, ["a red cat", "blue dogs"], model.encode_texts(["a red cat", "blue dogs"]))
    facts = read_embeddings(out).facts
    assert (facts.model, facts.model_type, facts.width) == (str(folder), kind, model.config.embedding_size)
    assert os.listdir(tmp_path) == [path.name for path in tmp_path.iterdir() if path in (captions, out)]


def test_a_folder_stands_for_its_pictures_and_other_files_are_counted(siglip, pictures, tmp_path, embed):
    folder = tmp_path / "few"
    folder.mkdir()
    names = [shutil.copy(picture, folder) for picture in pictures[:3]]
    (folder / "notes.txt").write_text("a note")
    for done in (0, 3):  # the second time, the output is in the folder
        status, (line,) = embed(folder, "-m", siglip, "-o", folder / "out.npz")
        assert status == 0
        assert line.startswith(f"3 of 3 done, {3 - done} now in ")
        assert line.endswith(f"; {folder}: 1 file passed over: 1 text file")
        assert list(read_arrays(folder / "out.npz")[0]) == names


def test_float64_rows_are_stored_as_float32(siglip, pictures, tmp_path, embed):
    assert embed(*pictures[:2], "-m", siglip, "-o", tmp_path / "out.npz", "--dtype", "float64")[0] == 0
    model = npgemma.DualEncoder.load(siglip, dtype="float64")
    expected = model.encode_images(pictures[:2]).astype(np.float32)
    assert_rows(read_arrays(tmp_path / "out.npz")[0], pictures[:2], expected)
    # the hash is the model's, not the dtype's: float32 continues the file
    assert embed(*pictures[:3], "-m", siglip, "-o", tmp_path / "out.npz")[0] == 0


@pytest.mark.parametrize(("flags", "most"), [(["--batch-size", 4], [4, 4, 3]), ([], [11])], ids=str)
def test_no_more_pictures_are_in_memory_than_a_batch_has(flags, most, siglip, pictures, tmp_path, embed):
    model = observed(siglip)
    status, _ = embed(*pictures, "-m", siglip, "-o", tmp_path / "out.npz", *flags, load=lambda *_: model)
    assert (status, model.guard.pictures) == (0, most)


def test_rows_of_a_file_are_kept_and_others_added(siglip, pictures, tmp_path, embed):
    out = tmp_path / "out.npz"
    embed(*pictures[:4], "-m", siglip, "-o", out)
    before, _ = read_arrays(out)
    status, (line,) = embed(*pictures[2:6], "-m", siglip, "-o", out)
    assert status == 0
    assert line.startswith("4 of 4 done, 2 now in ")
    after, _ = read_arrays(out)
    assert list(after) == pictures[:6]
    for name, row in before.items():
        np.testing.assert_array_equal(after[name], row, strict=True)


# ------------------------------------------------------------------------------------------------------ what is refused


def test_a_picture_that_cannot_be_read_is_named_left_out_and_retried(siglip, pictures, tmp_path, embed):
    late, text, out = tmp_path / "late.png", tmp_path / "text.png", tmp_path / "out.npz"
    text.write_text("not a picture")
    names = [str(late), pictures[0], str(text), pictures[1]]
    command = (*names, "-m", siglip, "-o", out, "--batch-size", 1)
    status, err = embed(*command)
    assert status == 1
    assert err[:2] == [f"{late} was not found", f"{text} is not a picture: it is text"]
    assert err[2].endswith("; 2 of them errors, left out; the same command retries them")
    assert list(read_arrays(out)[0]) == pictures[:2]
    shutil.copy(pictures[2], late)
    status, err = embed(*command)
    assert (status, len(err)) == (1, 2)
    assert_rows(
        read_arrays(out)[0],
        [*pictures[:2], str(late)],
        npgemma.DualEncoder.load(siglip).encode_images([*pictures[:2], late]),
    )


def test_without_a_readable_picture_no_file_is_written(siglip, tmp_path, embed):
    assert embed("gone.png", "-m", siglip, "-o", tmp_path / "out.npz")[0] == 1
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_too_long_is_cut_off_and_said_or_refused(siglip, tmp_path, embed):
    captions, out = tmp_path / "captions.txt", tmp_path / "out.npz"
    captions.write_text(f"a cat\n{LONG}\n")
    command = ("--text", captions, "-m", siglip, "-o", out)
    status, (line,) = embed(*command, "--strict")
    assert status == 1
    assert line.startswith(f"the text {LONG[:40]!r} has 17 tokens, and the model reads 12, the end token included;")
    assert os.listdir(tmp_path) == [captions.name]
    status, err = embed(*command)
    assert status == 0
    assert err[0] == f"the text {LONG[:40]!r} is cut off: it has 17 tokens, and the model reads 12"
    assert embed(*command, "--strict")[1] == [line]
    assert_rows(read_arrays(out)[1], ["a cat", LONG], npgemma.DualEncoder.load(siglip).encode_texts(["a cat", LONG]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "captions.txt has no texts; give a text a line"),
        (b" \n\n", "captions.txt has no texts; give a text a line"),
        (b"caf\xe9\n", "captions.txt is not UTF-8 text (byte 3); convert it to UTF-8"),
        (b"a\n" + 10_001 * b"a", "captions.txt: line 2 is longer than 10,000 characters; give a text a line"),
        (b"a\0", "captions.txt: line 1 has a NUL character; give a text a line"),
        (None, "captions.txt cannot be read: No such file or directory"),
    ],
)
def test_a_bad_file_of_texts_is_refused(content, message, siglip, tmp_path, refused):
    if content is not None:
        (tmp_path / "captions.txt").write_bytes(content)
    command = ("embed", "--text", tmp_path / "captions.txt", "-m", siglip, "-o", tmp_path / "out.npz")
    assert refused(*command) == f"{tmp_path}/{message}"


@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_a_file_of_another_model_or_of_something_else_is_left_as_it_is(suffix, siglip, clip, pictures, tmp_path, embed):
    out = tmp_path / "out.npz"
    kept = out.with_name(f"{out.name}{suffix}")
    model = observed(siglip, interrupted_at=2 if suffix else None)
    status, _ = embed(*pictures[:3], "-m", siglip, "-o", out, "--batch-size", 1, load=lambda *_: model)
    assert status == (130 if suffix else 0)
    for content in (kept.read_bytes(), b"my notes"):
        kept.write_bytes(content)
        status, (line,) = embed(*pictures, "-m", clip, "-o", out)
        assert status == 1
        assert line.startswith(f"{kept}")
        assert "was made with the model" in line or "is not" in line
        assert kept.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "embed needs pictures, or --text with a file of texts"),
        (("-",), "embed reads from files and writes to a file"),
        (("--text", "-"), "embed reads from files and writes to a file"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path, embed):
    status, (line,) = embed(*arguments, "-o", tmp_path / "out.npz")
    assert status == 2
    assert line.startswith(message)


def test_a_model_of_another_kind_is_refused(folder, pictures, tmp_path, refused):
    message = refused("embed", *pictures, "-m", folder, "-o", tmp_path / "out.npz")
    assert message == f"{folder} does not compare pictures with texts; load a SigLIP or a CLIP"


# ------------------------------------------------------------------------------------------------------- interruptions


def test_control_c_keeps_the_batches_that_are_done(siglip, pictures, tmp_path, embed):
    whole, out = tmp_path / "whole.npz", tmp_path / "out.npz"
    command = (*pictures, "-m", siglip, "--batch-size", 3)
    embed(*command, "-o", whole)
    status, (line,) = embed(*command, "-o", out, load=lambda *_: observed(siglip, interrupted_at=2))
    assert status == 130
    assert line.startswith(f"6 of {COUNT} done, 6 now in ")
    assert line.endswith("; interrupted; the same command continues from here")
    assert not out.exists()
    status, (line,) = embed(*command, "-o", out)
    assert status == 0
    assert line.startswith(f"{COUNT} of {COUNT} done, {COUNT - 6} now in ")
    assert out.read_bytes() == whole.read_bytes()  # the batches are the same, and so is every bit


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_a_command_that_is_killed_continues_where_it_was(siglip, tmp_path, embed):
    names = write_pictures(tmp_path, 60)
    out, partial = tmp_path / "out.npz", tmp_path / "out.npz.partial"
    command = [*names, "-m", str(siglip), "-o", str(out), "--batch-size", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-m", "npgemma", "embed", *command], env=environment) as process:
        until = time.monotonic() + 60
        while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") > 5):
            assert time.monotonic() < until
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    kept = partial.read_bytes().count(b"\n") - 1
    status, (line,) = embed(*command[:-2], "-o", out)
    assert status == 0
    assert line.startswith(f"60 of 60 done, {60 - kept} now in ")
    assert not partial.exists()
    assert_rows(read_arrays(out)[0], names, npgemma.DualEncoder.load(siglip).encode_images(names))
