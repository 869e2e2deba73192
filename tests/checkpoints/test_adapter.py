"""LoRA adapters: W + scale B A, written out here in float64, and every spelling of their names."""

import dataclasses
import math

import numpy as np
import pytest
import tiny
from adapters import (
    HEAD,
    LORA,
    NORM,
    QUERY,
    TABLE,
    UP,
    all_kinds,
    assert_rounded_once,
    expected_tensors,
    halves,
    merge,
    stored_tensors,
    updated,
    write_adapter,
)

from npgemma.checkpoints.adapter import read_adapter
from npgemma.checkpoints.paligemma import read_tensors
from npgemma.errors import BadModel

# ---------------------------------------------------------------------------------------------------------- the formula


def test_one_update_by_hand(tmp_path):
    """W = [[1 2] [3 4] [5 6]], A = [[1 10]], B = [[1] [0] [-2]], alpha 6, r 1: W + 6 B A."""
    module = "language_model.model.layers.0.self_attn.q_proj"
    a, b = np.array([[1, 10]], np.float32), np.array([[1], [0], [-2]], np.float32)
    folder = write_adapter(tmp_path, stored_tensors({module: (a, b)}), lora_alpha=6)
    w = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    found = merge(folder, "float32", {f"{module}.weight": w})
    expected = np.array([[7, 62], [3, 4], [-7, -114]], np.float32)
    np.testing.assert_array_equal(found[f"{module}.weight"], expected, strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_updates_and_replacements_are_merged_together(dtype, tmp_path):
    lora, replaced = all_kinds()
    folder = write_adapter(tmp_path, stored_tensors(lora, replaced), lora_alpha=5)
    found, expected = merge(folder, dtype), expected_tensors(lora, replaced, 5)
    changed = {*(f"{module}.weight" for module in lora), *replaced}
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        if name in changed:
            assert_rounded_once(found[name], x, dtype)
            assert np.abs(found[name] - tiny.random_tensors()[name]).max() > 0.1
        else:
            np.testing.assert_array_equal(found[name], x, strict=True)


def test_float32_is_float64_rounded_once(tmp_path):
    """Computed in float32, about one element in three would differ."""
    lora, replaced = all_kinds()
    folder = write_adapter(tmp_path, stored_tensors(lora, replaced))
    single, double = merge(folder, "float32"), merge(folder, "float64")
    for module in lora:
        name = f"{module}.weight"
        np.testing.assert_array_equal(single[name], double[name].astype(np.float32), strict=True)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("base", ["float32", "float16", "bfloat16"])
def test_base_and_adapter_may_be_stored_in_any_dtype(base, stored, tmp_path):
    lora, replaced = all_kinds()
    grid = {module: tuple((np.round(x * 16) / 16).clip(-3, 3) for x in pair) for module, pair in lora.items()}
    model = tiny.write_folder(tmp_path / "model", dtype=base)
    folder = write_adapter(tmp_path / "adapter", stored_tensors(grid, replaced), stored)
    found, expected = merge(folder, "float64", read_tensors(model, tiny.CONFIG)), expected_tensors(grid, replaced, 8)
    for name in (*(f"{module}.weight" for module in lora), *replaced):
        assert_rounded_once(found[name], expected[name], "float64")


@pytest.mark.parametrize(("alpha", "rank"), [(8, 4), (1, 3), (16.5, 2), (3, 7)])
@pytest.mark.parametrize("stabilised", [False, True])
def test_the_scale_is_alpha_over_the_rank_or_its_root(alpha, rank, stabilised, tmp_path):
    """The rank is that of the matrices, not r in the config: rank_pattern gives some matrices another one."""
    a, b = halves(QUERY, rank)
    folder = write_adapter(tmp_path, stored_tensors({QUERY: (a, b)}), lora_alpha=alpha, r=5, use_rslora=stabilised)
    scale = alpha / (math.sqrt(rank) if stabilised else rank)
    assert read_adapter(folder).added[f"{QUERY}.weight"].scale == scale
    expected = updated(tiny.random_tensors()[f"{QUERY}.weight"], a, b, scale)
    assert_rounded_once(merge(folder)[f"{QUERY}.weight"], expected, "float32")


def test_alpha_is_8_by_default(tmp_path):
    """PEFT's default; null means the default."""
    folder = write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 4)}), lora_alpha=None, use_rslora=None)
    assert read_adapter(folder).added[f"{QUERY}.weight"].scale == 2


def test_a_large_matrix_is_merged_in_blocks(tmp_path):
    """3,001 rows are several blocks, of which the last is smaller."""
    module, rng = "language_model.model.layers.0.self_attn.q_proj", np.random.default_rng(0)
    w, a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((3001, 300), (2, 300), (3001, 2)))
    folder = write_adapter(tmp_path, stored_tensors({module: (a, b)}), lora_alpha=2)
    expected = np.einsum("or,ri->oi", b, a, dtype=np.float64) + w
    found = merge(folder, "float64", {f"{module}.weight": w})[f"{module}.weight"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 * 100 * 2.0**-53, strict=True)


# ------------------------------------------------------------------------------------------------------- alpha_pattern

# patterns and the alpha of QUERY, by the rule of PEFT's get_pattern_key: re.match(rf"(.*\.)?({pattern})$", name)
PATTERNS = {
    "the whole name": ({"model.language_model.layers.1.self_attn.q_proj": 3}, 3),
    "its end": ({"q_proj": 3}, 3),
    "a longer end": ({"1.self_attn.q_proj": 3}, 3),
    "another end": ({"v_proj": 3}, 8),
    "half a word": ({"_proj": 3, "proj": 4}, 8),
    "the beginning": ({"model.language_model": 3}, 8),
    "the first of several": ({"v_proj": 2, "self_attn.q_proj": 3, "q_proj": 4}, 3),
    "another layer": ({"layers.0.self_attn.q_proj": 3}, 8),
    "an expression": ({r"layers\.[01]\.self_attn\.q_proj": 3}, 3),
    "an expression for another": ({r"layers\.[02]\.self_attn\.q_proj": 3}, 8),
    "anything": ({".*": 3}, 3),
    "alternatives": ({"v_proj|q_proj": 3}, 3),
    "a caret": ({r"^model\..*q_proj": 3}, 3),
    "a caret at another beginning": ({r"^layers\.1\.self_attn\.q_proj": 3}, 8),
    "a number of layers": ({r"layers\.\d+\.self_attn\.q_proj": 3}, 3),
}


@pytest.mark.parametrize(("patterns", "alpha"), PATTERNS.values(), ids=PATTERNS)
def test_alpha_pattern_gives_some_matrices_another_alpha(patterns, alpha, tmp_path):
    """Patterns are regular expressions for the ends of names, not plain suffixes."""
    tensors = stored_tensors({QUERY: halves(QUERY, 2)}, spelling="memory 5.6")
    folder = write_adapter(tmp_path, tensors, alpha_pattern=patterns)
    assert read_adapter(folder).added[f"{QUERY}.weight"].scale == alpha / 2


def test_alpha_pattern_with_root_and_ranks(tmp_path):
    lora = {module: halves(module, rank) for module, rank in LORA.items()}
    config = dict(use_rslora=True, alpha_pattern={"fc1": 5, "q_proj": 2}, rank_pattern={"q_proj": 3}, lora_alpha=16)
    added = read_adapter(write_adapter(tmp_path, stored_tensors(lora), **config)).added
    scales = [added[f"{module}.weight"].scale for module in lora]
    assert scales == [2 / math.sqrt(3), 5 / math.sqrt(4), 16 / math.sqrt(2)]


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "[",
        "*",
        "(?P<",
        "(a+)+b",
        "a*b*c*d*e*f*",
        "a" * 1001,
        "a?" * 30 + "a" * 30,
        "(a|a)" * 30,
        "a{2}",
        ".*.*.+.+b",
    ],
)
def test_an_invalid_pattern_is_refused(pattern, tmp_path):
    """Also one that may take exponential time."""
    folder = write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 2)}), alpha_pattern={pattern: 3})
    with pytest.raises(BadModel, match=r"alpha_pattern: npgemma cannot use the expression"):
        read_adapter(folder)


# ---------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
def test_every_spelling_of_names_gives_the_same_adapter(spelling, prefix, tmp_path):
    """PEFT puts a prefix before the names of transformers; a converter may have removed it."""
    lora, replaced = all_kinds()
    tensors = stored_tensors(lora, replaced, spelling)
    tensors = {prefix + name.removeprefix("base_model.model."): x for name, x in tensors.items()}
    found = read_adapter(write_adapter(tmp_path, tensors))
    assert found.added.keys() == {f"{module}.weight" for module in lora}
    assert found.replaced.keys() == replaced.keys()
    assert found.changed == {*found.added, *found.replaced}
    for name, (a, b) in lora.items():
        np.testing.assert_array_equal(found.added[f"{name}.weight"].a, a.astype(np.float64), strict=True)
        np.testing.assert_array_equal(found.added[f"{name}.weight"].b, b.astype(np.float64), strict=True)


@pytest.mark.parametrize("kind", ["added", "replaced"])
def test_two_spellings_of_one_name_are_refused(kind, tmp_path):
    """npgemma would have to guess which one is meant."""
    tensors = {}
    for seed, spelling in enumerate(["hub", "memory 4.52"]):
        change = ({QUERY: halves(QUERY, 2, seed)}, {}) if kind == "added" else ({}, {NORM: np.full(11, seed, "f4")})
        tensors |= stored_tensors(*change, spelling)
    with pytest.raises(BadModel, match="two spellings"):
        read_adapter(write_adapter(tmp_path, tensors))


# ------------------------------------------------------------------------------------------------------- table and head


@pytest.mark.parametrize("kind", ["added", "replaced"])
def test_a_tied_head_keeps_its_values_when_the_table_changes(kind, tmp_path):
    """PEFT wraps only the table; the head keeps the shared matrix."""
    module, new = TABLE.removesuffix(".weight"), tiny.random_tensors(seed=9)[TABLE]
    lora, replaced = ({module: halves(module, 2)}, {}) if kind == "added" else ({}, {TABLE: new})
    found = merge(write_adapter(tmp_path, stored_tensors(lora, replaced), modules_to_save=["embed_tokens"]))
    np.testing.assert_array_equal(found[HEAD], tiny.random_tensors()[TABLE], strict=True)
    assert np.abs(found[TABLE] - found[HEAD]).max() > 0.1


@pytest.mark.parametrize("kind", ["added", "replaced"])
def test_a_tied_head_that_changes_leaves_the_table(kind, tmp_path):
    module, new = HEAD.removesuffix(".weight"), tiny.random_tensors(seed=9)[TABLE]
    a, b = halves(TABLE.removesuffix(".weight"), 2)
    # tiny.spell does not spell the head
    names = {"added": {"lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b}, "replaced": {"lm_head.weight": new}}
    for prefix in ("base_model.model.", "base_model.model.language_model."):
        tensors = {prefix + name: x for name, x in names[kind].items()}
        found = merge(write_adapter(tmp_path, tensors, modules_to_save=["lm_head"]))
        table = tiny.random_tensors()[TABLE]
        np.testing.assert_array_equal(found[TABLE], table, strict=True)
        assert module == "lm_head"
        assert_rounded_once(found[HEAD], updated(table, a, b, 4) if kind == "added" else new, "float32")


def test_table_and_head_may_change_differently(tmp_path):
    table, head = (tiny.random_tensors(seed=seed)[TABLE] for seed in (8, 9))
    tensors = stored_tensors({}, {TABLE: table}) | {"base_model.model.lm_head.weight": head}
    found = merge(write_adapter(tmp_path, tensors))
    np.testing.assert_array_equal(found[TABLE], table, strict=True)
    np.testing.assert_array_equal(found[HEAD], head, strict=True)


def test_an_untied_head_is_changed(tmp_path):
    tensors = tiny.random_tensors(dataclasses.replace(tiny.CONFIG, tied=False))
    head = tensors[HEAD].copy()
    assert np.abs(head - tensors[TABLE]).max() > 0.1
    folder = write_adapter(tmp_path / "table", stored_tensors({}, {TABLE: tiny.random_tensors(seed=9)[TABLE]}))
    np.testing.assert_array_equal(merge(folder, tensors=tensors)[HEAD], head, strict=True)
    a, b = halves(TABLE.removesuffix(".weight"), 2)
    names = {"base_model.model.lm_head.lora_A.weight": a, "base_model.model.lm_head.lora_B.weight": b}
    folder = write_adapter(tmp_path / "head", names)
    assert_rounded_once(merge(folder, tensors=tensors)[HEAD], updated(head, a, b, 4), "float32")


def test_an_adapter_of_other_tensors_leaves_the_head_tied(tmp_path):
    """A head of its own would take memory."""
    assert HEAD not in merge(write_adapter(tmp_path, stored_tensors({QUERY: halves(QUERY, 2)})))


# ------------------------------------------------------------------- tensors that PEFT saves beside lora_A and lora_B


def test_a_table_saved_with_its_update_replaces_the_table(tmp_path):
    """If the embedding is a target, save_pretrained also writes its weight, as base_layer.weight."""
    module, base = TABLE.removesuffix(".weight"), tiny.random_tensors(seed=9)[TABLE]
    a, b = halves(module, 2)
    tensors = stored_tensors({module: (a, b)})
    tensors[f"base_model.model.{tiny.spell(module, 'saved 5.x')}.base_layer.weight"] = base
    found = merge(write_adapter(tmp_path, tensors))
    assert_rounded_once(found[TABLE], updated(base, a, b, 4), "float32")


def test_biases_trained_with_the_update_are_replaced(tmp_path):
    """bias='lora_only' or 'all': the bias of a changed layer is saved under base_layer."""
    new = tiny.random_tensors(seed=9)[f"{UP}.bias"]
    a, b = halves(UP, 2)
    tensors = stored_tensors({UP: (a, b)})
    tensors[f"base_model.model.{tiny.spell(UP, 'saved 5.x')}.base_layer.bias"] = new
    found = merge(write_adapter(tmp_path, tensors, bias="lora_only"))
    np.testing.assert_array_equal(found[f"{UP}.bias"], new, strict=True)
    assert_rounded_once(found[f"{UP}.weight"], updated(tiny.random_tensors()[f"{UP}.weight"], a, b, 4), "float32")
