"""What CLIP's configs and files have of their own: text_config_dict, end tokens, and OpenAI's names."""

import encoder_configs
import numpy as np
import pytest
from encoder_configs import CLIP
from published_encoders import HUB

from npgemma import testing
from npgemma.checkpoints import clip
from npgemma.checkpoints.layout import translated
from npgemma.errors import BadModel
from npgemma.io.strict_json import Section


def parse(content: dict) -> clip.DualEncoderConfig:
    return clip.parse(Section(content, "config.json"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ({}, 49407),
        ({"eos_token_id": 2}, 49407),
        ({"eos_token_id": 2, "vocab_size": 60}, 59),
        ({"eos_token_id": 5}, 5),
        ({"vocab_size": 49408, "eos_token_id": 49406}, 49406),
    ],
)
def test_the_end_token(text, found) -> None:
    """2 stands for the largest id of a text, as in transformers."""
    assert parse({"model_type": "clip", "text_config": text}).eos_token_id == found


def test_an_end_token_beyond_a_small_vocabulary_is_refused() -> None:
    with pytest.raises(BadModel, match="eos_token_id is missing, and its default 49407 is not a token id from 0 to 59"):
        parse({"model_type": "clip", "text_config": {"vocab_size": 60}})


@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
def test_a_section_of_the_old_name_replaces_the_other(tower) -> None:
    """Even an empty one, which means the defaults; null is not one."""
    stated = {"hidden_size": 64, "num_attention_heads": 4}
    default = parse({"model_type": "clip"})
    assert parse({"model_type": "clip", tower: stated, f"{tower}_dict": {}}) == default
    assert parse({"model_type": "clip", tower: stated, f"{tower}_dict": None}) != default
    other = parse({"model_type": "clip", tower: {}, f"{tower}_dict": stated})
    assert other == parse({"model_type": "clip", tower: stated})
    with pytest.raises(BadModel, match=f"{tower}_dict: hidden_act is 'relu'"):
        parse({"model_type": "clip", f"{tower}_dict": {"hidden_act": "relu"}})


def test_without_sections_a_config_is_that_of_vit_b_32() -> None:
    assert parse({"model_type": "clip"}) == clip.DEFAULT == parse(HUB["clip-vit-base-patch32"].config)


# ----------------------------------------------------------------------------------------------------- OpenAI's tensors

TENSORS = testing.layout_tensors(clip.hf_layout(CLIP))
OPENAI = testing.layout_tensors(clip.openai_layout(CLIP))
COUNTS = {name: np.array([7.0], np.float32) for name in ("input_resolution", "context_length", "vocab_size")}


def published(w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """transformers' names for OpenAI's, one NumPy expression each, as in convert_clip_original_pytorch_to_hf.py."""
    found = {
        "logit_scale": w["logit_scale"],
        "visual_projection.weight": w["visual.proj"].T,
        "text_projection.weight": w["text_projection"].T,
        "vision_model.embeddings.class_embedding": w["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": w["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": w["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": w["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": w["positional_embedding"],
    }
    for theirs, ours in (
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    ):
        found |= {f"{ours}.{part}": w[f"{theirs}.{part}"] for part in ("weight", "bias")}
    for theirs, ours, count in (("visual.", "vision_model", 1), ("", "text_model", 2)):
        for i in range(count):
            old, new = f"{theirs}transformer.resblocks.{i}", f"{ours}.encoder.layers.{i}"
            for part in ("weight", "bias"):
                q, k, v = np.split(w[f"{old}.attn.in_proj_{part}"], 3)
                found |= {f"{new}.self_attn.{a}_proj.{part}": x for a, x in zip("qkv", (q, k, v), strict=True)}
                found[f"{new}.self_attn.out_proj.{part}"] = w[f"{old}.attn.out_proj.{part}"]
                found[f"{new}.layer_norm1.{part}"] = w[f"{old}.ln_1.{part}"]
                found[f"{new}.layer_norm2.{part}"] = w[f"{old}.ln_2.{part}"]
                found[f"{new}.mlp.fc1.{part}"] = w[f"{old}.mlp.c_fc.{part}"]
                found[f"{new}.mlp.fc2.{part}"] = w[f"{old}.mlp.c_proj.{part}"]
    return found


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_file_of_openai_has_the_tensors_of_the_published_conversion(prefix, tmp_path) -> None:
    """The numbers of the config that it holds as tensors are not used."""
    stored = {prefix + name: x for name, x in (OPENAI | COUNTS).items()}
    testing.save_tensors(stored, tmp_path / "model.safetensors")
    found, expected = clip.read_tensors(tmp_path, CLIP), published(OPENAI)
    assert found.keys() == expected.keys() == TENSORS.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, name, strict=True)


def test_rows_of_a_fused_matrix_stay_views() -> None:
    found = translated(OPENAI, clip.openai_layout(CLIP), clip.hf_layout(CLIP))
    fused = OPENAI["visual.transformer.resblocks.0.attn.in_proj_weight"]
    assert np.shares_memory(found["vision_model.encoder.layers.0.self_attn.k_proj.weight"], fused)


def test_a_fused_matrix_of_another_shape_is_refused(tmp_path) -> None:
    name = "transformer.resblocks.1.attn.in_proj_weight"
    testing.save_tensors(OPENAI | {name: OPENAI[name][:-1]}, tmp_path / "model.safetensors")
    with pytest.raises(BadModel, match=rf"mis-shaped  {name}: stored \(59, 20\), expected \(60, 20\)"):
        clip.read_tensors(tmp_path, encoder_configs.CLIP)
