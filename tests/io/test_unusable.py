"""Files and folders that cannot be used: the message says what they are and what to do."""

import json
import struct
from pathlib import Path

import pytest
from hub import write_model

import npgemma
from npgemma.errors import BadModel
from npgemma.io.model_folder import find_model
from npgemma.io.unusable import MOST_LINES, foreign_kind

CONVERT = r"load it with transformers and write it with save_pretrained"
FORMAT = r"use the model's repository in Hugging Face layout"

# What is in a folder without a config or without weights, and a part of the message.
FOLDERS = {
    "a pickle of transformers": (["pytorch_model.bin"], rf"pytorch_model\.bin: a pickle, .*; {CONVERT}"),
    "pickles in shards": (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "a pickle"),
    "a checkpoint of PyTorch": (["last.ckpt"], r"last\.ckpt: a pickle"),
    "hkproj's own": (["model.pt"], r"model\.pt: a pickle"),
    "big_vision's": (["pt_224.f16.npz"], r"pt_224\.f16\.npz: perhaps big_vision's format; run 'npgemma convert"),
    "llama.cpp's": (["paligemma-Q4_K_M.gguf"], rf"gguf: the format of llama\.cpp, .*{FORMAT}"),
    "a Keras preset": (["model.weights.h5", "task.json", "metadata.json"], r"model\.weights\.h5, task\.json: .*Keras"),
    "TensorFlow's": (["tf_model.h5"], r"tf_model\.h5: the format of Keras"),
    "Flax's": (["flax_model.msgpack"], r"flax_model\.msgpack: the format of Flax"),
    "Orbax's": (["_METADATA", "ocdbt.process_0"], r"_METADATA, ocdbt\.process_0: the format of Flax or Orbax"),
    "gemma.cpp's": (["paligemma-3b.sbs"], r"paligemma-3b\.sbs: another format"),
    "shards without an index": (["model-00001-of-00002.safetensors"], "model.safetensors.index.json, is missing"),
    "a variant": (["model.fp16.safetensors"], r"fp16\.safetensors: a variant of the weights; .* as the model"),
    "another name": (["paligemma.safetensors"], r"paligemma\.safetensors: weights under another name"),
    "an archive": (["model.tar.gz"], r"model\.tar\.gz: an archive; unpack it first"),
    "a browser's download": (["model.safetensors.crdownload"], "a download that has not finished; start it again"),
    "huggingface_hub's download": (
        [".cache/huggingface/download/x.abc.incomplete"],
        r"incomplete \(1 unfinished file\)",
    ),
    "a folder further down": (
        ["checkpoint-500/config.json"],
        r"checkpoint-500/: a folder with a model; give this folder",
    ),
}


@pytest.mark.parametrize("has_config", [False, True], ids=["nothing else", "config.json"])
@pytest.mark.parametrize(("names", "message"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_without_weights_is_described(
    names: list[str], message: str, has_config: bool, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"any bytes")
    if has_config:
        write_model(tmp_path)
        (tmp_path / "model.safetensors").unlink()
    missing = "model.safetensors" if has_config else "config.json"
    with pytest.raises(BadModel, match=rf"{missing} is missing[\s\S]*{message}"):
        npgemma.load(tmp_path)


def test_an_empty_folder_is_called_empty(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"config\.json is missing: the folder is empty$"):
        npgemma.load(tmp_path)


def test_a_message_has_few_lines(tmp_path: Path) -> None:
    for name in ("a.gguf", "a.npz", "a.h5", "a.msgpack", "a.onnx", "a.zip", "a.part", "a.safetensors", "a.bin"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadModel) as error:
        npgemma.load(tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == MOST_LINES + 1
    assert lines[-1] == "  and 2 more"


def test_a_message_lists_few_names(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"epoch-{i:02}.ckpt").write_bytes(b"x")
    with pytest.raises(BadModel, match=r"missing: epoch-00\.ckpt, .*, epoch-04\.ckpt and 15 more: a pickle"):
        npgemma.load(tmp_path)


def test_weights_without_a_config_ask_for_the_config(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(BadModel, match=r"config\.json is missing: model\.safetensors: weights; copy config\.json"):
        npgemma.load(tmp_path)


def test_a_model_given_as_an_adapter_is_named(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(BadModel, match=r"adapter_config\.json is missing: the folder is a model, not an adapter$"):
        npgemma.load(adapter=tmp_path)


# What some files begin with, and what the message calls them.
CONTENTS = {
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "a git-lfs pointer.*git lfs pull",
    ),
    "HTML": (b"\n<!DOCTYPE html>\n<html><body>Sign in", "an HTML page.*a login page"),
    "HTML without a type": (b"<html lang=en>", "an HTML page"),
    "an error of a server": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
    "GGUF": (b"GGUF\3\0\0\0", "a GGUF file"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "PyTorch": (b"PK\x03\x04\0\0archive/data.pkl", "a zip archive: of NumPy arrays, or a pickle of PyTorch"),
    "an old pickle": (b"\x80\x02\x8a\nl\xfc", "a pickle"),
    "gzip": (b"\x1f\x8b\x08\0", "a gzip archive"),
    "nothing": (b"", "empty"),
}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS)
def test_any_file_of_a_model_that_is_something_else_is_named(
    content: bytes, message: str, name: str, tmp_path: Path
) -> None:
    write_model(tmp_path)
    if name.endswith("index.json"):
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadModel, match=rf"/{name} is {message}"):
        npgemma.load(tmp_path)


def test_the_files_of_a_real_model_are_not_foreign() -> None:
    folder = npgemma.load().folder
    assert [foreign_kind(folder / name) for name in ("config.json", "model.safetensors", "tokenizer.model")] == [
        None
    ] * 3


# After the 8 bytes with the length of the header, but for those that are the whole file.
SAFETENSORS = {
    "seven bytes": (b"1234567", "it has fewer than 8 bytes"),
    "noise": (b"\xff" * 100, "its first 8 bytes do not give the length of a header"),
    "half a header": (struct.pack("<Q", 90) + b'{"a":', "it ends before its header does"),
    "half the data": (b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', "so it is cut short"),
    "no JSON": (b"[1, 2, 3]", "its header is not a list of tensors"),
    "no text": (b"\xff\xfe\xfd", "its header is not text"),
}


@pytest.mark.parametrize(("content", "message"), SAFETENSORS.values(), ids=SAFETENSORS)
def test_damaged_weights_are_described_in_plain_words(content: bytes, message: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    header = content if content[:1] in b"1\xffZ" and len(content) > 3 else struct.pack("<Q", len(content)) + content
    (tmp_path / "model.safetensors").write_bytes(header)
    with pytest.raises(BadModel, match=rf"is not a valid safetensors file: .*{message}"):
        npgemma.load(tmp_path)


JSON = {
    "cut short": (b'{"model_type": "pali', "line 1, column 16 is not valid JSON"),
    "a comma too many": (b'{\n  "a": 1,\n}', "line 3, column 1 is not valid JSON"),
    "Latin-1": (b'{"a": "\xe9"}', "byte 7 is not UTF-8 text"),
    "nested": (b"[" * 100_000, "its objects are nested too deeply"),
}


@pytest.mark.parametrize(("content", "message"), JSON.values(), ids=JSON)
def test_damaged_json_is_described_in_plain_words(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BadModel, match=rf"config\.json cannot be read as JSON: {message}$"):
        npgemma.load(tmp_path)


URLS = {
    "https://huggingface.co/google/paligemma-3b-mix-224": "google/paligemma-3b-mix-224",
    "https://huggingface.co/google/paligemma-3b-mix-224/tree/main": "google/paligemma-3b-mix-224",
    "https://hf.co/google/paligemma-3b-mix-224/tree/bfloat16?x=1": "google/paligemma-3b-mix-224@bfloat16",
    "huggingface.co/org/name/blob/main/config.json": "org/name",
    "http://www.huggingface.co/org/name/resolve/v2/model.safetensors": "org/name@v2",
}


@pytest.mark.parametrize(("url", "name"), URLS.items())
def test_the_address_of_a_model_gives_its_name(url: str, name: str) -> None:
    repo = name.partition("@")[0]
    with pytest.raises(BadModel, match=rf"is a URL; .*: run 'hf download {repo}', then give {name}$"):
        find_model(url)


@pytest.mark.parametrize("name", ["model.gguf", "pt_224.npz", "pytorch_model.bin", "model.h5", "model.tar"])
def test_a_file_of_another_format_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"any bytes")
    with pytest.raises(BadModel, match=rf"{name} is .*; give the folder that contains config\.json"):
        find_model(tmp_path / name)


def test_a_repository_folder_in_the_cache_is_its_snapshot(tmp_path: Path) -> None:
    commit, home = "0" * 40, tmp_path / "models--org--name"
    write_model(home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    assert find_model(home) == home / "snapshots" / commit
    with pytest.raises(BadModel, match=r"give the name of a model in it: org/name$"):
        npgemma.load(tmp_path)
    with pytest.raises(BadModel, match=r"a part of the Hugging Face cache; give the model's name, org/name"):
        npgemma.load(home / "snapshots")


def test_json_that_is_not_an_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(BadModel, match=r"config\.json contains a JSON list, not an object"):
        npgemma.load(tmp_path)
