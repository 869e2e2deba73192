"""Verdicts do not depend on order, format or batch axes; missing taps are incomplete; a replay finds the culprit."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ports import port

import npgemma
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.errors import BadGolden
from npgemma.golden import Dump, Golden, NameMap, Report, Rule, compare, read_dump, replay
from npgemma.golden.report import as_text
from npgemma.golden.suggest import suggest_map
from npgemma.layers.bits import pack
from npgemma.layers.taps import Tap


def summary(report: Report) -> list[tuple]:
    return [(v.name, v.explained, dict(v.ratios), v.error, v.bad_rows) for v in report.verdicts]


def test_truth_has_no_error(golden: Golden) -> None:
    report = compare(golden, Dump(dict(golden.truth)))
    assert report.status == 0
    assert len(report.verdicts) == len(golden.taps)
    assert {v.error for v in report.verdicts} == {0.0}


def test_honest_port_is_explained_in_its_own_precision(golden: Golden, blocks, float32_port, bfloat16_port) -> None:
    assert compare(golden, Dump(float32_port), dtype="float32").status == 0
    assert compare(blocks, Dump(float32_port), dtype="bfloat16").status == 0
    assert compare(golden, Dump(bfloat16_port), dtype="bfloat16").status == 0
    report = compare(blocks, Dump(bfloat16_port), dtype="float32")
    assert report.status == 1
    assert report.first_divergence.name == "pixel_values"


def test_verdict_does_not_depend_on_order_format_or_batch_axis(
    one_layer: Golden, float32_port: dict, tmp_path: Path
) -> None:
    expected = summary(compare(one_layer, Dump(float32_port)))
    assert summary(compare(one_layer, Dump(dict(reversed(float32_port.items()))))) == expected
    assert summary(compare(one_layer, Dump({name: x[None] for name, x in float32_port.items()}))) == expected
    flat = {name: x.reshape(x.shape[0], -1) if x.ndim == 3 else x for name, x in float32_port.items()}
    folded = {name: flat[name] if ".attn.q" in name else x for name, x in float32_port.items()}
    assert summary(compare(one_layer, Dump(folded))) == expected
    np.savez(tmp_path / "dump.npz", **float32_port)
    assert summary(compare(one_layer, read_dump(tmp_path / "dump.npz"))) == expected
    (tmp_path / "folder").mkdir()
    for name, x in float32_port.items():
        np.save(tmp_path / "folder" / f"{name}.npy", x)
    assert summary(compare(one_layer, read_dump(tmp_path / "folder"))) == expected


def test_precision_is_that_of_most_of_the_dump(one_layer: Golden, bfloat16_port: dict) -> None:
    packed = {name: pack(x).view("V2") if x.dtype == np.float32 else x for name, x in bfloat16_port.items()}
    assert compare(one_layer, Dump(packed)).dtype == "bfloat16"
    assert compare(one_layer, Dump(packed)).status == 0
    stored_in_float32 = compare(one_layer, Dump(bfloat16_port))
    assert (stored_in_float32.dtype, stored_in_float32.status) == ("bfloat16", 0)
    assert "bfloat16 numbers, though they are stored in float32" in stored_in_float32.hints[0]
    half = {name: x.astype(np.float16) if x.dtype.kind == "f" else x for name, x in bfloat16_port.items()}
    assert compare(one_layer, Dump(half)).dtype == "float16"


def test_a_run_in_bfloat16_with_some_tensors_in_float32_is_told_what_explains_it(
    one_layer: Golden, bfloat16_port: dict
) -> None:
    """A port whose result of each operation goes on in float32, as one with a cache or weights in bfloat16 may."""
    rng = np.random.default_rng(0)
    mixed = {
        name: x + (rng.standard_normal(x.shape) * 1e-7).astype(x.dtype) if x.dtype.kind == "f" and i % 3 else x
        for i, (name, x) in enumerate(bfloat16_port.items())
    }
    report = compare(one_layer, Dump(mixed))
    assert (report.dtype, report.status) == ("float32", 1)
    assert any("use --dtype bfloat16" in hint for hint in report.hints)
    rounded = [verdict for verdict in report.verdicts if "bfloat16 numbers" in " ".join(verdict.diagnosis)]
    assert rounded


def test_a_dtype_that_the_golden_file_lacks_is_refused(one_layer: Golden, float32_port: dict) -> None:
    envelopes = {dtype: x for dtype, x in one_layer.envelopes.items() if dtype != "float16"}
    older = replace(one_layer, envelopes=envelopes)
    with pytest.raises(BadGolden, match="recorded by an older release; record it again"):
        compare(older, Dump(float32_port), dtype="float16")
    overflow = one_layer.metadata | {"schedules": {"float16": {"overflows": "text.layers.3.out"}}}
    with pytest.raises(BadGolden, match=r"text\.layers\.3\.out overflows in it, in a port too"):
        compare(replace(older, metadata=overflow), Dump(float32_port), dtype="float16")


def test_missing_tap_is_incomplete_unless_allowed(blocks: Golden, float32_port: dict) -> None:
    short = {name: x for name, x in float32_port.items() if name != "text.layers.2.out"}
    report = compare(blocks, Dump(short))
    assert (report.status, report.pairing.missing) == (3, ["text.layers.2.out"])
    allowed = compare(blocks, Dump(short), allow_missing=["text.layers.?.out"])
    assert (allowed.status, allowed.pairing.absent) == (0, ["text.layers.2.out"])


def test_renamed_tap_is_listed_as_missing_and_as_unmapped(blocks: Golden, float32_port: dict) -> None:
    renamed = {name.replace("text.norm", "final_norm"): x for name, x in float32_port.items()}
    report = compare(blocks, Dump(renamed))
    assert report.status == 3
    assert "text.norm" in report.pairing.missing
    assert "final_norm" in report.pairing.unmapped
    rule = Rule("(.*)final_norm", r"\1text.norm")
    assert compare(blocks, Dump(renamed), NameMap((rule, Rule("(.*)", r"\1")))).status == 0


def test_wrong_tap_takes_precedence_over_a_missing_one(blocks: Golden, float32_port: dict) -> None:
    changed = float32_port | {"text.norm": float32_port["text.norm"] * 2}
    changed.pop("logits")
    report = compare(blocks, Dump(changed))
    assert report.status == 1
    assert report.first_divergence.name == "text.norm"
    assert report.first_divergence.diagnosis == ("it is the truth times 2, which is 2",)


def test_shape_or_rule_that_does_not_fit_is_the_reason(blocks: Golden, float32_port: dict) -> None:
    changed = float32_port | {"projector": float32_port["projector"][:, :35]}
    report = compare(blocks, Dump(changed))
    assert report.first_divergence.reason == "shape [1, 35, 128], expected [1, 36, 128] (B P D)"
    rules = NameMap((Rule("logits", "logits", transpose=(2, 1, 0)), Rule("(.*)", r"\1")))
    report = compare(blocks, Dump(float32_port), rules)
    assert "its mapping rule does not fit the shape [1, 1792]" in report.first_divergence.reason


def test_nan_is_not_explained(blocks: Golden, float32_port: dict) -> None:
    broken = float32_port["text.layers.1.out"].copy()
    broken[3] = np.nan
    report = compare(blocks, Dump(float32_port | {"text.layers.1.out": broken}))
    assert report.status == 1
    assert "128 of 5120 numbers are NaN" in report.first_divergence.reason


def test_dump_without_a_known_name_is_refused(blocks: Golden) -> None:
    with pytest.raises(npgemma.BadGolden, match="use --preset or --map"):
        compare(blocks, Dump({"blk.0": np.ones(3)}))


def test_report_has_facts_about_the_next_tokens(blocks: Golden, float32_port: dict) -> None:
    report = compare(blocks, Dump(float32_port))
    assert set(report.logits) == {"logits", "steps.1.logits", "steps.2.logits"}
    assert all(facts["top1_agreement"] == 1 and facts["kl"] < 1e-9 for facts in report.logits.values())


# -------------------------------------------------------------------------------------------------------------- replay


def louder(tap: str) -> Tap:
    """A tap that makes one tensor 1% larger."""
    return lambda name, x, axes: x * np.float32(1.01) if name == tap else x


def replayed(model: VisionLanguageModel, golden: Golden, tensors: dict) -> Report:
    dump = Dump(tensors)
    return replay(model, golden, dump, compare(golden, dump))


def test_replay_of_an_honest_port_has_no_culprit(
    model: VisionLanguageModel, golden: Golden, float32_port: dict
) -> None:
    report = replayed(model, golden, float32_port)
    assert report.status == 0
    assert report.culprits == []
    replayed_names = {verdict.name for verdict in report.replayed}
    assert {"vision.layers.0.out", "steps.2.text.layers.3.attn.segments.0.keys", "logits"} <= replayed_names


def test_change_in_the_middle_is_wrong_downstream_with_one_culprit(model: VisionLanguageModel, prefill: Golden) -> None:
    report = replayed(model, prefill, port(model, prefill, change=louder("text.layers.1.mlp.up")))
    assert report.first_divergence.name == "text.layers.1.mlp.up"
    assert sum(not verdict.explained for verdict in report.verdicts) > 50
    assert [verdict.name for verdict in report.culprits] == ["text.layers.1.mlp.up"]


def test_mistake_between_two_dumped_tensors_is_attributed_to_the_later_one(
    model: VisionLanguageModel, prefill: Golden
) -> None:
    """Here the port dumps the results of layers alone."""
    tensors = port(model, prefill, change=louder("vision.layers.2.attn.v"))
    dump = Dump({name: x for name, x in tensors.items() if name.endswith(".out") and name.count(".") == 3})
    report = replay(model, prefill, dump, compare(prefill, dump, allow_missing=["*"]))
    assert [verdict.name for verdict in report.culprits] == ["vision.layers.2.out"]


LAYERS = ("text.embedding", *(f"text.layers.{i}.out" for i in range(4)))


def partly_dumped(model: VisionLanguageModel, golden: Golden, change: Tap, names: Sequence[str] = LAYERS) -> Report:
    """The replay of a port that dumps tensors of these names alone."""
    tensors = port(model, golden, change=change)
    dump = Dump({name: tensors[name] for name in names})
    return replay(model, golden, dump, compare(golden, dump, allow_missing=["*"]))


def blamed(report: Report) -> dict[str, tuple[str, ...]]:
    """The blocks that a mistake of each culprit is in."""
    return {verdict.name: verdict.blocks for verdict in report.culprits}


def causal(name: str, x: np.ndarray, axes: str) -> np.ndarray:
    return np.tri(len(x), dtype=bool) if name.endswith("mask") else x


def test_a_mask_that_was_not_dumped_may_be_what_is_wrong(model: VisionLanguageModel, prefill: Golden) -> None:
    report = partly_dumped(model, prefill, causal)
    layers = {f"text.layers.{i}.out": ("prompts.0.mask", f"text.layers.{i}") for i in range(1, 4)}
    assert blamed(report) == layers | {"text.layers.0.out": ("prompts.0.mask", "positions", "text.layers.0")}
    assert "prompts.0.mask to text.layers.1; prompts.0.mask was not dumped; dump it next" in as_text(report, prefill)
    everything_else = [name for name in prefill.taps if not name.endswith("mask")]
    every_tap = blamed(partly_dumped(model, prefill, causal, everything_else))
    assert set(every_tap) > {f"text.layers.{i}.attn.segments.0.probs" for i in range(4)}
    assert {blocks[0] for blocks in every_tap.values()} == {"prompts.0.mask"}


def test_a_mask_is_not_blamed_for_what_does_not_read_it(model: VisionLanguageModel, prefill: Golden) -> None:
    """The embedding is before it, and another layer is right with it."""
    embedding = blamed(partly_dumped(model, prefill, louder("text.embedding")))
    assert list(embedding) == ["text.embedding"]
    assert "prompts.0.mask" not in embedding["text.embedding"]
    report = partly_dumped(model, prefill, louder("text.layers.1.attn.v"))
    assert blamed(report) == {"text.layers.1.out": ("text.layers.1",)}


@pytest.mark.parametrize(
    ("name", "value"), [("text.layers.0.out", np.nan), ("prompts.0.mask", 0), ("prompts.0.input_ids", 10**9)]
)
def test_replay_of_unusable_tensors_ends_in_a_report(
    model: VisionLanguageModel, prefill: Golden, prefill_port: dict, name: str, value: float
) -> None:
    report = replayed(model, prefill, prefill_port | {name: np.full_like(prefill_port[name], value)})
    assert report.status == 1
    assert report.first_divergence.name == name


def test_replay_with_another_model_is_refused(model: VisionLanguageModel, golden: Golden, float32_port: dict) -> None:
    metadata = {**golden.metadata, "model": {**golden.metadata["model"], "config": "another"}}
    dump = Dump(float32_port)
    other = replace(golden, metadata=metadata)
    with pytest.raises(npgemma.BadGolden, match="not recorded from"):
        replay(model, other, dump, compare(other, dump))


@pytest.mark.parametrize("factor", [1e300, np.inf, np.nan], ids=str)
def test_numbers_out_of_range_are_unexplained_without_a_warning(factor: float, one_layer: Golden) -> None:
    """NumPy warns, as it does by default, and a warning is a failure of the test."""
    with np.errstate(all="warn"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = {tap: one_layer.truth[tap] * factor for tap in one_layer.taps if one_layer.truth[tap].dtype.kind == "f"}
        warnings.simplefilter("error")
        report = compare(one_layer, Dump(wrong), allow_missing=["*"])
        suggest_map(one_layer, Dump(wrong))
    assert not any(verdict.explained for verdict in report.verdicts)
