"""Language models on disk: config.json of each kind, end tokens, names, heads, and tensors that are not used."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import gemma_configs
import language_folders as small
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_folders import FAMILIES

from npgemma import testing
from npgemma.checkpoints import language_model as lm
from npgemma.checkpoints import model_types, paligemma
from npgemma.checkpoints.gemma_config import GEMMA_3, LANGUAGE_MODELS
from npgemma.checkpoints.known_keys import unknown_keys
from npgemma.checkpoints.language_model import LanguageModelConfig, config_json, hf_layout, names_of, read_config
from npgemma.errors import BadModel
from npgemma.layers.tree import leaves

CONFIG = small.config_of("gemma3_text")


def write(folder: Path, config: object, generation: object = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


# -------------------------------------------------------------------------------------------------------------- config


@given(gemma_configs.gemma_configs(), st.booleans(), st.integers(0, 29), st.lists(st.integers(0, 29), min_size=1))
@settings(max_examples=15)
def test_a_config_is_read_as_it_is_written(tmp_path_factory, text, tied, bos, eos):
    config = LanguageModelConfig(text, tied, bos, tuple(eos))
    folder = write(tmp_path_factory.mktemp("config"), config_json(config))
    assert read_config(folder) == config
    assert unknown_keys(folder) == []


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_a_config_without_keys_is_transformers_default(kind, tmp_path):
    expected = LanguageModelConfig(LANGUAGE_MODELS[kind], tied=True, bos_token_id=2, eos_token_ids=(1,))
    assert read_config(write(tmp_path, {"model_type": kind})) == expected


# As google/gemma-3-4b-it has it, shortened.
WITH_VISION = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "vision_use_head": False},
}
DECODER = replace(
    GEMMA_3, hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, rope_factor=8.0, sliding_window=1024
)


def test_the_decoder_of_a_gemma_3_with_vision(tmp_path):
    folder = write(tmp_path, WITH_VISION)
    assert read_config(folder) == LanguageModelConfig(DECODER, True, 2, (1, 106))
    assert unknown_keys(folder) == []


@pytest.mark.parametrize("kind", [{}, {"model_type": None}], ids=["missing", "null"])
def test_the_decoder_beside_a_vision_tower_is_gemma_3_if_it_does_not_say_so(kind, tmp_path):
    text = {key: value for key, value in WITH_VISION["text_config"].items() if key != "model_type"} | kind
    assert read_config(write(tmp_path, WITH_VISION | {"text_config": text})).text == DECODER
    assert read_config(write(tmp_path, {"model_type": "gemma3"})).text == GEMMA_3


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ({"eos_token_id": None}, {"eos_token_id": [1, 106], "bos_token_id": 4}, (4, (1, 106))),
        ({"eos_token_id": 7, "bos_token_id": 3}, {"eos_token_id": [1, 106], "bos_token_id": 4}, (3, (7,))),
        ({"eos_token_id": None}, {}, (2, (1,))),
    ],
)
def test_begin_and_end_tokens_are_those_of_the_whole_and_else_of_the_decoder(outer, inner, expected, tmp_path):
    found = read_config(write(tmp_path, WITH_VISION | outer | {"text_config": WITH_VISION["text_config"] | inner}))
    assert (found.bos_token_id, found.eos_token_ids) == expected


BAD = {
    "another family beside a vision tower": (
        WITH_VISION | {"text_config": {"model_type": "gemma2"}},
        "config.json: text_config: model_type is 'gemma2'",
    ),
    "no object": (WITH_VISION | {"text_config": [1]}, "text_config is [1], not an object"),
    "an embedding model": (
        config_json(CONFIG) | {"use_bidirectional_attention": True},
        "config.json: use_bidirectional_attention is set: this is a model that embeds texts",
    ),
    "bos": (config_json(CONFIG) | {"bos_token_id": 9999}, "bos_token_id is 9999, not a token id from 0 to 1745"),
    "eos": (config_json(CONFIG) | {"eos_token_id": [1, -1]}, "eos_token_id is -1, not a token id from 0 to 1745"),
    "tied": (config_json(CONFIG) | {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    "quantised": (config_json(CONFIG) | {"quantization_config": {"bits": 4}}, "quantization_config"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_config_that_cannot_be_computed_is_refused(name, tmp_path):
    config, says = BAD[name]
    with pytest.raises(BadModel) as error:
        read_config(write(tmp_path, config))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": [1, 107]}, None, (1, 107)),
        ({"eos_token_id": 1}, {"eos_token_id": [1, 107]}, (1, 107)),
        ({"eos_token_id": 107}, {"eos_token_id": 1}, (1,)),
        ({"eos_token_id": 107}, {}, (107,)),
        ({"eos_token_id": None}, None, (1,)),
        ({}, {"eos_token_id": 5}, (5,)),
    ],
)
def test_end_tokens_are_those_of_generation_config_and_else_of_config(config, generation, expected, tmp_path):
    values = {key: value for key, value in config_json(CONFIG).items() if key != "eos_token_id"} | config
    assert read_config(write(tmp_path, values, generation)).eos_token_ids == expected


def test_settings_that_change_answers_are_refused(tmp_path):
    with pytest.raises(BadModel, match=r"generation_config\.json: suppress_tokens is \[5\], which changes answers"):
        read_config(write(tmp_path, config_json(CONFIG), {"suppress_tokens": [5]}))


@pytest.mark.parametrize(
    ("kind", "module"),
    [("paligemma", paligemma), *((kind, lm) for kind in ("gemma", "gemma2", "gemma3_text", "gemma3"))],
)
def test_the_module_of_a_folder(kind, module, tmp_path):
    assert model_types.module_of(write(tmp_path, {"model_type": kind})) is module


def test_the_config_of_another_vocabulary():
    found = lm.with_vocabulary(CONFIG, 99)
    assert found.text.vocab_size == 99
    assert asdict(found.text) | {"vocab_size": CONFIG.text.vocab_size} == asdict(CONFIG.text)


# ------------------------------------------------------------------------------------------------------------- tensors

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
SPELLINGS = {
    "as transformers saves it": ("model.", ""),
    "the decoder alone": ("", ""),
    "Gemma 3 with a vision tower, before 2025": ("language_model.model.", "language_model."),
    "Gemma 3 with a vision tower": ("model.language_model.", ""),
    "compiled": ("_orig_mod.model.", "_orig_mod."),
    "in a trainer": ("state_dict.model.", "state_dict."),
}


def spelled(tensors: dict[str, np.ndarray], body: str, head: str) -> dict[str, np.ndarray]:
    return {head + name if name == HEAD else body + name.removeprefix("model."): x for name, x in tensors.items()}


def read(folder: Path, config: LanguageModelConfig, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    testing.save_tensors(tensors, folder / "model.safetensors")
    return lm.read_tensors(folder, config)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("tied", [False, True], ids=["with a head", "tied"])
def test_every_spelling_of_the_names_is_read(family, spelling, tied, tmp_path):
    config = small.config_of(family, tied)
    expected = small.tensors_of(config)
    found = read(write(tmp_path, config_json(config)), config, spelled(expected, *SPELLINGS[spelling]))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name, strict=True)


def test_the_vision_tower_beside_a_decoder_is_not_used(tmp_path):
    others = {
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": np.ones((2, 3), np.float32),
        "model.vision_tower.vision_model.post_layernorm.bias": np.ones(3, np.float32),
        "multi_modal_projector.mm_input_projection_weight": np.ones((3, 2), np.float32),
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32),
    }
    expected = small.tensors_of(CONFIG)
    found = read(write(tmp_path, {}), CONFIG, spelled(expected, "language_model.model.", "language_model.") | others)
    assert found.keys() == expected.keys()


def test_a_head_that_the_config_calls_tied_is_read(tmp_path):
    """As for PaliGemma: the stored head counts."""
    untied = small.config_of("gemma2")
    tied = replace(untied, tied=True)
    found = read(write(tmp_path, {}), tied, small.tensors_of(untied))
    np.testing.assert_array_equal(lm.weights(found, tied).head, small.tensors_of(untied)[HEAD])


def test_a_tied_matrix_may_have_the_name_of_the_head(tmp_path):
    config = small.config_of("gemma2", tied=True)
    tensors = dict(small.tensors_of(config))
    tensors[HEAD] = tensors.pop(TABLE)
    found = lm.weights(read(write(tmp_path, {}), config, tensors), config)
    np.testing.assert_array_equal(found.embedding, tensors[HEAD])
    assert found.head is None


WRONG = {
    "a tensor is missing": (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight"),
    "a tensor too many": (lambda t: t.update({"model.layers.9.x": np.ones(2, np.float32)}), "model.layers.9.x"),
    "another shape": (lambda t: t.update({"model.norm.weight": np.ones(13, np.float32)}), "model.norm.weight"),
    "no head": (lambda t: t.pop(HEAD), "lm_head.weight (1746, 12) is missing, and config.json says that the head is"),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_do_not_fit_the_config_are_named(name, tmp_path):
    tensors, (change, says) = dict(small.tensors_of(CONFIG)), WRONG[name]
    change(tensors)
    with pytest.raises(BadModel) as error:
        read(write(tmp_path, {}), CONFIG, tensors)
    assert says in str(error.value)


@pytest.mark.parametrize(("stored", "says"), [("gemma2", "gemma"), ("gemma", "gemma2"), ("gemma3_text", "gemma2")])
def test_the_tensors_of_another_family_are_refused(stored, says, tmp_path):
    tensors = small.tensors_of(small.config_of(stored))
    with pytest.raises(BadModel, match=f"says that the model_type is '{says}'; the two belong to different models"):
        read(write(tmp_path, {}), small.config_of(says), tensors)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_has_its_name(family, tied):
    config = small.config_of(family, tied)
    p = lm.weights(small.tensors_of(config), config)
    names = names_of(p, config)
    for leaf in leaves(p):
        np.testing.assert_array_equal(leaf.value.reshape(-1), small.tensors_of(config)[names[leaf.path]].reshape(-1))
    assert sorted(names.values()) == sorted(hf_layout(config).shapes)
