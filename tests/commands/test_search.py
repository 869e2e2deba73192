"""npgemma search: pictures ranked by the cosine of their rows and the query's, and a contact sheet of the best."""

import io
import json
import shutil
import sys
from pathlib import Path

import encoder_folders
import numpy as np
import pytest
from embedding_files import write_pictures
from PIL import Image

import npgemma
from npgemma.checkpoints import siglip
from npgemma.commands.cli import main
from npgemma.io.embeddings import Embeddings, Facts, Key, write_embeddings
from npgemma.tasks.contact_sheet import TILE
from npgemma.testing import layout_tensors, save_tensors

COUNT = 7
PRINTED = 5.1e-5  # half of the last digit that is printed, and float32 rounding
LONG = "a photo of the red blue cat dogs running over the red blue cat dogs running"


class Index:
    """A folder with pictures, a model and a file of embeddings of both kinds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.siglip, self.clip = folder, folder / "siglip", folder / "clip"
        self.siglip.mkdir()
        self.clip.mkdir()
        encoder_folders.write_siglip(self.siglip)
        encoder_folders.write_clip(self.clip)
        self.pictures = write_pictures(folder, COUNT)
        for kind in ("siglip", "clip"):
            assert main(["embed", *self.pictures, "-m", str(folder / kind), "-o", str(self.file(kind))]) == 0

    def file(self, kind: str = "siglip") -> Path:
        return self.folder / f"{kind}.npz"


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    return Index(tmp_path_factory.mktemp("index"))


def ranked(index: Index, kind: str, query: str | Path) -> list[tuple[str, float]]:
    """All pictures by the library's own rows, the best first."""
    model = npgemma.DualEncoder.load(index.folder / kind)
    row = model.encode_images(query) if isinstance(query, Path) else model.encode_texts(query)
    scores = (model.encode_images(index.pictures) @ row[0]).tolist()
    return sorted(zip(index.pictures, scores, strict=True), key=lambda hit: -hit[1])


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@pytest.mark.parametrize("query", ["a red cat", 3], ids=str)
def test_pictures_are_ranked_by_their_cosines(kind, query, index, run):
    query = Path(index.pictures[query]) if isinstance(query, int) else query
    expected = ranked(index, kind, query)
    lines = run("search", index.file(kind), query, "--top", COUNT).splitlines()
    found = [(name, float(score)) for score, name in (line.split("\t") for line in lines)]
    assert [name for name, _ in found] == [name for name, _ in expected]
    np.testing.assert_allclose([x for _, x in found], [x for _, x in expected], rtol=0, atol=PRINTED, strict=True)
    if isinstance(query, Path):
        assert lines[0] == f"1.0000\t{query}"


def test_json_has_the_model_the_query_and_the_hits(index, run):
    result = json.loads(run("search", index.file(), "a red cat", "--top", 2, "--format", "json"))
    expected = ranked(index, "siglip", "a red cat")[:2]
    assert (result["model"], result["query"]) == (str(index.siglip), "a red cat")
    assert [hit["image"] for hit in result["hits"]] == [name for name, _ in expected]
    assert [hit["score"] for hit in result["hits"]] == pytest.approx([score for _, score in expected], abs=PRINTED)


@pytest.mark.parametrize(("flags", "count"), [([], 5), (["--top", 3], 3), (["--top", 1000], COUNT)], ids=str)
def test_top_is_how_many_are_printed(flags, count, index, run):
    assert run("search", index.file(), "a red cat", *flags).count("\n") == count


def test_a_picture_on_stdin_is_a_query_and_a_contact_sheet_goes_to_stdout(index, monkeypatch, capsysbinary):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(index.pictures[2]).read_bytes())))
    assert main(["search", str(index.file()), "-", "--top", "2", "--contact-sheet", "-"]) == 0
    out, err = capsysbinary.readouterr()
    assert err.decode().splitlines()[0] == f"1.0000\t{index.pictures[2]}"
    assert Image.open(io.BytesIO(out)).size == (2 * TILE[0], TILE[1])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(index.pictures[2]).read_bytes())))
    assert main(["search", str(index.file()), "-", "--format", "json"]) == 0
    assert json.loads(capsysbinary.readouterr().out)["query"] == "-"


# ------------------------------------------------------------------------------------------------------- contact sheet


def test_a_contact_sheet_shows_the_hits(index, tmp_path, run):
    """The grey of a picture that is gone is on its tile alone."""
    sheet = tmp_path / "hits.png"
    hits = [name for name, _ in ranked(index, "siglip", "a red cat")[:3]]
    run("search", index.file(), "a red cat", "--top", 3, "--contact-sheet", sheet)
    drawn = np.asarray(Image.open(sheet))
    assert drawn.shape == (2 * TILE[1], 2 * TILE[0], 3)
    assert (drawn[TILE[1] :, TILE[0] :] == 255).all()
    gone = Path(hits[1])
    moved = shutil.move(gone, tmp_path)
    try:
        note = f"{sheet} lacks 1 of 3 pictures: {gone} was not found; run search in the folder where embed ran, or"
        run("search", index.file(), "a red cat", "--top", 3, "--contact-sheet", sheet, note=note)
    finally:
        shutil.move(moved, gone)
    changed = (np.asarray(Image.open(sheet)) != drawn).any(-1)
    assert changed[: TILE[1], TILE[0] :].any()
    assert not changed[:, : TILE[0]].any()
    assert not changed[TILE[1] :].any()


def test_a_contact_sheet_finds_pictures_beside_the_embeddings(index, tmp_path, run, monkeypatch):
    monkeypatch.chdir(index.folder)
    names = [Path(name).name for name in index.pictures[:2]]
    assert main(["embed", *names, "-m", str(index.siglip), "-o", "beside.npz"]) == 0
    monkeypatch.chdir(tmp_path)
    command = ("search", index.folder / "beside.npz", "a red cat", "--contact-sheet", "hits.png")
    run(*command, note="2 of 2 done")


# ------------------------------------------------------------------------------------------------------ what is refused


def test_the_model_of_the_file_is_taken_wherever_it_is_now(index, tmp_path, refused, capfd):
    for name in ("model", "other"):
        shutil.copytree(index.siglip, tmp_path / name)
    out = tmp_path / "out.npz"
    assert main(["embed", index.pictures[0], "-m", str(tmp_path / "model"), "-o", str(out)]) == 0
    shutil.rmtree(tmp_path / "model")
    assert main(["search", str(out), "a cat", "-m", str(tmp_path / "other")]) == 0
    capfd.readouterr()
    message = refused("search", out, "a cat")
    assert message.startswith(f"{tmp_path / 'model'} was not found")
    assert message.endswith(f" (the model of {out}; if it is elsewhere, name it with -m)")


def test_a_model_with_other_weights_or_of_another_kind_is_refused(index, tmp_path, refused):
    shutil.copytree(index.siglip, tmp_path / "other")
    tensors = layout_tensors(siglip.hf_layout(encoder_folders.SIGLIP), seed=1)
    save_tensors(tensors, tmp_path / "other" / "model.safetensors")
    for model, name in ((index.clip, "clip, 11 wide"), (tmp_path / "other", "siglip, 16 wide")):
        message = refused("search", index.file(), "a cat", "-m", model)
        made = f"{index.file()} was made with the model {index.siglip} (siglip, 16 wide)"
        assert message == f"{made}, which differs from {model} ({name}); use the same model, or another file"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "the query '' has nothing that the model reads; write it in words"),
        ("gone.JPG", "gone.JPG was not found"),
        ("captions.txt", "is not a picture: it is text"),
    ],
)
def test_a_bad_query_is_refused(query, message, index, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.txt").write_text("a cat\n")
    assert refused("search", index.file(), query).endswith(message)


def test_a_query_that_is_too_long_is_cut_off_and_said_or_refused(index, run):
    assert "\t" in run("search", index.file(), LONG, note="is cut off: it has 17 tokens, and the model reads 12")
    assert main(["search", str(index.file()), LONG, "--strict"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "was not found; npgemma embed makes such files"),
        ("folder", "cannot be read: Is a directory"),
        ("partial", "is not finished; run the npgemma embed command again, which continues"),
        (
            b"notes",
            "is not a file of embeddings; name a file that npgemma embed has written, or a new one for it to write",
        ),
        (
            b"PK\x03\x04",
            "is cut short or damaged (File is not a zip file); remove it, and make it again with npgemma embed",
        ),
    ],
    ids=str,
)
def test_a_bad_file_is_refused(content, message, tmp_path, refused):
    path = tmp_path / "made.npz"
    if content == "folder":
        path.mkdir()
    elif content == "partial":
        path.with_name("made.npz.partial").touch()
    elif content is not None:
        path.write_bytes(content)
    assert refused("search", path, "a cat") == f"{path} {message}"


def test_a_file_without_pictures_is_refused(tmp_path, refused):
    path, text = tmp_path / "out.npz", Key("text", "a cat")
    write_embeddings(path, Embeddings(Facts("org/name", "siglip", "ab", 2), {text: np.array([0, 1], np.float32)}))
    assert refused("search", path, "a cat") == f"{path} has no pictures; add some with npgemma embed"


def test_a_contact_sheet_is_refused_before_anything_is_read(tmp_path, refused):
    message = refused("search", "gone.npz", "a cat", "--contact-sheet", tmp_path / "hits.txt")
    assert message == f"{tmp_path}/hits.txt cannot be written: its name must end in .png, .jpg, .webp or .bmp"


def test_a_contact_sheet_has_room_for_so_many(index, capsys):
    assert main(["search", str(index.file()), "a cat", "--top", "401", "--contact-sheet", "hits.png"]) == 2
    assert capsys.readouterr().err == ("npgemma: --contact-sheet shows at most 400 pictures; use a smaller --top\n")
