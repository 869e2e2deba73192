"""Models with LoRA adapters: merged weights, memory, and the command line."""

import dataclasses
import json
import mmap
import shutil
from pathlib import Path

import hub
import numpy as np
import pytest
import tiny
from adapters import (
    HEAD,
    NORM,
    PICTURE,
    QUERY,
    TABLE,
    all_kinds,
    assert_rounded_once,
    expected_tensors,
    halves,
    merge,
    stored_tensors,
    updated,
    write_adapter,
)

import npgemma
from npgemma.checkpoints.adapter import read_adapter
from npgemma.checkpoints.merging import merged
from npgemma.checkpoints.paligemma import read_tensors
from npgemma.commands.cli import main
from npgemma.io.model_folder import EMBEDDED
from npgemma.layers.bits import pack
from npgemma.testing import draw_row

# ------------------------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A model, an adapter for it, and the model merged here, whose file is rounded to float32."""
    made = tmp_path_factory.mktemp("adapted")
    lora, replaced = all_kinds()
    lora = {module: (a * np.float32(0.1), b) for module, (a, b) in lora.items()}
    model = tiny.write_folder(made / "model")
    adapter = write_adapter(made / "adapter", stored_tensors(lora, replaced), lora_alpha=5)
    tensors = expected_tensors(lora, replaced, 5)
    merged_folder = tiny.write_folder(made / "merged")
    head = {"lm_head.weight": tensors.pop(HEAD)}
    tensors = head | {tiny.spell(name, "saved 5.x"): x for name, x in tensors.items()}
    tiny.save({name: x.astype(np.float32) for name, x in tensors.items()}, merged_folder / "model.safetensors")
    return model, adapter, merged_folder


def logits(model: npgemma.VisionLanguageModel) -> np.ndarray:
    row = draw_row(model.config)
    return model.forward(row.input_ids, row.pixel_values, row.token_type_ids)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_with_an_adapter_is_the_merged_model(dtype, resident, adapted):
    """The file of the merged model is rounded to float32; in float64 the two differ by that rounding."""
    model, adapter, merged_folder = adapted
    found = logits(npgemma.load(model, dtype, resident, adapter))
    expected = logits(npgemma.load(merged_folder, dtype, resident))
    assert np.abs(found - logits(npgemma.load(model, dtype))).max() > 0.1
    scale = float(np.abs(expected).max())
    # 100: about twelve roundings per layer. In float32 both models round the same sums.
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * 2.0**-24 * scale, strict=True)
    assert found.dtype == dtype


def test_resident_changes_no_number(adapted):
    model, adapter, _ = adapted
    for dtype in ("float32", "float64"):
        mapped, resident = (npgemma.load(model, dtype, each, adapter) for each in (False, True))
        np.testing.assert_allclose(logits(mapped), logits(resident), rtol=1e-6 if dtype == "float32" else 1e-13)
        q = [each.weights.text.blocks[1].attn.q for each in (mapped, resident)]
        np.testing.assert_array_equal(*q, strict=True)
        assert q[0].dtype == dtype


def test_unchanged_tensors_stay_mapped(adapted):
    model, adapter, _ = adapted
    found = npgemma.load(model, "float64", adapter=adapter).weights.text
    assert found.blocks[1].attn.q.dtype == np.float64
    assert found.blocks[0].attn.q.dtype == np.float32
    assert not found.blocks[0].attn.q.flags.writeable
    assert found.embedding.dtype == np.float64
    assert found.head.dtype == np.float32


def is_mapped(x: object) -> bool:
    """Whether an array is a view of a mapped file, directly or through other views."""
    while isinstance(x, np.ndarray):
        x = x.base
    return isinstance(x.obj if isinstance(x, memoryview) else x, mmap.mmap)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_tensor_of_an_adapter_stays_mapped(dtype, tmp_path):
    """The file of an adapter is not guarded: if it shrank while it is mapped, the process would crash."""
    lora, replaced = all_kinds()
    model = tiny.write_folder(tmp_path / "model")
    folder = write_adapter(tmp_path / "adapter", stored_tensors(lora, replaced))
    adapter = read_adapter(folder)
    found = merged(read_tensors(model, tiny.CONFIG), adapter, np.dtype(dtype))
    assert is_mapped(found["language_model.model.layers.0.self_attn.q_proj.weight"])
    assert [name for name in adapter.changed if is_mapped(found[name])] == []


def test_an_adapter_fits_a_model_in_one_file(adapted):
    model, adapter, _ = adapted
    found, expected = (logits(npgemma.load(each, adapter=adapter)) for each in (model / "model.safetensors", model))
    np.testing.assert_array_equal(found, expected, strict=True)


def test_an_adapter_in_the_hugging_face_cache_is_found(adapted, tmp_path, monkeypatch):
    model, adapter, _ = adapted
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    hub.download(tmp_path, "org/adapter", adapter, refs=["main", "v2"])
    expected = logits(npgemma.load(model, adapter=adapter))
    for name in ("org/adapter", "org/adapter@v2", f"org/adapter@{hub.COMMIT}"):
        np.testing.assert_array_equal(logits(npgemma.load(model, adapter=name)), expected, strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_position_table_is_merged_in_float64_and_rounded_once(dtype, tmp_path):
    module = "vision_tower.vision_model.embeddings.position_embedding"
    a, b = halves(module, 2)
    name = f"base_model.model.{tiny.spell(module, 'saved 5.x')}"
    tensors = {f"{name}.lora_embedding_A": b.T, f"{name}.lora_embedding_B": a.T}
    folder = write_adapter(tmp_path / "adapter", tensors)
    expected = updated(tiny.random_tensors()[f"{module}.weight"], a, b, 4)
    assert_rounded_once(merge(folder, "float64")[f"{module}.weight"], expected, "float64")
    model = npgemma.load(tiny.write_folder(tmp_path / "model"), dtype, adapter=folder)
    assert_rounded_once(model.weights.vision.embedding.position, expected, dtype)


# ------------------------------------------------------------------------------------------------------------- memory


def bytes_of(weights: object, seen: set[int]) -> int:
    """All arrays of a tree of dataclasses, each piece of memory once."""
    if isinstance(weights, np.ndarray):
        new = weights.ctypes.data not in seen
        seen.add(weights.ctypes.data)
        return weights.nbytes * new
    if isinstance(weights, tuple):
        return sum(bytes_of(each, seen) for each in weights)
    if dataclasses.is_dataclass(weights):
        return sum(bytes_of(getattr(weights, field.name), seen) for field in dataclasses.fields(weights))
    return 0


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("change", ["a matrix", "a vector", "the table", "the head"])
def test_the_memory_budget_counts_merged_tensors(change, dtype, resident, tmp_path):
    """All weights of the merged model, with an untied head as one more matrix.

    Vectors of a mapped model are float32 copies, which the budget does not count: 2 % of this model.
    """
    config = dataclasses.replace(tiny.CONFIG, text=dataclasses.replace(tiny.CONFIG.text, vocab_size=6100))
    model = tiny.write_folder(tmp_path / "model", config, dtype="bfloat16")
    a, b = np.ones((2, 11), np.float32), np.ones((6100, 2), np.float32)
    tensors = {
        "a matrix": stored_tensors({QUERY: halves(QUERY, 2)}),
        "a vector": stored_tensors({}, {NORM: np.ones(11, np.float32)}),
        "the table": stored_tensors({TABLE.removesuffix(".weight"): (a, b)}),
        "the head": {"base_model.model.lm_head.lora_A.weight": a, "base_model.model.lm_head.lora_B.weight": b},
    }[change]
    found = npgemma.load(model, dtype, resident, write_adapter(tmp_path / "adapter", tensors))
    actual = bytes_of(found.weights, set())
    assert actual * 0.95 <= found.guard.budget.weights <= actual * 1.05


# ---------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def loud(tmp_path_factory) -> Path:
    """An adapter that changes the answers of the embedded model."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 128), (512, 4)))
    tensors = stored_tensors({f"language_model.model.layers.{i}.mlp.up_proj": (a, b) for i in range(4)})
    return write_adapter(tmp_path_factory.mktemp("loud"), tensors, lora_alpha=2)


def test_the_command_line_answers_as_the_library(loud, capsys):
    plain = npgemma.load().generate(PICTURE, "caption en", max_new_tokens=6)
    expected = npgemma.load(adapter=loud).generate(PICTURE, "caption en", max_new_tokens=6)
    assert expected.token_ids != plain.token_ids
    flags = ["--max-new-tokens", "6", "--format", "json"]
    for command in (["generate", str(PICTURE), "caption en"], ["caption", str(PICTURE)]):
        assert main([*command, "--adapter", str(loud), *flags]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "model": "embedded",
            "prompt": "caption en",
        } | dataclasses.asdict(expected)
        assert main([*command, *flags]) == 0
        assert json.loads(capsys.readouterr().out)["token_ids"] == plain.token_ids


def test_other_commands_take_an_adapter_too(loud, capsys):
    assert main(["score", str(PICTURE), "ocr", "a", "--adapter", str(loud), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["logprobs"]
    assert found == npgemma.load(adapter=loud).score(PICTURE, "ocr", "a").logprobs
    assert found != npgemma.load().score(PICTURE, "ocr", "a").logprobs


def refused(capsys, *arguments: object) -> str:
    assert main(["ocr", str(PICTURE), *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("npgemma: ")
    assert err.count("\n") == 1
    return err


def test_refusals_are_one_sentence(loud, tmp_path, capsys):
    assert "is a LoRA adapter, not a model; load the model that it was trained on" in refused(capsys, "-m", loud)
    assert f"adapter {tmp_path / 'gone'} was not found: there is no such folder" in refused(
        capsys, "--adapter", tmp_path / "gone"
    )
    assert "adapter_config.json is missing" in refused(capsys, "--adapter", EMBEDDED)
    model = hub.write_model(tmp_path / "model")
    error = refused(capsys, "--adapter", loud, "-m", model)
    assert "layers.0.mlp.up_proj.weight has shape (23, 11), the adapter changes one of (512, 128)" in error
    damaged = Path(shutil.copytree(loud, tmp_path / "damaged"))
    (damaged / "adapter_config.json").write_text("{")
    assert "adapter_config.json cannot be read as JSON" in refused(capsys, "--adapter", damaged)


def test_an_adapter_that_is_not_finite_is_one_sentence(loud, tmp_path, capsys):
    """NaN logits give an error, not an empty answer or a warning."""
    damaged = Path(shutil.copytree(loud, tmp_path / "damaged"))
    a, b = np.full((4, 128), np.nan, np.float32), np.ones((512, 4), np.float32)
    tiny.save(
        stored_tensors({"language_model.model.layers.0.mlp.up_proj": (a, b)}), damaged / "adapter_model.safetensors"
    )
    assert "not finite" in refused(capsys, "--adapter", damaged)


def test_adapters_are_stored_on_the_bfloat16_grid():
    """`tiny.save` rounds to bfloat16, which must not change the values of the tests above."""
    x = np.array([0.0625, -3.0, 2.9375], np.float32)
    assert pack(x).tolist() == [0x3D80, 0xC040, 0x403C]
