"""Which files of a folder are its weights, as transformers' from_pretrained takes them from the same folder."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

import npgemma
from npgemma.errors import BadModel

torch = pytest.importorskip("torch", reason="the live tests compare with transformers")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
NAMES = {
    "single": [SINGLE],
    "index": [INDEX],
    "shards": SHARDS,
    "some": SHARDS[1:],
    "variant": ["model.fp16.safetensors"],
}
PARTS = [
    set(parts) for n in range(6) for parts in itertools.combinations(NAMES, n) if not {"shards", "some"} <= {*parts}
]
# What config.json may name as `transformers_weights` beside all of these files, and the weights that it means.
EXPLICIT = {
    None: "single",
    SINGLE: "single",
    INDEX: "shards",
    "model.fp16.safetensors.index.json": "shards",
    "model.fp16.safetensors": "variant",
    "inner/model.safetensors": "variant",
    "gone.safetensors": None,
    "gone.safetensors.index.json": None,
    "config.json": None,
    "model.safetensors.index.fp16.json": None,
    "../outside.safetensors": None,
    7: None,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the kind of file, three models that answer differently."""
    root = tmp_path_factory.mktemp("models")
    variant = tiny.write_folder(root / "variant", seed=2)
    shutil.copyfile(variant / SINGLE, variant / "model.fp16.safetensors")
    single, shards = tiny.write_folder(root / "single"), tiny.write_folder(root / "shards", seed=1, shards=3)
    return {"single": single, "index": shards, "shards": shards, "some": shards, "variant": variant}


def ours(folder: Path) -> np.ndarray | None:
    """The last norm of the decoder, which tells the models apart; None if the folder is refused."""
    try:
        return npgemma.load(folder).weights.text.norm.weight
    except BadModel:
        return None


def theirs(folder: Path) -> np.ndarray | None:
    """The same from transformers; None if it raises an error."""
    try:
        model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    except Exception:  # OSError without weights, FileNotFoundError or SafetensorError for a missing shard, others
        return None
    return model.model.language_model.norm.weight.detach().numpy()


def same(folder: Path) -> np.ndarray | None:
    """What both read from a folder, which must be the same weights or an error."""
    mine, other = ours(folder), theirs(folder)
    assert (mine is None) == (other is None)
    if mine is not None:
        np.testing.assert_array_equal(mine, other)
    return mine


def write(folder: Path, models: dict[str, Path], parts: set[str]) -> Path:
    folder.mkdir()
    shutil.copyfile(models["single"] / "config.json", folder / "config.json")
    for part in parts:
        for name in NAMES[part]:
            shutil.copyfile(models[part] / name, folder / name)
    index = folder / INDEX
    if index.exists():  # transformers reads the total size
        content = json.loads(index.read_text()) | {"metadata": {"total_size": 1}}
        index.write_text(json.dumps(content))
    return folder


def test_folders_of_several_files_mean_the_weights_that_transformers_takes(models, tmp_path: Path) -> None:
    read = {
        "+".join(sorted(parts)): same(write(tmp_path / str(i), models, parts)) is not None
        for i, parts in enumerate(PARTS)
    }
    assert len(read) == 24
    assert sorted(name for name, found in read.items() if found) == sorted(
        name for name in read if "single" in name or {"index", "shards"} <= {*name.split("+")}
    )


@pytest.mark.parametrize("explicit", EXPLICIT)
def test_the_file_that_the_config_names_goes_first(explicit: object, models, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", models, {"single", "index", "shards", "variant"})
    for name in ("model.fp16.safetensors.index.json", "model.safetensors.index.fp16.json"):
        shutil.copyfile(folder / INDEX, folder / name)
    (folder / "inner").mkdir()
    for path in (folder / "inner" / SINGLE, tmp_path / "outside.safetensors"):
        shutil.copyfile(models["variant"] / SINGLE, path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": explicit}))
    found, expected = same(folder), EXPLICIT[explicit]
    if expected is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, ours(models[expected]))
