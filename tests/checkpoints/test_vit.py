"""What ViT's configs and files have of their own: labels, names in memory, distillation tokens, towers alone."""

import pytest
from encoder_configs import VIT

from npgemma import testing
from npgemma.checkpoints import vit
from npgemma.errors import BadModel
from npgemma.io.strict_json import Section


def parse(**content: object) -> vit.ViTConfig:
    return vit.parse(Section({"model_type": "vit"} | content, "config.json"))


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ({}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"id2label": {"1": "dog", "0": "cat"}}, ("cat", "dog")),
        ({"id2label": {"0": "cat"}, "label2id": {"cat": 0}}, ("cat",)),
        ({"id2label": {"0": "cat", "1": "cat"}}, ("cat", "cat")),
    ],
)
def test_labels(content, labels) -> None:
    assert parse(**content).labels == labels


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"0": "cat", "2": "dog"}, "id2label: the label 1 of 2 is missing"),
        ({"0": "cat", "1": 7}, "id2label: the label 1 of 2 is 7, not a text"),
        (["cat"], r"id2label is \['cat'\], not an object"),
    ],
)
def test_labels_with_gaps_are_refused(names, message) -> None:
    with pytest.raises(BadModel, match=f"config.json: {message}"):
        parse(id2label=names)


def test_defaults_are_those_of_transformers() -> None:
    """Erf and 1e-12, though Google trained with tanh and 1e-6."""
    c = parse().vision
    assert (c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads) == (768, 3072, 12, 12)
    assert (c.image_size, c.patch_size, c.hidden_act, c.layer_norm_eps) == (224, 16, "gelu", 1e-12)


def test_a_distillation_token_is_refused() -> None:
    with pytest.raises(
        BadModel, match="a DeiT with a distillation token, which npgemma does not support; use one without"
    ):
        parse(model_type="deit")


@pytest.mark.parametrize(
    ("content", "multi_label"),
    [
        ({"problem_type": None}, False),
        ({"problem_type": "single_label_classification"}, False),
        ({"problem_type": "multi_label_classification"}, True),
        ({"num_labels": 1}, True),
    ],
)
def test_whether_several_labels_may_fit(content, multi_label) -> None:
    config = parse(**content)
    assert config.multi_label == multi_label
    assert vit.parse(Section(vit.config_json(config), "config.json")) == config


def test_a_regression_is_refused() -> None:
    with pytest.raises(BadModel, match="problem_type is 'regression', which npgemma does not support"):
        parse(problem_type="regression")


def test_attention_without_biases_is_refused() -> None:
    with pytest.raises(BadModel, match="qkv_bias is False, which npgemma does not support"):
        parse(qkv_bias=False)


def test_a_tower_without_a_classifier_is_refused(tmp_path) -> None:
    tensors = testing.layout_tensors(vit.hf_layout(VIT))
    without = {name.removeprefix("vit."): x for name, x in tensors.items() if not name.startswith("classifier")}
    testing.save_tensors(without, tmp_path / "model.safetensors")
    with pytest.raises(BadModel, match="has no classifier"):
        vit.read_tensors(tmp_path, VIT)


def test_names_in_memory_mean_the_same_tensors(tmp_path) -> None:
    """As state_dict() of transformers 5 has them, with the pooler that a classifier does not use."""
    tensors, memory = testing.layout_tensors(vit.hf_layout(VIT)), {}
    for name, x in tensors.items():
        for old, new in (
            ("vit.encoder.layer.", "vit.layers."),
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            (".intermediate.dense", ".mlp.fc1"),
            (".output.dense", ".mlp.fc2"),
        ):
            name = name.replace(old, new)
        memory[name] = x
    pooler = {f"vit.pooler.dense.{part}": tensors[f"classifier.{part}"] for part in ("weight", "bias")}
    testing.save_tensors(memory | pooler, tmp_path / "model.safetensors")
    found = vit.read_tensors(tmp_path, VIT)
    assert {name: x.tolist() for name, x in found.items()} == {name: x.tolist() for name, x in tensors.items()}
