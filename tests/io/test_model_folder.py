"""Model names: a folder, a file, a repository in the cache or the embedded model, in this order."""

import os
import shutil
from pathlib import Path

import hub
import numpy as np
import pytest
from hub import download

import npgemma
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED, EMBEDDED_LANGUAGE, EMBEDDED_PAIR, find_adapter, find_model, folder_of

PICTURE = EMBEDDED.parent / "sample.png"
SHARD = "model-00002-of-00002.safetensors"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """A model in two shards."""
    return hub.write_model(tmp_path_factory.mktemp("sharded") / "model", shards=2)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder, with an empty cache next to it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "cache").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "here"


def config_only(folder: Path) -> Path:
    """Make a folder that contains only an empty config.json; returns it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_no_name_and_tiny_are_the_embedded_model(here):
    assert find_model(None) == find_model("tiny") == find_model(Path("tiny")) == EMBEDDED
    assert find_model("tiny-gemma") == find_model(Path("tiny-gemma")) == EMBEDDED_LANGUAGE
    assert find_model("tiny-siglip") == find_model(Path("tiny-siglip")) == EMBEDDED_PAIR


def test_no_name_is_the_embedded_model_even_if_another_tiny_exists(here, tmp_path):
    config_only(here / "tiny")
    download(tmp_path / "cache", "tiny", here / "tiny")
    assert find_model(None) == EMBEDDED


def test_the_path_of_a_folder_is_that_folder(here):
    made = config_only(here / "org" / "name")
    for name in ("org/name", Path("org/name"), str(made), made, "./org/name", "org/../org/name"):
        assert os.path.samefile(find_model(name), made)


def test_an_empty_folder_is_found_but_cannot_be_loaded(here):
    (here / "empty").mkdir()
    assert find_model("empty") == Path("empty")
    with pytest.raises(BadModel, match=r"config\.json is missing"):
        npgemma.load("empty")


def test_a_folder_takes_precedence_over_the_cache(here, tmp_path):
    made = config_only(here / "org" / "name")
    cached = download(tmp_path / "cache", "org/name", made)
    assert find_model("org/name") == Path("org/name")
    shutil.rmtree(made)
    assert find_model("org/name") == cached


def test_a_folder_may_have_the_suffix_of_a_file(here):
    config_only(here / "name.safetensors")
    assert find_model("name.safetensors") == Path("name.safetensors")


def test_a_file_takes_precedence_over_the_cache(here, tmp_path):
    """A repository may be called model.safetensors."""
    cached = download(tmp_path / "cache", "model.safetensors", config_only(tmp_path / "some"))
    assert find_model("model.safetensors") == cached
    (here / "model.safetensors").write_bytes(b"")
    assert find_model("model.safetensors") == Path("model.safetensors")


def test_the_cache_takes_precedence_over_tiny(here, tmp_path):
    """The embedded model can also be loaded without a name."""
    cached = download(tmp_path / "cache", "tiny", config_only(tmp_path / "some"))
    assert find_model("tiny") == cached


def test_a_folder_takes_precedence_over_tiny(here):
    config_only(here / "tiny")
    assert find_model("tiny") == Path("tiny")


def test_a_file_without_the_suffix_safetensors_is_refused(here):
    for name in ("config.json", "tiny", "safetensors"):
        (here / name).write_bytes(b"{}")
        with pytest.raises(BadModel, match=f"{name} is neither a folder nor a .safetensors file"):
            find_model(name)
        (here / name).unlink()


def test_an_unknown_name_lists_what_was_tried(here, tmp_path):
    tried = "there is no such folder, no such .safetensors file, and no such repository in the Hugging Face cache"
    tried = f"{tried} {tmp_path}/cache"
    with pytest.raises(BadModel) as error:
        find_model("org/name")
    hint = "; npgemma does not download models: run 'hf download org/name' first"
    assert str(error.value) == f"org/name was not found: {tried}{hint}"
    with pytest.raises(BadModel) as error:
        find_model("org/name@bfloat16")
    hint = "; npgemma does not download models: run 'hf download org/name --revision bfloat16' first"
    assert str(error.value) == f"org/name@bfloat16 was not found: {tried}{hint}"
    with pytest.raises(BadModel) as error:
        find_model("paligemma-3b-mix-224")
    hint = "; a name on the Hugging Face hub begins with its owner, as in google/paligemma-3b-mix-224"
    assert str(error.value) == f"paligemma-3b-mix-224 was not found: {tried}{hint}"
    for path in ("./org/name", "/nowhere/at/all", "../name", "a/b/c", "gone.git", "a\0b", "x" * 5000):
        with pytest.raises(BadModel) as error:
            find_model(path)
        assert str(error.value) == f"{path} was not found: {tried}"


def test_a_missing_file_is_not_found(here):
    with pytest.raises(BadModel, match=r"gone/model\.safetensors was not found"):
        find_model("gone/model.safetensors")


def test_an_adapter_is_a_folder_or_a_cached_repository(here, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / ADAPTER_CONFIG).write_text("{}")
    cached = download(tmp_path / "cache", "org/adapter", tmp_path / "made")
    assert find_adapter("org/adapter") == find_adapter("org/adapter@main") == cached
    assert find_adapter(str(tmp_path / "made")) == tmp_path / "made"
    with pytest.raises(BadModel, match=r"^adapter org/name was not found: .*: run 'hf download org/name' first$"):
        find_adapter("org/name")
    (here / ADAPTER).write_bytes(b"")
    assert find_adapter(ADAPTER) == Path()
    (here / "weights.bin").write_bytes(b"")
    with pytest.raises(BadModel, match="is neither a folder"):
        find_adapter("weights.bin")


@pytest.mark.parametrize("has_config", [True, False])
def test_an_adapter_is_not_a_model(has_config, here):
    """A folder that also contains a config.json is a model."""
    (here / "both").mkdir()
    (here / "both" / ADAPTER_CONFIG).write_text("{}")
    if has_config:
        (here / "both" / "config.json").write_text("{}")
        assert find_model("both") == Path("both")
    else:
        with pytest.raises(BadModel, match="both is a LoRA adapter, not a model; load the model"):
            find_model("both")


def test_a_file_is_loaded_with_the_config_and_tokenizer_next_to_it(tmp_path):
    """Other weights in the folder are ignored."""
    first, second = hub.write_model(tmp_path / "first"), hub.write_model(tmp_path / "second", seed=1)
    shutil.copyfile(second / "model.safetensors", first / "other.safetensors")
    for path, folder in {"model.safetensors": first, "other.safetensors": second}.items():
        model, expected = npgemma.load(first / path), npgemma.load(folder)
        assert model.folder == folder_of(first / path) == folder_of(first) == first
        inputs = model.processor([[PICTURE]], ["ocr"])
        arguments = inputs.input_ids[0], inputs.pixel_values
        np.testing.assert_array_equal(model.forward(*arguments), expected.forward(*arguments), strict=True)


def test_a_shard_is_not_a_model(sharded):
    with pytest.raises(BadModel, match=r"00002\.safetensors is one of the 2 files of a model; give their folder"):
        npgemma.load(sharded / SHARD)


def test_a_file_without_a_config_next_to_it_is_refused(sharded, tmp_path):
    shutil.copyfile(sharded / SHARD, tmp_path / "model.safetensors")
    with pytest.raises(BadModel, match=f"{tmp_path}/config.json is missing"):
        npgemma.load(tmp_path / "model.safetensors")
