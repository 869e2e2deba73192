"""The tables of big_vision's files against a second spelling: the conversion as big_vision and transformers write it.

Sources: big_vision/models/ppp/gemma.py and big_vision/models/vit.py for the shapes;
transformers/models/paligemma/convert_paligemma_weights_to_hf.py for the names and the reshapes.
"""

import math
from dataclasses import replace
from pathlib import Path
from zipfile import ZipInfo

import hub_configs
import npz_checkpoints
import numpy as np
import pytest

from npgemma.checkpoints.convert import convert
from npgemma.checkpoints.npz_models import infer_paligemma
from npgemma.checkpoints.paligemma import PaliGemmaConfig, npz_layout, parse
from npgemma.io.npz_members import Member
from npgemma.io.safetensors import open_folder
from npgemma.io.strict_json import Section

BLOCK = "img/Transformer/encoderblock"
VISION = npz_checkpoints.CONFIG.vision


# By PaliGemma: the norms of a layer as transformers and as big_vision name them.
NORMS = {
    "PaliGemma 1": {"input_layernorm": "pre_attention_norm", "post_attention_layernorm": "pre_ffw_norm"},
    "PaliGemma 2": {
        "input_layernorm": "pre_attention_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "pre_ffw_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}


def converted(npz: dict[str, np.ndarray], norms: dict[str, str]) -> dict[str, np.ndarray]:
    """Every tensor by the name that transformers saves, one NumPy expression each."""
    found = {
        "vision_tower.vision_model.embeddings.patch_embedding.weight": npz["img/embedding/kernel"].transpose(
            3, 2, 0, 1
        ),
        "vision_tower.vision_model.embeddings.patch_embedding.bias": npz["img/embedding/bias"],
        "vision_tower.vision_model.embeddings.position_embedding.weight": npz["img/pos_embedding"].reshape(
            -1, VISION.hidden_size
        ),
        "vision_tower.vision_model.post_layernorm.weight": npz["img/Transformer/encoder_norm/scale"],
        "vision_tower.vision_model.post_layernorm.bias": npz["img/Transformer/encoder_norm/bias"],
        "multi_modal_projector.linear.weight": npz["img/head/kernel"].T,
        "multi_modal_projector.linear.bias": npz["img/head/bias"],
        "language_model.model.embed_tokens.weight": npz["llm/embedder/input_embedding"],
        "language_model.model.norm.weight": npz["llm/final_norm/scale"],
    }
    for i in range(VISION.num_hidden_layers):
        name = f"vision_tower.vision_model.encoder.layers.{i}"
        for j in (0, 1):
            found[f"{name}.layer_norm{j + 1}.weight"] = npz[f"{BLOCK}/LayerNorm_{j}/scale"][i]
            found[f"{name}.layer_norm{j + 1}.bias"] = npz[f"{BLOCK}/LayerNorm_{j}/bias"][i]
            found[f"{name}.mlp.fc{j + 1}.weight"] = npz[f"{BLOCK}/MlpBlock_0/Dense_{j}/kernel"][i].T
            found[f"{name}.mlp.fc{j + 1}.bias"] = npz[f"{BLOCK}/MlpBlock_0/Dense_{j}/bias"][i]
        attention = f"{BLOCK}/MultiHeadDotProductAttention_0"
        for theirs, ours in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            kernel = npz[f"{attention}/{theirs}/kernel"][i]
            found[f"{name}.self_attn.{ours}.weight"] = kernel.reshape(VISION.hidden_size, -1).T
            found[f"{name}.self_attn.{ours}.bias"] = npz[f"{attention}/{theirs}/bias"][i].reshape(-1)
        kernel = npz[f"{attention}/out/kernel"][i]
        found[f"{name}.self_attn.out_proj.weight"] = kernel.reshape(-1, VISION.hidden_size).T
        found[f"{name}.self_attn.out_proj.bias"] = npz[f"{attention}/out/bias"][i]
    layers, width = npz["llm/layers/pre_attention_norm/scale"].shape
    for i in range(layers):
        name = f"language_model.model.layers.{i}"
        queries, keys = npz["llm/layers/attn/q_einsum/w"][i], npz["llm/layers/attn/kv_einsum/w"][i]
        found[f"{name}.self_attn.q_proj.weight"] = queries.transpose(0, 2, 1).reshape(-1, width)
        found[f"{name}.self_attn.k_proj.weight"] = keys[0].transpose(0, 2, 1).reshape(-1, width)
        found[f"{name}.self_attn.v_proj.weight"] = keys[1].transpose(0, 2, 1).reshape(-1, width)
        found[f"{name}.self_attn.o_proj.weight"] = npz["llm/layers/attn/attn_vec_einsum/w"][i].reshape(-1, width).T
        found[f"{name}.mlp.gate_proj.weight"] = npz["llm/layers/mlp/gating_einsum"][i, 0].T
        found[f"{name}.mlp.up_proj.weight"] = npz["llm/layers/mlp/gating_einsum"][i, 1].T
        found[f"{name}.mlp.down_proj.weight"] = npz["llm/layers/mlp/linear"][i].T
        for theirs, ours in norms.items():
            found[f"{name}.{theirs}.weight"] = npz[f"llm/layers/{ours}/scale"][i]
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("model", NORMS)
def test_a_converted_folder_has_the_tensors_of_the_published_conversion(model, dtype, tmp_path) -> None:
    arrays = npz_checkpoints.arrays(dtype, npz_checkpoints.CONFIGS[model])
    convert(npz_checkpoints.write(tmp_path / "model.npz", arrays), tmp_path / "folder")
    found, expected = open_folder(tmp_path / "folder"), converted(arrays, NORMS[model])
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        x = np.ascontiguousarray(x)
        np.testing.assert_array_equal(found[name], x.view(np.uint16) if dtype == "bfloat16" else x, name, strict=True)


PUBLISHED = {
    "img/embedding/kernel": (14, 14, 3, 1152),
    "img/embedding/bias": (1152,),
    "img/pos_embedding": (1, 256, 1152),
    f"{BLOCK}/LayerNorm_0/scale": (27, 1152),
    f"{BLOCK}/LayerNorm_0/bias": (27, 1152),
    f"{BLOCK}/LayerNorm_1/scale": (27, 1152),
    f"{BLOCK}/LayerNorm_1/bias": (27, 1152),
    f"{BLOCK}/MultiHeadDotProductAttention_0/query/kernel": (27, 1152, 16, 72),
    f"{BLOCK}/MultiHeadDotProductAttention_0/query/bias": (27, 16, 72),
    f"{BLOCK}/MultiHeadDotProductAttention_0/key/kernel": (27, 1152, 16, 72),
    f"{BLOCK}/MultiHeadDotProductAttention_0/key/bias": (27, 16, 72),
    f"{BLOCK}/MultiHeadDotProductAttention_0/value/kernel": (27, 1152, 16, 72),
    f"{BLOCK}/MultiHeadDotProductAttention_0/value/bias": (27, 16, 72),
    f"{BLOCK}/MultiHeadDotProductAttention_0/out/kernel": (27, 16, 72, 1152),
    f"{BLOCK}/MultiHeadDotProductAttention_0/out/bias": (27, 1152),
    f"{BLOCK}/MlpBlock_0/Dense_0/kernel": (27, 1152, 4304),
    f"{BLOCK}/MlpBlock_0/Dense_0/bias": (27, 4304),
    f"{BLOCK}/MlpBlock_0/Dense_1/kernel": (27, 4304, 1152),
    f"{BLOCK}/MlpBlock_0/Dense_1/bias": (27, 1152),
    "img/Transformer/encoder_norm/scale": (1152,),
    "img/Transformer/encoder_norm/bias": (1152,),
    "img/head/kernel": (1152, 2048),
    "img/head/bias": (2048,),
    "llm/embedder/input_embedding": (257152, 2048),
    "llm/layers/attn/q_einsum/w": (18, 8, 2048, 256),
    "llm/layers/attn/kv_einsum/w": (18, 2, 1, 2048, 256),
    "llm/layers/attn/attn_vec_einsum/w": (18, 8, 256, 2048),
    "llm/layers/mlp/gating_einsum": (18, 2, 2048, 16384),
    "llm/layers/mlp/linear": (18, 16384, 2048),
    "llm/layers/pre_attention_norm/scale": (18, 2048),
    "llm/layers/pre_ffw_norm/scale": (18, 2048),
    "llm/final_norm/scale": (2048,),
}


# What PaliGemma 2 3b, the model with 2304 wide rows, has instead.
PUBLISHED_2 = PUBLISHED | {
    "img/head/kernel": (1152, 2304),
    "img/head/bias": (2304,),
    "llm/embedder/input_embedding": (257152, 2304),
    "llm/layers/attn/q_einsum/w": (26, 8, 2304, 256),
    "llm/layers/attn/kv_einsum/w": (26, 2, 4, 2304, 256),
    "llm/layers/attn/attn_vec_einsum/w": (26, 8, 256, 2304),
    "llm/layers/mlp/gating_einsum": (26, 2, 2304, 9216),
    "llm/layers/mlp/linear": (26, 9216, 2304),
    "llm/layers/pre_attention_norm/scale": (26, 2304),
    "llm/layers/post_attention_norm/scale": (26, 2304),
    "llm/layers/pre_ffw_norm/scale": (26, 2304),
    "llm/layers/post_ffw_norm/scale": (26, 2304),
    "llm/final_norm/scale": (2304,),
}
SIZES = {  # name: shapes, elements
    "paligemma-3b": (PUBLISHED, 2_923_335_408),
    "paligemma2-3b": (PUBLISHED_2, 3_032_094_960),
}


def published(name: str, size: int = 224) -> PaliGemmaConfig:
    """The config of a model on the hub, without the rows that its table has beyond big_vision's."""
    config = parse(Section(hub_configs.content(name, {"image_size": size}), "config.json"))
    return replace(config, text=replace(config.text, vocab_size=257152))


def elements(config: PaliGemmaConfig) -> int:
    return sum(map(math.prod, npz_layout(config).shapes.values()))


@pytest.mark.parametrize("name", SIZES)
def test_the_shapes_at_224_pixels_are_the_published_ones(name) -> None:
    shapes, count = SIZES[name]
    assert npz_layout(published(name)).shapes == shapes
    assert elements(published(name)) == count


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("paligemma2-3b", 448, 3_032_094_960 + 884_736),
        ("paligemma2-3b", 896, 3_032_094_960 + 4_423_680),
        ("paligemma2-10b", 224, 9_662_409_456),
        ("paligemma2-28b", 224, 27_650_192_112),
    ],
)
def test_the_number_of_elements_is_the_published_one(name, size, count) -> None:
    assert elements(published(name, size)) == count


@pytest.mark.parametrize("size", [224, 448, 896])
@pytest.mark.parametrize("name", hub_configs.PALIGEMMA_TEXTS)
def test_the_shapes_of_a_published_file_tell_which_model_it_is(name, size) -> None:
    shapes = npz_layout(published(name, size)).shapes
    members = {name: Member(Path(), ZipInfo(), shape, np.dtype("V2")) for name, shape in shapes.items()}
    assert infer_paligemma(members, Path("model.npz")) == published(name, size)
