"""inspect: the sizes of a model, and the memory it needs."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny

from npgemma.checkpoints import paligemma
from npgemma.checkpoints.footprint import Run
from npgemma.checkpoints.paligemma import footprint, read_config
from npgemma.commands.inspect import described, inspect
from npgemma.io.model_folder import EMBEDDED


def test_inspect_in_json_describes_a_folder(folder, run):
    found = json.loads(run("inspect", folder, "--format", "json"))
    config = read_config(folder)
    count = sum(x.size for x in tiny.random_tensors(config).values())
    assert found["folder"] == str(folder)
    assert found["parameters"] == count
    assert found["stored_as"] == {"bfloat16": count}
    assert found["bytes"] == 2 * count
    assert found["tokens_per_image"] == 25
    assert found["cache_bytes_per_token"] == 2 * 3 * 2 * 10 * 4  # keys and values, layers, heads, width, float32
    assert found["tokenizer_pieces"] == config.image_token_index + 1
    assert found["config"] == json.loads(json.dumps(dataclasses.asdict(config)))


def test_inspect_in_text_describes_a_folder(folder, run):
    out = run("inspect", folder)
    count = sum(x.size for x in tiny.random_tensors(read_config(folder)).values())
    assert out.splitlines()[0] == str(folder)
    for fact in (f"{count:,} parameters, {2 * count:,} bytes in bfloat16", "35 x 35 pixels, 25 tokens"):
        assert fact in out
    assert "6 query and 2 key heads of 10" in out


def test_inspect_describes_the_embedded_model_by_default(run):
    assert run("inspect").splitlines()[0] == str(EMBEDDED)


def test_inspect_needs_no_tokenizer(tmp_path, run):
    found = json.loads(run("inspect", tiny.write_folder(tmp_path), "--format", "json"))
    assert found["tokenizer_pieces"] == 0


def test_inspect_computes_the_memory_of_a_prompt_with_a_picture(folder: Path) -> None:
    """32 tokens after those of the picture, and an answer of 256; weights as stored, or widened."""
    config = read_config(folder)
    found = inspect(folder, paligemma, config)
    for name, weights, itemsize in (
        ("float32", found.bytes, 4),
        ("float32 resident", 2 * found.bytes, 4),
        ("float64", found.bytes, 8),
    ):
        run = Run(weights, itemsize, 1, [config.vision.num_patches + 32], 256)
        assert found.memory_needed[name] == footprint(config, run).total


def test_inspect_describes_masks_and_an_unknown_amount_of_memory(folder: Path) -> None:
    config = read_config(folder)
    found = inspect(folder, paligemma, config)
    *_, masks, memory = described(found._replace(memory_available=None), config)
    assert masks == "masks      vae-oid.npz is missing; segment needs it"
    assert memory.endswith("; an unknown amount available")
    *_, masks, memory = described(found._replace(mask_decoder=True, memory_available=12_000_000_000), config)
    assert masks == "masks      vae-oid.npz found"
    assert memory.endswith("; 12.00 GB available")


# -------------------------------------------------------------------------------------------------------- unknown keys


# By path, with dots between: keys that no file of transformers contains.
UNKNOWN = {
    "config.json": ["foo", "text_config.foo", "vision_config.foo.bar", "text_config.rope_parameters.foo"],
    "generation_config.json": ["foo", "suppress"],
    "processor_config.json": ["foo", "image_processor.foo"],
    "preprocessor_config.json": ["foo", "do_flip"],
    "tokenizer_config.json": ["foo"],
    "special_tokens_map.json": ["foo_token"],
    "chat_template.json": ["foo"],
}


@pytest.fixture
def mine(tmp_path):
    """A model folder that the test may change."""
    return tiny.write_folder(tmp_path)


def add(file, path, value):
    """Put a value into a JSON file, which may be missing, at a path."""
    content = json.loads(file.read_text()) if file.exists() else {}
    *sections, key = path.split(".")
    at = content
    for section in sections:
        at = at.setdefault(section, {})
    at[key] = value
    file.write_text(json.dumps(content))


def unknown(folder, run):
    return json.loads(run("inspect", folder, "--format", "json"))["unknown_keys"]


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_keys_are_listed_with_their_file(name, mine, run):
    """In text one a line; of an unknown object only the object."""
    for path in UNKNOWN[name]:
        add(mine / name, path, [1])
    listed = sorted({f"{name}: {path.removesuffix('.bar')}" for path in UNKNOWN[name]})
    assert sorted(unknown(mine, run)) == listed
    lines = run("inspect", mine).splitlines()
    assert sorted(line for line in lines if line.startswith("unknown ")) == [f"unknown    {key}" for key in listed]


def test_a_known_key_in_another_section_is_unknown(mine, run):
    add(mine / "config.json", "vision_config.head_dim", 2)
    add(mine / "config.json", "rope_theta", 2)
    assert sorted(unknown(mine, run)) == ["config.json: rope_theta", "config.json: vision_config.head_dim"]


def test_an_unknown_key_is_printed_without_control_characters(mine, run):
    add(mine / "config.json", "a\x1b[2Jb", 2)
    assert "\x1b" not in run("inspect", mine)


def test_the_embedded_model_has_no_unknown_keys(run):
    assert unknown(EMBEDDED, run) == []


def test_the_older_file_is_not_looked_into_if_the_newer_one_counts(mine, run):
    add(mine / "preprocessor_config.json", "foo", 1)
    add(mine / "processor_config.json", "image_processor.resample", 3)
    assert unknown(mine, run) == []
