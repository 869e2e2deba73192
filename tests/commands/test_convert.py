"""convert: what the command prints, and which tokenizer it copies."""

import shutil

import npz_checkpoints

from npgemma.commands.cli import main
from npgemma.io.model_folder import EMBEDDED


def test_it_converts_and_says_that_the_tokenizer_is_missing(tmp_path, capsys) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays())
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    folder = tmp_path / "folder"
    said = f"npgemma: {folder} has no tokenizer.model, since none was beside {path}; copy"
    assert err.startswith(f"wrote {folder}\n{said}")
    assert main(["inspect", str(tmp_path / "folder")]) == 0


def test_a_tokenizer_beside_the_file_is_copied(tmp_path, capsys) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays())
    shutil.copy(EMBEDDED / "tokenizer.model", tmp_path)
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 0
    assert capsys.readouterr().err == f"wrote {tmp_path / 'folder'}\n"
    assert (tmp_path / "folder" / "tokenizer.model").read_bytes() == (EMBEDDED / "tokenizer.model").read_bytes()


def test_a_tokenizer_that_is_missing_is_refused(tmp_path, refused) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays())
    assert "nowhere.model is missing" in refused(
        "convert", path, tmp_path / "folder", "--tokenizer", tmp_path / "nowhere.model"
    )
    assert not (tmp_path / "folder").exists()
