"""The names of a checkpoint's tensors: spellings, wrappers, one matrix under two names, tensors that are not used."""

import dataclasses

import numpy as np
import pytest
import safetensors
import tiny

import npgemma
from npgemma.checkpoints.names import language_model_name, paligemma_name
from npgemma.checkpoints.paligemma import hf_layout, layout_of, read_config, read_tensors
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED
from npgemma.layers.tree import leaves

TABLE = "language_model.model.embed_tokens.weight"
HEAD = "lm_head.weight"
NUMPY = {"float8_e4m3fn": "u1", "bfloat16": "u2", "bool": "?"}


def write(folder, tensors, others=None, dtype="float32", metadata=None, config=tiny.CONFIG):
    """A model folder whose file has exactly these tensors; `others` have another dtype."""
    tiny.write_folder(folder, config)
    arrays = {name: (dtype, np.ascontiguousarray(x, dtype)) for name, x in tensors.items()}
    for name, its_dtype in (others or {}).items():
        shape = arrays[name][1].shape if name in arrays else (2, 3)
        arrays[name] = its_dtype, np.ones(shape, NUMPY.get(its_dtype, its_dtype))
    specs = {
        name: safetensors.TensorSpec(dtype=each, shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes)
        for name, (each, x) in arrays.items()
    }
    (folder / "model.safetensors").write_bytes(safetensors.serialize(specs, metadata))
    return folder


def spelled(spelling="saved 5.x", tensors=None):
    return {tiny.spell(name, spelling): x for name, x in (tensors or tiny.random_tensors()).items()}


def assert_read(folder, config=tiny.CONFIG, expected=None):
    """The tensors of a folder are those of the small model, by the names that transformers saves."""
    expected = expected or tiny.random_tensors(config)
    found = read_tensors(folder, config)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name, strict=True)


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("stored", "saved"),
    [
        ("language_model.model.layers.7.mlp.up_proj.weight", "language_model.model.layers.7.mlp.up_proj.weight"),
        ("model.language_model.layers.7.mlp.up_proj.weight", "language_model.model.layers.7.mlp.up_proj.weight"),
        ("language_model.model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
        ("model.language_model.embed_tokens.weight", "language_model.model.embed_tokens.weight"),
        ("language_model.model.norm.weight", "language_model.model.norm.weight"),
        ("model.language_model.norm.weight", "language_model.model.norm.weight"),
        (
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
        ),
        (
            "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
            "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
        ),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.bias", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias"),
        ("vision_tower.encoder.layers.0.mlp.fc1.bias", "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias"),
        ("vision_tower.post_layernorm.weight", "vision_tower.vision_model.post_layernorm.weight"),
        ("multi_modal_projector.linear.bias", "multi_modal_projector.linear.bias"),
        ("model.multi_modal_projector.linear.bias", "multi_modal_projector.linear.bias"),
        ("lm_head.weight", "lm_head.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.lm_head.weight", "lm_head.weight"),
    ],
)
def test_saved_name_of_every_spelling(stored, saved):
    assert paligemma_name(stored) == saved


@pytest.mark.parametrize(
    ("stored", "saved"),
    [
        ("model.layers.7.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight"),
        ("layers.7.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight"),
        ("language_model.model.layers.7.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight"),
        ("model.language_model.layers.7.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight"),
        ("_orig_mod.model.layers.7._checkpoint_wrapped_module.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight"),
        ("base_model.model.model.layers.7.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight"),
        ("state_dict.model.norm.weight", "model.norm.weight"),
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.post_layernorm.bias", "model.vision_tower.vision_model.post_layernorm.bias"),
        ("model.vision_tower.vision_model.post_layernorm.bias", "model.vision_tower.vision_model.post_layernorm.bias"),
        ("model", "model.model"),
    ],
)
def test_saved_name_in_a_language_model(stored, saved):
    assert language_model_name(stored) == saved


@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
def test_no_spelling_gives_two_tensors_one_name(spelling):
    names = hf_layout(tiny.CONFIG).shapes
    assert {paligemma_name(tiny.spell(name, spelling)) for name in names} == names.keys()


def test_a_tensor_in_two_spellings_is_refused_with_both(tmp_path):
    """npgemma would have to guess which of the two belongs to the model."""
    tensors = {tiny.spell(name, "saved 5.x"): x for name, x in tiny.random_tensors().items()}
    tensors["model.vision_tower.vision_model.post_layernorm.bias"] = tensors["vision_tower.post_layernorm.bias"]
    tiny.write_folder(tmp_path)
    tiny.save(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BadModel) as error:
        read_tensors(tmp_path, tiny.CONFIG)
    for name in ("model.vision_tower.vision_model.post_layernorm.bias", "vision_tower.post_layernorm.bias"):
        assert repr(name) in str(error.value)
    assert "two spellings of the same tensor" in str(error.value)


# ------------------------------------------------------------------------------------------------------------ wrappers

WRAPPED = {
    "torch.compile": "_orig_mod.{}",
    "DataParallel": "module.{}",
    "FSDP": "_fsdp_wrapped_module.{}",
    "PEFT, merged": "base_model.model.{}",
    "Lightning": "model.{}",
    "a Lightning checkpoint": "state_dict.model.{}",
    "compiled, parallel": "module._orig_mod.{}",
    "parallel in Lightning, compiled": "model._orig_mod.module.{}",
    "an attribute": "paligemma.{}",
    "attributes": "policy.net.model.{}",
    "an attribute, compiled": "vlm._orig_mod.{}",
}


@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
@pytest.mark.parametrize("wrapper", WRAPPED.values(), ids=WRAPPED)
def test_what_stands_before_all_names_is_left_out(wrapper, spelling, tmp_path):
    """With an untied head, whose name does not begin like the others."""
    config = dataclasses.replace(tiny.CONFIG, tied=False)
    tensors = tiny.random_tensors(config)
    stored = {wrapper.format(name): x for name, x in spelled(spelling, tensors).items()}
    assert_read(write(tmp_path, stored, config=config), config, tensors)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
@pytest.mark.parametrize(
    "where",
    ["vision_tower.", "multi_modal_projector.", "language_model.", "language_model.model.", ".layers.1.", ".mlp."],
)
def test_a_part_of_the_model_may_be_wrapped(wrapper, where, tmp_path):
    stored = {name.replace(where, f"{where}{wrapper}."): x for name, x in spelled().items()}
    assert stored.keys() != spelled().keys()
    assert_read(write(tmp_path, stored))


def test_all_but_the_head_may_be_wrapped_within_a_prefix(tmp_path):
    """A model whose inner model is compiled, as an attribute of another."""
    config = dataclasses.replace(tiny.CONFIG, tied=False)
    tensors = tiny.random_tensors(config)
    stored = {
        f"vlm.{name}" if name == HEAD else f"vlm.model._orig_mod.{name.removeprefix('model.')}": x
        for name, x in spelled("memory 5.6", tensors).items()
    }
    stored["vlm.lm_head.weight"] = stored.pop("vlm.model._orig_mod.lm_head.weight")
    assert_read(write(tmp_path, stored, config=config), config, tensors)


def test_a_prefix_that_some_names_lack_is_not_left_out(tmp_path):
    stored = {f"student.{name}" if "layers.0" not in name else name: x for name, x in spelled().items()}
    with pytest.raises(BadModel, match=r"the tensors do not fit config\.json \(\d+ missing, \d+ unexpected"):
        read_tensors(write(tmp_path, stored), tiny.CONFIG)


def test_a_file_with_two_models_is_refused(tmp_path):
    """Such as a model and the average of its weights."""
    stored = {f"{prefix}{name}": x for name, x in spelled().items() for prefix in ("model.", "ema.")}
    with pytest.raises(BadModel, match=r"0 missing, \d+ unexpected(.|\n)*unexpected  ema\."):
        read_tensors(write(tmp_path, stored), tiny.CONFIG)


LEFT = [
    "language_model.model.layers.0.self_attn.q_proj.base_layer.weight",
    "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight",
    "model.language_model.embed_tokens.lora_embedding_B.default",
    "lm_head.modules_to_save.default.weight",
    "lm_head.original_module.weight",
]


@pytest.mark.parametrize("name", LEFT)
def test_a_model_whose_adapter_is_not_merged_is_refused(name, tmp_path):
    folder = write(tmp_path, spelled(), {name: "float32"})
    with pytest.raises(BadModel, match=rf"adapter is not merged \(tensor '{name}'\); save the result of merge_and_"):
        read_tensors(folder, tiny.CONFIG)


# ------------------------------------------------------------------------------------------------------ unused tensors

UNUSED = [
    "vision_tower.vision_model.head.probe",
    "vision_tower.head.attention.in_proj_weight",
    "model.vision_tower.vision_model.head.mlp.fc1.weight",
    "vision_tower.vision_model.embeddings.position_ids",
    "model.vision_tower.embeddings.position_ids",
    "position_ids",
    "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.language_model.rotary_emb.inv_freq",
    "model.language_model.rotary_emb.original_inv_freq",
    "language_model.model.layers.1.self_attn.rotary_emb.cos_cached",
    "language_model.model.causal_mask",
    "language_model.model.layers.1.self_attn.masked_bias",
    "language_model.model.layers.1.self_attn.bias",
    "language_model.model.layers.1.self_attn._extra_state",
    "vision_tower.vision_model.norm.num_batches_tracked",
    "language_model.model.layers.1.self_attn.k_scale",
]
DTYPES = ["float32", "float64", "bfloat16", "int64", "int32", "uint16", "uint8", "bool", "float8_e4m3fn"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_unused_tensors_are_left_out_whatever_their_dtype(dtype, tmp_path):
    """Some conversions include a pooling head or buffers, which PaliGemma does not use."""
    assert_read(write(tmp_path, spelled("hub"), dict.fromkeys(UNUSED, dtype)))


@pytest.mark.parametrize("name", UNUSED)
def test_each_unused_tensor_is_left_out_within_a_wrapper(name, tmp_path):
    stored = {f"_orig_mod.{stored}": x for stored, x in spelled("hub").items()}
    assert_read(write(tmp_path, stored, {f"_orig_mod.{name}": "int64"}))


@pytest.mark.parametrize("dtype", ["int64", "float8_e4m3fn", "float32"])
def test_other_tensors_are_unexpected_whatever_their_dtype(dtype, tmp_path):
    """An error names ten of them."""
    folder = write(tmp_path, spelled(), {f"vision_tower.vision_model.adapters.{i:02}.weight": dtype for i in range(25)})
    with pytest.raises(BadModel) as error:
        read_tensors(folder, tiny.CONFIG)
    lines = str(error.value).splitlines()
    assert "(0 missing, 25 unexpected, 0 mis-shaped)" in lines[0]
    assert lines[1:11] == [f"  unexpected  vision_tower.vision_model.adapters.{i:02}.weight (2, 3)" for i in range(10)]
    assert lines[11:] == ["  and 15 more"]


def test_an_error_names_some_tensors_of_each_kind(tmp_path):
    """12 lines at most; another model differs in all of its tensors."""
    folder = write(tmp_path, {f"{name}.x": x for name, x in spelled().items()} | {TABLE: np.zeros((9, 9), "f4")})
    with pytest.raises(BadModel) as error:
        read_tensors(folder, tiny.CONFIG)
    first, *lines, last = str(error.value).splitlines()
    count = len(spelled())
    assert f"({count - 1} missing, {count} unexpected, 1 mis-shaped)" in first
    assert [line.split()[0] for line in lines] == ["missing"] * 5 + ["unexpected"] * 4 + ["mis-shaped"]
    assert last == f"  and {2 * count - 10} more"


@pytest.mark.parametrize(("dtype", "name"), [("int64", "I64"), ("uint8", "U8"), ("float8_e4m3fn", "F8_E4M3")])
def test_a_tensor_of_the_model_must_have_a_dtype_that_npgemma_reads(dtype, name, tmp_path):
    folder = write(tmp_path, spelled(), {"language_model.model.layers.1.mlp.up_proj.weight": dtype})
    with pytest.raises(BadModel, match=rf"up_proj\.weight' is stored as {name}; npgemma reads F32, F16, BF16, F64"):
        read_tensors(folder, tiny.CONFIG)


QUANTISED = ["weight_scale", "weight.absmax", "weight.quant_state.bitsandbytes__nf4", "SCB", "qweight", "scales"]


@pytest.mark.parametrize("end", QUANTISED)
def test_a_quantised_model_is_refused_as_such(end, tmp_path):
    name = f"model.language_model.layers.0.mlp.up_proj.{end}"
    with pytest.raises(BadModel, match=rf"is quantised \(tensor '{name}'\), which npgemma does not read; load it in"):
        read_tensors(write(tmp_path, spelled(), {name: "uint8"}), tiny.CONFIG)


# ----------------------------------------------------------------------------------------------- float64, MLX's patches


def test_float64_weights_are_read_exactly(tmp_path):
    """In a float64 run, vectors are not rounded either; in a float32 run, nothing becomes float64."""
    tensors = {name: x.astype(np.float64) * (1 + 2.0**-40) for name, x in tiny.random_tensors().items()}
    folder = write(tmp_path, spelled("hub", tensors), dtype="float64")
    assert_read(folder, expected=tensors)
    wide, narrow = (npgemma.load(folder, dtype).weights for dtype in ("float64", "float32"))
    np.testing.assert_array_equal(wide.text.norm.weight, tensors["language_model.model.norm.weight"], strict=True)
    assert {leaf.value.dtype.name for leaf in leaves(narrow) if leaf.kind != "weight"} == {"float32"}


PATCHES = "vision_tower.vision_model.embeddings.patch_embedding.weight"


@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
def test_a_patch_convolution_may_be_channels_last(spelling, tmp_path):
    """MLX stores [out, h, w, in] where PyTorch stores [out, in, h, w]."""
    stored = spelled(spelling, tiny.random_tensors() | {PATCHES: tiny.random_tensors()[PATCHES].transpose(0, 2, 3, 1)})
    assert_read(write(tmp_path, stored))


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "mlx"}])
def test_metadata_tell_the_order_of_axes_if_a_patch_is_as_wide_as_it_has_channels(metadata, tmp_path):
    config = dataclasses.replace(
        tiny.CONFIG, vision=dataclasses.replace(tiny.CONFIG.vision, patch_size=3, image_size=9)
    )
    tensors = tiny.random_tensors(config)
    is_mlx = metadata == {"format": "mlx"}
    patches = tensors[PATCHES].transpose(0, 2, 3, 1) if is_mlx else tensors[PATCHES]
    assert_read(write(tmp_path, tensors | {PATCHES: patches}, metadata=metadata, config=config), config)


# ---------------------------------------------------------------------------------------------------------------- head

TABLES = {
    "the table": (True, False),
    "the head": (False, True),
    "both, equal": (True, True),
    "both, different": (True, "reversed"),
    "neither": (False, False),
}


@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stored", TABLES)
def test_tied_is_one_matrix_under_either_name(stored, tied, spelling, tmp_path):
    """As transformers reads them. Where it would draw what is missing at random, npgemma refuses."""
    config, tensors = dataclasses.replace(tiny.CONFIG, tied=tied), tiny.random_tensors()
    matrix = tensors.pop(TABLE)
    has_table, has_head = TABLES[stored]
    head = matrix[::-1] if has_head == "reversed" else matrix
    found = ({TABLE: matrix} if has_table else {}) | ({HEAD: head} if has_head else {})
    folder = write(tmp_path, spelled(spelling, tensors | found), config=config)
    if (has_table and has_head) or (tied and (has_table or has_head)):
        text = tiny.weights(folder, read_config(folder)).text
        np.testing.assert_array_equal(text.embedding, matrix, strict=True)
        np.testing.assert_array_equal(text.embedding if text.head is None else text.head, head, strict=True)
        assert (text.head is None) == (not (has_table and has_head))
    else:
        missing = "lm_head" if has_table else "embed_tokens"
        with pytest.raises(BadModel, match=rf"missing +\S*{missing}|{missing}\.weight \(61, 11\) is missing"):
            tiny.weights(folder, read_config(folder))


def test_a_head_that_is_alone_stays_mapped(tmp_path):
    tensors = tiny.random_tensors()
    tensors[HEAD] = tensors.pop(TABLE)
    x = read_tensors(write(tmp_path, tensors), tiny.CONFIG)[TABLE]
    while not isinstance(x, np.memmap):
        x = x.base


def test_a_missing_head_is_explained(tmp_path):
    """With the embedding table in its place, every answer would be wrong."""
    config = dataclasses.replace(tiny.CONFIG, tied=False)
    folder = write(tmp_path, tiny.random_tensors(), config=config)
    with pytest.raises(BadModel, match=r"lm_head\.weight \(61, 11\) is missing, .*tie_word_embeddings is false"):
        read_tensors(folder, config)


def test_a_head_of_another_shape_is_refused():
    tensors = tiny.random_tensors() | {"lm_head.weight": np.zeros((60, 11), np.float32)}
    with pytest.raises(BadModel, match=r"mis-shaped  lm_head\.weight: stored \(60, 11\), expected \(61, 11\)"):
        layout_of(tensors, tiny.CONFIG).check(tensors, EMBEDDED)
