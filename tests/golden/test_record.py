"""A recording is the float64 run and the errors of the other two; twice the same bytes; never half a file."""

import json
import os
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
from npgemma.golden.record import by_row, in_bfloat16, row_errors
from npgemma.io.model_folder import EMBEDDED
from npgemma.layers.bits import round_to_bfloat16

SAMPLE = EMBEDDED.parent / "sample.png"


def test_the_truth_is_the_float64_run(model: VisionLanguageModel, golden: Golden) -> None:
    wide = npgemma.load(dtype="float64")
    inputs = wide.processor([[SAMPLE]], ["caption en"])
    logits = wide.forward(inputs.input_ids[0], inputs.pixel_values)
    np.testing.assert_allclose(golden.truth["logits"], logits[-1:], rtol=0, atol=1e-12)
    assert golden.truth["generated_ids"].tolist() == model.generate(SAMPLE, "caption en", 3).token_ids
    assert golden.truth["steps.1.input_ids"] == golden.truth["generated_ids"][0]


def test_dtypes_are_what_the_format_says(golden: Golden) -> None:
    kinds = {name: golden.truth[name].dtype.name for name in golden.taps}
    assert kinds["prompts.0.input_ids"] == kinds["positions"] == kinds["generated_ids"] == "int32"
    assert kinds["prompts.0.mask"] == kinds["pictures.0.resized"] == "uint8"
    assert set(kinds.values()) == {"int32", "uint8", "float64"}


@pytest.mark.parametrize("name", ["text.layers.2.out", "vision.layers.1.attn.pictures.0.probs", "logits"])
def test_an_envelope_is_rms_and_largest_error_by_row(golden: Golden, float32_port, name: str) -> None:
    """Of the float32 run with angles in float32: near to, and as long as, that of the run without."""
    truth = golden.truth[name]
    error = np.abs(by_row(name, float32_port[name].astype(np.float64) - truth))
    found = golden.envelopes["float32"][name]
    assert found.dtype == np.float32
    assert found.shape == (2, len(error))
    assert 0.3 < np.sqrt(np.square(error).mean()) / np.sqrt(np.square(found[0]).mean()) < 3
    assert (found[1] >= found[0]).all()


def test_the_envelope_of_bfloat16_is_the_emulated_run_s(golden: Golden, bfloat16_port) -> None:
    for name in ("text.layers.2.out", "projector", "steps.2.logits"):
        expected = row_errors(name, bfloat16_port[name], golden.truth[name]).astype(np.float32)
        np.testing.assert_array_equal(golden.envelopes["bfloat16"][name], expected)


def test_every_float_has_both_envelopes_and_nothing_else_has(golden: Golden) -> None:
    floats = {name for name in golden.taps if golden.truth[name].dtype.kind == "f"}
    assert set(golden.envelopes) == {"float32", "bfloat16"}
    assert all(set(each) == floats for each in golden.envelopes.values())


def test_two_recordings_are_the_same_bytes_and_name_no_place(
    model: VisionLanguageModel, golden_path: Path, tmp_path: Path
) -> None:
    record(npgemma.load(), [str(SAMPLE)], "caption en", tmp_path / "again.safetensors", "ops", steps=2)
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == golden_path.read_bytes()
    metadata = json.dumps(read_golden(golden_path).metadata)
    assert str(EMBEDDED.parent) not in metadata
    assert os.uname().nodename not in metadata
    assert time.strftime("%Y-") not in metadata


@pytest.mark.parametrize(
    ("level", "patterns", "there", "not_there"),
    [
        ("io", ["*"], "steps.2.logits", "text.layers.0.out"),
        ("blocks", ["*"], "text.layers.0.out", "text.layers.0.mid"),
        ("ops", ["text.layers.1.*"], "text.layers.1.attn.q_rope.cos", "text.layers.0.mid"),
        ("ops", ["*.probs", "logits"], "vision.layers.0.attn.pictures.0.probs", "steps.1.logits"),
    ],
)
def test_a_level_and_globs_narrow_it_but_inputs_stay(
    model: VisionLanguageModel, tmp_path: Path, level: str, patterns: list[str], there: str, not_there: str
) -> None:
    record(model, [SAMPLE], "caption en", tmp_path / "g.safetensors", level, patterns, steps=2)
    taps = read_golden(tmp_path / "g.safetensors").taps
    assert there in taps
    assert not_there not in taps
    assert {"pixel_values", "prompts.0.input_ids", "prompts.0.token_type_ids", "steps.1.input_ids"} <= set(taps)


def test_a_glob_that_names_nothing_is_refused_and_nothing_is_written(
    model: VisionLanguageModel, tmp_path: Path
) -> None:
    with pytest.raises(npgemma.BadGolden, match="no tap of level 'io'"):
        record(model, [SAMPLE], "caption en", tmp_path / "g.safetensors", "io", ["text.layers.0.mid"])
    assert list(tmp_path.iterdir()) == []


def test_without_steps_there_is_one_prefill(model: VisionLanguageModel, tmp_path: Path) -> None:
    record(model, [SAMPLE], "caption en", tmp_path / "g.safetensors", "io", steps=0)
    found = read_golden(tmp_path / "g.safetensors")
    assert not any(name.startswith("steps") for name in found.taps)
    assert len(found.truth["generated_ids"]) == 1


def test_a_run_that_is_not_finite_is_refused(model: VisionLanguageModel, tmp_path: Path) -> None:
    head = model.weights.projector.bias.copy()
    head[3] = np.inf
    weights = replace(model.weights, projector=replace(model.weights.projector, bias=head))
    broken = VisionLanguageModel(model.folder, model.config, weights, model.dtype)
    with pytest.raises(npgemma.BadModel, match="projector is not finite"), np.errstate(all="ignore"):
        record(broken, [SAMPLE], "caption en", tmp_path / "g.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused_before_the_run(model: VisionLanguageModel, tmp_path: Path) -> None:
    with pytest.raises(npgemma.BadGolden, match="no folder"):
        record(model, [SAMPLE], "caption en", tmp_path / "not" / "g.safetensors")


def test_killed_at_any_moment_the_old_file_is_there_or_the_new_one(golden_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "g.safetensors"
    script = (
        "import npgemma; from npgemma.golden import record; m = npgemma.load(); print('go', flush=True)\n"
        f"record(m, [{str(SAMPLE)!r}], 'caption en', {str(target)!r}, 'ops', steps=2)"
    )
    new, old = golden_path.read_bytes(), b"old"
    for delay in (0.0, 0.1, 0.2, 0.3):
        target.write_bytes(old)
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert target.read_bytes() in (old, new)


def test_weights_are_moved_to_the_bfloat16_grid_and_matrices_packed(model: VisionLanguageModel) -> None:
    bias = model.weights.projector.bias + np.float32(1e-6)
    matrix = np.full(model.weights.projector.weight.shape, 1 / 3, np.float32)
    changed = replace(model.weights, projector=replace(model.weights.projector, bias=bias, weight=matrix))
    found = in_bfloat16(changed)
    np.testing.assert_array_equal(found.projector.bias, round_to_bfloat16(bias))
    assert found.projector.weight.dtype == np.uint16
    assert found.text.embedding is model.weights.text.embedding
    assert found.text.blocks[0].attn.theta == model.weights.text.blocks[0].attn.theta
