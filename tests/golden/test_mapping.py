"""Names are mapped by ordered rules, one to one; names and taps that are left over are listed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgemma import BadGolden
from npgemma.golden import PRESETS, Golden, NameMap, Rule, preset, read_mapping
from npgemma.golden.layout import fit
from npgemma.golden.mapping import SAME_NAMES, pair
from npgemma.golden.mapping_file import mapping_of

TAPS = ["text.layers.0.out", "text.layers.1.out", "logits"]
LAYERS = Rule(r"blk\.(\d+)", r"text.layers.\1.out")


def test_first_rule_that_matches_the_whole_name_wins() -> None:
    mapping = NameMap((Rule("blk.0", "logits"), LAYERS, Rule("lk", "logits")))
    found = pair(mapping, ["blk.0", "blk.1"], TAPS)
    assert {tap: theirs for tap, (theirs, _) in found.pairs.items()} == {
        "logits": "blk.0",
        "text.layers.1.out": "blk.1",
    }
    assert found.missing == ["text.layers.0.out"]


def test_two_names_for_one_tap_are_refused() -> None:
    mapping = NameMap((Rule("a|b", "logits"),))
    with pytest.raises(BadGolden, match="name 'logits' to both 'a' and 'b'"):
        pair(mapping, ["b", "a"], TAPS)


def test_names_and_taps_that_are_left_over_are_listed() -> None:
    mapping = NameMap((LAYERS, Rule("head", "logits"), Rule("odd", "no.such.tap")), ("debug.*",), ("text.layers.1.*",))
    found = pair(mapping, ["blk.0", "blk.7", "odd", "new", "debug.x"], TAPS)
    assert list(found.pairs) == ["text.layers.0.out"]
    assert found.unmapped == ["new", "odd"]
    assert found.unrecorded == ["blk.7"]
    assert found.missing == ["logits"]
    assert found.absent == ["text.layers.1.out"]


def test_ignored_name_with_a_rule_is_compared() -> None:
    found = pair(NameMap((LAYERS,), ("blk.*",)), ["blk.0", "blk.x"], TAPS)
    assert list(found.pairs) == ["text.layers.0.out"]
    assert found.unmapped == []


def test_default_mapping_keeps_names() -> None:
    found = pair(SAME_NAMES, ["logits", "Logits"], TAPS)
    assert list(found.pairs) == ["logits"]
    assert found.unmapped == ["Logits"]


def test_rule_slices_reshapes_transposes_scales_and_reorders_pairs_in_that_order() -> None:
    x = np.arange(48.0).reshape(2, 4, 6)
    rule = Rule("", "", (1, (1, None)), (3, 2, 3), (1, 0, 2), 2.0)
    np.testing.assert_array_equal(rule.apply(x), 2 * x[1, 1:].reshape(3, 2, 3).transpose(1, 0, 2))
    pairs = Rule("", "", interleaved=True).apply(np.array([[0, 4, 1, 5, 2, 6, 3, 7]]))
    np.testing.assert_array_equal(pairs, [[0, 1, 2, 3, 4, 5, 6, 7]])
    np.testing.assert_array_equal(Rule("", "", (0, (-1, None))).apply(x), x[0, -1:])


@pytest.mark.parametrize(
    ("found", "wanted", "fits"),
    [
        ((1, 40, 128), (40, 128), True),
        ((40, 128), (1, 40, 128), True),
        ((1, 40, 128), (40, 4, 32), True),
        ((40, 4, 32), (40, 128), True),
        ((40,), (1, 1, 40, 1), True),
        ((), (1,), True),
        ((1, 6, 6, 8), (1, 36, 8), True),
        ((6, 4), (4, 6), False),
        ((6, 4), (24,), True),
        ((4, 6), (3, 8), False),
        ((40, 128), (39, 128), False),
        ((2, 3, 4), (6, 2, 2), False),
        ((0, 3), (0, 3), False),
    ],
)
def test_shapes_fit_up_to_axes_of_size_1_and_folded_neighbours(
    found: tuple[int, ...], wanted: tuple[int, ...], fits: bool
) -> None:
    x = np.arange(np.prod(found, dtype=int)).reshape(found)
    y = fit(x, wanted)
    assert (y is not None) == fits
    if y is not None:
        np.testing.assert_array_equal(y, x.reshape(wanted), strict=True)


def test_mapping_file_is_read(tmp_path: Path) -> None:
    rules = [{"theirs": "a", "ours": "logits", "slice": [0, [1, None]], "transpose": [1, 0], "interleaved": True}]
    (tmp_path / "map.json").write_text(json.dumps({"rules": rules, "absent": ["positions"]}))
    found = read_mapping(tmp_path / "map.json")
    assert found == NameMap((Rule("a", "logits", (0, (1, None)), (), (1, 0), 1.0, True),), (), ("positions",))


RULE = {"theirs": "a", "ours": "logits"}


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        {},
        {"rules": {}},
        {"rules": [], "more": 1},
        {"rules": [3]},
        {"rules": [{"theirs": "a"}]},
        {"rules": [RULE | {"theirs": "("}]},
        {"rules": [RULE | {"ours": r"\1"}]},
        {"rules": [RULE | {"ours": r"\g<"}]},
        {"rules": [RULE | {"theirs": 5}]},
        {"rules": [RULE | {"scale": "2"}]},
        {"rules": [RULE | {"transpose": [0.5]}]},
        {"rules": [RULE | {"transpose": "01"}]},
        {"rules": [RULE | {"slice": [[[0]]]}]},
        {"rules": [RULE | {"slice": [["0", 1]]}]},
        {"rules": [RULE | {"reshape": [None]}]},
        {"rules": [RULE | {"unknown": 1}]},
        {"rules": [RULE], "ignore": "a"},
        {"rules": [RULE], "absent": [1]},
    ],
)
def test_invalid_mapping_is_refused(found: object) -> None:
    with pytest.raises(BadGolden, match=r"^here: "):
        mapping_of(found, "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*RULE, "slice", "rules"]), inner),
    max_leaves=8,
)


@settings(max_examples=40)
@given(JSON, st.sampled_from(["slice", "reshape", "transpose", "scale", "interleaved", "theirs", "ours"]))
def test_any_json_is_a_rule_or_raises_bad_golden(value: object, key: str) -> None:
    try:
        found = mapping_of({"rules": [RULE | {key: value}]}, "here")
    except BadGolden:
        return
    assert isinstance(found.rules[0], Rule)


@pytest.mark.parametrize("text", ["", "{", "\xff", "[" * 100_000])
def test_file_that_is_not_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadGolden, match=r"map\.json"):
        read_mapping(tmp_path / "map.json")
    with pytest.raises(BadGolden, match="none"):
        read_mapping(tmp_path / "none")


LAYER = "model.language_model.layers.1"


@pytest.mark.parametrize(
    ("theirs", "of_paligemma_1", "of_paligemma_2"),
    [
        (f"{LAYER}.post_attention_layernorm", "text.layers.1.mlp_norm", "text.layers.1.attn_post_norm"),
        (f"{LAYER}.pre_feedforward_layernorm", None, "text.layers.1.mlp_norm"),
        (f"{LAYER}.post_feedforward_layernorm", None, "text.layers.1.mlp_post_norm"),
        ("lm_head", "logits", "logits.uncapped"),
    ],
)
@pytest.mark.parametrize("name", PRESETS)
def test_preset_gives_names_of_transformers_the_meaning_they_have_in_the_model(
    golden: Golden, golden_2: Golden, name: str, theirs: str, of_paligemma_1: str | None, of_paligemma_2: str
) -> None:
    for recorded, tap in ((golden, of_paligemma_1), (golden_2, of_paligemma_2)):
        found = pair(preset(name, recorded), [theirs], recorded.taps)
        assert list(found.pairs) == ([tap] if tap else [])
        assert found.unmapped == ([] if tap else [theirs])


def test_preset_of_a_narrowed_golden_file_is_that_of_its_model(golden_2: Golden) -> None:
    """What it holds does not decide it: here a norm of the first PaliGemma, and not the one of its own name."""
    narrowed = replace(golden_2, taps={"text.layers.1.mlp_norm": "T D"})
    found = pair(preset("transformers", narrowed), [f"{LAYER}.post_attention_layernorm"], narrowed.taps)
    assert (dict(found.pairs), found.unrecorded) == ({}, [f"{LAYER}.post_attention_layernorm"])
