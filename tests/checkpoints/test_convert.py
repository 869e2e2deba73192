"""convert: a PaliGemma of big_vision becomes a Hugging Face folder with the same weights."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import npz_checkpoints
import numpy as np
import pytest

import npgemma
from npgemma import testing
from npgemma.checkpoints.convert import convert
from npgemma.checkpoints.npz_models import infer_paligemma
from npgemma.checkpoints.paligemma import PaliGemmaConfig, hf_layout, npz_layout
from npgemma.errors import BadModel
from npgemma.io.npz_members import read_members
from npgemma.io.safetensors import open_folder
from npgemma.io.weight_writing import shards
from npgemma.layers.bits import widen
from npgemma.layers.tree import leaves
from npgemma.models.paligemma import forward

CONFIG = npz_checkpoints.CONFIG
BLOCK = "img/Transformer/encoderblock"
DTYPES = ["float32", "float16", "bfloat16"]


MODELS = pytest.mark.parametrize("config", npz_checkpoints.CONFIGS.values(), ids=npz_checkpoints.CONFIGS)


def expected(config: PaliGemmaConfig) -> npgemma.models.paligemma.PaliGemma:
    return npz_layout(config).fill(npz_checkpoints.arrays(config=config))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("config", "prefix", "compressed"),
    [
        (CONFIG, "", False),
        (CONFIG, "", True),
        (CONFIG, "params/", False),
        (CONFIG, "params/", True),
        (npz_checkpoints.PALIGEMMA_2, "", False),
    ],
    ids=["stored", "compressed", "stored with params/", "compressed with params/", "PaliGemma 2"],
)
def test_every_array_of_a_converted_model_is_the_original_one(config, prefix, compressed, dtype, tmp_path) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays(dtype, config), compressed, prefix)
    convert(path, tmp_path / "folder")
    model = npgemma.load(tmp_path / "folder")
    assert model.config == config
    for leaf, other in zip(leaves(expected(config)), leaves(model.weights), strict=True):
        x = widen(other.value) if other.value.dtype == np.uint16 else other.value.astype(np.float32)
        np.testing.assert_array_equal(x, leaf.value, err_msg=leaf.path, strict=True)


@MODELS
def test_a_converted_model_computes_the_same_logits(config, tmp_path) -> None:
    """Its arrays are in memory by rows and the original ones by columns, so that BLAS may add up in another order."""
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays(config=config))
    convert(path, tmp_path / "folder")
    row = testing.draw_row(config)
    pixels = row.pixel_values.astype(np.float64)
    logits = npgemma.load(tmp_path / "folder", "float64").forward(row.input_ids, pixels, row.token_type_ids)
    original = forward(expected(config), row.input_ids, pixels, row.token_type_ids)
    np.testing.assert_allclose(logits, original, rtol=1e-12, atol=1e-12, strict=True)


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "<f4"), ("float16", "<f2"), ("bfloat16", "<u2")])
def test_the_dtype_of_the_file_is_kept(dtype, stored, tmp_path) -> None:
    convert(npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays(dtype)), tmp_path / "folder")
    assert {x.dtype.str for x in open_folder(tmp_path / "folder").values()} == {stored}


def test_large_models_are_written_in_shards_with_an_index(tmp_path) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays())
    convert(path, tmp_path / "folder", shard_bytes=20_000)
    index = json.loads((tmp_path / "folder" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert leaves(npgemma.load(tmp_path / "folder").weights)[0].path == "vision.embedding.weight"


def test_shards_hold_every_tensor_once_and_no_more_bytes_than_allowed() -> None:
    tensors = {str(i): np.empty((i % 7 + 1) * 300, np.int8) for i in range(12)}
    groups = list(shards(tensors, 2000))
    assert [name for group in groups for name in group] == list(tensors)
    assert all(sum(tensors[name].nbytes for name in group) <= 2000 or len(group) == 1 for group in groups)


def peak_memory(run: Callable[[], object]) -> int:
    """The bytes that Python and NumPy hold at most; maps of files do not count."""
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
def test_conversion_never_holds_the_whole_model(compressed, tmp_path) -> None:
    tensors = npz_checkpoints.arrays()
    tensors["llm/embedder/input_embedding"] = np.repeat(tensors["llm/embedder/input_embedding"], 6000, 0)
    path = npz_checkpoints.write(tmp_path / "model.npz", tensors, compressed)
    most = sum(x.nbytes for x in tensors.values()) // 3
    assert peak_memory(lambda: dict(np.load(path))) > most
    assert peak_memory(lambda: convert(path, tmp_path / "folder")) < most


def test_the_tokenizer_is_copied(tmp_path) -> None:
    (tmp_path / "pieces.model").write_bytes(b"pieces")
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays())
    convert(path, tmp_path / "folder", tmp_path / "pieces.model")
    assert (tmp_path / "folder" / "tokenizer.model").read_bytes() == b"pieces"


# ------------------------------------------------------------------------------------------------------------- refused


def refused(tmp_path: Path, tensors: Mapping[str, np.ndarray]) -> str:
    """The error for a file of these arrays, which leaves nothing behind."""
    return refused_file(npz_checkpoints.write(tmp_path / "model.npz", tensors))


def refused_file(path: Path) -> str:
    """The error for an .npz file that is converted into a folder whose parent is missing, too."""
    with pytest.raises(BadModel) as error:
        convert(path, path.parent / "new" / "folder")
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    return str(error.value)


def test_a_missing_and_an_unexpected_array_are_both_named(tmp_path) -> None:
    tensors = npz_checkpoints.arrays()
    tensors["llm/more/w"] = tensors.pop("img/head/bias")
    message = refused(tmp_path, tensors)
    assert "missing     img/head/bias" in message
    assert "unexpected  llm/more/w" in message


def test_an_array_of_another_shape_is_named(tmp_path) -> None:
    tensors = npz_checkpoints.arrays()
    tensors["llm/final_norm/scale"] = tensors["llm/final_norm/scale"][:-1]
    assert "mis-shaped  llm/final_norm/scale: stored (10,), expected (11,)" in refused(tmp_path, tensors)


def test_a_gemma_7b_is_refused_by_name(tmp_path) -> None:
    fused = {"llm/layers/attn/qkv_einsum/w": np.zeros((3, 11), np.float32)}
    assert "has fused q, k and v" in refused(tmp_path, npz_checkpoints.arrays() | fused)


@pytest.mark.parametrize("name", ["post_attention_norm", "post_ffw_norm"])
def test_a_paligemma_2_without_one_of_its_norms_is_refused_by_that_norm(name, tmp_path) -> None:
    tensors = npz_checkpoints.arrays(config=npz_checkpoints.PALIGEMMA_2)
    del tensors[f"llm/layers/{name}/scale"]
    assert f"missing     llm/layers/{name}/scale (3, 288)" in refused(tmp_path, tensors)


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ({"head_dim": 64}, "2 heads of 64 for a width of 288 are not"),
        ({"head_dim": 256}, "2 heads of 256 for a width of 288 are not"),
        ({"num_attention_heads": 4}, "4 heads of 128 for a width of 288 are not"),
        ({"hidden_size": 289}, "2 heads of 128 for a width of 289 are not"),
    ],
)
def test_a_paligemma_2_whose_scores_are_scaled_by_an_unknown_number_is_refused(sizes, found, tmp_path) -> None:
    config = npz_checkpoints.PALIGEMMA_2
    other = dataclasses.replace(config, text=dataclasses.replace(config.text, **sizes))
    message = refused(tmp_path, npz_checkpoints.arrays(config=other))
    assert "model.npz does not say by what its attention scores are scaled (query_pre_attn_scalar)" in message
    assert f"{found} those of PaliGemma 2 3b, 10b or 28b" in message


def test_a_file_of_something_else_is_refused(tmp_path) -> None:
    assert "is not a PaliGemma of big_vision: img/embedding/kernel is missing" in refused(
        tmp_path, {"x": np.zeros(3, np.float32)}
    )


def test_integers_and_python_objects_are_refused(tmp_path) -> None:
    assert "weights are float32" in refused(tmp_path, npz_checkpoints.arrays() | {"x": np.zeros(3, np.int64)})
    assert "weights are float32" in refused(tmp_path, {"x": np.array([{}], object)})


@pytest.mark.parametrize(
    ("name", "axis"),
    [
        ("img/embedding/kernel", 0),
        (f"{BLOCK}/MultiHeadDotProductAttention_0/query/kernel", 2),
        ("llm/layers/attn/q_einsum/w", 0),
        ("llm/embedder/input_embedding", 0),
    ],
)
def test_a_size_of_zero_is_refused(name: str, axis: int, tmp_path) -> None:
    tensors = npz_checkpoints.arrays()
    tensors[name] = tensors[name].take([], axis)
    assert f"is not a PaliGemma of big_vision: {name} has shape" in refused(tmp_path, tensors)


def test_sizes_that_npgemma_cannot_run_are_refused(tmp_path) -> None:
    """An odd width of the heads: rotary positions rotate pairs."""
    text = dataclasses.replace(CONFIG.text, head_dim=9)
    tensors = testing.layout_tensors(npz_layout(dataclasses.replace(CONFIG, text=text)))
    assert "model.npz: text_config: head_dim is 9" in refused(tmp_path, tensors)


def test_the_same_name_with_and_without_params_is_refused(tmp_path) -> None:
    tensors = npz_checkpoints.arrays()
    tensors["params/img/head/bias"] = tensors["img/head/bias"] + 1
    assert "holds 'img/head/bias' twice, with and without params/" in refused(tmp_path, tensors)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello" * 100])
def test_a_damaged_file_is_refused(content, tmp_path) -> None:
    (tmp_path / "model.npz").write_bytes(content)
    assert "is not a usable .npz file of weights" in refused_file(tmp_path / "model.npz")


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
def test_a_changed_byte_of_an_array_is_refused(compressed, tmp_path) -> None:
    """In the middle of an array, which is read long after the headers."""
    tensors = npz_checkpoints.arrays()
    rng = np.random.default_rng(0)
    tensors["llm/embedder/input_embedding"] = rng.standard_normal((9000, 11)).astype(np.float32)
    path = npz_checkpoints.write(tmp_path / "model.npz", tensors, compressed)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("llm/embedder/input_embedding.npy")
    content[info.header_offset + info.compress_size // 2] ^= 0xFF
    path.write_bytes(content)
    message = refused_file(path)
    assert "llm/embedder/input_embedding.npy is damaged" in message
    assert message.endswith("download it again")


@pytest.mark.parametrize("too_large", ["the scratch file", "the shard"])
def test_a_full_disk_is_an_error_and_leaves_nothing_behind(too_large: str, tmp_path) -> None:
    """A limit on the size of files takes the place of a full disk. A shard is larger by its header."""
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays())
    padded = sum(-(-math.prod(shape) * 4 // 64) * 64 for shape in hf_layout(CONFIG).shapes.values())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (padded - (too_large == "the scratch file"), hard))
    try:
        message = refused_file(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{tmp_path / 'new' / 'folder'} cannot be written: " in message
    assert "File too large" in message


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays())
    with pytest.raises(BadModel, match=r"nowhere\.model cannot be read: No such file"):
        convert(path, tmp_path / "folder", tmp_path / "nowhere.model")
    assert not (tmp_path / "folder").exists()


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(BadModel, match="is missing"):
        convert(tmp_path / "model.npz", tmp_path / "folder")


def test_a_folder_that_is_not_empty_is_refused_and_an_empty_one_is_filled(tmp_path) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    with pytest.raises(BadModel, match="not an empty folder"):
        convert(path, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    convert(path, tmp_path / "link")
    assert {each.name for each in (tmp_path / "empty").iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }
    assert npgemma.load(tmp_path / "empty").config == CONFIG


@pytest.mark.skipif(os.name == "nt", reason="Windows has no locks on folders")
def test_what_a_killed_conversion_has_left_is_removed(tmp_path) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays())
    killed = """
import os, signal, sys
from pathlib import Path
from npgemma.checkpoints.convert import whole_folder
with whole_folder(Path(sys.argv[1])) as unfinished:
    (unfinished / "model.safetensors").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "folder")])
    assert len([*(tmp_path / "folder").rglob("*")]) == 2
    convert(path, tmp_path / "folder")
    assert npgemma.load(tmp_path / "folder").config == CONFIG
    assert not [*(tmp_path / "folder").glob(".*")]


@MODELS
def test_the_config_follows_from_the_shapes(config, tmp_path) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays(config=config))
    assert infer_paligemma(read_members(path), path) == config


def test_a_converted_paligemma_2_states_window_and_caps(tmp_path) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", npz_checkpoints.arrays(config=npz_checkpoints.PALIGEMMA_2))
    convert(path, tmp_path / "folder")
    text = json.loads((tmp_path / "folder" / "config.json").read_text())["text_config"]
    stated = {"query_pre_attn_scalar": 144, "sliding_window": 4096}
    stated |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    assert text.items() >= stated.items()
    assert text["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
