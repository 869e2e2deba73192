"""What holds for the configs and the folders of all encoders."""

import json
from pathlib import Path

import encoder_configs
import numpy as np
import pytest

from npgemma import testing
from npgemma.checkpoints import clip, siglip, vit
from npgemma.checkpoints.footprint import Run
from npgemma.checkpoints.pairs import check_towers
from npgemma.checkpoints.towers import footprint, shortest_run, with_vocabulary
from npgemma.errors import BadModel
from npgemma.io.strict_json import Section
from npgemma.layers.tree import leaves

CHECKPOINTS = {"siglip": siglip, "clip": clip, "vit": vit}
CONFIGS = {"siglip": encoder_configs.SIGLIP, "clip": encoder_configs.CLIP, "vit": encoder_configs.VIT}
every_kind = pytest.mark.parametrize("kind", CHECKPOINTS)


def write(folder: Path, kind: str, **changes: object) -> Path:
    """A folder of the small model of this kind, with other values in its config.json."""
    content = CHECKPOINTS[kind].config_json(CONFIGS[kind])
    (folder / "config.json").write_text(json.dumps(content | changes))
    testing.save_tensors(
        testing.layout_tensors(CHECKPOINTS[kind].hf_layout(CONFIGS[kind])), folder / "model.safetensors"
    )
    return folder


def parse(content: dict) -> tuple[object, Section]:
    s = Section(content, "config.json")
    return CHECKPOINTS[content["model_type"]].parse(s), s


@every_kind
def test_a_config_that_is_written_is_read_again(kind) -> None:
    config = CONFIGS[kind]
    assert parse(CHECKPOINTS[kind].config_json(config))[0] == config
    assert parse(json.loads(json.dumps(CHECKPOINTS[kind].config_json(config))))[1].unknown() == []


@every_kind
def test_a_folder_gives_the_weights_that_were_saved(kind, tmp_path) -> None:
    checkpoint = CHECKPOINTS[kind]
    config = checkpoint.read_config(write(tmp_path, kind))
    tensors = checkpoint.read_tensors(tmp_path, config)
    expected = testing.layout_tensors(checkpoint.hf_layout(CONFIGS[kind]))
    assert {name: x.tolist() for name, x in tensors.items()} == {name: x.tolist() for name, x in expected.items()}
    p = checkpoint.weights(tensors, config, np.dtype(np.float64))
    assert {leaf.value.dtype for leaf in leaves(p) if leaf.kind == "float"} == {np.dtype(np.float64)}
    assert set(checkpoint.names_of(p, config).values()) == set(tensors)


@every_kind
@pytest.mark.parametrize("prefix", ["model.", "base_model.model.", "module._orig_mod.", "backbone."])
def test_names_may_have_a_prefix(kind, prefix, tmp_path) -> None:
    checkpoint, config = CHECKPOINTS[kind], CONFIGS[kind]
    tensors = testing.layout_tensors(checkpoint.hf_layout(config))
    testing.save_tensors({prefix + name: x for name, x in tensors.items()}, tmp_path / "model.safetensors")
    assert checkpoint.read_tensors(tmp_path, config).keys() == tensors.keys()


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_position_ids_of_old_files_are_not_used(kind, tmp_path) -> None:
    checkpoint, config = CHECKPOINTS[kind], CONFIGS[kind]
    tensors = testing.layout_tensors(checkpoint.hf_layout(config))
    old = {f"{tower}_model.embeddings.position_ids": np.zeros((1, 7), np.float32) for tower in ("text", "vision")}
    testing.save_tensors(tensors | old, tmp_path / "model.safetensors")
    assert checkpoint.read_tensors(tmp_path, config).keys() == tensors.keys()


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_half_a_model_is_refused(kind, tower, tmp_path) -> None:
    """By its config, and by its tensors."""
    with pytest.raises(BadModel, match=f"this is the {tower} tower alone; give the folder of the whole model"):
        CHECKPOINTS[kind].parse(Section({"model_type": f"{kind}_{tower}_model"}, "config.json"))
    names = [f"{tower}_model.encoder.layers.0.mlp.fc1.weight", f"{tower}_projection.weight"]
    with pytest.raises(BadModel, match=f"the tensors of the {tower} tower alone"):
        check_towers(names, tmp_path)


@pytest.mark.parametrize(
    ("kind", "section", "key", "value", "message"),
    [
        ("siglip", "text_config", "hidden_act", "gelu", "hidden_act is 'gelu', which npgemma does not support"),
        ("siglip", "vision_config", "vision_use_head", False, "vision_use_head is False"),
        ("siglip", "text_config", "projection_size", 17, "projection_size is 17, not the width of the vision tower"),
        ("siglip", "text_config", "model_type", "clip_text_model", "model_type is 'clip_text_model'"),
        ("clip", "vision_config", "hidden_act", "relu", "hidden_act is 'relu', which npgemma does not support"),
        ("clip", "text_config", "eos_token_id", 50, "eos_token_id is 50, not a token id from 0 to 49"),
        (
            "clip",
            "text_config",
            "num_attention_heads",
            3,
            "hidden_size is 20, not a multiple of",
        ),
        ("clip", "vision_config", "num_channels", 1, "num_channels is 1, not 3"),
        ("clip", "vision_config", "image_size", [14, 14], "image_size is [14, 14], not a whole number"),
        ("clip", "vision_config", "patch_size", 15, "patch_size is 15, more than image_size, 14"),
    ],
)
def test_a_value_that_npgemma_cannot_compute_is_refused(kind, section, key, value, message) -> None:
    content = CHECKPOINTS[kind].config_json(CONFIGS[kind])
    content[section][key] = value
    with pytest.raises(BadModel) as error:
        parse(content)
    assert str(error.value).startswith(f"config.json: {section}: {message}")


@every_kind
def test_another_model_type_is_refused(kind) -> None:
    for found, message in (("bert", "'bert'"), (None, "missing")):
        with pytest.raises(BadModel, match=f"model_type is {message}, not '{kind}'"):
            CHECKPOINTS[kind].parse(Section({"model_type": found}, "config.json"))


@every_kind
def test_heads_must_be_stated_for_another_width(kind) -> None:
    """No tensor's shape shows how many there are."""
    content = CHECKPOINTS[kind].config_json(CONFIGS[kind])
    del (content if kind == "vit" else content["vision_config"])["num_attention_heads"]
    with pytest.raises(BadModel, match="num_attention_heads is missing, and its default 12 is that of hidden_size 768"):
        parse(content)


@every_kind
def test_tensors_of_another_size_are_refused_by_name(kind, tmp_path) -> None:
    checkpoint = CHECKPOINTS[kind]
    changes = {"hidden_size": 32} if kind == "vit" else {}
    config = checkpoint.read_config(write(tmp_path, kind, **changes))
    if kind != "vit":
        config = with_vocabulary(config, 60)
    with pytest.raises(BadModel, match="mis-shaped"):
        checkpoint.read_tensors(tmp_path, config)


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_memory_grows_with_pictures_and_texts(kind) -> None:
    config = CONFIGS[kind]
    short = footprint(config, shortest_run(config, 1000, 4))
    many = [footprint(config, Run(1000, 4, pictures, [])).activations for pictures in (100, 200)]
    assert many[1] == 2 * many[0] > short.activations
    assert (
        footprint(config, Run(1000, 4, 0, [7] * 500)).activations > footprint(config, Run(1000, 4, 0, [7])).activations
    )


def test_the_memory_of_a_vit_is_that_of_its_pictures() -> None:
    runs = [vit.footprint(encoder_configs.VIT, Run(1000, 4, pictures, [])) for pictures in (1, 3)]
    assert runs[1].activations == 3 * runs[0].activations
    assert runs[0] == vit.footprint(encoder_configs.VIT, vit.shortest_run(encoder_configs.VIT, 1000, 4))
