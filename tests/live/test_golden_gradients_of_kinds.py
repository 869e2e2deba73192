"""Gradients of torch for a random model of each kind are explained: encoders, a language model, an adapter of peft."""

from pathlib import Path

import numpy as np
import pytest
from gradient_curve_mutations import curve_study
from gradient_study import adapted, encoder
from random_encoders import CLIP, SEVERAL, SIGLIP, VIT
from random_models import GEMMAS, write_model

import npgemma
from npgemma.api.load import AnyModel
from npgemma.golden import Golden, Report, read_dump, read_golden
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_presets import gradient_preset
from npgemma.golden.gradient_record import record_gradients
from npgemma.golden.gradient_replay import replay_gradients

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")
peft = pytest.importorskip("peft", reason="the live tests compare with peft")

from dump_gradients import dump_encoder_gradients, dump_gradients, dump_steps  # noqa: E402
from dump_transformers import load_model  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]
DTYPES = ("float32", "bfloat16")
STEPS = 6
# Of a loss after some steps in float32: a thousand units of roundoff.
FLOAT32_ERROR = 1000 * 2.0**-24


def report_on(model: AnyModel, golden: Golden, path: Path, tensors: object, adapter: Path | None = None) -> Report:
    """The report on gradients of torch, with a replay."""
    save_file(tensors, path)
    dump = read_dump(path)
    report = compare_gradients(golden, dump, gradient_preset("transformers", golden))
    return replay_gradients(model, golden, dump, report, adapter)


def check(report: Report, dtype: str, least: int) -> None:
    assert (report.dtype, report.status, report.culprits) == (dtype, 0, [])
    assert (report.pairing.missing, report.pairing.unmapped) == ([], [])
    assert len(report.verdicts) > least


@pytest.mark.parametrize(("name", "least"), [(SIGLIP, 210), (CLIP, 190), (VIT, 95), (SEVERAL, 95)])
def test_an_encoder_is_explained(tmp_path: Path, name: str, least: int) -> None:
    study, case = encoder(name, tmp_path), tmp_path / "gradients.safetensors"
    for dtype in DTYPES:
        port = load_model(study.model.folder, getattr(torch, dtype), "eager")
        tensors = dump_encoder_gradients(port, case)
        check(report_on(study.model, study.golden, tmp_path / "dump.safetensors", tensors), dtype, least)


def test_a_language_model_is_explained(tmp_path: Path) -> None:
    model, case = npgemma.load(write_model(tmp_path / "model", GEMMAS[3])), tmp_path / "case.safetensors"
    record_gradients(model, [], "a blue star", [" and a green circle", " is red"], case, "ops")
    port = load_model(model.folder, torch.float32, "eager")
    report = report_on(model, read_golden(case), tmp_path / "dump.safetensors", dump_gradients(port, case))
    check(report, "float32", 150)


def test_an_adapter_of_peft_is_explained(tmp_path: Path) -> None:
    """Of a bfloat16 model, peft keeps an adapter in float32."""
    study, base = adapted(tmp_path), npgemma.load(tmp_path / "model")
    for dtype in DTYPES:
        port = load_model(base.folder, getattr(torch, dtype), "eager")
        port = peft.PeftModel.from_pretrained(port, study.adapter, is_trainable=True)
        tensors = dump_gradients(port, tmp_path / "gradients.safetensors")
        report = report_on(base, study.golden, tmp_path / "dump.safetensors", tensors, study.adapter)
        check(report, dtype, 180)
        assert len([verdict for verdict in report.verdicts if ".lora_" in verdict.name]) == 4 * 5 * 2 * 3


def test_steps_of_torch_s_adamw_are_explained(tmp_path: Path) -> None:
    study, path = curve_study(tmp_path, STEPS, 1), tmp_path / "dump.safetensors"
    port = load_model(study.model.folder, torch.float32, "eager")
    tensors = dump_steps(port, tmp_path / "curve.safetensors", dump_encoder_gradients)
    save_file(tensors, path)
    report = compare_gradients(study.golden, read_dump(path), dtype="float32", allow_missing=["*"])
    assert [verdict.name for verdict in report.verdicts if not verdict.explained] == []
    assert len(report.verdicts) == 2 * STEPS
    error = np.abs(tensors["curve.loss"].numpy() / study.golden.truth["curve.loss"] - 1)
    assert error.max() < FLOAT32_ERROR
