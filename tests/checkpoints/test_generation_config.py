"""generation_config.json: its end tokens go before those of config.json, and what npgemma does not do is refused."""

import json
from pathlib import Path

import pytest
import tiny
from config_files import changed, read

from npgemma.checkpoints.generation_config import HARMLESS, WITHOUT_EFFECT
from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.errors import BadModel

# Each changes answers in transformers.
EFFECTIVE = {
    "suppress_tokens": [5],
    "begin_suppress_tokens": [5, 6],
    "bad_words_ids": [[5]],
    "sequence_bias": [[[5], -1.0]],
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 1,
    "force_words_ids": [[5]],
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 2,
    "min_length": 5,
    "min_new_tokens": 1,
    "repetition_penalty": 1.1,
    "encoder_repetition_penalty": 0.9,
    "exponential_decay_length_penalty": [5, 1.01],
    "stop_strings": ["."],
    "guidance_scale": 1.5,
    "token_healing": True,
    "watermarking_config": {"greenlist_ratio": 0.25},
    "penalty_alpha": 0.6,
    "dola_layers": "high",
}


def read_with(generation: object, folder: Path, config: dict | None = None) -> PaliGemmaConfig:
    """The config of a folder with both files."""
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return read(tiny.config_json() if config is None else config, folder)


@pytest.mark.parametrize(("eos", "expected"), [(7, (7,)), ([7], (7,)), ([1, 7, 3], (1, 7, 3)), (None, (1,)), (0, (0,))])
def test_its_end_tokens_go_before_those_of_config_json(eos, expected, tmp_path):
    assert read_with({"eos_token_id": eos}, tmp_path).eos_token_ids == expected


def test_without_end_tokens_in_it_those_of_config_json_are_used(tmp_path):
    assert read_with({}, tmp_path, changed("eos_token_id", [4, 5])).eos_token_ids == (4, 5)


def test_the_prompts_first_token_is_not_taken_from_it(tmp_path):
    """The processor of transformers does not read it either."""
    assert read_with({"bos_token_id": 9, "pad_token_id": 9}, tmp_path) == tiny.CONFIG


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", [], {}, [-1], [1, "2"], [[1]], tiny.CONFIG.text.vocab_size])
def test_an_invalid_end_token_names_file_and_key(value, tmp_path):
    with pytest.raises(BadModel) as error:
        read_with({"eos_token_id": value}, tmp_path)
    assert f"{tmp_path / 'generation_config.json'}: eos_token_id is " in str(error.value)


@pytest.mark.parametrize("key", EFFECTIVE)
def test_a_key_that_changes_answers_is_refused_with_file_key_and_value(key, tmp_path):
    with pytest.raises(BadModel) as error:
        read_with({key: EFFECTIVE[key]}, tmp_path)
    assert f"{tmp_path / 'generation_config.json'}: {key} is {EFFECTIVE[key]!r}" in str(error.value)
    assert "remove the key" in str(error.value)


def test_values_without_effect_are_accepted(tmp_path):
    for key, values in WITHOUT_EFFECT.items():
        for value in (None, *values):
            assert read_with({key: value}, tmp_path) == tiny.CONFIG


def test_lengths_sampling_and_beams_do_not_matter(tmp_path):
    """The options of npgemma decide them."""
    given = {"do_sample": True, "temperature": 0.1, "top_k": 3, "top_p": 0.5, "num_beams": 4, "max_new_tokens": 50}
    assert given.keys() <= HARMLESS
    assert read_with(given, tmp_path) == tiny.CONFIG


@pytest.mark.parametrize("place", ["", "text_config."])
def test_config_json_counts_where_there_is_no_generation_config(place, tmp_path):
    """As in transformers, which takes the settings of old models from there."""
    config = changed(f"{place}repetition_penalty", 1.5)
    with pytest.raises(BadModel, match=r"config\.json: .*repetition_penalty is 1\.5"):
        read(config, tmp_path)
    assert read_with({}, tmp_path, config) == tiny.CONFIG


@pytest.mark.parametrize("content", ["", "[]", "{", '{"eos_token_id": 1, "eos_token_id": 2}', '{"temperature": NaN}'])
def test_a_damaged_file_is_refused_by_name(content, tmp_path):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(BadModel, match=r"generation_config\.json"):
        read(tiny.config_json(), tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere.json").write_text("{}")
    (tmp_path / "model" / "generation_config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BadModel, match=r"generation_config\.json is a link"):
        read(tiny.config_json(), tmp_path / "model")
