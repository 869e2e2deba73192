"""Files and folders that cannot be used: the message says what they are and what to do."""

import json
import shutil
import struct
from pathlib import Path

import pytest
from hub import write_model

import npgemma
from npgemma.errors import BadModel
from npgemma.io.unusable import MOST_LINES

CONVERT = r"load its folder with transformers, write it with save_pretrained"
FORMAT = r"use the model's repository in Hugging Face layout"

# What is in a folder without a config or without weights, and a part of the message.
FOLDERS = {
    "a pickle of transformers": (
        ["pytorch_model.bin", "training_args.bin"],
        rf": pytorch_model\.bin: a pickle, .*{CONVERT}$",
    ),
    "pickles in shards": (
        ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"],
        rf"a pickle, .*{CONVERT}",
    ),
    "a checkpoint of Lightning": (["last.ckpt"], r"last\.ckpt: a pickle, .* safetensors\.torch"),
    "hkproj's own": (["model.pt"], r"model\.pt: a pickle"),
    "PyTorch's": (["consolidated.00.pth"], r"consolidated\.00\.pth: a pickle"),
    "FSDP's": (["pytorch_model_fsdp_0/__0_0.distcp"], r"pytorch_model_fsdp_0/__0_0\.distcp: a distributed checkpoint"),
    "DeepSpeed's": (["global_step500/mp_rank_00_model_states.pt", "zero_to_fp32.py"], r"run its zero_to_fp32\.py"),
    "big_vision's": (
        ["pt_224.f16.npz"],
        r": perhaps big_vision's format; run 'npgemma convert \S+/pt_224\.f16\.npz FOLDER'",
    ),
    "kagglehub's": (
        ["google/paligemma/jax/x/1/x.npz"],
        r"run 'npgemma convert \S+/google/paligemma/jax/x/1/x\.npz FOLDER'",
    ),
    "llama.cpp's": (["paligemma-Q4_K_M.GGUF"], rf"GGUF: the format of llama\.cpp, .*{FORMAT}"),
    "a Keras preset": (["model.weights.h5", "task.json"], r": model\.weights\.h5, task\.json: .*Keras"),
    "TensorFlow's": (["tf_model.h5"], r"tf_model\.h5: the format of TensorFlow"),
    "Flax's": (["flax_model.msgpack"], r"flax_model\.msgpack: the format of Flax"),
    "Orbax's": (["_METADATA", "ocdbt.process_0"], r"_METADATA, ocdbt\.process_0: the format of Flax or Orbax"),
    "gemma.cpp's": (["paligemma-3b.sbs"], r"paligemma-3b\.sbs: another format"),
    "ONNX": (["onnx/decoder_model.onnx"], r"onnx/decoder_model\.onnx: another format"),
    "OpenVINO's": (["openvino_model.xml"], r"openvino_model\.xml: another format"),
    "shards without an index": (["model-00001-of-00002.safetensors"], r"model\.safetensors\.index\.json, is missing"),
    "a variant": (
        ["model.fp16.safetensors"],
        r"a variant .* give the file as the model: \S+/model\.fp16\.safetensors$",
    ),
    "a variant in shards": (
        ["model.fp16-00001-of-00002.safetensors", "model.safetensors.index.fp16.json"],
        r": model\.safetensors\.index\.fp16\.json: the index of a variant; .* it to model\.safetensors\.index\.json$",
    ),
    "another name": (
        ["paligemma.safetensors"],
        r"weights under another name; .* the model: \S+/paligemma\.safetensors$",
    ),
    "an archive": (["model.tar.gz"], r"model\.tar\.gz: an archive; unpack it first"),
    "a browser's download": (["model.safetensors.crdownload"], "a download that has not finished; start it again"),
    "huggingface_hub's download": (
        [".cache/huggingface/download/x.abc.incomplete"],
        r"incomplete \(1 unfinished file\); run it again",
    ),
    "a folder further down": (
        ["checkpoint-500/config.json", "rng_state.pth"],
        r": checkpoint-500/: a folder with a model; give this folder, \S+/checkpoint-500$",
    ),
    "several folders": (
        ["checkpoint-5/config.json", "checkpoint-9/config.json"],
        r"checkpoint-5/, checkpoint-9/: folders with",
    ),
    "far below": (["a/b/c/d/config.json"], r"a/b/c/d/: a folder with a model; give this folder, \S+/a/b/c/d$"),
    "adapters further down": (
        ["checkpoint-5/adapter_config.json"],
        r"checkpoint-5/: a folder with a LoRA adapter; give this folder as the adapter, \S+/checkpoint-5$",
    ),
    "macOS's copies": (["__MACOSX/config.json", "model/config.json"], r": model/: a folder with a model"),
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


MISSING = {
    "config.json": r"model\.safetensors is missing, and so is tokenizer\.model$",
    "config.json tokenizer.json": r"model\.safetensors is missing$",
    "tokenizer.model": r"config\.json is missing, and so is model\.safetensors$",
    "README.md": r"config\.json is missing, and so are model\.safetensors and tokenizer\.model$",
    "model.safetensors": r"config\.json is missing, and so is tokenizer\.model: model\.safetensors: weights; ",
    "config.json pytorch_model.bin": r"model\.safetensors is missing, and so is tokenizer\.model: pytorch_model",
}


@pytest.mark.parametrize("names", MISSING)
def test_all_missing_files_are_named_at_once(names: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "whole")
    for name in names.split():
        (tmp_path / name).write_bytes((model / name).read_bytes() if (model / name).exists() else b"x")
    shutil.rmtree(model)
    with pytest.raises(BadModel, match=MISSING[names]):
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


def test_a_keras_preset_has_a_config_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"module": "keras_hub.src.models.pali_gemma.pali_gemma_backbone"}')
    for name in ("model.weights.h5", "task.json", "preprocessor.json", "metadata.json", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadModel, match=r"model\.safetensors is missing: metadata\.json, .*: the format of Keras"):
        npgemma.load(tmp_path)


def test_an_adapter_given_as_a_model_names_the_model_it_was_trained_on(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "google/paligemma-3b-pt-224"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(
            BadModel, match=rf"^{tmp_path} is a LoRA adapter, not a model; load .*google/paligemma-3b-pt-224"
        ):
            npgemma.load(path)
    write_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BadModel, match=rf"is missing: the folder is a LoRA adapter: load .* --adapter {tmp_path}$"):
        npgemma.load(tmp_path)


ADAPTERS = {
    "": "adapter_config.json is missing: the folder is empty$",
    "adapter_model.safetensors": "missing: adapter_model.safetensors: weights; copy adapter_config.json from the same",
    "run/of/last/adapter_config.json": r"missing: run/of/last/: a folder with a LoRA adapter; give \S+ .*/last$",
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_folder_that_is_not_an_adapter_is_described(name: str, tmp_path: Path) -> None:
    if name:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadModel, match=ADAPTERS[name]):
        npgemma.load(adapter=tmp_path)


def test_a_model_given_as_an_adapter_is_named(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(BadModel, match=r"adapter_config\.json is missing: the folder is a model, not an adapter$"):
        npgemma.load(adapter=tmp_path)


# After the 8 bytes with the length of the header, but for those that are the whole file.
SAFETENSORS = {
    "seven bytes": (b"1234567", "it has fewer than 8 bytes"),
    "zeros": (bytes(100), "it begins with zeros, so the download may be incomplete"),
    "noise": (b"\xff" * 100, "its first 8 bytes do not give the length of a header"),
    "half a header": (struct.pack("<Q", 90) + b'{"a":', "it ends before its header does"),
    "half the data": (
        b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
        "it has 63 bytes and its tensors need 99, so the download may be incomplete",
    ),
    "no JSON": (b"[1, 2, 3]", "its header is not a list of tensors"),
    "no text": (b"\xff\xfe\xfd", "its header is not text"),
}


@pytest.mark.parametrize(("content", "message"), SAFETENSORS.values(), ids=SAFETENSORS)
def test_damaged_weights_are_described_in_plain_words(content: bytes, message: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    header = content if content[:1] in b"\x001\xffZ" and len(content) > 3 else struct.pack("<Q", len(content)) + content
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


def test_json_that_is_not_an_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(BadModel, match=r"config\.json contains a JSON list, not an object"):
        npgemma.load(tmp_path)
