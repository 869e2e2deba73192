"""Adapters that are written: they read back, and their expression matches the modules that were adapted alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny

from npgemma.checkpoints.adapter import LowRank, Rows, read_adapter
from npgemma.checkpoints.adapter_writing import module_name, target_modules, write_adapter

TENSORS = tiny.random_tensors()
TEXT, VISION = "language_model.model.layers", "vision_tower.vision_model.encoder.layers"
QUERIES = [f"{TEXT}.{i}.self_attn.q_proj.weight" for i in range(3)]


def update(name: str, rank: int = 2, scale: float = 0.5, seed: int = 0) -> LowRank:
    rng, shape = np.random.default_rng(seed), TENSORS[name].shape
    a, b = rng.standard_normal((rank, shape[1])), rng.standard_normal((shape[0], rank))
    return LowRank(a.astype(np.float32), b.astype(np.float32), scale, shape)


@pytest.mark.parametrize(
    "names",
    [
        QUERIES,
        QUERIES[1:2],
        [f"{TEXT}.{i}.mlp.{part}_proj.weight" for i in range(3) for part in ("gate", "up", "down")],
        [f"{VISION}.1.self_attn.q_proj.weight", "multi_modal_projector.linear.weight"],
    ],
)
def test_what_is_written_reads_back(tmp_path: Path, names: list[str]) -> None:
    updates = {name: update(name, seed=i) for i, name in enumerate(names)}
    write_adapter(tmp_path, updates, {}, TENSORS, "some/model")
    found = read_adapter(tmp_path)
    assert found.added.keys() == updates.keys()
    for name, each in updates.items():
        assert (found.added[name].scale, found.added[name].shape) == (each.scale, each.shape)
        np.testing.assert_array_equal(found.added[name].a, each.a)
        np.testing.assert_array_equal(found.added[name].b, each.b)


def test_rows_of_tokens_read_back(tmp_path: Path) -> None:
    table = "language_model.model.embed_tokens.weight"
    rows = Rows(np.array([3, 8]), np.random.default_rng(0).standard_normal((2, TENSORS[table].shape[1]), np.float32))
    write_adapter(tmp_path, {QUERIES[0]: update(QUERIES[0])}, {table: rows}, TENSORS, "some/model")
    found = read_adapter(tmp_path).rows
    assert found.keys() == {table}
    np.testing.assert_array_equal(found[table].ids, rows.ids)
    np.testing.assert_array_equal(found[table].values, rows.values)


def test_ranks_and_scales_may_differ(tmp_path: Path) -> None:
    updates = {
        name: update(name, rank, scale) for name, rank, scale in zip(QUERIES, (2, 2, 5), (1, 1, 0.6), strict=True)
    }
    write_adapter(tmp_path, updates, {}, TENSORS, "some/model")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 2)
    assert config["rank_pattern"] == {"model.language_model.layers.2.self_attn.q_proj": 5}
    found = read_adapter(tmp_path).added
    assert [(len(found[name].a), found[name].scale) for name in QUERIES] == [(2, 1), (2, 1), (5, 0.6)]


@pytest.mark.parametrize(
    ("chosen", "expression"),
    [
        (QUERIES, r"model\.language_model\.layers\.\d+\.self_attn\.(q_proj)"),
        (QUERIES[:1], r"model\.language_model\.layers\.0\.self_attn\.(q_proj)"),
        (
            [name.replace("q_proj", part) for name in QUERIES for part in ("q_proj", "o_proj")],
            r"model\.language_model\.layers\.\d+\.self_attn\.(o_proj|q_proj)",
        ),
    ],
)
def test_the_expression_matches_the_chosen_modules_alone(chosen: list[str], expression: str) -> None:
    modules = {module_name(name) for name in TENSORS}
    found = target_modules({module_name(name) for name in chosen}, modules)
    assert found == expression
    assert {each for each in modules if re.fullmatch(found, each)} == {module_name(name) for name in chosen}
