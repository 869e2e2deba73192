"""The configs of Gemma 1, 2 and 3: the values of the published models, both spellings, and what is refused."""

from dataclasses import replace

import hub_configs
import pytest
from config_files import read as read_folder
from gemma_configs import gemma_configs
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import JSON

from npgemma.checkpoints import gemma_config
from npgemma.checkpoints.gemma_config import FULL, IN_PALIGEMMA, LANGUAGE_MODELS, SLIDING, GemmaConfig, config_json
from npgemma.checkpoints.known_keys import unknown_keys
from npgemma.errors import BadModel
from npgemma.io.strict_json import Section

GEMMA = GemmaConfig(vocab_size=256000)
GEMMA_2 = GemmaConfig(
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    vocab_size=256000,
    max_position_embeddings=8192,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    model_type="gemma2",
    query_pre_attn_scalar=256,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
    sliding_window=4096,
)
GEMMA_2_9B = replace(
    GEMMA_2,
    hidden_size=3584,
    intermediate_size=14336,
    num_hidden_layers=42,
    num_attention_heads=16,
    num_key_value_heads=8,
)
GEMMA_2_27B = replace(
    GEMMA_2,
    hidden_size=4608,
    intermediate_size=36864,
    num_hidden_layers=46,
    num_attention_heads=32,
    num_key_value_heads=16,
    head_dim=128,
    query_pre_attn_scalar=144,
)
GEMMA_3 = GemmaConfig(
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=256,
    vocab_size=262144,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    model_type="gemma3_text",
    query_pre_attn_scalar=256,
    sliding_window=512,
    rope_local_base_freq=10000.0,
)
GEMMA_3_4B = replace(
    GEMMA_3,
    hidden_size=2560,
    intermediate_size=10240,
    num_hidden_layers=34,
    num_attention_heads=8,
    num_key_value_heads=4,
    vocab_size=262208,
    max_position_embeddings=131072,
    sliding_window=1024,
    rope_factor=8.0,
)
PUBLISHED = {
    "paligemma-3b": GemmaConfig(),
    "paligemma2-3b": replace(GEMMA_2, vocab_size=257216),
    "paligemma2-10b": replace(GEMMA_2_9B, vocab_size=257216),
    "paligemma2-28b": replace(GEMMA_2_27B, vocab_size=257216),
    "gemma-2b": GEMMA,
    "gemma-7b": replace(
        GEMMA,
        hidden_size=3072,
        intermediate_size=24576,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=16,
    ),
    "gemma-2-2b": GEMMA_2,
    "gemma-2-9b": GEMMA_2_9B,
    "gemma-2-27b": GEMMA_2_27B,
    "gemma-3-270m": replace(GEMMA_3, hidden_size=640, intermediate_size=2048, num_hidden_layers=18),
    "gemma-3-1b": replace(GEMMA_3, hidden_size=1152, intermediate_size=6912, num_hidden_layers=26),
}


def read(values: dict, defaults: dict[str, GemmaConfig] = LANGUAGE_MODELS) -> GemmaConfig:
    return gemma_config.read(Section(values, "config.json"), defaults)


def section(name: str) -> dict:
    """The part of a published model's config.json that describes its decoder."""
    content = hub_configs.content(name)
    return content.get("text_config", content)


# ----------------------------------------------------------------------------------------------------- published models


def test_every_published_model_is_expected() -> None:
    assert set(PUBLISHED) == set(hub_configs.NAMES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_has_the_values_of_its_model(name: str) -> None:
    assert read(section(name), IN_PALIGEMMA if name.startswith("pali") else LANGUAGE_MODELS) == PUBLISHED[name]


def test_the_text_section_of_gemma_3_4b_has_the_values_of_its_model() -> None:
    assert read(hub_configs.GEMMA_3_4B_TEXT) == GEMMA_3_4B


@pytest.mark.parametrize("size", [224, 448, 896])
@pytest.mark.parametrize("name", hub_configs.PALIGEMMA_TEXTS)
def test_the_leftovers_of_a_published_paligemma_are_known_and_change_nothing(name: str, size: int, tmp_path) -> None:
    """Its own end token counts, not those of gemma-2-2b-it; its hidden_size is another model's."""
    config = read_folder(hub_configs.content(name, {"image_size": size}), tmp_path)
    assert unknown_keys(tmp_path) == []
    assert config.text == PUBLISHED[name]
    assert (config.vision.image_size, config.vision.hidden_size, config.vision.num_attention_heads) == (size, 1152, 16)
    assert (config.image_token_index, config.bos_token_id, config.eos_token_ids, config.tied) == (257152, 2, (1,), True)


@pytest.mark.parametrize("name", hub_configs.LANGUAGE_MODELS)
def test_every_key_of_a_published_language_model_is_known(name: str) -> None:
    s = Section(section(name), "config.json")
    gemma_config.read(s, LANGUAGE_MODELS)
    assert set(s.unknown()) <= {"cache_implementation", "use_bidirectional_attention"}  # the whole model reads these


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("gemma-2b", range(18)),
        ("paligemma2-3b", range(1, 26, 2)),
        ("gemma-3-270m", (5, 11, 17)),
        ("gemma-3-1b", (5, 11, 17, 23)),
    ],
)
def test_which_layers_have_no_window(name: str, full) -> None:
    kinds = PUBLISHED[name].layer_kinds
    assert [i for i, kind in enumerate(kinds) if kind == FULL] == list(full)
    assert set(kinds) <= {FULL, SLIDING}


@pytest.mark.parametrize(("kind", "default"), [*LANGUAGE_MODELS.items(), *IN_PALIGEMMA.items()])
def test_a_config_without_keys_has_the_defaults_of_its_family(kind: str, default: GemmaConfig) -> None:
    assert read({"model_type": kind}, {kind: default}) == default


# ------------------------------------------------------------------------------------------------------ kinds of layers


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize("kinds", [[FULL] * 3, [SLIDING] * 3, [FULL, SLIDING, SLIDING]])
def test_a_list_of_kinds_goes_before_the_pattern(kind: str, kinds: list[str]) -> None:
    config = read({"model_type": kind, "num_hidden_layers": 3, "layer_types": kinds, "sliding_window_pattern": 3})
    assert config.layer_kinds == tuple(kinds)


def test_a_list_that_is_the_pattern_of_the_family_is_the_same_config() -> None:
    kinds = [SLIDING, FULL, SLIDING]
    alike = [{"layer_types": kinds}, {"layer_types": None}, {}]
    assert len({read({"model_type": "gemma2", "num_hidden_layers": 3} | each) for each in alike}) == 1


@pytest.mark.parametrize(("period", "full"), [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (3, [2, 5]), (8, [])])
def test_one_layer_in_sliding_window_pattern_has_no_window(period: int, full: list[int]) -> None:
    config = read({"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window_pattern": period})
    assert [i for i, kind in enumerate(config.layer_kinds) if kind == FULL] == full


def test_sliding_window_pattern_is_not_a_key_of_gemma_2() -> None:
    s = Section({"model_type": "gemma2", "num_hidden_layers": 4, "sliding_window_pattern": 3}, "config.json")
    assert gemma_config.read(s, LANGUAGE_MODELS).layer_kinds == (SLIDING, FULL, SLIDING, FULL)
    assert s.unknown() == ["sliding_window_pattern"]


def test_without_layers_that_have_a_window_it_may_be_null() -> None:
    values = {"model_type": "gemma2", "num_hidden_layers": 2, "layer_types": [FULL, FULL], "sliding_window": None}
    assert read(values).layer_kinds == (FULL, FULL)


# ----------------------------------------------------------------------------------------------------------------- caps

CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


@pytest.mark.parametrize(
    ("kind", "key", "default"),
    [("gemma2", CAPS[0], 50.0), ("gemma2", CAPS[1], 30.0), ("gemma3_text", CAPS[1], None)],
)
def test_null_is_no_cap_and_a_missing_key_is_the_cap_of_the_family(kind: str, key: str, default: float | None) -> None:
    found = [getattr(read({"model_type": kind} | each), key) for each in ({}, {key: None}, {key: 7})]
    assert found == [default, None, 7.0]


def test_gemma_3_does_not_cap_scores_as_transformers_does_not() -> None:
    assert read({"model_type": "gemma3_text", "attn_logit_softcapping": 7}).attn_logit_softcapping is None


# ------------------------------------------------------------------------------------------------------------ positions

LINEAR = {"rope_type": "linear", "factor": 8.0}
FIVE = {FULL: LINEAR | {"rope_theta": 5e5}, SLIDING: {"rope_type": "default", "rope_theta": 700.0}}


@pytest.mark.parametrize(
    ("values", "thetas_and_factor"),
    [
        ({}, (1e6, 1e4, 1.0)),
        ({"rope_theta": 5e5, "rope_local_base_freq": 700, "rope_scaling": LINEAR}, (5e5, 700.0, 8.0)),
        ({"rope_parameters": FIVE}, (5e5, 700.0, 8.0)),
        ({"rope_parameters": FIVE, "rope_theta": 3.0, "rope_local_base_freq": 4.0}, (5e5, 700.0, 8.0)),
        ({"rope_parameters": {FULL: LINEAR}, "rope_theta": 5e5}, (5e5, 1e4, 8.0)),
        ({"rope_parameters": {FULL: None, SLIDING: None}}, (1e6, 1e4, 1.0)),
        ({"rope_parameters": FIVE, "rope_scaling": {"rope_type": "linear", "factor": 2}}, (5e5, 700.0, 2.0)),
        ({"rope_parameters": FIVE, "rope_scaling": None}, (5e5, 700.0, 8.0)),
        ({"rope_scaling": {"rope_type": "default"}}, (1e6, 1e4, 1.0)),
    ],
)
def test_both_spellings_of_gemma_3s_positions(values: dict, thetas_and_factor: tuple[float, float, float]) -> None:
    config = read({"model_type": "gemma3_text"} | values)
    assert (config.rope_theta, config.rope_local_base_freq, config.rope_factor) == thetas_and_factor


@pytest.mark.parametrize("kind", ["gemma", "gemma2"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_positions_of_gemma_1_and_2_are_stretched_by_the_factor(kind: str, key: str) -> None:
    config = read({"model_type": kind, "rope_theta": 5.0, key: LINEAR})
    assert (config.rope_theta, config.rope_factor, config.rope_local_base_freq) == (5.0, 8.0, None)


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sliding_window": None}, "sliding_window is null, but layer 0 has a window"),
        (
            {"sliding_window": None, "layer_types": [FULL, FULL, SLIDING]},
            "sliding_window is null, but layer 2 has a window",
        ),
        ({"sliding_window": 0}, "sliding_window is 0, not a whole number from 1 to"),
        ({"sliding_window": 4096.0}, "sliding_window is 4096.0, not a whole number from 1 to"),
        ({"attn_logit_softcapping": 0}, "attn_logit_softcapping is 0, not a number above zero"),
        ({"final_logit_softcapping": 0.0}, "final_logit_softcapping is 0.0, not a number above zero"),
        ({"final_logit_softcapping": -30.0}, "final_logit_softcapping is -30.0, not a number above zero"),
        ({"attn_logit_softcapping": "50"}, "attn_logit_softcapping is '50', not a number above zero"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0, not a whole number from 1 to"),
        ({"layer_types": [FULL] * 2}, r"layer_types is a list of 2, not .* each of the 3 layers \(num_hidden_layers\)"),
        ({"layer_types": []}, "layer_types is a list of 0, not"),
        ({"layer_types": FULL}, "layer_types is 'full_attention', not a list"),
        ({"layer_types": {"0": FULL}}, "layer_types is {'0': 'full_attention'}, not a list"),
        ({"layer_types": [FULL, "chunked_attention", FULL]}, "layer_types says 'chunked_attention' for layer 1; "),
        ({"layer_types": [FULL, FULL, [SLIDING]]}, r"layer_types says \['sliding_attention'\] for layer 2; "),
        ({"layer_types": [None, FULL, FULL]}, "layer_types says None for layer 0; "),
        ({"hidden_activation": "gelu"}, "hidden_activation is 'gelu', which npgemma does not support"),
        ({"attention_bias": True}, "attention_bias is True, which npgemma does not support"),
    ],
)
@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_a_value_of_gemma_2_and_3_that_npgemma_cannot_compute_is_refused(kind: str, values: dict, message: str) -> None:
    with pytest.raises(BadModel, match=rf"^config\.json: {message}") as error:
        read({"model_type": kind, "num_hidden_layers": 3} | values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_scaling: rope_type is 'yarn', which npgemma"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: rope_type is 'linear', and its factor is missing"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling: rope_type is 'dynamic' with the"),
        ({"rope_parameters": {FULL: {"rope_type": "yarn"}}}, "rope_parameters: full_attention: rope_type is 'yarn'"),
        ({"rope_parameters": {SLIDING: LINEAR}}, "rope_parameters: sliding_attention: factor is 8.0, which npgemma"),
        ({"rope_parameters": {SLIDING: {"rope_theta": 0}}}, "rope_parameters: sliding_attention: rope_theta is 0, not"),
        ({"rope_parameters": LINEAR}, "rope_parameters has the key 'rope_type'; Gemma 3 has one object for"),
        ({"rope_parameters": {FULL: "x"}}, "rope_parameters: full_attention is 'x', not an object"),
        ({"rope_local_base_freq": -1}, "rope_local_base_freq is -1, not a number above zero"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern is 0, not a whole number from 1 to 512"),
    ],
)
def test_positions_and_patterns_of_gemma_3_that_npgemma_cannot_compute_are_refused(values: dict, message: str) -> None:
    with pytest.raises(BadModel, match=rf"^config\.json: {message}"):
        read({"model_type": "gemma3_text"} | values)


# -------------------------------------------------------------------------------------------------------------- written


@given(gemma_configs())
@settings(max_examples=60)
def test_a_written_config_reads_as_the_same(config: GemmaConfig) -> None:
    s = Section(config_json(config), "config.json")
    assert gemma_config.read(s, LANGUAGE_MODELS) == config
    assert s.unknown() == []


ROTATIONS = ("rope_scaling", "rope_parameters", "full_attention", "sliding_attention")
KEYS = st.sampled_from([*config_json(GEMMA_3), *CAPS, "sliding_window_pattern", "hidden_activation", *ROTATIONS[:2]])
# Values that come near to valid ones, beside any JSON.
NEAR = st.one_of(
    st.lists(st.sampled_from([FULL, SLIDING, "x"]), max_size=4),
    st.dictionaries(st.sampled_from(ROTATIONS), st.sampled_from([LINEAR, {"rope_theta": 7}, {"type": "yarn"}, None])),
    st.dictionaries(st.sampled_from(["rope_type", "type", "factor"]), st.sampled_from(["linear", "default", 1, 2.5])),
)


@given(st.sampled_from(sorted(LANGUAGE_MODELS)), st.dictionaries(KEYS, JSON | NEAR, min_size=1, max_size=3))
@settings(max_examples=150)
def test_any_value_at_any_key_gives_a_usable_config_or_bad_model(kind: str, changes: dict) -> None:
    """A usable config has a kind for each layer, numbers above zero, and reads as itself once it is written."""
    small = replace(LANGUAGE_MODELS[kind], num_hidden_layers=3)
    try:
        config = read(config_json(small) | changes)
    except BadModel as error:
        assert str(error).startswith("config.json: ")  # noqa: PT017 - either outcome is right
        return
    assert len(config.layer_kinds) == config.num_hidden_layers
    assert set(config.layer_kinds) <= {FULL, SLIDING}
    assert all(value > 0 for value in vars(config).values() if isinstance(value, int | float))
    assert read(config_json(config)) == config


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_survives_being_written(name: str) -> None:
    assert read(config_json(PUBLISHED[name])) == PUBLISHED[name]
