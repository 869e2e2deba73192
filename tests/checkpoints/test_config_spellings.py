"""config.json as releases and authors spell it: each value under all of its names, and contradictions."""

import dataclasses

import pytest
import tiny
from config_files import changed, read

from npgemma.checkpoints.paligemma import config_json
from npgemma.errors import BadModel

LINEAR = {"rope_type": "linear", "factor": 2.0}
THETA = tiny.CONFIG.text.rope_theta


def edited(**changes: object) -> dict:
    """The small config with values by path, with two underscores for a dot; ... removes a key."""
    config = tiny.config_json()
    for path, value in changes.items():
        *sections, key = path.split("__")
        at = config
        for section in sections:
            at = at[section]
        at.pop(key, None)
        if value is not ...:
            at[key] = value
    return config


# ---------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("old", "new", "expected"), [(5, ..., 5), (..., 6, 6), (5, 6, 6), (5, None, 5), (None, 6, 6), (..., ..., 257152)]
)
def test_image_token_id_goes_before_image_token_index(old, new, expected, tmp_path):
    assert read(edited(image_token_index=old, image_token_id=new), tmp_path).image_token_index == expected


def test_an_invalid_image_token_id_is_refused_by_that_name(tmp_path):
    with pytest.raises(BadModel, match=r"config\.json: image_token_id is -1"):
        read(edited(image_token_id=-1), tmp_path)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [(7, 8, (7,)), ([7, 8], 9, (7, 8)), (..., 8, (8,)), (None, [8, 9], (8, 9)), (..., ..., (1,)), (..., None, (1,))],
)
def test_tokens_in_text_config_count_where_the_outer_ones_are_missing(outer, inner, expected, tmp_path):
    config = edited(eos_token_id=outer, text_config__eos_token_id=inner)
    assert read(config, tmp_path).eos_token_ids == expected


def test_an_invalid_token_in_text_config_is_refused_by_its_place(tmp_path):
    with pytest.raises(BadModel, match=r"config\.json: text_config: bos_token_id is 'x'"):
        read(edited(bos_token_id=..., text_config__bos_token_id="x"), tmp_path)


@pytest.mark.parametrize(("outer", "tied"), [(..., True), (None, True), (True, True), (False, False)])
@pytest.mark.parametrize("inner", [..., True, False])
def test_only_the_outer_tie_word_embeddings_counts(outer, inner, tied, tmp_path):
    config = edited(tie_word_embeddings=outer, text_config__tie_word_embeddings=inner)
    assert read(config, tmp_path).tied is tied


@pytest.mark.parametrize(
    "key", ["text_config__hidden_act", "text_config__hidden_activation", "vision_config__hidden_act"]
)
@pytest.mark.parametrize("name", ["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh", "gelu_accurate"])
def test_every_name_of_the_gelu_with_a_tanh_is_accepted(key, name, tmp_path):
    assert read(edited(**{key: name}), tmp_path) == tiny.CONFIG


@pytest.mark.parametrize(
    "key", ["text_config__hidden_act", "text_config__hidden_activation", "vision_config__hidden_act"]
)
@pytest.mark.parametrize("name", ["gelu_python", "gelu_10", "quick_gelu", "silu", "relu", "", 1, ["gelu_new"]])
def test_other_activations_are_refused(key, name, tmp_path):
    with pytest.raises(BadModel, match=rf"{key.split('__')[1]} is .*, which npgemma does not support"):
        read(edited(**{key: name}), tmp_path)


# ------------------------------------------------------------------------------------------------------------ positions


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "value",
    [
        {},
        {"type": "default"},
        {"rope_type": "default", "factor": 8.0},
        {"type": "linear", "factor": 1.0},
        {"rope_type": "linear", "factor": 1},
        {"type": "dynamic", "factor": 1.0, "original_max_position_embeddings": 8192},
        {"type": "dynamic", "factor": 4.0, "rope_type": "default"},
        {"rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
)
def test_a_scaling_that_changes_nothing_is_accepted(key, value, tmp_path):
    assert read(edited(**{f"text_config__{key}": value}), tmp_path) == tiny.CONFIG


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "value",
    [
        {"type": "linear"},
        {"type": "linear", "factor": 0},
        {"rope_type": "dynamic", "factor": 2},
        {"rope_type": "llama3"},
        {"type": "yarn", "factor": 1.0},
        {"rope_type": "longrope", "factor": 1.0},
        {"rope_type": ["default"]},
        {"rope_type": "default", "partial_rotary_factor": 0.5},
        {"rope_type": "default", "rope_theta": -1},
    ],
)
def test_a_scaling_that_changes_positions_is_refused_by_its_place(key, value, tmp_path):
    with pytest.raises(BadModel, match=rf"config\.json: text_config: {key}: "):
        read(edited(**{f"text_config__{key}": value}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0}}, 7.0),
        ({"rope_theta": 5.0, "rope_scaling": {"rope_type": "default", "rope_theta": 7.0}}, 7.0),
        ({"rope_theta": 5.0, "rope_scaling": {}, "rope_parameters": {"rope_theta": 7.0}}, 7.0),
        ({"rope_theta": 5.0, "rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 7.0}}, 5.0),
        ({"rope_theta": ..., "rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 7.0}}, 10000.0),
    ],
)
def test_the_base_of_the_positions_is_found_as_transformers_finds_it(changes, theta, tmp_path):
    """rope_scaling replaces rope_parameters; a base inside goes before the older key outside."""
    config = edited(**{f"text_config__{key}": value for key, value in changes.items()})
    assert read(config, tmp_path).text.rope_theta == theta


def test_rope_scaling_goes_before_rope_parameters(tmp_path):
    config = edited(text_config__rope_scaling=LINEAR, text_config__rope_parameters={"rope_type": "default"})
    assert read(config, tmp_path).text.rope_factor == 2


# ------------------------------------------------------------------------------------------------------- contradictions


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("projection_dim", 64, "projection_dim is 64, not the width of the decoder, hidden_size, 11"),
        (
            "text_config.num_image_tokens",
            99,
            "text_config: num_image_tokens is 99, not 25, the number of patches for image_size, 35 and patch_size, 7",
        ),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(path, value, message, tmp_path):
    with pytest.raises(BadModel, match=message):
        read(changed(path, value), tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("projection_dim", tiny.CONFIG.text.hidden_size),
        ("projection_dim", None),
        ("text_config.num_image_tokens", 25),
        ("vision_config.num_image_tokens", 99),
        ("vision_config.projection_dim", 64),
        ("hidden_size", 64),
        ("vocab_size", 64),
    ],
)
def test_sizes_that_agree_or_that_transformers_never_reads_are_accepted(path, value, tmp_path):
    assert read(changed(path, value), tmp_path) == tiny.CONFIG


@pytest.mark.parametrize("place", ["", "text_config.", "vision_config."])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("quantization_config", {"bits": 4}),
        ("quantization", {"group_size": 64, "bits": 4}),
        ("compression_config", {"format": "int-quantized"}),
    ],
)
def test_quantised_weights_are_refused_with_what_to_do(place, key, value, tmp_path):
    with pytest.raises(BadModel, match=rf"config\.json: .*{key} .*use the unquantised checkpoint"):
        read(changed(f"{place}{key}", value), tmp_path)
    assert read(changed(f"{place}{key}", None), tmp_path) == tiny.CONFIG


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vision_config__hidden_size": ..., "vision_config__num_attention_heads": 5},
            "hidden_size is missing, and its default 1152 is not a multiple of num_attention_heads, 5",
        ),
        (
            {"vision_config__num_attention_heads": ...},
            "num_attention_heads is missing, and its default 16 is that of hidden_size 1152 only, not of 12",
        ),
        (
            {"text_config__num_attention_heads": ..., "text_config__num_key_value_heads": 3},
            "num_attention_heads is missing, and its default 8 is not a multiple of num_key_value_heads, 3",
        ),
        (
            {"vision_config__patch_size": 230, "vision_config__image_size": ...},
            "patch_size is 230, more than image_size, by default 224",
        ),
        (
            {"vision_config__patch_size": ..., "vision_config__image_size": 7},
            "patch_size is missing, and its default 14 is more than image_size, 7",
        ),
        (
            {"bos_token_id": ..., "text_config__vocab_size": 2},
            "bos_token_id is missing, and its default 2 is not a token id from 0 to 1",
        ),
        ({"eos_token_id": ..., "text_config__vocab_size": 1, "bos_token_id": 0}, "eos_token_id is missing, and its"),
        (
            {"vision_config__image_size": ..., "text_config__num_image_tokens": 25},
            "num_image_tokens is 25, not 1024, the number of patches for image_size, by default 224 and patch_size, 7",
        ),
        ({"text_config__hidden_size": ...}, "not the width of the decoder, hidden_size, by default 2048"),
    ],
)
def test_a_message_calls_a_default_a_default(changes, message, tmp_path):
    with pytest.raises(BadModel) as error:
        read(edited(**changes), tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize("ends", [(1,), (1, 5)])
def test_a_written_config_reads_as_the_same(ends, tmp_path):
    config = dataclasses.replace(tiny.CONFIG, eos_token_ids=ends)
    assert read(config_json(config), tmp_path) == config
