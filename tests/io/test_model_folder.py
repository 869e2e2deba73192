"""What a model name means, in which order."""

import os
import shutil
from pathlib import Path

import hub
import mask_codecs
import numpy as np
import pytest
import tiny
from hub import download

import npgemma
from npgemma.checkpoints.mask_vqvae import CODEC
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED, find_adapter, find_model, folder_of

PICTURE = EMBEDDED.parent / "sample.png"
INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00002.safetensors"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
SECRET = "sesame:x:0:0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with every file that npgemma ever opens in one: two shards, a tokenizer, a mask decoder, an adapter."""
    folder = hub.write_model(tmp_path_factory.mktemp("whole") / "model", shards=2)
    np.savez(folder / CODEC, **mask_codecs.random_tensors())
    (folder / ADAPTER_CONFIG).write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    a, b = np.ones((1, 11), np.float32), np.ones((60, 1), np.float32)
    module = "base_model.model.language_model.model.layers.0.self_attn.q_proj"
    tiny.save({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, folder / ADAPTER)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder, and an empty cache beside it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "cache").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "here"


def config_only(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


# -------------------------------------------------------------------------------------------------------- what is found


def test_nothing_and_tiny_are_the_model_inside(here):
    assert find_model(None) == find_model("tiny") == find_model(Path("tiny")) == EMBEDDED


def test_nothing_is_the_model_inside_whatever_there_is(here, tmp_path):
    config_only(here / "tiny")
    download(tmp_path / "cache", "tiny", here / "tiny")
    assert find_model(None) == EMBEDDED


def test_a_folder_is_itself(here):
    made = config_only(here / "org" / "name")
    for name in ("org/name", Path("org/name"), str(made), made, "./org/name", "org/../org/name"):
        assert os.path.samefile(find_model(name), made)


def test_an_empty_folder_is_found_and_then_lacks_its_config(here):
    (here / "empty").mkdir()
    assert find_model("empty") == Path("empty")
    with pytest.raises(BadModel, match=r"config\.json is missing"):
        npgemma.load("empty")


def test_a_folder_comes_before_the_cache(here, tmp_path):
    made = config_only(here / "org" / "name")
    cached = download(tmp_path / "cache", "org/name", made)
    assert find_model("org/name") == Path("org/name")
    shutil.rmtree(made)
    assert find_model("org/name") == cached


def test_a_folder_whose_name_ends_like_a_file_is_a_folder(here):
    config_only(here / "name.safetensors")
    assert find_model("name.safetensors") == Path("name.safetensors")


def test_a_file_comes_before_the_cache(here, tmp_path):
    """A repository may be called model.safetensors."""
    cached = download(tmp_path / "cache", "model.safetensors", config_only(tmp_path / "some"))
    assert find_model("model.safetensors") == cached
    (here / "model.safetensors").write_bytes(b"")
    assert find_model("model.safetensors") == Path("model.safetensors")


def test_the_cache_comes_before_tiny(here, tmp_path):
    """Whoever downloaded a repository of that name means it; the model inside needs no name."""
    cached = download(tmp_path / "cache", "tiny", config_only(tmp_path / "some"))
    assert find_model("tiny") == cached


def test_a_folder_comes_before_tiny(here):
    config_only(here / "tiny")
    assert find_model("tiny") == Path("tiny")


def test_a_file_is_a_model_only_as_safetensors(here):
    for name in ("model.bin", "config.json", "tiny", "safetensors"):
        (here / name).write_bytes(b"")
        with pytest.raises(BadModel, match=f"{name} is neither a folder nor a .safetensors file"):
            find_model(name)
        (here / name).unlink()


def test_what_is_nowhere_lists_what_was_tried(here, tmp_path):
    said = "there is no such folder, no such .safetensors file, and no such repository in the Hugging Face cache"
    said = f"{said} {tmp_path}/cache"
    with pytest.raises(BadModel) as error:
        find_model("org/name")
    hint = "; npgemma does not download models: run 'hf download org/name' first"
    assert str(error.value) == f"org/name was not found: {said}{hint}"
    with pytest.raises(BadModel) as error:
        find_model("org/name@bfloat16")
    assert str(error.value) == f"org/name@bfloat16 was not found: {said}{hint}"
    for path in ("./org/name", "/nowhere/at/all", "../name", "a/b/c", "gone.git", "a\0b", "x" * 5000):
        with pytest.raises(BadModel) as error:
            find_model(path)
        assert str(error.value) == f"{path} was not found: {said}"


def test_a_file_that_is_not_there_is_no_model(here):
    with pytest.raises(BadModel, match=r"gone/model\.safetensors was not found"):
        find_model("gone/model.safetensors")


def test_an_adapter_is_a_folder_or_a_name_of_the_cache(here, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / ADAPTER_CONFIG).write_text("{}")
    cached = download(tmp_path / "cache", "org/adapter", tmp_path / "made")
    assert find_adapter("org/adapter") == find_adapter("org/adapter@main") == cached
    assert find_adapter(str(tmp_path / "made")) == tmp_path / "made"
    with pytest.raises(BadModel, match=r"^adapter org/name was not found: .*: run 'hf download org/name' first$"):
        find_adapter("org/name")
    (here / ADAPTER).write_bytes(b"")
    with pytest.raises(BadModel, match="is neither a folder"):
        find_adapter(ADAPTER)


@pytest.mark.parametrize("has_config", [True, False])
def test_an_adapter_is_no_model(has_config, here):
    """A folder may hold both, as after merging; then it is a model."""
    (here / "both").mkdir()
    (here / "both" / ADAPTER_CONFIG).write_text("{}")
    if has_config:
        (here / "both" / "config.json").write_text("{}")
        assert find_model("both") == Path("both")
    else:
        with pytest.raises(BadModel, match="both is a LoRA adapter, not a model; give the model"):
            find_model("both")


# ------------------------------------------------------------------------------------------------------------- one file


def test_a_file_is_the_model_of_its_folder(tmp_path):
    """The config and the tokenizer beside it are its own; any other weights there are not."""
    first, second = hub.write_model(tmp_path / "first"), hub.write_model(tmp_path / "second", seed=1)
    shutil.copyfile(second / "model.safetensors", first / "other.safetensors")
    for path, folder in {"model.safetensors": first, "other.safetensors": second}.items():
        model, expected = npgemma.load(first / path), npgemma.load(folder)
        assert model.folder == folder_of(first / path) == folder_of(first) == first
        ids = model.processor([[PICTURE]], ["ocr"])
        arguments = ids.input_ids[0], ids.pixel_values
        np.testing.assert_array_equal(model.forward(*arguments), expected.forward(*arguments), strict=True)


def test_a_shard_is_no_model(whole):
    with pytest.raises(BadModel, match=r"00002\.safetensors: the tensors do not fit config\.json"):
        npgemma.load(whole / SHARD)


def test_a_file_without_a_config_beside_it(whole, tmp_path):
    shutil.copyfile(whole / SHARD, tmp_path / "model.safetensors")
    with pytest.raises(BadModel, match=f"{tmp_path}/config.json is missing"):
        npgemma.load(tmp_path / "model.safetensors")
