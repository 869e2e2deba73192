"""Tensors as programs and people store them: tied heads, wrapped models, unused tensors, other orders of axes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny

from npgemma.checkpoints.paligemma import read_tensors
from npgemma.errors import BadModel
from npgemma.testing import config_json

TABLE, HEAD = "language_model.model.embed_tokens.weight", "lm_head.weight"
TENSORS = tiny.random_tensors()
OTHER = TENSORS[TABLE][::-1] + 1
PATCHES = "vision_tower.embeddings.patch_embedding.weight"


def write(folder: Path, tensors: dict[str, np.ndarray], tied: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(dataclasses.replace(tiny.CONFIG, tied=tied))))
    stored = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    safetensors.numpy.save_file(stored, folder / "model.safetensors")
    return folder


# Which tensors are stored, whether the config ties them, and the table and the head that transformers 5.24 then uses:
# T is the table, H the head as stored, None an error (transformers makes up random numbers).
TIED = [
    ({TABLE: TENSORS[TABLE]}, True, "TT"),
    ({HEAD: OTHER}, True, "HH"),
    ({TABLE: TENSORS[TABLE], HEAD: TENSORS[TABLE]}, True, "TT"),
    ({TABLE: TENSORS[TABLE], HEAD: OTHER}, True, "TH"),
    ({}, True, None),
    ({TABLE: TENSORS[TABLE]}, False, None),
    ({HEAD: OTHER}, False, None),
    ({TABLE: TENSORS[TABLE], HEAD: TENSORS[TABLE]}, False, "TT"),
    ({TABLE: TENSORS[TABLE], HEAD: OTHER}, False, "TH"),
    ({}, False, None),
]


@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
@pytest.mark.parametrize(("stored", "tied", "used"), TIED)
def test_a_tied_head_is_one_tensor_under_either_name(stored, tied, used, spelling, tmp_path) -> None:
    rest = {name: x for name, x in TENSORS.items() if name not in (TABLE, HEAD)}
    names = {tiny.spell(name, spelling): x for name, x in rest.items()}
    heads = {"hub": "language_model.lm_head.weight"}
    names |= {
        heads.get(spelling, HEAD) if name == HEAD else tiny.spell(name, spelling): x for name, x in stored.items()
    }
    config = dataclasses.replace(tiny.CONFIG, tied=tied)
    write(tmp_path, names, tied)
    if used is None:
        with pytest.raises(BadModel, match=r"missing     (lm_head|language_model\.model\.embed_tokens)\.weight"):
            read_tensors(tmp_path, config)
        return
    p = tiny.weights(tmp_path, config)
    table, head = (stored[{"T": TABLE, "H": HEAD}[letter]] for letter in used)
    np.testing.assert_array_equal(p.text.embedding, table, strict=True)
    np.testing.assert_array_equal(p.text.embedding if p.text.head is None else p.text.head, head, strict=True)


WRAPPED = {
    "torch.compile": "_orig_mod.{}",
    "DataParallel": "module.{}",
    "both": "module._orig_mod.{}",
    "PEFT, after merging": "base_model.model.{}",
    "Lightning": "state_dict.model.{}",
    "an attribute of a training program": "net.paligemma.{}",
    "FSDP": "_fsdp_wrapped_module.{}",
}


@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
@pytest.mark.parametrize("pattern", WRAPPED.values(), ids=WRAPPED)
def test_a_prefix_of_all_names_is_dropped(pattern: str, spelling: str, tmp_path: Path) -> None:
    write(tmp_path, {pattern.format(tiny.spell(name, spelling)): x for name, x in TENSORS.items()})
    found = read_tensors(tmp_path, tiny.CONFIG)
    assert found.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        np.testing.assert_array_equal(found[name], x, strict=True)


@pytest.mark.parametrize("level", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
@pytest.mark.parametrize("inside", ["language_model.", "vision_tower.", "language_model.model.layers.1."])
def test_a_level_inside_names_is_dropped(level: str, inside: str, tmp_path: Path) -> None:
    """As torch.compile leaves it where only a part of a model was compiled."""
    write(tmp_path, {name.replace(inside, inside + level): x for name, x in TENSORS.items()})
    assert read_tensors(tmp_path, tiny.CONFIG).keys() == TENSORS.keys()


@pytest.mark.parametrize(
    "name", ["q_proj.lora_A.default.weight", "q_proj.base_layer.weight", "q_proj.lora_magnitude_vector.default.weight"]
)
def test_a_model_with_an_adapter_that_is_not_merged_is_refused(name: str, tmp_path: Path) -> None:
    extra = {f"base_model.model.language_model.model.layers.0.self_attn.{name}": np.ones((2, 2), np.float32)}
    write(tmp_path, {f"base_model.model.{each}": x for each, x in TENSORS.items()} | extra)
    with pytest.raises(BadModel, match=r"holds a LoRA adapter inside the model .*merge_and_unload"):
        read_tensors(tmp_path, tiny.CONFIG)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool", "float64", "int8", "uint32"])
@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.vision_model.embeddings.position_ids",
        "vision_tower.embeddings.position_ids",
        "language_model.model.rotary_emb.inv_freq",
        "model.language_model.rotary_emb.original_inv_freq",
        "language_model.model.layers.0.self_attn.masked_bias",
        "vision_tower.head.probe",
        "module.vision_tower.vision_model.head.mlp.fc1.bias",
    ],
)
def test_unused_tensors_may_have_any_dtype(name: str, dtype: str, tmp_path: Path) -> None:
    write(tmp_path, TENSORS | {name: np.ones((1, 25), dtype)})
    assert read_tensors(tmp_path, tiny.CONFIG).keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("dtype", "hint"), [("float64", "save it in one of these"), ("int8", "use the model that is not quantised")]
)
def test_a_used_tensor_of_another_dtype_is_refused_with_what_to_do(dtype: str, hint: str, tmp_path: Path) -> None:
    write(tmp_path, TENSORS | {TABLE: TENSORS[TABLE].astype(dtype)})
    with pytest.raises(BadModel, match=rf"tensor '{TABLE}' is stored as .*: {hint}$"):
        read_tensors(tmp_path, tiny.CONFIG)


def test_a_kernel_with_channels_last_is_read_as_mlx_stores_it(tmp_path: Path) -> None:
    write(tmp_path, TENSORS | {PATCHES: TENSORS[PATCHES].transpose(0, 2, 3, 1)})
    np.testing.assert_array_equal(read_tensors(tmp_path, tiny.CONFIG)[PATCHES], TENSORS[PATCHES], strict=True)


def test_an_error_lists_ten_tensors_and_counts_the_others(tmp_path: Path) -> None:
    write(tmp_path, {name: x for name, x in TENSORS.items() if "layers" not in name} | {"more.x": TENSORS[TABLE]})
    with pytest.raises(BadModel) as error:
        read_tensors(tmp_path, tiny.CONFIG)
    lines = str(error.value).splitlines()
    assert len(lines) == 12
    missing = sum("layers" in name for name in TENSORS)
    assert lines[0].endswith(f"({missing} missing, 1 unexpected, 0 mis-shaped)")
    assert lines[-1] == f"  and {missing + 1 - 10} more"
