"""The tables of big_vision's files against a second spelling: the conversion as big_vision and transformers write it.

Sources: big_vision/models/ppp/gemma.py and big_vision/models/vit.py for the shapes;
transformers/models/paligemma/convert_paligemma_weights_to_hf.py for the names and the reshapes.
"""

from pathlib import Path
from zipfile import ZipInfo

import npz_checkpoints
import numpy as np
import pytest

from npgemma.checkpoints.convert import convert, infer_config
from npgemma.checkpoints.gemma_config import GemmaConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig, npz_layout
from npgemma.checkpoints.siglip import SiglipConfig
from npgemma.io.npz_members import Member
from npgemma.io.safetensors import open_folder

BLOCK = "img/Transformer/encoderblock"
VISION, TEXT = npz_checkpoints.CONFIG.vision, npz_checkpoints.CONFIG.text


def converted(npz: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor by the name that transformers saves, one NumPy expression each."""
    found = {
        "vision_tower.embeddings.patch_embedding.weight": npz["img/embedding/kernel"].transpose(3, 2, 0, 1),
        "vision_tower.embeddings.patch_embedding.bias": npz["img/embedding/bias"],
        "vision_tower.embeddings.position_embedding.weight": npz["img/pos_embedding"].reshape(-1, VISION.hidden_size),
        "vision_tower.post_layernorm.weight": npz["img/Transformer/encoder_norm/scale"],
        "vision_tower.post_layernorm.bias": npz["img/Transformer/encoder_norm/bias"],
        "multi_modal_projector.linear.weight": npz["img/head/kernel"].T,
        "multi_modal_projector.linear.bias": npz["img/head/bias"],
        "language_model.model.embed_tokens.weight": npz["llm/embedder/input_embedding"],
        "language_model.model.norm.weight": npz["llm/final_norm/scale"],
    }
    for i in range(VISION.num_hidden_layers):
        name = f"vision_tower.encoder.layers.{i}"
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
    for i in range(TEXT.num_hidden_layers):
        name, width = f"language_model.model.layers.{i}", TEXT.hidden_size
        queries, keys = npz["llm/layers/attn/q_einsum/w"][i], npz["llm/layers/attn/kv_einsum/w"][i]
        found[f"{name}.self_attn.q_proj.weight"] = queries.transpose(0, 2, 1).reshape(-1, width)
        found[f"{name}.self_attn.k_proj.weight"] = keys[0].transpose(0, 2, 1).reshape(-1, width)
        found[f"{name}.self_attn.v_proj.weight"] = keys[1].transpose(0, 2, 1).reshape(-1, width)
        found[f"{name}.self_attn.o_proj.weight"] = npz["llm/layers/attn/attn_vec_einsum/w"][i].reshape(-1, width).T
        found[f"{name}.mlp.gate_proj.weight"] = npz["llm/layers/mlp/gating_einsum"][i, 0].T
        found[f"{name}.mlp.up_proj.weight"] = npz["llm/layers/mlp/gating_einsum"][i, 1].T
        found[f"{name}.mlp.down_proj.weight"] = npz["llm/layers/mlp/linear"][i].T
        found[f"{name}.input_layernorm.weight"] = npz["llm/layers/pre_attention_norm/scale"][i]
        found[f"{name}.post_attention_layernorm.weight"] = npz["llm/layers/pre_ffw_norm/scale"][i]
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_converted_folder_has_the_tensors_of_the_published_conversion(dtype, tmp_path) -> None:
    arrays = npz_checkpoints.arrays(dtype)
    convert(npz_checkpoints.write(tmp_path / "model.npz", arrays), tmp_path / "folder")
    found, expected = open_folder(tmp_path / "folder"), converted(arrays)
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


def test_the_shapes_at_224_pixels_are_the_published_ones() -> None:
    config = PaliGemmaConfig(SiglipConfig(), GemmaConfig(vocab_size=257152))
    assert npz_layout(config).shapes == PUBLISHED


def test_the_published_shapes_give_the_published_sizes() -> None:
    members = {name: Member(Path(), ZipInfo(), shape, np.dtype("<f4")) for name, shape in PUBLISHED.items()}
    config = infer_config(members, Path("pt_224.npz"))
    assert config == PaliGemmaConfig(SiglipConfig(), GemmaConfig(vocab_size=257152))
