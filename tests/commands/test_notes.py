"""What commands say on stderr beside an answer: it was cut off, it is empty, or the embedded model cannot know it."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

import npgemma
from npgemma.commands.cli import main

SAMPLE = npgemma.sample_picture()
ASSETS = SAMPLE.parent
BOX = "<loc0000><loc0256><loc0512><loc1023> cat"
MASK = "<loc0000><loc0256><loc0512><loc1023>" + "".join(f"<seg{i:03d}>" for i in range(16)) + " cat"
EMBEDDED_NOTE = (
    "npgemma: the embedded model knows drawn shapes and words only; for photographs name another model, such as "
    "-m google/paligemma-3b-mix-224\n"
)
COMMANDS = {
    "caption": (["caption"], []),
    "answer": (["answer"], ["what is it?"]),
    "ocr": (["ocr"], []),
    "generate": (["generate"], ["caption en"]),
    "detect": (["detect"], ["cat"]),
    "segment": (["segment"], ["cat"]),
}


def command(name: str, picture: object, *flags: str) -> list[str]:
    before, after = COMMANDS[name]
    return [*before, str(picture), *after, *flags]


# ----------------------------------------------------------------------------------------------------------- cut off


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_answer_that_was_cut_off_is_one_line_whatever_it_holds(name, form, answering, capsys):
    text = {"detect": BOX, "segment": MASK}.get(name, "a cat on a")
    answering(text, reason="length")
    assert main(command(name, SAMPLE, "--format", form)) == 0
    out, err = capsys.readouterr()
    tokens = len(text)
    assert err == f"npgemma: the answer was cut off after {tokens} tokens; --max-new-tokens {2 * tokens} gives more\n"
    assert "cat" in out


@pytest.mark.parametrize("name", ["detect", "segment"])
def test_nothing_found_in_an_answer_that_was_cut_off_is_one_line(name, answering, capsys):
    answering("ab", reason="length")
    assert main(command(name, SAMPLE)) == 0
    note = "npgemma: nothing found: the answer was cut off after 2 tokens; --max-new-tokens 4 gives more\n"
    assert capsys.readouterr() == ("", note)


@pytest.mark.parametrize("flags", [["--num-beams", "2"], []], ids=str)
def test_the_embedded_model_is_cut_off_where_it_is_told_to_stop(flags, capsys):
    assert main(["caption", str(SAMPLE), "--max-new-tokens", "3", *flags]) == 0
    note = "npgemma: the answer was cut off after 3 tokens; --max-new-tokens 6 gives more\n"
    assert capsys.readouterr() == ("a blue star\n", note)


def test_the_tokens_that_the_note_offers_are_enough_for_more(run):
    assert run("caption", SAMPLE, "--max-new-tokens", 6, note="cut off").startswith("a blue star,")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_whole_answer_has_no_note(name, answering, run):
    answering({"detect": BOX, "segment": MASK}.get(name, "a cat"))
    assert "cat" in run(*command(name, SAMPLE))


def test_samples_that_were_cut_off_are_counted(run):
    flags = ("--samples", "3", "--temperature", "9", "--max-new-tokens", "4", "--seed", "5")
    run("ocr", SAMPLE, *flags, note="of 3 answers were cut off after 4 tokens; --max-new-tokens 8 gives more")


# ------------------------------------------------------------------------------------------------------------- empty


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("paligemma-3b-mix-224", ""),
        ("paligemma-3b-pt-224", "; a -pt- checkpoint is made for fine-tuning and answers few prompts: use a -mix-"),
        ("my-pt", "; a -pt- checkpoint"),
        ("adaptation-pth", ""),
    ],
)
def test_an_empty_answer_of_a_base_checkpoint_has_a_hint(name, hint, form, folder, tmp_path, answering, capsys):
    answering("")
    shutil.copytree(folder, tmp_path / name)
    assert main(["answer", str(SAMPLE), "what is it?", "-m", str(tmp_path / name), "--format", form]) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"npgemma: the answer is empty{hint}")
    assert err.count("\n") == 1
    assert ("-pt- checkpoint" in err) == bool(hint)


# ---------------------------------------------------------------------------------------------------------- embedded


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    Image.new("RGB", (50, 40), "saddlebrown").save(tmp_path / "cow.jpg")
    return tmp_path / "cow.jpg"


@pytest.mark.parametrize("model", [[], ["-m", "tiny"], ["-m", str(ASSETS / "tiny")]], ids=str)
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_photograph_is_not_for_the_embedded_model(form, model, photograph, answering, capsys):
    answering("a blue square")
    assert main(["caption", str(photograph), "--format", form, *model]) == 0
    assert capsys.readouterr().err == EMBEDDED_NOTE


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_answers_says_so_once(name, photograph, answering, capsys):
    answering({"detect": BOX, "segment": MASK}.get(name, "a blue square"))
    assert main(command(name, photograph)) == 0
    assert capsys.readouterr().err == EMBEDDED_NOTE


def test_score_says_so(photograph, capsys):
    assert main(["score", str(photograph), "caption en", "a cow"]) == 0
    assert capsys.readouterr().err == EMBEDDED_NOTE


def test_one_photograph_among_several_pictures_is_enough(photograph, answering, capsys):
    answering("no")
    assert main(["generate", str(SAMPLE), str(photograph), "answer en are they alike?"]) == 0
    assert capsys.readouterr().err == EMBEDDED_NOTE


def test_a_batch_says_so_once(photograph, tmp_path, capsys):
    shutil.copy(photograph, tmp_path / "another.jpg")
    assert main(["batch", str(tmp_path), "ocr", "-o", str(tmp_path / "out.jsonl"), "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().err.count(EMBEDDED_NOTE) == 1


def test_a_batch_of_the_sample_is_quiet(tmp_path, capsys):
    shutil.copy(SAMPLE, tmp_path / "mine.png")
    jobs = ({"id": str(i), "image": image, "prompt": "ocr"} for i, image in enumerate(["mine.png", "gone.png"]))
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    assert main(["batch", str(tmp_path / "jobs.jsonl"), "-o", str(tmp_path / "out.jsonl")]) == 1
    assert "the embedded model" not in capsys.readouterr().err


@pytest.mark.parametrize("picture", sorted(ASSETS.glob("*.png")), ids=lambda path: path.name)
def test_a_copy_of_a_picture_of_the_package_is_quiet(picture, tmp_path, answering, run):
    answering("a blue star")
    shutil.copy(picture, tmp_path / "my picture.png")
    run("caption", tmp_path / "my picture.png")


def test_another_picture_under_the_name_of_the_sample_is_not_quiet(tmp_path, answering, run):
    """Of the same size, too: only its content differs."""
    answering("a blue star")
    changed = bytearray(SAMPLE.read_bytes())
    changed[-1] ^= 1  # in the checksum of the last chunk, which Pillow does not verify
    (tmp_path / "sample.png").write_bytes(changed)
    run("caption", tmp_path / "sample.png", note="the embedded model knows")


def test_another_model_is_quiet(photograph, folder, answering, run):
    answering("a cow")
    assert run("caption", photograph, "-m", folder) == "a cow\n"


def test_a_picture_that_cannot_be_read_is_the_only_thing_said(tmp_path, refused):
    (tmp_path / "cow.jpg").write_bytes(b"not a picture")
    assert "is not a picture" in refused("caption", tmp_path / "cow.jpg")


def test_the_library_is_silent(photograph, capfd):
    npgemma.load().generate(photograph, "ocr", max_new_tokens=2)
    assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("flags", "name"), [([], "embedded"), (["-m", "tiny"], "tiny"), (["-m", f"{ASSETS}/tiny/"], f"{ASSETS}/tiny/")]
)
@pytest.mark.parametrize("arguments", [*COMMANDS, "score"])
def test_json_names_the_model_as_the_user_did(arguments, flags, name, answering, run):
    answering({"detect": BOX, "segment": MASK}.get(arguments, "a cat"))
    line = ["score", str(SAMPLE), "ocr", "FNY"] if arguments == "score" else command(arguments, SAMPLE)
    assert json.loads(run(*line, *flags, "--format", "json"))["model"] == name
