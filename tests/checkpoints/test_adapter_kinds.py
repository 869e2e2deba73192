"""What else adapters of PEFT hold: DoRA, rows of tokens, resized tables, modules saved whole; and where they lie."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from adapters import (
    HEAD,
    QUERY,
    TABLE,
    UP,
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
from npgemma.errors import BadModel

TABLE_MODULE = TABLE.removesuffix(".weight")
PATCHES = "vision_tower.vision_model.embeddings.patch_embedding"
REDOS = Path(__file__).parents[3] / "shared" / "hostile" / "redos"
BASE = tiny.random_tensors()


def stored(module: str, spelling: str = "saved 5.x") -> str:
    return f"base_model.model.{tiny.spell(module, spelling)}"


def noise(*shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------- DoRA


def test_dora_by_hand(tmp_path):
    """W = [[1 0] [0 2]], B A = [[2 4] [0 0]], alpha = r: rows [3 4] and [0 2] of norms 5 and 2; m = [10 7]."""
    module = "language_model.model.layers.0.self_attn.q_proj"
    tensors = stored_tensors({module: (np.array([[1, 2]], np.float32), np.array([[2], [0]], np.float32))})
    tensors[f"{stored(module)}.lora_magnitude_vector"] = np.array([10, 7], np.float32)
    folder = write_adapter(tmp_path, tensors, lora_alpha=1, use_dora=True)
    found = merge(folder, "float32", {f"{module}.weight": np.array([[1, 0], [0, 2]], np.float32)})
    expected = np.array([[6, 8], [0, 7]], np.float32)
    np.testing.assert_allclose(found[f"{module}.weight"], expected, rtol=2.0**-23, strict=True)


@pytest.mark.parametrize("end", ["", ".weight", ".default", ".default.weight"])
@pytest.mark.parametrize(("module", "axis"), [(QUERY, 1), (UP, 1), (TABLE_MODULE, 0)])
def test_dora_scales_each_row_of_a_matrix_and_each_column_of_a_table(module, axis, end, tmp_path):
    a, b = halves(module, 3)
    total = updated(BASE[f"{module}.weight"], a, b, 8 / 3)
    magnitude = np.abs(noise(total.shape[1 - axis]))
    tensors = stored_tensors({module: (a, b)}) | {f"{stored(module)}.lora_magnitude_vector{end}": magnitude}
    norm = np.sqrt((total**2).sum(axis, keepdims=True))
    expected = np.expand_dims(magnitude, axis).astype(np.float64) * total / norm
    found = merge(write_adapter(tmp_path, tensors, use_dora=True), "float64")[f"{module}.weight"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * 2.0**-52, strict=True)


def test_dora_of_a_large_matrix_is_merged_in_blocks(tmp_path):
    """The norms of the columns of a table add up over its blocks."""
    w, a, b, m = noise(3001, 300), noise(2, 300, seed=1), noise(3001, 2, seed=2), noise(300, seed=3)
    tensors = stored_tensors({TABLE_MODULE: (a, b)}) | {f"{stored(TABLE_MODULE)}.lora_magnitude_vector": m}
    total = np.einsum("or,ri->oi", b, a, dtype=np.float64) + w
    found = merge(write_adapter(tmp_path, tensors, lora_alpha=2, use_dora=True), "float64", {TABLE: w})[TABLE]
    expected = m * total / np.sqrt(np.einsum("oi,oi->i", total, total))
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * 2.0**-52, strict=True)


# ------------------------------------------------------------------------------------ convolution, biases, parameters


def test_an_update_of_the_patch_convolution(tmp_path):
    a, b = noise(2, 3, 7, 7), noise(12, 2, 1, 1, seed=6)
    tensors = {f"{stored(PATCHES)}.lora_A.weight": a, f"{stored(PATCHES)}.lora_B.weight": b}
    w = BASE[f"{PATCHES}.weight"]
    expected = updated(w.reshape(12, -1), a.reshape(2, -1), b.reshape(12, 2), 4).reshape(w.shape)
    assert_rounded_once(merge(write_adapter(tmp_path, tensors))[f"{PATCHES}.weight"], expected, "float32")


@pytest.mark.parametrize("name", ["lora_B.bias", "lora_B.default.bias"])
def test_a_bias_of_b_is_scaled_and_added(name, tmp_path):
    a, b = halves(UP, 2)
    shift = noise(17)
    folder = write_adapter(tmp_path, stored_tensors({UP: (a, b)}) | {f"{stored(UP)}.{name}": shift}, lora_bias=True)
    found = merge(folder, "float64")
    expected = BASE[f"{UP}.bias"].astype(np.float64) + 4 * shift.astype(np.float64)
    assert_rounded_once(found[f"{UP}.bias"], expected, "float64")
    assert_rounded_once(found[f"{UP}.weight"], updated(BASE[f"{UP}.weight"], a, b, 4), "float64")


@pytest.mark.parametrize(("pattern", "alpha"), [("q_proj", 8), ("q_proj.weight", 3), (r".*q_proj\.weight", 3)])
def test_alpha_pattern_calls_a_target_parameter_by_its_own_name(pattern, alpha, tmp_path):
    options = {"target_parameters": ["q_proj.weight"], "alpha_pattern": {pattern: 3}}
    folder = write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 2)}), **options)
    assert read_adapter(folder).added[f"{QUERY}.weight"].scale == alpha / 2


def test_an_expression_of_exponential_time_is_refused_at_once(tmp_path):
    start = time.process_time()
    folder = REDOS
    if not REDOS.exists():
        folder = write_adapter(
            tmp_path, stored_tensors({"a" * 30: (noise(2, 3), noise(3, 2))}), alpha_pattern={"a?" * 30 + "a" * 30: 8}
        )
    with pytest.raises(BadModel, match="alpha_pattern: npgemma cannot use the expression"):
        read_adapter(folder)
    assert time.process_time() - start < 5


# ------------------------------------------------------------------------------------------------- rows, larger tables

ROWS = noise(2, 11)
DELTA = {f"{stored(TABLE_MODULE)}.token_adapter.trainable_tokens_delta": ROWS}


@pytest.mark.parametrize("ids", [[3, 5], {"embed_tokens": [3, 5]}, {"model.embed_tokens": [3, 5], "lm_head": [3, 5]}])
@pytest.mark.parametrize("extra", [{}, {QUERY: 2}], ids=["alone", "with an update"])
def test_rows_of_tokens_change_table_and_tied_head(ids, extra, tmp_path):
    """In PEFT, too, the head stays tied."""
    tensors = DELTA | stored_tensors({module: halves(module, rank) for module, rank in extra.items()})
    found = merge(write_adapter(tmp_path, tensors, trainable_token_indices=ids))
    expected = BASE[TABLE].copy()
    expected[[3, 5]] = ROWS
    np.testing.assert_array_equal(found[TABLE], expected, strict=True)
    assert HEAD not in found


def test_table_and_head_may_have_rows_of_their_own(tmp_path):
    head_rows = noise(3, 11, seed=8)
    tensors = DELTA | {"base_model.model.lm_head.token_adapter.trainable_tokens_delta": head_rows}
    ids = {"embed_tokens": [3, 5], "lm_head": [60, 0, 7]}
    found = merge(write_adapter(tmp_path, tensors, trainable_token_indices=ids))
    table, head = BASE[TABLE].copy(), BASE[TABLE].copy()
    table[[3, 5]], head[[60, 0, 7]] = ROWS, head_rows
    np.testing.assert_array_equal(found[TABLE], table, strict=True)
    np.testing.assert_array_equal(found[HEAD], head, strict=True)


def test_rows_of_the_table_leave_an_untied_head(tmp_path):
    config = dataclasses.replace(tiny.CONFIG, tied=False)
    tensors = tiny.random_tensors(config)
    found = merge(write_adapter(tmp_path, DELTA, trainable_token_indices=[3, 5]), tensors=tensors)
    np.testing.assert_array_equal(found[TABLE][[3, 5]], ROWS, strict=True)
    assert found[HEAD] is tensors[HEAD]


def logits(model: npgemma.VisionLanguageModel) -> np.ndarray:
    ids = np.array([57] * 25 + [2, 9, 8])
    return model.forward(ids, noise(1, 3, 35, 35), np.zeros(28, int))


@pytest.mark.parametrize("rows", [66, 40])
@pytest.mark.parametrize("stored_names", [(TABLE, HEAD), (TABLE,), (HEAD,)], ids=["both", "the table", "the head"])
def test_a_table_of_another_size_beside_the_adapter_takes_the_models_place(stored_names, rows, tmp_path):
    """As save_embedding_layers saves it after resize_token_embeddings; the config's vocabulary becomes its own."""
    new, (a, b) = noise(rows, 11), halves(QUERY, 2)
    tensors = stored_tensors({QUERY: (a, b)}) | {f"base_model.model.{name}": new for name in stored_names}
    folder = write_adapter(tmp_path / "adapter", tensors)
    model = npgemma.load(tiny.write_folder(tmp_path / "model"), "float64", adapter=folder)
    assert model.config.text.vocab_size == rows
    assert model.weights.text.head is None
    np.testing.assert_array_equal(model.weights.text.embedding, new, strict=True)
    assert logits(model).shape == (28, rows)


def test_new_tokens_may_come_as_rows_alone(tmp_path):
    folder = write_adapter(tmp_path / "adapter", DELTA, trainable_token_indices=[62, 61])
    model = npgemma.load(tiny.write_folder(tmp_path / "model", dtype="bfloat16"), adapter=folder)
    np.testing.assert_array_equal(model.weights.text.embedding[:61], BASE[TABLE], strict=True)
    np.testing.assert_array_equal(model.weights.text.embedding[61:], ROWS[::-1], strict=True)
    assert logits(model).shape == (28, 63)


def test_an_update_of_a_larger_table(tmp_path):
    """The table is saved as base_layer, since it is a target; a tied head follows it, without the update."""
    new, a, b = noise(66, 11), noise(2, 11, seed=6), noise(66, 2, seed=7)
    tensors = stored_tensors({TABLE_MODULE: (a, b)}) | {f"{stored(TABLE_MODULE)}.base_layer.weight": new}
    found = merge(write_adapter(tmp_path, tensors), "float64")
    assert_rounded_once(found[TABLE], updated(new, a, b, 4), "float64")
    np.testing.assert_array_equal(found[HEAD], new, strict=True)


# ----------------------------------------------------------------------------------------------- names of a state_dict


@pytest.mark.parametrize("adapter", ["default", "my_adapter", "2"])
@pytest.mark.parametrize("prefix", ["base_model.model.", "module.base_model.model.", "_orig_mod.base_model.model.", ""])
@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
def test_names_of_a_state_dict_give_the_same_adapter(spelling, prefix, adapter, tmp_path):
    """model.state_dict() has the name of the adapter in each name, and modules as they were before training."""
    lora, replaced = all_kinds()
    tensors = {}
    for name, x in stored_tensors(lora, spelling=spelling).items():
        left, _, end = name.partition(".weight")
        tensors[f"{left}.{adapter}{'.weight' if 'embedding' not in name else end}"] = x
    for name, x in replaced.items():
        module, _, end = stored(name, spelling).rpartition(".")
        tensors |= {f"{module}.modules_to_save.{adapter}.{end}": x, f"{module}.original_module.{end}": noise(4)}
    tensors[f"{stored(QUERY, spelling)}.base_layer.weight"] = BASE[f"{QUERY}.weight"]
    tensors = {prefix + name.removeprefix("base_model.model."): x for name, x in tensors.items()}
    found, expected = merge(write_adapter(tmp_path, tensors, lora_alpha=5)), expected_tensors(lora, replaced, 5)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert_rounded_once(found[name], x.astype(np.float64), "float32")


def test_a_module_of_several_layers_may_be_saved_whole(tmp_path):
    """The projector is one, with its linear layer inside."""
    new = noise(11, 12)
    tensors = {f"{stored('multi_modal_projector')}.modules_to_save.default.linear.weight": new}
    found = merge(write_adapter(tmp_path, tensors))
    np.testing.assert_array_equal(found["multi_modal_projector.linear.weight"], new, strict=True)


OLD_NAMES = ["{}", "model.{}", "base_model.model.{}", "base_model.model.model.{}", "base_model.model.model.model.{}"]


@pytest.mark.parametrize("prefix", OLD_NAMES)
@pytest.mark.parametrize("text", ["language_model.model.", "language_model."])
@pytest.mark.parametrize("vision", ["vision_tower.vision_model.", "vision_tower."])
def test_adapters_of_every_release_load(prefix, text, vision, tmp_path):
    lora, replaced = all_kinds()
    tensors = {}
    for name, x in stored_tensors(lora, replaced).items():
        name = name.removeprefix("base_model.model.").replace("language_model.model.", text)
        tensors[prefix.format(name.replace("vision_tower.vision_model.", vision))] = x
    found = read_adapter(write_adapter(tmp_path, tensors))
    assert found.changed == {*(f"{module}.weight" for module in lora), *replaced}


# -------------------------------------------------------------------------------------------------- where adapters are


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """A model, an adapter, and the answer of the two."""
    folder = tmp_path_factory.mktemp("placed")
    lora, replaced = all_kinds()
    model, adapter = tiny.write_folder(folder / "model"), write_adapter(folder / "a", stored_tensors(lora, replaced))
    return model, adapter, logits(npgemma.load(model, adapter=adapter))


@pytest.mark.parametrize("inside", ["", "default", "checkpoint-500", "checkpoint-500/default"])
def test_the_only_adapter_in_a_folder_is_found(inside, placed, tmp_path):
    """PEFT saves a named adapter in a folder of its own, the Trainer saves checkpoints in theirs."""
    model, adapter, expected = placed
    shutil.copytree(adapter, tmp_path / "run" / inside)
    (tmp_path / "run" / "logs").mkdir()
    np.testing.assert_array_equal(logits(npgemma.load(model, adapter=tmp_path / "run")), expected, strict=True)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_of_an_adapter_stands_for_its_folder(file, placed):
    model, adapter, expected = placed
    np.testing.assert_array_equal(logits(npgemma.load(model, adapter=adapter / file)), expected, strict=True)


def test_an_adapter_beside_its_checkpoints_is_the_one(placed, tmp_path):
    model, adapter, expected = placed
    shutil.copytree(adapter, tmp_path / "run")
    write_adapter(tmp_path / "run" / "checkpoint-5", {})
    np.testing.assert_array_equal(logits(npgemma.load(model, adapter=tmp_path / "run")), expected, strict=True)


def test_of_several_adapters_the_user_chooses(placed, tmp_path):
    model, adapter, expected = placed
    for name in ("checkpoint-10", "checkpoint-20"):
        shutil.copytree(adapter, tmp_path / name)
    message = r"contains 2 adapters: checkpoint-10, checkpoint-20; give the path of one, such as \S+checkpoint-20"
    with pytest.raises(BadModel, match=message):
        npgemma.load(model, adapter=tmp_path)
    found = npgemma.load(model, adapter=tmp_path / "checkpoint-10")
    np.testing.assert_array_equal(logits(found), expected, strict=True)


def test_the_config_of_an_adapter_may_name_another_base_model(placed, tmp_path):
    """The path where it was trained, or a quantised copy; only the shapes must fit."""
    model, adapter, expected = placed
    shutil.copytree(adapter, tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    config = {"base_model_name_or_path": "/content/paligemma-4bit", "revision": "float16", "peft_version": "0.9.0"}
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    np.testing.assert_array_equal(logits(npgemma.load(model, adapter=tmp_path / "a")), expected, strict=True)
