"""inspect: the sizes of a model, and the memory it needs."""

import dataclasses
import json

import tiny

from npgemma.checkpoints.paligemma import read_config
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
