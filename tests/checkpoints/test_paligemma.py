"""PaliGemma's checkpoints: every spelling of the names loads, and an error names all tensors that do not fit."""

import dataclasses
import json
import mmap
from pathlib import Path

import numpy as np
import pytest
import tiny

from npgemma.checkpoints.gemma_config import GemmaConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig, hf_layout, read_config, read_tensors
from npgemma.checkpoints.towers import VisionConfig
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED
from npgemma.layers.bits import widened
from npgemma.layers.tree import leaves

HUB = PaliGemmaConfig(VisionConfig(), GemmaConfig())  # PaliGemma 3B at 224 pixels


def arrays(weights: object) -> dict[str, np.ndarray]:
    """Every array of a model, by its path."""
    return {leaf.path: leaf.value for leaf in leaves(weights)}


def load(folder):
    return tiny.weights(folder, read_config(folder))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The weights of a folder as transformers 5 saves it: float32, one file."""
    return arrays(load(tiny.write_folder(tmp_path_factory.mktemp("reference"))))


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
def test_every_spelling_dtype_and_number_of_shards_loads_equal_weights(spelling, dtype, shards, reference, tmp_path):
    """The random weights lie on a grid that all three dtypes hold, so equal means equal."""
    found = arrays(load(tiny.write_folder(tmp_path, spelling=spelling, dtype=dtype, shards=shards)))
    assert found.keys() == reference.keys()
    for name, x in found.items():
        np.testing.assert_array_equal(widened(x, np.dtype(np.float32)), reference[name], strict=True, err_msg=name)


def test_a_tensor_of_each_kind_fills_its_field(tmp_path):
    """No other test of this file fails if two matrices of one shape, such as k and v or gate and up, are swapped."""
    tensors = tiny.random_tensors()
    p = load(tiny.write_folder(tmp_path))
    encoder, decoder = p.vision.blocks[1], p.text.blocks[2]
    vision, text = "vision_tower.vision_model.encoder.layers.1.", "language_model.model.layers.2."
    expected = {
        "vision_tower.vision_model.embeddings.patch_embedding.weight": p.vision.embedding.weight,
        "vision_tower.vision_model.embeddings.patch_embedding.bias": p.vision.embedding.bias,
        "vision_tower.vision_model.embeddings.position_embedding.weight": p.vision.embedding.position,
        "vision_tower.vision_model.post_layernorm.weight": p.vision.norm.weight,
        "vision_tower.vision_model.post_layernorm.bias": p.vision.norm.bias,
        vision + "layer_norm1.weight": encoder.attn_norm.weight,
        vision + "layer_norm1.bias": encoder.attn_norm.bias,
        vision + "self_attn.q_proj.weight": encoder.attn.q,
        vision + "self_attn.q_proj.bias": encoder.attn.q_bias,
        vision + "self_attn.k_proj.weight": encoder.attn.k,
        vision + "self_attn.k_proj.bias": encoder.attn.k_bias,
        vision + "self_attn.v_proj.weight": encoder.attn.v,
        vision + "self_attn.v_proj.bias": encoder.attn.v_bias,
        vision + "self_attn.out_proj.weight": encoder.attn.o,
        vision + "self_attn.out_proj.bias": encoder.attn.o_bias,
        vision + "layer_norm2.weight": encoder.mlp_norm.weight,
        vision + "layer_norm2.bias": encoder.mlp_norm.bias,
        vision + "mlp.fc1.weight": encoder.mlp.fc1,
        vision + "mlp.fc1.bias": encoder.mlp.fc1_bias,
        vision + "mlp.fc2.weight": encoder.mlp.fc2,
        vision + "mlp.fc2.bias": encoder.mlp.fc2_bias,
        "multi_modal_projector.linear.weight": p.projector.weight,
        "multi_modal_projector.linear.bias": p.projector.bias,
        "language_model.model.embed_tokens.weight": p.text.embedding,
        text + "input_layernorm.weight": decoder.attn_norm.weight,
        text + "self_attn.q_proj.weight": decoder.attn.q,
        text + "self_attn.k_proj.weight": decoder.attn.k,
        text + "self_attn.v_proj.weight": decoder.attn.v,
        text + "self_attn.o_proj.weight": decoder.attn.o,
        text + "post_attention_layernorm.weight": decoder.mlp_norm.weight,
        text + "mlp.gate_proj.weight": decoder.mlp.gate,
        text + "mlp.up_proj.weight": decoder.mlp.up,
        text + "mlp.down_proj.weight": decoder.mlp.down,
        "language_model.model.norm.weight": p.text.norm.weight,
    }
    kinds = {name.replace("layers.0.", "layers.*.") for name in tensors if ".layers." not in name or ".0." in name}
    assert len(expected) == len(kinds)
    for name, x in expected.items():
        np.testing.assert_array_equal(x.reshape(tensors[name].shape), tensors[name], strict=True, err_msg=name)


def test_heads_are_consecutive_rows_of_a_projection(tmp_path):
    """Query head n is rows n H to n H + H of q_proj; o_proj has the same order in its columns."""
    tensors = tiny.random_tensors()
    attention = load(tiny.write_folder(tmp_path)).text.blocks[0].attn
    q, o = (tensors[f"language_model.model.layers.0.self_attn.{name}_proj.weight"] for name in "qo")
    width = tiny.CONFIG.text.head_dim
    for n in range(tiny.CONFIG.text.num_attention_heads):
        rows = slice(n * width, n * width + width)
        np.testing.assert_array_equal(attention.q[n], q[rows], strict=True)
        np.testing.assert_array_equal(attention.o[:, n], o[:, rows], strict=True)


def test_numbers_of_the_config_reach_the_layers_that_use_them(tmp_path):
    config = dataclasses.replace(
        tiny.CONFIG,
        vision=dataclasses.replace(tiny.CONFIG.vision, layer_norm_eps=3e-5),
        text=dataclasses.replace(tiny.CONFIG.text, rms_norm_eps=7e-4, rope_theta=123.0),
    )
    p = load(tiny.write_folder(tmp_path, config))
    vision = [p.vision.norm, *(norm for block in p.vision.blocks for norm in (block.attn_norm, block.mlp_norm))]
    text = [p.text.norm, *(norm for block in p.text.blocks for norm in (block.attn_norm, block.mlp_norm))]
    assert {norm.eps for norm in vision} == {3e-5}
    assert {norm.eps for norm in text} == {7e-4}
    assert {block.attn.theta for block in p.text.blocks} == {123.0}
    assert p.image_token == config.image_token_index
    assert (len(p.vision.blocks), len(p.text.blocks)) == (2, 3)


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "f4"), ("float16", "f2"), ("bfloat16", "u2")])
def test_matrices_stay_mapped_in_their_dtype_and_vectors_become_float32(dtype, stored, tmp_path):
    """A 6 GB checkpoint is never copied, except its biases, norms and positions."""
    p = load(tiny.write_folder(tmp_path, dtype=dtype))
    large = [p.vision.embedding.weight, p.projector.weight, p.text.embedding]
    large += [getattr(block.attn, name) for block in (*p.vision.blocks, *p.text.blocks) for name in "qkvo"]
    large += [getattr(block.mlp, name) for block in p.text.blocks for name in ("gate", "up", "down")]
    large += [getattr(block.mlp, name) for block in p.vision.blocks for name in ("fc1", "fc2")]
    for x in large:
        assert x.dtype == np.dtype(f"<{stored}")
        mapped = x
        while not isinstance(mapped, np.memmap):
            assert mapped.base is not None, "the array is a copy, not a view of a memory map"
            mapped = mapped.base
    large = {id(x) for x in large}
    small = [x for x in arrays(p).values() if id(x) not in large]
    assert len(small) == len(arrays(p)) - len(large)
    assert {x.dtype for x in small} == {np.dtype(np.float32)}


def is_mapped(x: np.ndarray) -> bool:
    while x is not None and not isinstance(x, np.memmap | mmap.mmap):
        x = getattr(x, "base", None)
    return x is not None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
def test_resident_weights_are_the_same_numbers_in_their_own_memory(stored, dtype, reference, tmp_path):
    """All of them, also those that are stored in the dtype of the run."""
    folder = tiny.write_folder(tmp_path, dtype=stored)
    mapped = arrays(load(folder))
    found = arrays(tiny.weights(folder, tiny.CONFIG, dtype))
    assert found.keys() == reference.keys()
    assert any(map(is_mapped, mapped.values()))
    for name, x in found.items():
        np.testing.assert_array_equal(x, reference[name].astype(x.dtype), strict=True, err_msg=name)
        assert not is_mapped(x), name
        is_vector = name.endswith(("bias", "position", "norm.weight"))  # float32 in every run
        assert x.dtype == ("float32" if is_vector else dtype), name


def test_an_untied_head_is_used_if_resident(tmp_path):
    tensors = tiny.random_tensors()
    head = tensors["language_model.model.embed_tokens.weight"][::-1]
    tiny.write_folder(tmp_path)
    stored = {tiny.spell(each, "hub"): x for each, x in tensors.items()} | {"lm_head.weight": head}
    tiny.save(stored, tmp_path / "model.safetensors", "bfloat16")
    text = tiny.weights(tmp_path, tiny.CONFIG, "float32").text
    np.testing.assert_array_equal(text.head, head, strict=True)
    np.testing.assert_array_equal(text.embedding, tensors["language_model.model.embed_tokens.weight"], strict=True)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_resident_weights_leave_no_map_of_the_file(tmp_path):
    """A mapped file counts as memory, and its drive cannot be unmounted."""

    def is_in_use() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text()

    tiny.write_folder(tmp_path, shards=3)
    mapped = load(tmp_path)
    assert is_in_use()
    del mapped
    assert not is_in_use()
    resident = tiny.weights(tmp_path, tiny.CONFIG, "float32")
    assert not is_in_use()
    del resident


# ------------------------------------------------------------------------------------------------------------- refusal


def test_one_error_names_every_tensor_that_does_not_fit(tmp_path):
    """With the kind of mismatch, the name and both shapes, so that a conversion can be corrected in one go."""
    tensors = tiny.random_tensors()
    missing = ["vision_tower.vision_model.post_layernorm.bias", "language_model.model.layers.1.mlp.up_proj.weight"]
    wrong = ["multi_modal_projector.linear.weight", "language_model.model.layers.2.self_attn.q_proj.weight"]
    extra = [
        "language_model.model.layers.3.mlp.up_proj.weight",
        "language_model.model.layers.0.self_attn.q_norm.weight",
    ]
    shapes = {name: tensors[name].shape for name in (*missing, *wrong)}
    for name in missing:
        del tensors[name]
    for name in wrong:
        tensors[name] = np.ascontiguousarray(tensors[name].T)
    tensors |= {name: np.zeros((2, 9), np.float32) for name in extra}
    tiny.write_folder(tmp_path)
    tiny.save({tiny.spell(name, "hub"): x for name, x in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(BadModel) as error:
        load(tmp_path)
    first, *lines = str(error.value).splitlines()
    assert first.startswith(f"{tmp_path}: the tensors do not fit config.json")
    assert "2 missing, 2 unexpected, 2 mis-shaped" in first
    expected = sorted(
        [f"  missing     {name} {shapes[name]}" for name in missing]
        + [f"  unexpected  {name} (2, 9)" for name in extra]
        + [f"  mis-shaped  {n}: stored {shapes[n][::-1]}, expected {shapes[n]}" for n in wrong]
    )
    assert sorted(lines) == expected


@pytest.mark.parametrize("name", tiny.random_tensors())
def test_a_missing_renamed_or_misshaped_tensor_is_named(name):
    """No tensor of the model is optional: each is required by name and shape."""
    layout, tensors, where = hf_layout(tiny.CONFIG), tiny.random_tensors(), Path("model")
    x = tensors.pop(name)
    with pytest.raises(BadModel, match=rf"1 missing, 0 unexpected, 0 mis-shaped\)\n  missing     {name} "):
        layout.check(tensors, where)
    with pytest.raises(BadModel, match=rf"1 missing, 1 unexpected, 0 mis-shaped(.|\n)*unexpected  {name}x "):
        layout.check(tensors | {name + "x": x}, where)
    for other in (x[:-1], x[None], x.reshape(-1, 1), x.ravel()[: x.size - 1]):
        with pytest.raises(BadModel, match=rf"0 missing, 0 unexpected, 1 mis-shaped(.|\n)*mis-shaped  {name}: "):
            layout.check(tensors | {name: other}, where)
    layout.check(tensors | {name: x}, where)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_config", "num_hidden_layers", 1),
        ("vision_config", "num_hidden_layers", 3),
        ("vision_config", "image_size", 28),
        ("vision_config", "intermediate_size", 18),
        ("text_config", "num_hidden_layers", 2),
        ("text_config", "num_hidden_layers", 4),
        ("text_config", "num_key_value_heads", 1),
        ("text_config", "head_dim", 8),
        ("text_config", "vocab_size", 62),
        ("text_config", "hidden_size", 12),
    ],
)
def test_a_config_of_another_model_is_refused(section, key, value, tmp_path):
    """A checkpoint that almost fits its config would run and give wrong answers."""
    tiny.write_folder(tmp_path)
    config = tiny.config_json()
    config[section][key] = value
    config["projection_dim"] = config["text_config"]["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadModel, match="do not fit config"):
        load(tmp_path)


def test_paligemma_3b_has_603_tensors_and_2_923_466_480_parameters():
    """As transformers counts them for paligemma-3b-pt-224."""
    shapes = hf_layout(HUB).shapes
    assert len(shapes) == 603
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 2_923_466_480


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("language_model.model.embed_tokens.weight", (257216, 2048)),
        ("language_model.model.layers.17.self_attn.q_proj.weight", (2048, 2048)),
        ("language_model.model.layers.17.self_attn.k_proj.weight", (256, 2048)),
        ("language_model.model.layers.17.self_attn.v_proj.weight", (256, 2048)),
        ("language_model.model.layers.17.mlp.gate_proj.weight", (16384, 2048)),
        ("language_model.model.layers.17.mlp.down_proj.weight", (2048, 16384)),
        ("vision_tower.vision_model.embeddings.patch_embedding.weight", (1152, 3, 14, 14)),
        ("vision_tower.vision_model.embeddings.position_embedding.weight", (256, 1152)),
        ("vision_tower.vision_model.encoder.layers.26.mlp.fc1.weight", (4304, 1152)),
        ("vision_tower.vision_model.encoder.layers.26.mlp.fc2.weight", (1152, 4304)),
        ("multi_modal_projector.linear.weight", (2048, 1152)),
    ],
)
def test_shapes_are_those_of_the_published_checkpoints(name, shape):
    assert hf_layout(HUB).shapes[name] == shape


def test_the_embedded_checkpoint_fits_its_config():
    tensors = read_tensors(EMBEDDED, read_config(EMBEDDED))
    assert {name: x.shape for name, x in tensors.items()} == hf_layout(read_config(EMBEDDED)).shapes
