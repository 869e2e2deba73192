"""segment: masks of the objects in an answer. The tests give the answer; the mask decoder has random weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mask_codecs import random_codec, random_tensors
from PIL import Image

import npgemma
from npgemma.commands.cli import main
from npgemma.io.model_folder import EMBEDDED
from npgemma.tasks.drawing import draw_masks
from npgemma.tasks.masks import object_masks
from npgemma.tasks.objects import DetectedObject, parse_objects, write_objects
from npgemma.tasks.prompts import segment_prompt

SAMPLE = npgemma.sample_picture()
OBJECTS = [
    DetectedObject("blue star", (100, 200, 600, 900), tuple(range(16))),
    DetectedObject("red box", (0, 0, 1023, 1023)),
    DetectedObject("blue star", (500, 500, 900, 900), tuple(range(40, 56))),
]


@pytest.fixture
def asked(answering) -> list[str]:
    """A model that answers every prompt with OBJECTS; the prompts that it gets."""
    return answering(write_objects(OBJECTS))


@pytest.fixture
def codec(tmp_path: Path) -> Path:
    np.savez(tmp_path / "vae.npz", **random_tensors())
    return tmp_path / "vae.npz"


def segment(*arguments: object) -> int:
    return main(["segment", str(SAMPLE), "blue star", "red box", *map(str, arguments)])


def test_masks_are_printed_written_and_drawn(
    asked: list[str], codec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment("--codec", codec, "--masks", tmp_path / "masks.npz", "--draw", tmp_path / "drawn.png") == 0
    assert asked == ["segment blue star ; red box"]
    with Image.open(SAMPLE) as sample:
        size = sample.size
        expected = object_masks(random_codec(), OBJECTS, *size)
    with np.load(tmp_path / "masks.npz") as written:
        np.testing.assert_array_equal(written["masks"], expected)
        assert written["labels"].tolist() == ["blue star", "blue star"]
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["blue star", "blue star"]
    assert [int(line[5]) for line in lines] == [mask.sum() for mask in expected]
    assert [int(edge) for edge in lines[0][1:5]] == [
        round(each / 1024 * side) for each, side in zip((200, 100, 900, 600), size * 2, strict=True)
    ]
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.size == size


def test_json_has_the_answer_and_boxes(asked: list[str], codec: Path, capsys) -> None:
    assert segment("--codec", codec, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert parse_objects(found["text"]) == OBJECTS
    assert [box["label"] for box in found["boxes"]] == ["blue star", "blue star"]


def test_an_answer_without_codes_has_no_masks(
    answering, codec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering("nothing here")
    assert segment("--codec", codec, "--masks", tmp_path / "masks.npz") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "npgemma: nothing found\n")
    with np.load(tmp_path / "masks.npz") as written, Image.open(SAMPLE) as sample:
        assert written["masks"].shape == (0, *sample.size[::-1])


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The embedded model without a mask decoder."""
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        shutil.copy(EMBEDDED / name, tmp_path)
    return tmp_path


def test_a_missing_mask_decoder_is_an_error_that_says_what_is_needed(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment("-m", bare) == 1
    assert "vae-oid.npz is missing; masks need" in capsys.readouterr().err


def test_a_mask_decoder_in_the_model_folder_is_found(asked: list[str], bare: Path) -> None:
    np.savez(bare / "vae-oid.npz", **random_tensors())
    assert segment("-m", bare) == 0


@pytest.mark.parametrize("bad", [["--masks", "none/m.npz"], ["--draw", "none/x.png"]])
def test_an_output_that_cannot_be_written_is_an_error(asked: list[str], codec: Path, bad: list[str]) -> None:
    assert segment("--codec", codec, *bad) == 1


@pytest.mark.parametrize("flag", ["--draw", "--masks"])
def test_the_picture_is_never_overwritten(flag: str, asked, codec: Path, tmp_path: Path, capsys) -> None:
    shutil.copy(SAMPLE, tmp_path / "mine.png")
    before = (tmp_path / "mine.png").read_bytes()
    command = ["segment", str(tmp_path / "mine.png"), "star", "--codec", str(codec), flag, str(tmp_path / "mine.png")]
    assert main(command) == 1
    assert "is the picture and an output" in capsys.readouterr().err
    assert (tmp_path / "mine.png").read_bytes() == before
    assert asked == []


def test_two_outputs_cannot_be_one_file(asked, codec: Path, tmp_path: Path, capsys) -> None:
    both = str(tmp_path / "x.png")
    assert segment("--codec", codec, "--draw", both, "--masks", both) == 1
    assert "is both outputs" in capsys.readouterr().err


def test_an_answer_that_was_cut_off_is_reported(answering, codec: Path, capsys) -> None:
    answering("ab", reason="length")
    assert segment("--codec", codec) == 0
    assert "nothing found: the answer was cut off after 2 tokens" in capsys.readouterr().err


def test_a_mask_tints_its_pixels_alone() -> None:
    image = Image.new("RGB", (6, 4), "white")
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:4] = True
    drawn = np.asarray(draw_masks(image, [mask, mask[::-1]], ["a", "a"]))
    assert (drawn != 255).any(-1).sum() == (mask | mask[::-1]).sum()
    assert (np.asarray(image) == 255).all()


def test_a_label_with_a_semicolon_is_refused() -> None:
    assert segment_prompt(["cat", "detect dog"]) == "segment cat ; detect dog"
    with pytest.raises(npgemma.BadPrompt):
        segment_prompt(["a;b"])
