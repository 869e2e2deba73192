"""What people give as a model: URLs, single files, parts of a cache, and names that are almost right."""

from pathlib import Path

import hub
import pytest
from hub import COMMIT, OTHER, download, repository

import npgemma
from npgemma.errors import BadModel
from npgemma.io.model_folder import find_adapter, find_model

MIX = "google/paligemma-3b-mix-224"
JAX = "google/paligemma-3b-pt-224-jax"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return hub.empty_cache(tmp_path / "cache", monkeypatch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.write_model(tmp_path_factory.mktemp("models") / "model")


# ---------------------------------------------------------------------------------------------------------------- URLs

URLS = {
    f"https://huggingface.co/{MIX}": MIX,
    f"https://huggingface.co/{MIX}/": MIX,
    f"https://huggingface.co/{MIX}.git": MIX,
    f"https://huggingface.co/{MIX}?library=transformers": MIX,
    f"https://huggingface.co/{MIX}#usage": MIX,
    f"https://huggingface.co/{MIX}/tree/main": MIX,
    f"https://hf.co/{MIX}/tree/bfloat16?x=1": f"{MIX}@bfloat16",
    f"https://hf.co/{MIX}/tree/refs%2Fpr%2F3": f"{MIX}@refs/pr/3",
    f"https://hf.co/{MIX}/tree/refs/pr/3": f"{MIX}@refs/pr/3",
    f"https://hf.co/{MIX}/commit/{COMMIT}": f"{MIX}@{COMMIT}",
    f"https://hf-mirror.com/{MIX}": MIX,
    f"https://huggingface.co/models/{MIX}": MIX,
    f"hf://{MIX}": MIX,
    f"hf://{MIX}@float16": f"{MIX}@float16",
    f"git@hf.co:{MIX}": MIX,
    "huggingface.co/org/name/blob/main/config.json": "org/name",
    "http://www.huggingface.co/org/name/resolve/v2/model.safetensors": "org/name@v2",
    "https://huggingface.co/org/name/resolve/main/model.safetensors?download=true": "org/name",
}


@pytest.mark.parametrize(("url", "name"), URLS.items())
def test_the_address_of_a_model_gives_its_name(url: str, name: str, cache: Path) -> None:
    repo, _, revision = name.partition("@")
    command = f"hf download {repo} --revision {revision}" if revision else f"hf download {repo}"
    for find in (find_model, find_adapter):
        with pytest.raises(BadModel) as error:
            find(url)
        ending = f"{url} is a URL; npgemma does not download models: run '{command}', then give {name}"
        assert str(error.value).removeprefix("adapter ") == ending


@pytest.mark.parametrize(
    "url",
    [
        "https://www.kaggle.com/models/google/paligemma",
        "https://huggingface.co/spaces/big-vision/paligemma",
        "https://huggingface.co/google",
        "gs://bucket/model",
        "file:///models/paligemma",
    ],
)
def test_another_url_is_called_a_url(url: str, cache: Path) -> None:
    with pytest.raises(
        BadModel, match=r"is a URL; npgemma does not download models: download it, then give its folder$"
    ):
        find_model(url)


# --------------------------------------------------------------------------------------------------------------- files

FILES = {
    "model.gguf": "it is the format of llama.cpp, which npgemma does not read; use the model's repository",
    "pt_224.npz": "it is perhaps big_vision's format; run 'npgemma convert {}/pt_224.npz FOLDER', then give FOLDER",
    "pytorch_model.bin": "it is a pickle, which npgemma does not read; load its folder with transformers",
    "model.weights.h5": "it is the format of Keras, which npgemma does not read",
    "model.tar": "it is an archive; unpack it first, then give the folder that contains config.json",
    "model.zip": "it is an archive; unpack it first, then give the folder that contains config.json",
    "flax_model.msgpack": "it is the format of Flax or Orbax",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_format_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"any bytes")
    with pytest.raises(BadModel) as error:
        find_model(tmp_path / name)
    start = f"{tmp_path / name} is neither a folder nor a .safetensors file: {FILES[name]}"
    assert str(error.value).startswith(start.format(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model.safetensors.index.json"])
def test_a_file_of_a_model_asks_for_its_folder(name: str, tmp_path: Path) -> None:
    for each in {"config.json", name}:
        (tmp_path / each).write_bytes(b"{}")
    with pytest.raises(BadModel, match=rf"{name} is neither .* file; give its folder, {tmp_path}$"):
        find_model(tmp_path / name)


SHARDS = {
    "model-00002-of-00002.safetensors": 2,
    "model.fp16-00001-of-00003.safetensors": 3,
    "model_1_of_2.safetensors": 2,
    "model-00001-of-00001.safetensors": 1,
    "model.safetensors": 1,
    "MODEL.SAFETENSORS": 1,
}


@pytest.mark.parametrize("name", SHARDS)
def test_one_of_several_shards_asks_for_their_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    if SHARDS[name] == 1:
        assert find_model(tmp_path / name) == tmp_path / name
    else:
        with pytest.raises(
            BadModel, match=rf"{name} is one of the {SHARDS[name]} files .*; give their folder, {tmp_path}$"
        ):
            find_model(tmp_path / name)


def test_a_blob_of_the_cache_asks_for_the_name(cache: Path, model: Path) -> None:
    blob = (download(cache, MIX, model) / "model.safetensors").resolve()
    with pytest.raises(BadModel, match=f"a blob of the Hugging Face cache; give the model's name, {MIX}$"):
        find_model(blob)


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["paligemma-3b-mix-224", MIX.upper(), f"{MIX}/", "models--google--paligemma-3b-mix-224"]
)
def test_a_cached_model_of_almost_the_same_name_is_offered(name: str, cache: Path, model: Path, monkeypatch) -> None:
    monkeypatch.chdir(cache.parent)
    download(cache, MIX, model)
    with pytest.raises(BadModel, match=f"was not found: .*, and no such repository in .*, which contains {MIX}"):
        find_model(name)


def test_a_model_of_another_name_is_not_offered(cache: Path, model: Path) -> None:
    download(cache, MIX, model)
    with pytest.raises(BadModel) as error:
        find_model("org/gemma-2b")
    assert "which contains" not in str(error.value)


def test_a_cached_model_in_another_format_is_described(cache: Path, tmp_path: Path) -> None:
    """It is not an incomplete download."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "paligemma-3b-pt-224.npz").write_bytes(b"x")
    snapshot = download(cache, JAX, tmp_path / "jax")
    with pytest.raises(BadModel, match=rf"run 'npgemma convert {snapshot}/paligemma-3b-pt-224\.npz FOLDER', then give"):
        npgemma.load(JAX)


LACKING = {
    "model.safetensors": "{}/model.safetensors is missing: ",
    "model.safetensors tokenizer.model": "{}/model.safetensors is missing, and so is tokenizer.model: ",
    "config.json": "{}/config.json is missing: model.safetensors: weights; ",
}


@pytest.mark.parametrize("ref", ["main", "bfloat16"])
@pytest.mark.parametrize("lacking", LACKING)
def test_a_snapshot_that_lacks_files_asks_for_a_download(lacking: str, ref: str, cache: Path, model: Path) -> None:
    snapshot = download(cache, MIX, model, COMMIT, [ref])
    for name in lacking.split():
        (snapshot / name).unlink()
    name, command = (MIX, MIX) if ref == "main" else (f"{MIX}@{ref}", f"{MIX} --revision {ref}")
    with pytest.raises(BadModel) as error:
        npgemma.load(name)
    why = "" if lacking == "config.json" else "only some of the files were downloaded; "
    assert str(error.value) == f"{LACKING[lacking].format(snapshot)}{why}run 'hf download {command}'"


# --------------------------------------------------------------------------------------------------- parts of the cache


def test_the_folder_of_a_repository_is_the_snapshot_of_main(cache: Path, model: Path, monkeypatch) -> None:
    snapshot, home = download(cache, MIX, model), repository(cache, MIX)
    download(cache, MIX, model, OTHER, ["bfloat16"])
    for path in (home, home / "snapshots"):
        assert find_model(path) == find_model(str(path)) == snapshot
        monkeypatch.chdir(path)
        assert find_model(".") == snapshot
    (home / "refs" / "main").unlink()
    with pytest.raises(BadModel, match=f"not at revision 'main'; cached revisions: bfloat16, {COMMIT}, {OTHER}$"):
        find_model(home)


def test_the_only_snapshot_needs_no_ref(cache: Path, model: Path) -> None:
    snapshot = download(cache, MIX, model, refs=())
    assert find_model(repository(cache, MIX)) == snapshot


@pytest.mark.parametrize("part", ["refs", "blobs"])
def test_another_part_of_a_repository_asks_for_the_name(part: str, cache: Path, model: Path) -> None:
    snapshot = download(cache, MIX, model)
    with pytest.raises(
        BadModel, match=f"a part of a Hugging Face cache; give the model's name, {MIX}, or one of {snapshot}$"
    ):
        npgemma.load(repository(cache, MIX) / part)


def test_a_whole_cache_lists_its_models(cache: Path, model: Path) -> None:
    download(cache, MIX, model)
    download(cache, JAX, model)
    home = repository(cache, MIX)
    with pytest.raises(
        BadModel, match=f"this is a Hugging Face cache; give the name .*: {MIX}, {JAX}, or its .* as {home}$"
    ):
        npgemma.load(cache)
    (cache.parent / "home").mkdir()
    cache.rename(cache.parent / "home" / "hub")
    with pytest.raises(BadModel, match=f"this is a Hugging Face cache; give the name of a model in it: {MIX}, {JAX}"):
        npgemma.load(cache.parent / "home")
