"""SigLIP and ViT in .npz files become folders whose tensors are those of the published conversions.

Sources: transformers' convert_siglip_to_hf.py, and timm's _load_weights for AugReg's names.
"""

import re
from dataclasses import replace

import encoder_configs
import npz_checkpoints
import numpy as np
import pytest

from npgemma import testing
from npgemma.checkpoints import siglip, vit
from npgemma.checkpoints.convert import convert
from npgemma.errors import BadModel
from npgemma.io.pixels import BILINEAR, PixelSettings
from npgemma.io.safetensors import open_folder

SIGLIP = replace(encoder_configs.SIGLIP, vision=replace(encoder_configs.SIGLIP.vision, image_size=12))
# SigLIP 2 resizes pictures with another kernel.
SIGLIP_2 = replace(SIGLIP, pixels=PixelSettings(BILINEAR))
VIT = replace(
    encoder_configs.VIT,
    vision=replace(encoder_configs.VIT.vision, image_size=12, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6),
    labels=tuple(f"LABEL_{i}" for i in range(5)),
)
PARTS = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def matrix(x: np.ndarray, name: str) -> np.ndarray:
    """A matrix or a bias of attention or of an MLP as torch stores it: [out, in], heads joined."""
    if "/out/kernel" in name:
        return x.reshape(-1, x.shape[-1]).T
    if name.endswith("kernel"):
        return x.reshape(len(x), -1).T
    return x.reshape(-1)


def block(npz: dict[str, np.ndarray], old: str, new: str, names: dict[str, str]) -> dict[str, np.ndarray]:
    """The tensors under `old`, of which `names` says what each module is called under `new`."""
    found = {}
    for module, ours in names.items():
        for theirs, part in PARTS.items():
            if (name := f"{old}/{module}/{theirs}") in npz:
                found[f"{new}.{ours}.{part}"] = matrix(npz[name], name)
    return found


def attention(name: str, q: str, k: str, v: str, out: str) -> dict[str, str]:
    return {f"{name}/query": q, f"{name}/key": k, f"{name}/value": v, f"{name}/out": out}


SIGLIP_BLOCK = {
    "LayerNorm_0": "layer_norm1",
    "LayerNorm_1": "layer_norm2",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
    **attention("MultiHeadDotProductAttention_0", *(f"self_attn.{a}_proj" for a in ("q", "k", "v", "out"))),
}


def published_siglip(npz: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {
        "logit_scale": npz["t"],
        "logit_bias": npz["b"],
        "vision_model.embeddings.patch_embedding.weight": npz["img/embedding/kernel"].transpose(3, 2, 0, 1),
        "vision_model.embeddings.patch_embedding.bias": npz["img/embedding/bias"],
        "vision_model.embeddings.position_embedding.weight": npz["img/pos_embedding"][0],
        "text_model.embeddings.token_embedding.weight": npz["txt/Embed_0/embedding"],
        "text_model.embeddings.position_embedding.weight": npz["txt/pos_embedding"][0],
        "text_model.head.weight": npz["txt/head/kernel"].T,
        "text_model.head.bias": npz["txt/head/bias"],
        "vision_model.head.probe": npz["img/MAPHead_0/probe"],
    }
    found |= block(npz, "img/Transformer", "vision_model", {"encoder_norm": "post_layernorm"})
    found |= block(npz, "txt/Encoder_0", "text_model", {"encoder_norm": "final_layer_norm"})
    mlp = {"MlpBlock_0/Dense_0": "mlp.fc1", "MlpBlock_0/Dense_1": "mlp.fc2", "LayerNorm_0": "layernorm"}
    found |= block(npz, "img/MAPHead_0", "vision_model.head", mlp)
    heads = attention("MultiHeadDotProductAttention_0", "q", "k", "v", "attention.out_proj")
    pool = block(npz, "img/MAPHead_0", "head", heads)
    for part in ("weight", "bias"):
        found[f"vision_model.head.attention.in_proj_{part}"] = np.concatenate([pool[f"head.{a}.{part}"] for a in "qkv"])
        found[f"vision_model.head.attention.out_proj.{part}"] = pool[f"head.attention.out_proj.{part}"]
    for tower, new, count in (("img/Transformer", "vision_model", 1), ("txt/Encoder_0", "text_model", 2)):
        for i in range(count):
            found |= block(npz, f"{tower}/encoderblock_{i}", f"{new}.encoder.layers.{i}", SIGLIP_BLOCK)
    return found


VIT_BLOCK = {
    "LayerNorm_0": "layernorm_before",
    "LayerNorm_2": "layernorm_after",
    "MlpBlock_3/Dense_0": "intermediate.dense",
    "MlpBlock_3/Dense_1": "output.dense",
    **attention(
        "MultiHeadDotProductAttention_1",
        *(f"attention.attention.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
    ),
}


def published_vit(npz: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "vit.embeddings.cls_token": npz["cls"],
        "vit.embeddings.position_embeddings": npz["Transformer/posembed_input/pos_embedding"],
        "vit.embeddings.patch_embeddings.projection.weight": npz["embedding/kernel"].transpose(3, 2, 0, 1),
        "vit.embeddings.patch_embeddings.projection.bias": npz["embedding/bias"],
        "vit.layernorm.weight": npz["Transformer/encoder_norm/scale"],
        "vit.layernorm.bias": npz["Transformer/encoder_norm/bias"],
        "classifier.weight": npz["head/kernel"].T,
        "classifier.bias": npz["head/bias"],
        **block(npz, "Transformer/encoderblock_0", "vit.encoder.layer.0", VIT_BLOCK),
    }


def stacked(npz: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arrays with the layers of a tower stacked, as in the files of SigLIP 2."""
    groups: dict[str, list[np.ndarray]] = {}
    for name, x in npz.items():
        groups.setdefault(re.sub(r"encoderblock_\d", "encoderblock", name), []).append(x)
    return {name: np.stack(xs) if "encoderblock" in name else xs[0] for name, xs in groups.items()}


NPZ_SIGLIP = testing.layout_tensors(siglip.npz_layout(SIGLIP, stacked=False))
NPZ_VIT = testing.layout_tensors(vit.npz_layout(VIT))


@pytest.mark.parametrize(
    ("arrays", "config"), [(NPZ_SIGLIP, SIGLIP), (stacked(NPZ_SIGLIP), SIGLIP_2)], ids=["SigLIP 1", "SigLIP 2"]
)
@pytest.mark.parametrize("prefix", ["", "params/"])
def test_a_siglip_has_the_tensors_of_the_published_conversion(arrays, config, prefix, tmp_path) -> None:
    convert(npz_checkpoints.write(tmp_path / "model.npz", arrays, prefix=prefix), tmp_path / "folder")
    check(tmp_path / "folder", published_siglip(NPZ_SIGLIP))
    assert siglip.read_config(tmp_path / "folder") == config
    siglip.read_tensors(tmp_path / "folder", config)


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_a_vit_has_the_tensors_of_the_published_conversion(prefix, tmp_path) -> None:
    """And the arithmetic that it was trained with, which is not the default of transformers."""
    convert(npz_checkpoints.write(tmp_path / "model.npz", NPZ_VIT, prefix=prefix), tmp_path / "folder")
    check(tmp_path / "folder", published_vit(NPZ_VIT))
    assert vit.read_config(tmp_path / "folder") == VIT
    vit.read_tensors(tmp_path / "folder", VIT)


def check(folder, expected: dict[str, np.ndarray]) -> None:
    found = open_folder(folder)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, name, strict=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_root/kernel": np.zeros((3, 3), np.float32)}, "is a hybrid of ResNet and ViT"),
        ({"pre_logits/kernel": np.zeros((3, 3), np.float32)}, r"has a layer before its head \(pre_logits\)"),
        ({"head/kernel": np.zeros(3, np.float32)}, r"is not a ViT of vision_transformer: head/kernel has shape \[3\]"),
        ({"head/bias": np.zeros(3, np.float32)}, r"mis-shaped  head/bias: stored \(3,\), expected \(5,\)"),
    ],
)
def test_another_vit_is_refused(changes, message, tmp_path) -> None:
    path = npz_checkpoints.write(tmp_path / "model.npz", NPZ_VIT | changes)
    with pytest.raises(BadModel, match=message):
        convert(path, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("more", [{}, {"cls": np.zeros((1, 1, 16), np.float32)}], ids=["mean", "class token"])
def test_a_vit_of_big_vision_is_refused(more, tmp_path) -> None:
    arrays = {"embedding/kernel": np.zeros((4, 4, 3, 16), "f4"), "pos_embedding": np.zeros((1, 9, 16), "f4")} | more
    with pytest.raises(BadModel, match="is a ViT of big_vision, whose positions leave out the class token; npgemma"):
        convert(npz_checkpoints.write(tmp_path / "model.npz", arrays, prefix="params/"), tmp_path / "folder")


@pytest.mark.parametrize(
    ("begin", "message"),
    [
        ("txt/", r"holds a vision tower alone \(img/\); convert the file of the whole SigLIP or PaliGemma"),
        ("img/", "is not a SigLIP of big_vision: img/embedding/kernel is missing"),
    ],
)
def test_a_tower_alone_is_refused(begin, message, tmp_path) -> None:
    arrays = {name: x for name, x in NPZ_SIGLIP.items() if not name.startswith(begin)}
    with pytest.raises(BadModel, match=message):
        convert(npz_checkpoints.write(tmp_path / "model.npz", arrays), tmp_path / "folder")


def test_a_siglip_without_its_head_is_refused(tmp_path) -> None:
    arrays = {name: x for name, x in NPZ_SIGLIP.items() if "probe" not in name}
    with pytest.raises(BadModel, match="missing     img/MAPHead_0/probe"):
        convert(npz_checkpoints.write(tmp_path / "model.npz", arrays), tmp_path / "folder")


def test_the_size_of_pictures_that_leave_pixels_over_is_the_published_one(tmp_path) -> None:
    """27 patches of 14 are 378 pixels; So400m takes pictures of 384."""
    sizes = replace(SIGLIP.vision, patch_size=14, image_size=384)
    config = replace(SIGLIP_2, vision=sizes)
    arrays = testing.layout_tensors(siglip.npz_layout(config, stacked=True))
    convert(npz_checkpoints.write(tmp_path / "model.npz", arrays), tmp_path / "folder")
    assert siglip.read_config(tmp_path / "folder") == config
