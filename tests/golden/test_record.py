"""A recording holds the float64 run and the errors of the other two; it is reproducible and never incomplete."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import npgemma
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden import Golden, read_golden, record
from npgemma.golden.judge import limits_of
from npgemma.golden.record import by_row, in_sixteen_bits, row_errors
from npgemma.golden.rounding import ENCODERS, HF_EAGER
from npgemma.layers.bits import round_to_bfloat16

SAMPLE = npgemma.sample_picture()
# Two runs in float64 that sum in another order: rounding errors of 1e-16 grow to 1e-14 in eight layers.
FLOAT64_ERROR = 1e-12


def test_truth_is_the_float64_run(model: VisionLanguageModel, golden: Golden) -> None:
    wide = npgemma.load(dtype="float64")
    inputs = wide.processor([[SAMPLE]], ["caption en"])
    logits = wide.forward(inputs.input_ids[0], inputs.pixel_values)
    np.testing.assert_allclose(golden.truth["logits"], logits[-1:], rtol=0, atol=FLOAT64_ERROR, strict=True)
    assert golden.truth["generated_ids"].tolist() == model.generate(SAMPLE, "caption en", max_new_tokens=3).token_ids
    assert golden.truth["steps.1.input_ids"] == golden.truth["generated_ids"][0]


@pytest.mark.parametrize("name", ["x.png", "m/config.json", "m/model.safetensors"])
def test_nothing_that_the_run_reads_is_overwritten(name: str, tmp_path: Path) -> None:
    shutil.copytree(npgemma.load().folder, tmp_path / "m")
    shutil.copy(SAMPLE, tmp_path / "x.png")
    before, link = (tmp_path / name).read_bytes(), tmp_path / "g.safetensors"
    link.symlink_to(tmp_path / name)
    for path in (tmp_path / name, link):
        with pytest.raises(npgemma.BadGolden, match="which the run reads; choose another file"):
            record(npgemma.load(tmp_path / "m"), [tmp_path / "x.png"], "ocr", path)
    assert (tmp_path / name).read_bytes() == before


def test_dtypes_are_those_of_the_format(golden: Golden) -> None:
    kinds = {name: golden.truth[name].dtype.name for name in golden.taps}
    assert kinds["prompts.0.input_ids"] == kinds["positions"] == kinds["generated_ids"] == "int32"
    assert kinds["prompts.0.mask"] == kinds["pictures.0.resized"] == "uint8"
    assert set(kinds.values()) == {"int32", "uint8", "float64"}


@pytest.mark.parametrize("name", ["text.layers.2.out", "vision.layers.1.attn.pictures.0.probs", "logits"])
def test_envelope_is_the_rms_and_the_largest_error_of_each_row(golden: Golden, float32_port, name: str) -> None:
    """The largest of three runs: npgemma's own, and two that add up in loops, which lose more in most rows."""
    truth, found = golden.truth[name], golden.envelopes["float32"][name]
    error = np.abs(by_row(golden.taps[name], float32_port[name].astype(np.float64) - truth))
    own = np.stack([np.sqrt((error**2).mean(-1)), error.max(-1)]).astype(np.float32)
    assert (found.shape, found.dtype) == (own.shape, own.dtype)
    assert (found >= own).all()
    assert found.mean() < 4 * own.mean()


def test_envelope_of_bfloat16_is_at_least_that_of_the_emulated_run(golden: Golden, bfloat16_port) -> None:
    """The other run has errors of the same size: their ratio stays below the limit by which ports are judged."""
    for name in ("text.layers.2.out", "projector", "steps.2.logits"):
        own = row_errors(golden.taps[name], bfloat16_port[name], golden.truth[name]).astype(np.float32)
        found = golden.envelopes["bfloat16"][name]
        assert (found >= own).all()
        assert found.mean() < limits_of(golden.truth[name].size, own.shape[1])["rms"] * own.mean()


def test_rows_are_flattened_in_order() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(by_row("T N H", x), x.reshape(2, 12), strict=True)
    np.testing.assert_array_equal(by_row("N T S", x), [[*x[0, t], *x[1, t]] for t in range(3)], strict=True)
    np.testing.assert_array_equal(by_row("J", x.reshape(-1)), x.reshape(1, -1), strict=True)


def test_every_float_and_nothing_else_has_envelopes(golden: Golden) -> None:
    floats = {name for name in golden.taps if golden.truth[name].dtype.kind == "f"}
    assert set(golden.envelopes) == {"float32", "tf32", "bfloat16", "float16"}
    assert all(set(each) == floats for each in golden.envelopes.values())


def test_two_recordings_have_the_same_bytes_without_path_host_or_date(
    model: VisionLanguageModel, golden_path: Path, tmp_path: Path
) -> None:
    record(npgemma.load(), [str(SAMPLE)], "caption en", tmp_path / "again.safetensors", "ops", steps=2)
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == golden_path.read_bytes()
    metadata = json.dumps(read_golden(golden_path).metadata)
    assert str(SAMPLE.parent) not in metadata
    assert os.uname().nodename not in metadata
    assert time.strftime("%Y-") not in metadata


@pytest.mark.parametrize(
    ("level", "patterns", "kept", "dropped"),
    [
        ("io", ["*"], "steps.1.logits", "text.layers.0.out"),
        ("blocks", ["*"], "text.layers.0.out", "text.layers.0.mid"),
        ("ops", ["text.layers.1.*"], "text.layers.1.attn.q_rope.cos", "text.layers.0.mid"),
        ("ops", ["*.probs", "logits"], "vision.layers.0.attn.pictures.0.probs", "steps.1.logits"),
    ],
)
def test_level_and_globs_select_taps_but_inputs_are_always_kept(
    model: VisionLanguageModel, tmp_path: Path, level: str, patterns: list[str], kept: str, dropped: str
) -> None:
    record(model, [SAMPLE], "caption en", tmp_path / "g.safetensors", level, patterns, steps=1)
    taps = read_golden(tmp_path / "g.safetensors").taps
    assert kept in taps
    assert dropped not in taps
    assert {"pixel_values", "prompts.0.input_ids", "prompts.0.token_type_ids", "steps.1.input_ids"} <= set(taps)


def test_glob_that_matches_no_tap_is_refused_and_nothing_is_written(model: VisionLanguageModel, tmp_path: Path) -> None:
    with pytest.raises(npgemma.BadGolden, match="no tap of level 'io'"):
        record(model, [SAMPLE], "caption en", tmp_path / "g.safetensors", "io", ["text.layers.0.mid"])
    assert list(tmp_path.iterdir()) == []


def test_recording_without_steps_is_the_prefill_alone(model: VisionLanguageModel, tmp_path: Path) -> None:
    record(model, [SAMPLE], "caption en", tmp_path / "g.safetensors", "io", steps=0)
    found = read_golden(tmp_path / "g.safetensors")
    assert not any(name.startswith("steps") for name in found.taps)
    assert len(found.truth["generated_ids"]) == 1


def test_run_that_is_not_finite_is_refused(model: VisionLanguageModel, tmp_path: Path) -> None:
    head = model.weights.projector.bias.copy()
    head[3] = np.inf
    weights = replace(model.weights, projector=replace(model.weights.projector, bias=head))
    broken = VisionLanguageModel(model.folder, model.config, weights, model.dtype)
    with pytest.raises(npgemma.BadModel, match=r"not finite: multi_modal_projector.linear.bias contains"):
        record(broken, [SAMPLE], "caption en", tmp_path / "g.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_refused_before_the_run(model: VisionLanguageModel, tmp_path: Path) -> None:
    with pytest.raises(npgemma.BadGolden, match="does not exist"):
        record(model, [SAMPLE], "caption en", tmp_path / "not" / "g.safetensors")


def test_policy_says_what_paligemma_2_adds_and_where_big_vision_differs(golden: Golden, golden_2: Golden) -> None:
    one, two = (each.metadata["policy"] for each in (golden, golden_2))
    assert one["soft_caps"] is None
    assert two["scale"].endswith(f"scores times {22**-0.5}")
    assert {key: two["soft_caps"][key] for key in ("scores", "logits")} == {"scores": 5.0, "logits": 6.0}
    assert {key: two["window"][key] for key in ("rows", "layers")} == {"rows": 5, "layers": [0, 2]}
    assert "transformers" in two["window"]["prefix"]
    assert "big_vision" in two["window"]["elsewhere"]
    assert two.keys() - one.keys() == {"post_norms", "window"}


def test_schedule_lists_the_tensors_of_later_decoders_where_there_are_any(
    golden: Golden, golden_2: Golden, golden_3: Golden
) -> None:
    one, two, three = (each.metadata["schedules"]["bfloat16"]["rounds"] for each in (golden, golden_2, golden_3))
    assert two.keys() - one.keys() == {"attn_post_norm", "mlp_post_norm", "uncapped", "over_cap", "tanh", "capped"}
    assert three.keys() - two.keys() == {"q_norm", "k_norm"}
    assert HF_EAGER.keys() - three.keys() == set(ENCODERS)


def test_sdpa_rounding_of_capped_scores_is_refused(model_2: VisionLanguageModel, tmp_path: Path) -> None:
    with pytest.raises(npgemma.NpgemmaError, match=r"'hf_sdpa' does not fit .* use 'hf_eager'"):
        record(model_2, [npgemma.sample_picture()], "x", tmp_path / "g.safetensors", schedule="hf_sdpa")
    assert list(tmp_path.iterdir()) == []


def test_killed_recording_leaves_the_old_file_or_the_new_one(golden_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "g.safetensors"
    script = (
        "import npgemma; from npgemma.golden import record; m = npgemma.load(); print('go', flush=True)\n"
        f"record(m, [{str(SAMPLE)!r}], 'caption en', {str(target)!r}, 'ops', steps=2)"
    )
    new, old = golden_path.read_bytes(), b"old"
    for delay in (0.0, 0.15, 0.3):
        target.write_bytes(old)
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert target.read_bytes() in (old, new)


def test_weights_are_rounded_to_bfloat16_and_matrices_packed(model: VisionLanguageModel) -> None:
    bias = model.weights.projector.bias + np.float32(1e-6)
    matrix = np.full(model.weights.projector.weight.shape, 1 / 3, np.float32)
    changed = replace(model.weights, projector=replace(model.weights.projector, bias=bias, weight=matrix))
    found = in_sixteen_bits(changed, "bfloat16")
    np.testing.assert_array_equal(found.projector.bias, round_to_bfloat16(bias))
    assert found.projector.weight.dtype == np.uint16
    assert found.text.embedding is model.weights.text.embedding
    assert found.text.blocks[0].attn.theta == model.weights.text.blocks[0].attn.theta
