"""Adapters under the names of `state_dict()`, in subfolders, with DoRA, rows of certain tokens and larger tables."""

import numpy as np
import pytest
import tiny
from adapters import HEAD, NORM, QUERY, TABLE, halves, merge, stored_tensors, updated, write_adapter

import npgemma
from npgemma.checkpoints.adapter import read_adapter
from npgemma.errors import BadModel
from npgemma.io.model_folder import find_adapter


@pytest.mark.parametrize("adapter", ["default", "mine", "v2_final"])
def test_names_of_a_state_dict_are_those_of_a_saved_adapter(adapter: str, tmp_path) -> None:
    """`state_dict()` names the adapter, and holds the model, too: before it was adapted, and what is not adapted."""
    lora = {QUERY: halves(QUERY, 2), TABLE.removesuffix(".weight"): halves(TABLE.removesuffix(".weight"), 2, seed=1)}
    saved = stored_tensors(lora, {NORM: np.ones(11, np.float32)})
    expected = merge(write_adapter(tmp_path / "saved", saved))
    named = {}
    for name, x in saved.items():
        if "lora_embedding" in name:
            name = f"{name}.{adapter}"
        elif "lora_" in name:
            name = name.replace(".weight", f".{adapter}.weight")
        elif name.endswith("layernorm.weight"):
            module = name.removesuffix(".weight")
            named[f"{module}.original_module.weight"] = np.zeros(11, np.float32)
            name = f"{module}.modules_to_save.{adapter}.weight"
        named[name] = x
    named[f"base_model.model.{QUERY}.base_layer.weight"] = tiny.random_tensors()[f"{QUERY}.weight"]
    found = merge(write_adapter(tmp_path / "state", named))
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, strict=True)


def test_a_file_with_two_adapters_is_refused(tmp_path) -> None:
    a, b = halves(QUERY, 2)
    tensors = {f"base_model.model.{QUERY}.lora_A.one.weight": a, f"base_model.model.{QUERY}.lora_B.two.weight": b}
    with pytest.raises(BadModel, match=r"contains several adapters: one, two; save one of them"):
        read_adapter(write_adapter(tmp_path, tensors))


@pytest.mark.parametrize("inside", ["second", "checkpoint-500"])
def test_the_only_adapter_in_a_subfolder_is_found(inside: str, tmp_path) -> None:
    write_adapter(tmp_path / inside, stored_tensors({QUERY: halves(QUERY, 2)}))
    assert find_adapter(tmp_path) == tmp_path / inside
    write_adapter(tmp_path / "other", stored_tensors({QUERY: halves(QUERY, 2)}))
    with pytest.raises(BadModel, match=rf"contains several adapters; .*{inside}, .*other|other, .*{inside}"):
        find_adapter(tmp_path)


def test_dora_scales_each_row_to_its_magnitude(tmp_path) -> None:
    (a, b), magnitude = halves(QUERY, 2), np.arange(1.0, 61).astype(np.float32)
    tensors = stored_tensors({QUERY: (a, b)}) | {f"base_model.model.{QUERY}.lora_magnitude_vector": magnitude}
    found = merge(write_adapter(tmp_path, tensors, use_dora=True), "float64")[f"{QUERY}.weight"]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), magnitude, rtol=1e-14)
    moved = updated(tiny.random_tensors()[f"{QUERY}.weight"], a, b, 4)
    np.testing.assert_allclose(found / found[:, :1], moved / moved[:, :1], rtol=1e-12)


def test_rows_of_tokens_are_replaced_and_a_tied_head_stays_tied(tmp_path) -> None:
    new = np.full((2, 11), 7, np.float32)
    name = f"base_model.model.{TABLE.removesuffix('.weight')}.token_adapter.trainable_tokens_delta"
    for tokens in ([3, 5], {"embed_tokens": [3, 5]}):
        folder = write_adapter(tmp_path, {name: new}, trainable_token_indices=tokens)
        found = merge(folder)
        assert HEAD not in found
        expected = tiny.random_tensors()[TABLE].copy()
        expected[[3, 5]] = 7
        np.testing.assert_array_equal(found[TABLE], expected, strict=True)


def test_a_table_with_more_tokens_grows_the_vocabulary(tmp_path) -> None:
    """As an adapter that was trained after resize_token_embeddings saves it; a tied head grows with it."""
    table = np.concatenate([tiny.random_tensors()[TABLE], np.ones((3, 11), np.float32)])
    folder = write_adapter(tmp_path / "adapter", stored_tensors({}, {TABLE: table}))
    model = npgemma.load(tiny.write_folder(tmp_path / "model"), adapter=folder)
    assert model.config.text.vocab_size == 64
    assert model.weights.text.head is None
    assert model.forward(np.array([2, 63, 61])).shape == (3, 64)
