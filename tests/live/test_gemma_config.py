"""The configs of Gemma 1, 2 and 3, and of PaliGemma 2, as transformers reads them from the same config.json."""

import json
from pathlib import Path

import hub_configs
import pytest
from gemma_configs import gemma_configs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npgemma.checkpoints import gemma_config
from npgemma.checkpoints.gemma_config import FULL, LANGUAGE_MODELS, SLIDING, GemmaConfig, config_json
from npgemma.checkpoints.known_keys import unknown_keys
from npgemma.checkpoints.paligemma import read_config
from npgemma.io.strict_json import Section, read_json

transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

# What a model runs with; transformers has the other numbers in the same attributes.
SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps"),
)
WINDOWED = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window")


def ours(config: GemmaConfig) -> dict[str, object]:
    """Every value that counts, with a theta and a factor for each kind of layer."""
    found = {key: getattr(config, key) for key in SIZES}
    if config.model_type != "gemma":
        found |= {key: getattr(config, key) for key in WINDOWED} | {"layer_types": list(config.layer_kinds)}
    local = config.rope_local_base_freq
    found[FULL] = (config.rope_theta, config.rope_factor)
    found[SLIDING] = (config.rope_theta, config.rope_factor) if local is None else (local, 1.0)
    return found


def theirs(config: "transformers.PreTrainedConfig") -> dict[str, object]:
    found = {key: getattr(config, key) for key in SIZES}
    if config.model_type != "gemma":
        found |= {key: getattr(config, key) for key in (*WINDOWED, "layer_types")}
    for kind in (FULL, SLIDING):
        rotation = config.rope_parameters.get(kind, config.rope_parameters)
        scaled = rotation.get("rope_type", "default") == "linear"
        found[kind] = (rotation["rope_theta"], rotation["factor"] if scaled else 1.0)
    return found


def compare(content: dict, folder: Path) -> None:
    """A language model's config.json, as read by both."""
    (folder / "config.json").write_text(json.dumps(content))
    expected = theirs(transformers.AutoConfig.from_pretrained(folder))
    assert ours(gemma_config.read(Section(content, "config.json"), LANGUAGE_MODELS)) == expected


@pytest.mark.parametrize("name", hub_configs.LANGUAGE_MODELS)
def test_published_language_models(name: str, tmp_path: Path) -> None:
    compare(hub_configs.content(name), tmp_path)


@pytest.mark.parametrize("name", hub_configs.PALIGEMMA_TEXTS)
def test_published_paligemmas(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hub_configs.content(name, {"image_size": 448})))
    expected = transformers.PaliGemmaConfig.from_pretrained(tmp_path)
    found = read_config(tmp_path)
    assert ours(found.text) == theirs(expected.text_config)
    assert found.vision.image_size == expected.vision_config.image_size == 448
    assert found.image_token_index == expected.image_token_id


def test_the_text_section_of_gemma_3_4b(tmp_path: Path) -> None:
    compare(hub_configs.GEMMA_3_4B_TEXT, tmp_path)


LINEAR = {"rope_type": "linear", "factor": 8.0}
ROTATION = {FULL: LINEAR | {"rope_theta": 5e5}, SLIDING: {"rope_type": "default", "rope_theta": 700.0}}
# By family: keys, and values besides those that gemma_configs draws. A key may also be missing.
SPELLINGS: dict[str, dict[str, list[object]]] = {
    "gemma": {"rope_scaling": [None, {}, LINEAR, {"rope_type": "default"}], "rope_parameters": [None, {}, LINEAR]},
    "gemma2": {
        "rope_scaling": [None, {}, LINEAR],
        "rope_parameters": [None, {"rope_theta": 9.0}, LINEAR],
        "sliding_window_pattern": [3],  # Gemma 3's key
    },
    "gemma3_text": {
        "rope_scaling": [None, LINEAR, {"rope_type": "default"}, LINEAR | {"rope_theta": 8e5}],
        "rope_parameters": [None, ROTATION, {FULL: LINEAR}, {FULL: LINEAR, SLIDING: {"rope_theta": 9.0}}],
        "sliding_window_pattern": [1, 2, 3, 6],
    },
}
DRAWN = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@DRAWN
@given(data=st.data())
def test_configs_that_leave_keys_out(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    """Any keys are missing, except those that must fit each other; positions and windows in every spelling."""
    content = config_json(data.draw(gemma_configs((kind,))))
    optional = sorted(content.keys() - {"model_type", "hidden_size", "num_attention_heads", "num_key_value_heads"})
    for key in data.draw(st.sets(st.sampled_from(optional))):
        del content[key]
    if "num_hidden_layers" not in content:
        content.pop("layer_types", None)
    for key, values in SPELLINGS[kind].items():
        if data.draw(st.booleans()):
            content[key] = data.draw(st.sampled_from(values))
    compare(content, tmp_path)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
@DRAWN
@given(data=st.data())
def test_what_each_writes_the_other_reads_as_the_same(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    config = data.draw(gemma_configs((kind,)))
    (tmp_path / "config.json").write_text(json.dumps(config_json(config)))
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs(read) == ours(config)
    read.save_pretrained(tmp_path)
    assert gemma_config.read(Section(read_json(tmp_path / "config.json"), ""), LANGUAGE_MODELS) == config


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_what_transformers_writes_contains_no_unknown_keys(kind: str) -> None:
    """to_dict writes all keys. The whole model reads use_bidirectional_attention, which changes the mask."""
    s = Section(json.loads(json.dumps(transformers.CONFIG_MAPPING[kind]().to_dict())), "config.json")
    assert gemma_config.read(s, LANGUAGE_MODELS) == LANGUAGE_MODELS[kind]
    assert set(s.unknown()) <= {"use_bidirectional_attention"}


def test_a_saved_paligemma_2_contains_no_unknown_keys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(hub_configs.content("paligemma2-28b")))
    found = read_config(tmp_path)
    transformers.PaliGemmaConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert read_config(tmp_path) == found
    assert unknown_keys(tmp_path) == []
