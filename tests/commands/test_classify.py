"""classify: labels ranked by their probabilities, and what is refused in one sentence."""

import io
import json
import sys
from pathlib import Path

import pytest
from encoder_folders import write_clip, write_siglip, write_vit
from PIL import Image

import npgemma
from npgemma.commands.cli import main

PICTURE = str(npgemma.sample_picture())
LABELS = ["the cat", "a red dog", "blue"]
LONG = "a cat in a hat on a red chair"  # more tokens than the 12 that the models read
WRITERS = {"siglip": write_siglip, "clip": write_clip, "vit": write_vit}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: write(tmp_path_factory.mktemp(kind)) for kind, write in WRITERS.items()}


@pytest.fixture(params=["siglip", "clip"])
def folder(request, folders) -> Path:
    return folders[request.param]


def ranked(folder):
    """Labels with their probabilities, the likeliest first, from the model itself."""
    (row,) = npgemma.load(folder).classify(PICTURE, LABELS).tolist()
    return sorted(zip(LABELS, row, strict=True), key=lambda pair: -pair[1])


def test_a_line_has_a_probability_and_a_label_the_likeliest_first(folder, run):
    lines = run("classify", PICTURE, *LABELS, "-m", folder).splitlines()
    assert lines == [f"{probability:#.4g}\t{label}" for label, probability in ranked(folder)]


def test_json_has_all_digits(folder, run):
    found = json.loads(run("classify", PICTURE, *LABELS, "-m", folder, "--format", "json", "--top", 2))
    labels = [{"name": label, "probability": probability} for label, probability in ranked(folder)[:2]]
    assert found == {"model": str(folder), "image": PICTURE, "labels": labels}


def test_a_vit_has_labels_of_its_own(folders, run):
    (labels,) = npgemma.load(folders["vit"]).classify(PICTURE, top=2)
    out = run("classify", PICTURE, "-m", folders["vit"], "--top", "2")
    assert out.splitlines() == [f"{each.probability:#.4g}\t{each.name}" for each in labels]
    assert len(run("classify", PICTURE, "-m", folders["vit"]).splitlines()) == 5


def test_one_label_is_enough_for_a_siglip(folders, run):
    probability, label = run("classify", PICTURE, "the cat", "-m", folders["siglip"]).split("\t")
    assert 0 < float(probability) < 1
    assert label == "the cat\n"


def test_a_label_on_several_lines_is_printed_on_one(folders, run):
    assert "the red cat" in run("classify", PICTURE, "the\nred\tcat", "-m", folders["siglip"])


def test_a_label_that_is_cut_off_is_told(folder, run):
    note = f"npgemma: the label '{LONG}' is cut off: it has "
    assert LONG in run("classify", PICTURE, "blue", LONG, "-m", folder, note=note)
    run("classify", PICTURE, LONG, f"blue {LONG}", "-m", folder, note=", and the model reads 12, and so is 1 other")


def test_strict_refuses_a_label_that_is_cut_off(folder, refused):
    assert refused("classify", PICTURE, "blue", LONG, "-m", folder, "--strict").startswith(f"the text '{LONG}' has ")


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("siglip", ["the cat", "?!"], "the label '?!' has nothing that the model reads; write it in words"),
        ("clip", ["the cat", " "], "the label ' ' has nothing that the model reads; write it in words"),
        ("siglip", ["a", "b", "a"], "the labels 'a' and 'a' are the same to the model; leave one of them out"),
        ("siglip", ["a", "A!"], "the labels 'a' and 'A!' are the same to the model; leave one of them out"),
        ("clip", ["a", "A"], "the labels 'a' and 'A' are the same to the model; leave one of them out"),
        (
            "clip",
            [LONG, f"{LONG}!"],
            f"the labels {LONG!r} and '{LONG}!' are the same to the model, which reads 12 tokens; use fewer words",
        ),
        ("clip", ["a"], "a CLIP compares labels, and of a single one the probability is always 1; give two or more"),
        ("clip", ["a", "b\ud800"], "the prompt is not valid text: surrogates not allowed at character 1"),
    ],
)
def test_labels_that_mean_nothing_are_refused(kind, labels, message, folders, refused):
    assert refused("classify", PICTURE, *labels, "-m", folders[kind]) == message


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("clip", [], "classify needs labels to choose from after the picture, such as 'a cat' 'a dog'"),
        ("vit", ["--strict"], "has its own; leave it out"),
        ("vit", ["a cat"], "has 5 labels of its own; leave yours out, or load a SigLIP or a CLIP"),
    ],
)
def test_labels_that_lack_or_are_too_many_are_wrong_usage(kind, labels, message, folders, capsys):
    assert main(["classify", PICTURE, *labels, "-m", str(folders[kind])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("npgemma: ")
    assert err.endswith(f"{message}\n")


def test_a_vit_takes_no_tokenizer(folders, refused):
    file = folders["siglip"] / "spiece.model"
    said = refused("classify", PICTURE, "-m", folders["vit"], "--tokenizer", file)
    assert said == f"tokenizer {file}: a ViT reads no texts; load it without one"


@pytest.mark.parametrize(("kind", "labels", "count"), [("clip", LABELS, 3), ("vit", [], 5)])
def test_more_labels_than_there_are_is_all_of_them(kind, labels, count, folders, run):
    assert len(run("classify", PICTURE, *labels, "-m", folders[kind], "--top", "99").splitlines()) == count


def test_json_names_stdin_as_it_was_given(folder, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(PICTURE).read_bytes())))
    found = json.loads(run("classify", "-", *LABELS, "-m", folder, "--format", "json"))
    assert found["image"] == "-"
    assert [each["name"] for each in found["labels"]] == [label for label, _ in ranked(folder)]


@pytest.mark.parametrize("model", ["tiny", "tiny-gemma"])
def test_a_model_that_writes_is_refused(model, refused):
    assert refused("classify", PICTURE, "a", "-m", model).endswith(
        f"{model} writes text and does not rank labels; load a SigLIP, a CLIP or a ViT"
    )


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("command", [["caption", PICTURE], ["detect", PICTURE, "cat"], ["generate", "a"], ["chat"]])
def test_commands_that_write_refuse_an_encoder(command, kind, folders, refused):
    said = refused(*command, "-m", folders[kind])
    assert said.endswith("ranks labels (npgemma classify) and writes no text; load a PaliGemma or a Gemma")


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("kind", WRITERS)
def test_inspect_and_verify_know_encoders(command, kind, folders, run):
    assert run(command, folders[kind])


def test_inspect_describes_the_towers(folders, run):
    lines = run("inspect", folders["clip"]).splitlines()
    assert "picture    14 x 14 pixels, 9 patches" in lines
    assert "vision     1 layers, width 16, 2 heads of 8" in lines
    assert "text       2 layers, width 20, 4 heads of 5, 12 tokens" in lines
    assert "embedding  11 numbers for a picture or a text" in lines
    assert "tokenizer  521 pieces, embedding of 521 rows" in lines
    assert "labels     5: cat, dog, bus and 2 more" in run("inspect", folders["vit"]).splitlines()


# ----------------------------------------------------------------------------------------------------- embedded model


def test_the_embedded_model_answers_about_drawn_shapes(run):
    lines = run("classify", PICTURE, "a red square", "a green circle", "--top", 1).splitlines()
    assert [line.split("\t")[1] for line in lines] == ["a green circle"]


def test_the_embedded_model_says_that_it_knows_no_photographs(tmp_path, run):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photograph.png")
    run("classify", tmp_path / "photograph.png", "a cat", "-m", "tiny-siglip", note="npgemma: the embedded model knows")


def test_json_of_the_embedded_model_names_it(run):
    assert json.loads(run("classify", PICTURE, "a star", "--format", "json"))["model"] == "tiny-siglip"
