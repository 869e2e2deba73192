"""Which files of a folder are the weights: model.safetensors, else the shards of the index, as in transformers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hub import write_model

import npgemma
from npgemma.commands.cli import main
from npgemma.errors import BadModel

INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
IDS = np.array([2, 5, 9])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models that answer differently: one in a single file, one in shards."""
    root = tmp_path_factory.mktemp("models")
    return {"single": write_model(root / "single"), "shards": write_model(root / "shards", seed=1, shards=3)}


def logits(folder: Path) -> np.ndarray:
    return npgemma.load(folder).forward(IDS)


# Which of the files are there, and whose logits come out; None is an error, with a part of its message.
CASES = {
    "single": ("single", "model.safetensors"),
    "single, index": ("single", "model.safetensors"),
    "single, shards": ("single", "model.safetensors"),
    "single, index, shards": ("single", "model.safetensors"),
    "single, index, some": ("single", "model.safetensors"),
    "single, some": ("single", "model.safetensors"),
    "index, shards": ("shards", SHARDS[0]),
    "index, some": (
        None,
        "model-00002-of-00003.safetensors, model-00003-of-00003.safetensors are missing: model.safetensors.index.json",
    ),
    "index": (None, "model-00001-of-00003.safetensors, model-00002-of-00003.safetensors, model-00003"),
    "shards": (None, "shards; their index, model.safetensors.index.json, is missing"),
    "some": (None, "shards; their index, model.safetensors.index.json, is missing"),
    "none": (None, "model.safetensors is missing"),
}


def make_folder(folder: Path, models: dict[str, Path], parts: str) -> Path:
    folder.mkdir()
    wanted = ["config.json", "tokenizer.model"]
    wanted += ["model.safetensors"] * ("single" in parts) + [INDEX] * ("index" in parts)
    wanted += SHARDS if "shards" in parts else SHARDS[:1] if "some" in parts else []
    for name in wanted:
        home = models["shards" if name == INDEX or name in SHARDS else "single"]
        shutil.copyfile(home / name, folder / name)
    return folder


@pytest.mark.parametrize("parts", CASES)
def test_the_single_file_goes_before_the_index(parts: str, models: dict[str, Path], tmp_path: Path) -> None:
    folder, (answers_as, message) = make_folder(tmp_path / "model", models, parts), CASES[parts]
    if answers_as:
        np.testing.assert_array_equal(logits(folder), logits(models[answers_as]), strict=True)
    else:
        with pytest.raises(BadModel, match=message):
            npgemma.load(folder)
    assert np.abs(logits(models["single"]) - logits(models["shards"])).max() > 0.1


@pytest.mark.parametrize("parts", [parts for parts, (answers_as, _) in CASES.items() if answers_as])
def test_inspect_and_verify_name_the_same_files(parts: str, models, tmp_path: Path, capsys) -> None:
    folder, (_, first) = make_folder(tmp_path / "model", models, parts), CASES[parts]
    used = SHARDS if first in SHARDS else [first]
    assert main(["inspect", str(folder), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["weight_files"] == used
    assert main(["inspect", str(folder)]) == 0
    assert f"files      {', '.join(used)}\n" in capsys.readouterr().out
    assert main(["verify", str(folder), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weight_files"] == used
    present = [name for name in ("model.safetensors", *SHARDS) if (folder / name).exists()]
    assert main(["verify", str(folder)]) == 0
    unused = sorted({*present, *([INDEX] if (folder / INDEX).exists() and used != SHARDS else [])} - {*used})
    assert found["not_used"] == unused
    line = f"not used  {', '.join(unused)}\n"
    assert (line in capsys.readouterr().out) == bool(unused)


def test_an_index_without_shards_beside_a_single_file_is_not_opened(models: dict[str, Path], tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", models, "single")
    (folder / INDEX).write_text("not JSON")
    np.testing.assert_array_equal(logits(folder), logits(models["single"]), strict=True)


def test_another_file_of_a_folder_can_be_named(models: dict[str, Path], tmp_path: Path) -> None:
    """A variant, which transformers loads with variant='bf16'."""
    folder = make_folder(tmp_path / "model", models, "index, shards")
    shutil.copyfile(models["single"] / "model.safetensors", folder / "model.bf16.safetensors")
    found = npgemma.load(folder / "model.bf16.safetensors").forward(IDS)
    np.testing.assert_array_equal(found, logits(models["single"]), strict=True)


# What config.json may name as `transformers_weights`; None is an error, with a part of its message.
EXPLICIT = {
    "model.safetensors": "single",
    INDEX: "shards",
    "model.fp16.safetensors.index.json": "shards",
    "model.bf16.safetensors": "shards",
    "inner/model.safetensors": "shards",
    "gone.safetensors": r"/gone\.safetensors is missing",
    "../outside.safetensors": "transformers_weights is '../outside.safetensors', not the name of a .safetensors file",
    "/outside.safetensors": "transformers_weights is '/outside.safetensors', not the name of a .safetensors file",
    "pytorch_model.bin": "transformers_weights is 'pytorch_model.bin', not the name of a .safetensors file",
    7: "transformers_weights is 7, not the name of a .safetensors file or a .safetensors.index.json in its folder",
}


@pytest.mark.parametrize("explicit", EXPLICIT)
def test_the_file_that_the_config_names_goes_first(explicit: object, models, tmp_path: Path, capsys) -> None:
    folder = make_folder(tmp_path / "model", models, "single, index, shards")
    shutil.copyfile(folder / INDEX, folder / "model.fp16.safetensors.index.json")
    (folder / "inner").mkdir()
    whole = write_model(tmp_path / "whole", seed=1)
    for name in ("model.bf16.safetensors", "inner/model.safetensors", "../outside.safetensors"):
        shutil.copyfile(whole / "model.safetensors", folder / name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": explicit}))
    expected = EXPLICIT[explicit]
    if expected not in models:
        with pytest.raises(BadModel, match=expected):
            npgemma.load(folder)
        return
    np.testing.assert_array_equal(logits(folder), logits(models[expected]), strict=True)
    assert main(["inspect", str(folder), "--format", "json"]) == 0
    used = json.loads(capsys.readouterr().out)["weight_files"]
    assert used == (SHARDS if "index" in str(explicit) else [explicit])
