"""A drafted mapping has few rules, finds factors and stacked layers, and leaves over what it cannot tell."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from npgemma.golden import Dump, Golden, compare
from npgemma.golden.mapping_file import mapping_of
from npgemma.golden.suggest import Suggestion, suggest_map

PORT = dict[str, np.ndarray]


def suggested(golden: Golden, dump: Mapping[str, np.ndarray]) -> tuple[Suggestion, dict[str, dict[str, Any]]]:
    """The suggestion and its rules by `theirs`; a comparison with it must explain all taps."""
    found = suggest_map(golden, Dump(dump))
    report = compare(golden, Dump(dump), mapping_of(found.mapping, "suggested"), allow_missing=["*"])
    assert [verdict.name for verdict in report.verdicts if not verdict.explained] == []
    return found, {rule["theirs"]: rule for rule in found.mapping["rules"]}


def named(port: PORT, names: dict[str, str], change: Callable = lambda x: x) -> PORT:
    """Taps of the port under other names, for each layer if there is {i} in the name."""
    layers = range(4)
    return {
        theirs.format(i=i): change(port[tap.format(i=i)])
        for theirs, tap in names.items()
        for i in (layers if "{i}" in theirs else [0])
    }


def test_names_that_differ_in_digits_share_a_rule(golden: Golden, float32_port: PORT) -> None:
    names = {
        "blk.{i}.x.1": "text.layers.{i}.attn_norm",
        "blk.{i}.x.2": "text.layers.{i}.mlp_norm",
        "s2/blk.{i}": "steps.2.text.layers.{i}.out",
        "tower/block0{i}/sum_{i}": "vision.layers.{i}.out",
        "features": "projector",
    }
    found, rules = suggested(golden, named(float32_port, names, lambda x: x[None]))
    assert {theirs: rule["ours"] for theirs, rule in rules.items()} == {
        "features": "projector",
        r"tower/block0*(\d+)/sum_\1": r"vision.layers.\1.out",
        r"blk\.(\d+)\.x\.1": r"text.layers.\1.attn_norm",
        r"blk\.(\d+)\.x\.2": r"text.layers.\1.mlp_norm",
        r"s2/blk\.(\d+)": r"steps.2.text.layers.\1.out",
    }
    assert (found.summary, found.left) == ("17 of 17 names are mapped, by 5 rules", [])


def test_exchanged_layers_do_not_change_the_rule(golden: Golden, float32_port: PORT) -> None:
    """The rule of most layers covers those that are like other taps, so that the mistake is found by a comparison."""
    dump = named(float32_port, {"v{i}": "text.layers.{i}.attn.v"})
    dump["v1"], dump["v2"] = dump["v2"], dump["v1"]
    found = suggest_map(golden, Dump(dump))
    assert [rule["theirs"] for rule in found.mapping["rules"]] == [r"v(\d+)"]
    report = compare(golden, Dump(dump), mapping_of(found.mapping, "suggested"), allow_missing=["*"])
    assert [verdict.theirs for verdict in report.verdicts if not verdict.explained] == ["v1", "v2"]


def test_numbers_that_are_the_same_but_for_zeros_have_rules_of_their_own(golden: Golden, float32_port: PORT) -> None:
    dump = {f"a{i}": float32_port[f"text.layers.{int(i)}.out"] for i in ("0", "01", "1", "2")}
    found, _ = suggested(golden, dump)
    assert (len(found.mapped), len(found.copies)) == (3, 1)


@pytest.mark.parametrize(("factor", "scale"), [(128**-0.5, 128**0.5), (2.0, 0.5), (1 / 0.37, 0.37)])
def test_factor_is_solved_for(factor: float, scale: float, golden: Golden, float32_port: PORT) -> None:
    dump = named(float32_port, {"embeds": "text.embedding"}, lambda x: x * np.float32(factor))
    _, rules = suggested(golden, dump)
    assert rules["embeds"]["scale"] == pytest.approx(scale, rel=1e-9)


def test_copies_are_ignored_and_other_tensors_left_over(golden: Golden, float32_port: PORT) -> None:
    dump = named(float32_port, {"a.{i}": "text.layers.{i}.out", "b[{i}]": "text.layers.{i}.out", "z": "text.norm"})
    rng = np.random.default_rng(0)
    dump |= {"noise": rng.normal(size=(40, 128)), "zeros": np.zeros((40, 128)), "nan": np.full((40, 128), np.nan)}
    dump["near"] = float32_port["text.layers.1.mid"] + rng.normal(size=(40, 128)) * 2
    found, rules = suggested(golden, dump)
    assert [rule["ours"] for rule in rules.values()] == [r"text.layers.\1.out", "text.norm"]
    assert (found.copies, found.left) == ([f"b[{i}]" for i in range(4)], ["noise", "zeros", "nan", "near"])
    assert found.summary == (
        "5 of 13 names are mapped, by 2 rules; 4 copies of them are ignored; 4 are left: noise, zeros, nan, near"
    )
    report = compare(golden, Dump(dump), mapping_of(found.mapping, "suggested"), allow_missing=["*"])
    assert report.pairing.unmapped == sorted(found.left)


def test_stacked_layers_and_fused_projections_are_taken_apart(golden: Golden, float32_port: PORT) -> None:
    both = ("keys", "values")
    cache = [[float32_port[f"text.layers.{i}.attn.segments.0.{x}"] for x in both] for i in range(4)]
    dump = {"cache": np.pad(np.array(cache), [(0, 0)] * 2 + [(0, 3)] + [(0, 0)] * 2)[None]}
    qkv = (float32_port[f"vision.layers.2.attn.{x}"].reshape(36, 128) for x in "qkv")
    dump["qkv"] = np.concatenate([*qkv], -1)[None]
    _, rules = suggested(golden, dump)
    every = [None, None]
    assert rules["cache"]["ours"] == [
        {"ours": "text.layers.{i}.attn.segments.0.keys", "slice": [every, "{i}", 0]},
        {"ours": "text.layers.{i}.attn.segments.0.values", "slice": [every, "{i}", 1]},
    ]
    assert [part["slice"] for part in rules["qkv"]["ours"]] == [["...", [i, i + 128]] for i in (0, 128, 256)]


def test_padded_buffers_and_logits_of_all_rows_need_no_key(golden: Golden, float32_port: PORT) -> None:
    rows = np.random.default_rng(0).normal(size=(1, 40, 1744)).astype(np.float32)
    rows[0, 39] = float32_port["logits"][0, :1744]
    dump = {"scores": rows, "x": np.pad(float32_port["text.norm"], ((0, 5), (0, 0)))}
    _, rules = suggested(golden, dump)
    assert [{"theirs", "ours"}] * 2 == [set(rule) for rule in rules.values()]
    assert {rule["ours"] for rule in rules.values()} == {"logits", "text.norm"}


def test_port_that_counts_from_0_and_interleaves_is_mapped(golden: Golden, float32_port: PORT) -> None:
    def changed(x: np.ndarray) -> np.ndarray:
        first, second = np.split(x.astype(np.float64), 2, -1)
        turned = (first + 1j * second) * np.exp(-1j * 10000.0 ** -(np.arange(16) / 16))
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape).astype(np.float32)

    dump = named(float32_port, {"q.{i}": "text.layers.{i}.attn.q_rope"}, changed)
    _, rules = suggested(golden, dump)
    assert rules[r"q\.(\d+)"] == {
        "theirs": r"q\.(\d+)",
        "ours": r"text.layers.\1.attn.q_rope",
        "interleaved": True,
    }


def test_model_of_the_real_size_takes_seconds(golden: Golden) -> None:
    """The shapes of a 3B model's prefill: two layers of it, or 18. The tensors are parts of one array, at random."""
    numbers = np.random.default_rng(0).normal(size=1 << 23).astype(np.float32)
    shapes = {"out": (260, 2048), "mid": (260, 2048), "mlp.gate": (260, 16384), "attn.q": (260, 8, 256)}
    axes = {"out": "T D", "mid": "T D", "mlp.gate": "T F", "attn.q": "T N H"}
    taps, truth, dump = {}, {}, {}
    for i in range(18):
        for k, (name, shape) in enumerate(shapes.items()):
            tap, start = f"text.layers.{i}.{name}", 7919 * (4 * i + k)
            taps[tap], truth[tap] = axes[name], numbers[start : start + np.prod(shape)].reshape(shape)
            dump[f"dec/{i}/{name}"] = truth[tap].swapaxes(0, 1)[None] if name == "attn.q" else truth[tap][None]
    dump |= {f"odd{n}": numbers[: 2**n].reshape((2,) * n) for n in (12, 20)}
    start = time.process_time()
    found = suggest_map(replace(golden, taps=taps, truth=truth), Dump(dump))
    assert time.process_time() - start < 3  # measured: 0.3
    assert (len(found.mapping["rules"]), found.left) == (4, ["odd12", "odd20"])
