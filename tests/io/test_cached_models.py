"""Models and adapters loaded by name from the Hugging Face cache, and never from the network."""

import dataclasses
import json
import socket
from pathlib import Path

import hub
import numpy as np
import pytest
from hub import COMMIT, OTHER, download, repository

import npgemma
from npgemma.commands.cli import main
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED, find_adapter

REPO = "org/name"
PICTURE = EMBEDDED.parent / "sample.png"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Two models without a common weight, so that a wrong revision gives other numbers."""
    made = tmp_path_factory.mktemp("models")
    return {"first": hub.write_model(made / "first"), "second": hub.write_model(made / "second", seed=1, shards=2)}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    return hub.empty_cache(tmp_path / "cache", monkeypatch)


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A folder that contains only an empty adapter_config.json."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    return tmp_path / "adapter"


def inputs_of(model) -> tuple[np.ndarray, np.ndarray]:
    """The token ids and pixel values of a prompt with a picture."""
    inputs = model.processor([[PICTURE]], ["caption en"])
    return inputs.input_ids[0], inputs.pixel_values


@pytest.mark.parametrize("links", [True, False], ids=["links to blobs", "plain files"])
def test_a_name_loads_the_cached_model(links, cache, folders):
    download(cache, REPO, folders["first"], COMMIT, ["main", "refs/pr/3"], links)
    download(cache, REPO, folders["second"], OTHER, ["bfloat16"], links)
    expected = {name: npgemma.load(folder) for name, folder in folders.items()}
    ids, pixels = inputs_of(expected["first"])
    logits = {name: model.forward(ids, pixels) for name, model in expected.items()}
    assert np.abs(logits["first"] - logits["second"]).max() > 0.1
    for name, which in {
        REPO: "first",
        f"{REPO}@": "first",
        f"{REPO}@main": "first",
        f"{REPO}@refs/pr/3": "first",
        f"{REPO}@{COMMIT}": "first",
        f"{REPO}@bfloat16": "second",
        f"{REPO}@{OTHER}": "second",
    }.items():
        model = npgemma.load(name)
        np.testing.assert_array_equal(model.forward(ids, pixels), logits[which], strict=True)
        assert model.folder == repository(cache, REPO) / "snapshots" / {"first": COMMIT, "second": OTHER}[which]
        answer = model.generate(PICTURE, "caption en", max_new_tokens=3)
        assert answer == expected[which].generate(PICTURE, "caption en", max_new_tokens=3)


def test_the_command_line_accepts_a_name(cache, folders, capsys):
    download(cache, REPO, folders["first"])
    download(cache, REPO, folders["second"], OTHER, ["bfloat16"])
    for name, which in {REPO: "first", f"{REPO}@bfloat16": "second"}.items():
        flags = ["-m", name, "--max-new-tokens", "4", "--format", "json"]
        assert main(["ocr", str(PICTURE), *flags]) == 0
        expected = npgemma.load(folders[which]).generate(PICTURE, "ocr", max_new_tokens=4)
        assert json.loads(capsys.readouterr().out) == {"model": name, "prompt": "ocr"} | dataclasses.asdict(expected)


def test_the_cache_and_a_repository_may_be_links(cache, folders, tmp_path, monkeypatch):
    """~/.cache is often a link to a larger disk."""
    download(cache, REPO, folders["first"])
    repository(cache, REPO).rename(tmp_path / "moved")
    repository(cache, REPO).symlink_to(tmp_path / "moved", target_is_directory=True)
    (tmp_path / "link").symlink_to(cache, target_is_directory=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "link"))
    assert npgemma.load(REPO).generate(PICTURE, "ocr", max_new_tokens=1).finish_reason in ("length", "stop")


def test_a_cached_adapter_is_found_by_name(cache, adapter):
    """It needs no config.json."""
    folder = download(cache, "org/adapter", adapter)
    assert find_adapter("org/adapter") == folder
    assert find_adapter(f"org/adapter@{COMMIT}") == folder


def test_a_cached_adapter_is_refused_as_a_model(cache, adapter):
    """The error says what it is, and not that config.json is missing."""
    download(cache, "org/adapter", adapter)
    with pytest.raises(BadModel, match="is a LoRA adapter"):
        npgemma.load("org/adapter")


def test_a_shard_that_is_not_downloaded_yet_is_named(cache, folders):
    """Small files finish first, so config.json and the index exist before every shard."""
    folder = download(cache, REPO, folders["second"])
    shard = folder / "model-00002-of-00002.safetensors"
    blob = shard.resolve()
    shard.unlink()
    blob.rename(f"{blob}.incomplete")
    with pytest.raises(BadModel, match=r"model-00002-of-00002\.safetensors is missing"):
        npgemma.load(REPO)


def test_loading_by_name_never_uses_the_network(cache, folders, monkeypatch):
    """Neither for a missing nor for a cached model, even without HF_HUB_OFFLINE."""

    def no_network(*_, **__):
        pytest.fail("the network was used")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(BadModel, match="npgemma does not download models: run 'hf download org/name' first"):
        npgemma.load(REPO)
    download(cache, REPO, folders["first"])
    npgemma.load(REPO)
