"""Sharded models: an index names the shards, which must be files in the model's folder."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from npgemma.errors import BadModel
from npgemma.io.safetensors import open_folder

INDEX = "model.safetensors.index.json"


def shards(folder: Path, weight_map: object, **files: list[str]) -> Path:
    """A folder with an index that contains `weight_map`, and with files of the named tensors."""
    folder.mkdir(exist_ok=True)
    for name, tensors in files.items():
        tiny.save({each: np.ones(2, np.float32) for each in tensors}, folder / f"{name}.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map}))
    return folder


def test_the_tensors_of_all_shards_are_returned(tmp_path):
    tiny.write_folder(tmp_path / "one")
    tiny.write_folder(tmp_path / "three", shards=3)
    whole, parts = open_folder(tmp_path / "one"), open_folder(tmp_path / "three")
    assert len(list((tmp_path / "three").glob("*.safetensors"))) == 3
    assert whole.keys() == parts.keys()
    for name, x in whole.items():
        np.testing.assert_array_equal(parts[name], x, strict=True)


HOSTILE = [
    "../outside.safetensors",
    "../../outside.safetensors",
    "./inside.safetensors",
    "sub/inside.safetensors",
    "sub/../inside.safetensors",
    "sub\\inside.safetensors",
    "..\\outside.safetensors",
    "/etc/passwd",
    "/outside.safetensors",
    "//server/share/x.safetensors",
    "\\\\server\\share\\x.safetensors",
    "C:\\x.safetensors",
    "C:x.safetensors",
    "c:/x.safetensors",
    "file:///x.safetensors",
    "https://example.org/x.safetensors",
    "~/x.safetensors",
    "inside.safetensors\0",
    "inside.safetensors\0.safetensors",
    "inside.safetensors\n",
    " inside.safetensors",
    "-inside.safetensors",
    ".safetensors",
    "..safetensors",
    ".inside.safetensors",
    "..",
    ".",
    "",
    "inside.bin",
    "inside.safetensors/",
    "inside.safetensors.bin",
    "INSIDE.SAFETENSORS",
    "ïnside.safetensors",
    "$HOME.safetensors",
    "inside*.safetensors",
    None,
    7,
    True,
    ["inside.safetensors"],
    {"file": "inside.safetensors"},
]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_shard_that_is_not_a_plain_file_name_is_refused_even_if_it_exists(name, tmp_path):
    """An index must not make npgemma read files outside the model's folder."""
    folder = shards(tmp_path / "model", {"x": name}, inside=["x"])
    (folder / "sub").mkdir()
    for place in (tmp_path / "outside.safetensors", folder / "sub" / "inside.safetensors"):
        tiny.save({"x": np.ones(2, np.float32)}, place)
    with pytest.raises(BadModel) as error:
        open_folder(folder)
    assert str(folder / INDEX) in str(error.value)
    assert f"tensor 'x' is in {name!r}" in str(error.value)


@pytest.mark.parametrize("name", ["inside.safetensors", "model-00001-of-00002.safetensors", "a_b.c-1.safetensors"])
def test_a_plain_file_name_is_accepted(name, tmp_path):
    folder = shards(tmp_path, {"x": name})
    tiny.save({"x": np.ones(2, np.float32)}, folder / name)
    assert open_folder(folder).keys() == {"x"}


@pytest.mark.parametrize("weight_map", [None, {}, [], ["a.safetensors"], "a.safetensors", 0, 5, True], ids=repr)
def test_an_invalid_weight_map_is_refused(weight_map, tmp_path):
    shards(tmp_path, weight_map, a=["x"])
    with pytest.raises(BadModel, match=r"model\.safetensors\.index\.json: weight_map is missing or empty"):
        open_folder(tmp_path)


def test_an_index_without_a_weight_map_is_refused(tmp_path):
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(BadModel, match="weight_map is missing"):
        open_folder(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', "\xff"])
def test_a_damaged_index_is_named_in_the_error(content, tmp_path):
    """A repeated name is damage: a JSON parser would silently use the last shard."""
    (tmp_path / INDEX).write_text(content, "latin-1")
    with pytest.raises(BadModel, match=r"model\.safetensors\.index\.json"):
        open_folder(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    shards(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"}, a=["x"])
    with pytest.raises(BadModel, match=r"b\.safetensors is missing"):
        open_folder(tmp_path)


def test_a_tensor_that_is_listed_but_not_stored_is_named(tmp_path):
    shards(tmp_path, {"x": "a.safetensors", "y": "a.safetensors"}, a=["x"])
    with pytest.raises(BadModel, match=r"a\.safetensors list .*; only in the index: y$"):
        open_folder(tmp_path)


def test_a_tensor_that_is_stored_but_not_listed_is_named(tmp_path):
    shards(tmp_path, {"x": "a.safetensors"}, a=["x", "y"])
    with pytest.raises(BadModel, match=r"a\.safetensors list .*; only in the file: y$"):
        open_folder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"}, a=["x"], b=["x", "y"])
    with pytest.raises(BadModel, match=r"b\.safetensors list .*; only in the file: x$"):
        open_folder(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows requires a privilege for symbolic links")
def test_a_snapshot_of_the_hugging_face_cache_can_be_opened(tmp_path):
    """Its model.safetensors is a link to ../../blobs/<hash>."""
    snapshot = tmp_path / "snapshots" / "0123456789"
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    tiny.save({"x": np.ones(2, np.float32)}, tmp_path / "blobs" / "abc")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    assert open_folder(snapshot).keys() == {"x"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows requires a privilege for symbolic links")
def test_a_broken_link_is_a_missing_file(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("../../blobs/gone")
    with pytest.raises(BadModel, match=r"model\.safetensors is missing"):
        open_folder(tmp_path)
