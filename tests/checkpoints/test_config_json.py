"""config.json as a file: any JSON gives a config or one clear error."""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from config_files import paths, read
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import JSON

from npgemma.checkpoints.gemma_config import IN_PALIGEMMA
from npgemma.checkpoints.known_keys import unknown_keys
from npgemma.checkpoints.paligemma import read_config
from npgemma.errors import BadModel
from npgemma.io.strict_json import MAX_JSON_BYTES, read_json

# By file: keys that are read
KEYS = {
    "generation_config.json": ("eos_token_id", "bos_token_id", "sequence_bias", "min_length", "top_p"),
    "preprocessor_config.json": ("size", "image_mean", "image_std", "resample", "rescale_factor", "do_resize"),
    "processor_config.json": ("image_processor", "processor_class"),
}


@given(
    file=st.sampled_from(sorted(KEYS)).flatmap(
        lambda name: st.tuples(st.just(name), st.dictionaries(st.sampled_from(KEYS[name]), JSON, max_size=2))
    )
)
@settings(max_examples=60)
def test_any_value_in_the_other_files_gives_a_config_or_bad_model(file):
    name, content = file
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_text(json.dumps(content))
        try:
            config = read(tiny.config_json(), Path(folder))
        except BadModel as error:
            refusal = str(error)
        else:
            assert all(0 <= token < config.text.vocab_size for token in config.eos_token_ids)
            refusal = name
            assert all(key.startswith(f"{name}: ") for key in unknown_keys(Path(folder)))
    assert name in refusal


SIZES = {key: value for key, value in vars(tiny.CONFIG.text).items() if type(value) is int}
PALIGEMMA_2 = replace(tiny.CONFIG, text=replace(IN_PALIGEMMA["gemma2"], **SIZES))
# The numbers of a decoder that need not be whole.
FLOATS = {"rms_norm_eps", "rope_theta", "rope_factor", "attn_logit_softcapping", "final_logit_softcapping"}


@given(
    family=st.sampled_from([tiny.CONFIG, PALIGEMMA_2]),
    changes=st.dictionaries(st.sampled_from(paths()), JSON, min_size=1, max_size=3),
)
@settings(max_examples=150)
def test_any_value_at_any_key_gives_a_usable_config_or_bad_model(family, changes):
    """No other exception is raised, and the sizes of a config are positive integers that fit each other."""
    config = tiny.config_json(family)
    for path, value in changes.items():
        *sections, key = path.split(".")
        at = config
        for section in sections:
            at = at.setdefault(section, {}) if isinstance(at, dict) else at
        if isinstance(at, dict):
            at[key] = value
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = read(config, Path(folder))
        except BadModel as error:
            assert str(Path(folder) / "config.json") in str(error)  # noqa: PT017 - either outcome is right
            return
    for part, floats in ((found.vision, {"layer_norm_eps"}), (found.text, FLOATS)):
        numbers = {name: x for name, x in vars(part).items() if isinstance(x, int | float)}
        assert all(type(x) in (int, float) and 0 < x < math.inf for x in numbers.values())
        assert {name for name, x in numbers.items() if type(x) is float} <= floats
    assert found.text.model_type in IN_PALIGEMMA
    assert len(found.text.layer_kinds) == found.text.num_hidden_layers
    assert (found.text.sliding_window is None) == (found.text.model_type == "gemma")
    assert found.vision.head_dim * found.vision.num_attention_heads == found.vision.hidden_size
    assert found.text.num_attention_heads % found.text.num_key_value_heads == 0
    assert found.vision.num_patches > 0
    assert all(0 <= token < found.text.vocab_size for token in (found.bos_token_id, *found.eos_token_ids))


NOT_JSON = {
    "empty file": "",
    "white space": "  \n",
    "list": "[]",
    "null": "null",
    "string": '"paligemma"',
    "number": "7",
    "true": "true",
    "cut off": '{"model_type": "paligemma", "text_config": {',
    "text after the end": '{"model_type": "paligemma"} x',
    "single quotes": "{'model_type': 'paligemma'}",
    "comment": '{"model_type": "paligemma" /* yes */}',
    "trailing comma": '{"model_type": "paligemma",}',
    "a key twice": '{"model_type": "paligemma", "model_type": "paligemma"}',
    "a key twice inside": '{"model_type": "paligemma", "text_config": {"head_dim": 2, "head_dim": 256}}',
    "a key twice in a list": '{"model_type": "paligemma", "x": [{"a": 1, "a": 1}]}',
    "NaN": '{"model_type": "paligemma", "x": NaN}',
    "Infinity": '{"model_type": "paligemma", "x": Infinity}',
    "minus Infinity": '{"model_type": "paligemma", "x": [-Infinity]}',
    "integer of 5,000 digits": '{"model_type": "paligemma", "x": ' + "9" * 5000 + "}",
    "100,000 lists deep": '{"model_type": "paligemma", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "100,000 objects deep": '{"model_type": "paligemma", "x": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}",
    "another encoding": '{"model_type": "paligemma", "x": "é"}'.encode("latin-1"),
    "NUL bytes": b'{"model_type": "paligemma"}\0\0\0',
    "a control character": b'{"model_type": "paligemma", "x": "\x01"}',
    "a web page": "<!DOCTYPE html><html><body>401 Unauthorized</body></html>",
    "a git-lfs pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
}


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
def test_invalid_or_ambiguous_json_is_refused_with_its_path(content, tmp_path):
    with pytest.raises(BadModel) as error:
        read(content, tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_too_large_to_be_finite_is_refused_like_infinity(number, tmp_path):
    (tmp_path / "x.json").write_text(f'{{"x": {number}}}')
    with pytest.raises(BadModel, match=r"x\.json"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("key", ["model_type", "vision_config", "eos_token_id"])
def test_deep_nesting_is_refused(key, tmp_path):
    """A value that Python can parse may be nested too deeply for repr in the error message."""
    kind = "" if key == "model_type" else '"model_type": "paligemma", '
    for depth in (*range(700, 1010, 10), 2000, 5000, 9000, 20_000, 50_000):
        with pytest.raises(BadModel):
            read(f'{{{kind}"{key}": {"[" * depth}{"]" * depth}}}', tmp_path)


def test_a_file_too_large_for_a_config_is_refused_unread(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(BadModel, match=r"config\.json.*larger than 10 MB"):
        read_config(tmp_path)


def test_a_missing_config_is_refused(tmp_path):
    with pytest.raises(BadModel, match=r"config\.json is missing"):
        read_config(tmp_path)


def test_a_folder_named_config_json_is_refused(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(BadModel, match=r"config\.json cannot be read"):
        read_config(tmp_path)
