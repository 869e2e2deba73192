"""config.json: the values of missing keys, and BadModel for every value that npgemma cannot compute."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
import tiny
from config_files import changed, read
from hypothesis import given, settings
from hypothesis import strategies as st

from npgemma.checkpoints.gemma_config import GemmaConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig, read_config
from npgemma.checkpoints.towers import VisionConfig
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED

# The config of paligemma-3b-pt-448 on the hub, which leaves many keys out.
SPARSE = {
    "architectures": ["PaliGemmaForConditionalGeneration"],
    "bos_token_id": 2,
    "eos_token_id": 1,
    "hidden_size": 2048,
    "ignore_index": -100,
    "image_token_index": 257152,
    "model_type": "paligemma",
    "pad_token_id": 0,
    "projection_dim": 2048,
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "model_type": "gemma",
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_image_tokens": 1024,
        "num_key_value_heads": 1,
        "torch_dtype": "float32",
        "vocab_size": 257216,
    },
    "torch_dtype": "float32",
    "transformers_version": "4.42.0.dev0",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 448,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "num_image_tokens": 1024,
        "patch_size": 14,
        "projection_dim": 2048,
        "projector_hidden_act": "gelu_fast",
        "vision_use_head": False,
    },
}

COMPLETED = PaliGemmaConfig(
    vision=VisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        num_channels=3,
        image_size=448,
        patch_size=14,
        layer_norm_eps=1e-6,
    ),
    text=GemmaConfig(
        hidden_size=2048,
        intermediate_size=16384,
        num_hidden_layers=18,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=257216,
        max_position_embeddings=8192,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
    ),
    image_token_index=257152,
    bos_token_id=2,
    eos_token_ids=(1,),
)


def test_missing_keys_get_paligemmas_values(tmp_path):
    assert read(SPARSE, tmp_path) == COMPLETED


def test_image_size_is_224_by_default(tmp_path):
    """The hub's 224 config leaves it out: 16 x 16 patches of 14 pixels are the 256 image tokens of the paper."""
    sparse = copy.deepcopy(SPARSE)
    del sparse["vision_config"]["image_size"], sparse["text_config"]["num_image_tokens"]
    config = read(sparse, tmp_path)
    assert config.vision.image_size == 224
    assert config.vision.num_patches == 256
    assert config.vision.head_dim == 72


@pytest.mark.parametrize("absent", [{}, {"vision_config": None, "text_config": None}, {"text_config": {}}])
def test_without_sub_configs_the_model_is_paligemma_3b_at_224(absent, tmp_path):
    """Not Gemma 7B and SigLIP base/16, the defaults of those classes in transformers."""
    assert read({"model_type": "paligemma"} | absent, tmp_path) == PaliGemmaConfig(VisionConfig(), GemmaConfig())
    assert VisionConfig().intermediate_size == 4304
    assert GemmaConfig().vocab_size == 257216


@given(heads=st.integers(1, 8), share=st.integers(1, 50))
@settings(max_examples=25)
def test_head_dim_is_256_by_default_and_never_width_over_heads(heads, share):
    """Both are 256 in Gemma 2B; for another width, D/N would be the wrong shape."""
    config = tiny.config_json()
    del config["text_config"]["head_dim"], config["projection_dim"]
    config["text_config"] |= {"num_attention_heads": heads, "num_key_value_heads": 1, "hidden_size": heads * share}
    with tempfile.TemporaryDirectory() as folder:
        assert read(config, Path(folder)).text.head_dim == 256


def test_every_given_value_is_read(tmp_path):
    assert read(tiny.config_json(), tmp_path) == tiny.CONFIG


def test_the_embedded_models_config_reads():
    config = read_config(EMBEDDED)
    stored = json.loads((EMBEDDED / "config.json").read_text())
    assert config.image_token_index == stored["image_token_index"]
    assert config.text.head_dim == stored["text_config"]["head_dim"]


@pytest.mark.parametrize("key", sorted(tiny.config_json()["text_config"]))
def test_null_equals_a_missing_key(key, tmp_path):
    """Files of the hub contain "hidden_activation": null, which means the default."""
    without, null = tiny.config_json(), changed(f"text_config.{key}", None)
    del without["text_config"][key], without["projection_dim"], null["projection_dim"]
    assert read(null, tmp_path) == read(without, tmp_path)


def test_rope_theta_of_transformers_5_is_read(tmp_path):
    new = changed("text_config.rope_parameters", {"rope_theta": 500000.0, "rope_type": "default"})
    del new["text_config"]["rope_theta"]
    assert read(new, tmp_path).text.rope_theta == 500000.0


def test_rope_theta_of_transformers_4_is_read(tmp_path):
    assert read(changed("text_config.rope_theta", 500000), tmp_path).text.rope_theta == 500000.0


def test_rope_parameters_without_a_theta_use_the_older_key(tmp_path):
    config = changed("text_config.rope_parameters", {"rope_type": "default"})
    config["text_config"]["rope_theta"] = 777.0
    assert read(config, tmp_path).text.rope_theta == 777.0


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text_config.rope_parameters", {"rope_type": "yarn", "factor": 8.0}),
        ("text_config.rope_scaling", {"type": "dynamic", "factor": 8.0}),
        ("text_config.hidden_activation", "gelu"),
        ("text_config.hidden_activation", "silu"),
        ("text_config.hidden_act", "relu"),
        ("text_config.attention_bias", True),
        ("text_config.model_type", "gemma3_text"),
        ("text_config.model_type", ["gemma"]),
        ("vision_config.hidden_act", "gelu"),
        ("vision_config.hidden_act", "quick_gelu"),
        ("vision_config.model_type", "clip_vision_model"),
        ("vision_config.model_type", {}),
    ],
)
def test_unsupported_mathematics_is_refused_by_name(path, value, tmp_path):
    """With the wrong activation or rotation the model would run and give wrong answers."""
    with pytest.raises(BadModel) as error:
        read(changed(path, value), tmp_path)
    key = path.split(".")[1]
    assert str(tmp_path / "config.json") in str(error.value)
    assert key in str(error.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text_config.hidden_act", "gelu"),
        ("text_config.hidden_act", "gelu_pytorch_tanh"),
        ("text_config.hidden_activation", "gelu_pytorch_tanh"),
        ("text_config.rope_parameters", {"rope_type": "default"}),
        ("text_config.rope_parameters", {}),
        ("vision_config.hidden_act", "gelu_pytorch_tanh"),
        ("vision_config.projector_hidden_act", "gelu_fast"),
        ("vision_config.vision_use_head", True),
    ],
)
def test_other_spellings_of_the_same_mathematics_are_accepted(path, value, tmp_path):
    """Gemma's first configs say gelu for the tanh form; the projector ignores projector_hidden_act."""
    assert read(changed(path, value), tmp_path) == tiny.CONFIG


@pytest.mark.parametrize("kind", ["gemma", "llava", "PaliGemma", "", None, 0, ["paligemma"], {}])
def test_another_models_config_is_refused(kind, tmp_path):
    with pytest.raises(BadModel, match="model_type"):
        read(changed("model_type", kind), tmp_path)


def test_a_config_without_model_type_is_refused(tmp_path):
    config = tiny.config_json()
    del config["model_type"]
    with pytest.raises(BadModel, match=r"config\.json: model_type is missing, not 'paligemma'"):
        read(config, tmp_path)


COUNTS = [f"vision_config.{key}" for key, value in vars(tiny.CONFIG.vision).items() if type(value) is int]
COUNTS += [f"text_config.{key}" for key, value in vars(tiny.CONFIG.text).items() if type(value) is int]
INVALID_SIZES = [0, -1, 1.0, 2.5, True, False, "12", "", [], [12], {}, 1 << 30, 10**300]


@pytest.mark.parametrize("path", COUNTS)
def test_an_invalid_size_names_file_section_and_key(path, tmp_path):
    section, key = path.split(".")
    for value in INVALID_SIZES:
        with pytest.raises(BadModel) as error:
            read(changed(path, value), tmp_path)
        assert f"{tmp_path / 'config.json'}: {section}: {key} is {value!r}" in str(error.value)


@pytest.mark.parametrize("path", ["vision_config.layer_norm_eps", "text_config.rms_norm_eps", "text_config.rope_theta"])
def test_a_number_that_is_not_above_zero_names_file_section_and_key(path, tmp_path):
    section, key = path.split(".")
    for value in (0, 0.0, -1e-6, True, "1e-6", [], {}, 10**400):
        with pytest.raises(BadModel) as error:
            read(changed(path, value), tmp_path)
        assert f"{tmp_path / 'config.json'}: {section}: {key} is {value!r}" in str(error.value)


@pytest.mark.parametrize("key", ["image_token_index", "bos_token_id", "eos_token_id"])
def test_an_invalid_token_names_file_and_key(key, tmp_path):
    for value in (-1, 1.0, True, "1", [], {}, [-1], [1, "2"], [[1]], 1 << 30):
        with pytest.raises(BadModel) as error:
            read(changed(key, value), tmp_path)
        assert f"{tmp_path / 'config.json'}: {key} is " in str(error.value)


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
def test_a_token_without_a_row_in_the_table_is_refused(key, tmp_path):
    last = tiny.CONFIG.text.vocab_size - 1
    assert read(changed(key, last), tmp_path) != tiny.CONFIG
    with pytest.raises(BadModel, match=key):
        read(changed(key, last + 1), tmp_path)


def test_the_image_token_needs_no_row(tmp_path):
    """Its embedding is replaced by the picture, so small models leave it out of the table."""
    assert read(changed("image_token_index", 61), tmp_path).image_token_index == 61


@pytest.mark.parametrize(("value", "tied"), [(True, True), (False, False), (None, True)])
def test_the_head_is_tied_by_default(value, tied, tmp_path):
    assert read(changed("tie_word_embeddings", value), tmp_path).tied is tied
    assert read(tiny.config_json(), tmp_path).tied


@pytest.mark.parametrize("value", [0, 1, "false", "", [], {}])
def test_tie_word_embeddings_must_be_a_boolean(value, tmp_path):
    with pytest.raises(BadModel, match="tie_word_embeddings"):
        read(changed("tie_word_embeddings", value), tmp_path)


def test_several_end_tokens_are_all_kept_in_order(tmp_path):
    assert read(changed("eos_token_id", [1, 7, 3]), tmp_path).eos_token_ids == (1, 7, 3)


@pytest.mark.parametrize("section", ["vision_config", "text_config"])
@pytest.mark.parametrize("value", [1, "x", True, [1], [[]], 0.5])
def test_a_section_that_is_not_an_object_is_refused_by_name(section, value, tmp_path):
    with pytest.raises(BadModel, match=section):
        read(changed(section, value), tmp_path)


@pytest.mark.parametrize("path", ["vision_config", "text_config", "text_config.rope_parameters"])
@pytest.mark.parametrize("value", [False, 0, "", []])
def test_a_falsy_section_that_is_not_an_object_is_refused(path, value, tmp_path):
    """If "" counted as {}, a damaged config would silently become that of PaliGemma 3B."""
    with pytest.raises(BadModel, match=path.split(".")[-1]):
        read(changed(path, value), tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vision_config.num_attention_heads", 5, "hidden_size is 12, not a multiple of num_attention_heads, 5"),
        ("vision_config.num_channels", 1, "num_channels is 1"),
        ("vision_config.patch_size", 36, "patch_size is 36, more than image_size, 35"),
        ("text_config.num_key_value_heads", 4, "num_attention_heads is 6, not a multiple of num_key_value_heads, 4"),
        ("text_config.head_dim", 9, "head_dim is 9"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(path, value, message, tmp_path):
    with pytest.raises(BadModel, match=message):
        read(changed(path, value), tmp_path)
