"""convert: what the command prints, and which tokenizer it copies."""

import shutil
from dataclasses import replace

import encoder_configs
import npz_checkpoints
import pytest
import siglip_files

import npgemma
from npgemma import testing
from npgemma.checkpoints import siglip, vit
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


def test_a_vit_says_that_its_labels_have_no_names(tmp_path, capsys) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", testing.layout_tensors(vit.npz_layout(encoder_configs.VIT)))
    folder = tmp_path / "folder"
    assert main(["convert", str(path), str(folder)]) == 0
    said = f"{path} does not name its labels, which are now called LABEL_0, LABEL_1 and so on"
    hint = f"write their names into id2label in {folder / 'config.json'}"
    assert capsys.readouterr().err == f"wrote {folder}\nnpgemma: {said}; {hint}\n"
    assert main(["classify", str(npgemma.sample_picture()), "-m", str(folder), "--top", "1"]) == 0
    assert "\tLABEL_" in capsys.readouterr().out


def test_a_vit_takes_no_tokenizer(tmp_path, refused) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", testing.layout_tensors(vit.npz_layout(encoder_configs.VIT)))
    file = EMBEDDED / "tokenizer.model"
    said = refused("convert", path, tmp_path / "folder", "--tokenizer", file)
    assert said == f"{path} is a ViT, which reads no texts; leave out the tokenizer {file}"


@pytest.mark.parametrize("named", [False, True])
def test_a_siglip_gets_its_spiece_model(named, tmp_path, capsys) -> None:
    config = replace(encoder_configs.SIGLIP, text=replace(encoder_configs.TEXT, vocab_size=100))
    arrays = testing.layout_tensors(siglip.npz_layout(config, stacked=False))
    path = npz_checkpoints.write(tmp_path / "model.npz", arrays)
    pieces, folder = tmp_path / ("named" if named else "spiece.model"), tmp_path / "folder"
    pieces.write_bytes(siglip_files.spiece_model())
    assert main(["convert", str(path), str(folder), *(["--tokenizer", str(pieces)] if named else [])]) == 0
    assert capsys.readouterr().err == f"wrote {folder}\n"
    assert npgemma.DualEncoder.load(folder).encode_texts("a cat").shape == (1, 16)


def test_a_tokenizer_json_keeps_its_name(tmp_path, capsys) -> None:
    arrays = testing.layout_tensors(siglip.npz_layout(encoder_configs.SIGLIP, stacked=False))
    path, file = npz_checkpoints.write(tmp_path / "model.npz", arrays), tmp_path / "of_gemma.json"
    file.write_text('{"model": {}}')
    assert main(["convert", str(path), str(tmp_path / "folder"), "--tokenizer", str(file)]) == 0
    assert capsys.readouterr().err == f"wrote {tmp_path / 'folder'}\n"
    assert (tmp_path / "folder" / "tokenizer.json").read_bytes() == file.read_bytes()


def test_a_siglip_without_a_tokenizer_says_which_file_it_needs(tmp_path, capsys) -> None:
    arrays = testing.layout_tensors(siglip.npz_layout(encoder_configs.SIGLIP, stacked=False))
    path = npz_checkpoints.write(tmp_path / "model.npz", arrays)
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 0
    assert "folder has no spiece.model, since none was beside" in capsys.readouterr().err
