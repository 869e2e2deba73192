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
from npgemma.golden.mapping_file import KINDS, mapping_of

TAPS = ["text.layers.0.out", "text.layers.1.out", "logits"]
LAYERS = Rule(r"blk\.(\d+)", r"text.layers.\1.out")


def test_rule_matches_whole_names() -> None:
    mapping = NameMap((LAYERS, Rule("lk", "logits"), Rule("head", "logits")))
    found = pair(mapping, ["blk.1", "head"], TAPS)
    assert {tap: theirs for tap, (theirs, _) in found.pairs.items()} == {"text.layers.1.out": "blk.1", "logits": "head"}
    assert found.missing == ["text.layers.0.out"]


def test_two_rules_for_one_name_are_refused() -> None:
    mapping = NameMap((Rule("blk.0", "logits"), LAYERS), where="map.json")
    with pytest.raises(BadGolden, match=r"^map\.json: .* 'blk\.0' and '.*' both match the name 'blk\.0'"):
        pair(mapping, ["blk.0"], TAPS)


def test_rule_that_keeps_names_gives_way_to_the_others() -> None:
    found = pair(NameMap((Rule("(.*)", r"\1"), Rule("logits", "text.layers.0.out"))), ["logits"], TAPS)
    assert list(found.pairs) == ["text.layers.0.out"]


def test_one_tensor_may_hold_several_taps() -> None:
    """The layers of a cache [L 2 S], and the parts of a fused projection."""
    rules = [
        {"theirs": "out", "ours": "text.layers.{i}.out", "slice": [[None, None], "{i}"]},
        {"theirs": r"qkv\.(\d)", "ours": [{"ours": rf"vision.layers.\1.attn.{x}"} for x in "qkv"], "slice": [0]},
    ]
    for part, start in zip(rules[1]["ours"], (0, 2, 4), strict=True):
        part["slice"] = ["...", [start, start + 2]]
    taps = [*TAPS, *(f"vision.layers.3.attn.{x}" for x in "qkv")]
    found = pair(mapping_of({"rules": rules}, "here"), ["out", "qkv.3"], taps)
    x = np.arange(12.0).reshape(1, 2, 6)
    for i in range(2):
        assert found.pairs[f"text.layers.{i}.out"][0] == "out"
        np.testing.assert_array_equal(found.pairs[f"text.layers.{i}.out"][1].apply(x), x[:, i])
    for name, start in zip("qkv", (0, 2, 4), strict=True):
        theirs, rule = found.pairs[f"vision.layers.3.attn.{name}"]
        assert theirs == "qkv.3"
        np.testing.assert_array_equal(rule.apply(x), x[..., start : start + 2])
    assert found.missing == ["logits"]


@pytest.mark.parametrize("taps", [["logits"], []])
def test_stacked_layers_that_the_golden_file_lacks_are_unrecorded(taps: list[str]) -> None:
    found = pair(NameMap((Rule("out", "text.layers.{i}.out", ("{i}",)),)), ["out"], taps)
    assert (dict(found.pairs), found.unrecorded, found.unmapped) == ({}, ["out"], [])


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
    np.testing.assert_array_equal(Rule("", "", ("...", (2, 4))).apply(x), x[..., 2:4])


def test_additive_mask_of_a_rule_is_true_where_a_row_may_look() -> None:
    rule = Rule("", "", mask="additive")
    np.testing.assert_array_equal(rule.apply(np.array([0.0, -np.inf, -1e9, -0.0])), [True, False, False, True])
    for other in (-0.3, 1.0, np.nan):
        with pytest.raises(ValueError, match="not " + str(other)):
            rule.apply(np.array([0.0, other]))


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


def test_rules_that_may_match_in_too_many_ways_are_refused() -> None:
    with pytest.raises(BadGolden, match=r"the mapping: '.*' may match in [0-9,]+ ways, in names of up to 300 char"):
        pair(NameMap((Rule(r".*.*.+[bc]", "logits"),)), ["a" * 300], TAPS)


def test_a_name_of_many_groups_is_checked_at_once(tmp_path: Path) -> None:
    """'ours' is compared with every tap there is; each of its groups may hold anything."""
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"rules": [{"theirs": "(a)", "ours": r"\1" * 40 + "x"}]}))
    with pytest.raises(BadGolden, match="is not the name of a tap"):
        read_mapping(path)


def test_mapping_file_is_read(tmp_path: Path) -> None:
    rules = [{"theirs": "a", "ours": "logits", "slice": [0, [1, None]], "transpose": [1, 0], "interleaved": True}]
    (tmp_path / "map.json").write_text(json.dumps({"rules": rules, "absent": ["positions"]}))
    found = read_mapping(tmp_path / "map.json")
    rule = Rule("a", "logits", (0, (1, None)), (), (1, 0), 1.0, True)
    assert found == NameMap((rule,), (), ("positions",), str(tmp_path / "map.json"))


RULE = {"theirs": "a", "ours": "logits"}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (None, "'rules'"),
        ([], "'rules'"),
        ({}, "'rules'"),
        ({"rules": {}}, "'rules'"),
        ({"rules": [], "more": 1}, "'rules'"),
        ({"rules": [3]}, "rule 1 .*'theirs' and 'ours'"),
        ({"rules": [{"theirs": "a"}]}, "rule 1 .*'theirs' and 'ours'"),
        ({"rules": [RULE | {"theirs": "("}]}, "rule 1: 'theirs'"),
        ({"rules": [RULE | {"theirs": "(a+)+b"}]}, "rule 1: 'theirs'"),
        ({"rules": [RULE | {"theirs": "(" * 5000 + ")" * 5000}]}, "rule 1: 'theirs'"),
        ({"rules": [RULE | {"scale": 10**400}]}, "'scale' must be a finite number"),
        ({"rules": [RULE | {"reshape": [10**30]}]}, "'reshape' must hold integers"),
        ({"rules": [RULE | {"ours": r"\1"}]}, "rule 1: 'theirs'"),
        ({"rules": [RULE | {"ours": r"\g<"}]}, "rule 1: 'theirs'"),
        ({"rules": [RULE | {"theirs": 5}]}, "rule 1: .*'theirs'"),
        ({"rules": [RULE | {"scale": "2"}]}, "rule 1: .*'scale'"),
        ({"rules": [RULE | {"scale": float("inf")}]}, "rule 1: 'scale'"),
        ({"rules": [RULE | {"scale": 0}]}, "rule 1: 'scale'"),
        ({"rules": [RULE | {"transpose": [0.5]}]}, "rule 1: 'transpose'"),
        ({"rules": [RULE | {"transpose": "01"}]}, "rule 1: .*'transpose'"),
        ({"rules": [RULE | {"slice": [[[0]]]}]}, "rule 1: 'slice'"),
        ({"rules": [RULE | {"slice": [["0", 1]]}]}, "rule 1: 'slice'"),
        ({"rules": [RULE | {"slice": [[]]}]}, "rule 1: 'slice'"),
        ({"rules": [RULE | {"slice": ["...", "..."]}]}, "rule 1: 'slice'"),
        ({"rules": [RULE | {"slice": ["{i}"]}]}, r"rule 1: '{i}'"),
        ({"rules": [RULE | {"ours": "text.layers.{i}.out"}]}, r"rule 1: '{i}'"),
        ({"rules": [RULE | {"reshape": [None]}]}, "rule 1: 'reshape'"),
        ({"rules": [RULE | {"mask": "subtractive"}]}, "rule 1: 'mask'"),
        ({"rules": [RULE | {"rows": [1, 2, 0]}]}, "rule 1: 'rows'"),
        ({"rules": [RULE | {"rows": True}]}, "rule 1: 'rows'"),
        ({"rules": [RULE | {"unknown": 1}]}, "rule 1: 'unknown'"),
        ({"rules": [RULE | {"ours": []}]}, "rule 1: 'ours'"),
        ({"rules": [RULE | {"ours": [{"slice": [0]}]}]}, "rule 1: 'ours'"),
        ({"rules": [RULE | {"ours": ["logits", {"ours": "logits", "rows": "last"}]}]}, "rule 1, part 2: .*'rows'"),
        ({"rules": [RULE, RULE | {"ours": "positions"}]}, "rule 2 has the same 'theirs' as rule 1"),
        ({"rules": [RULE | {"ours": "logit"}]}, "rule 1: 'ours' is 'logit', which is not the name of a tap"),
        ({"rules": [RULE | {"theirs": r"(\d)", "ours": r"text.layer.\1.out"}]}, "is not the name of a tap"),
        ({"rules": [RULE], "ignore": "a"}, "'ignore'"),
        ({"rules": [RULE], "absent": [1]}, "'absent'"),
    ],
)
def test_invalid_mapping_is_refused_with_file_and_key(found: object, says: str) -> None:
    with pytest.raises(BadGolden, match=rf"^here: {says}|^here: .*{says}"):
        mapping_of(found, "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*RULE, "slice", "rules"]), inner),
    max_leaves=8,
)


@settings(max_examples=40)
@given(JSON, st.sampled_from(["theirs", "ours", *KINDS]))
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
