"""Logits that differ from the golden ones by a constant in each row, such as log-probabilities, are explained."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny

from npgemma.commands.cli import main
from npgemma.golden import Dump, Golden, Report, compare, replay
from npgemma.golden.judge import CONSTANT
from npgemma.golden.report import as_text
from npgemma.layers.activations import log_softmax
from npgemma.layers.bits import pack, widen

HARMLESS = {
    "log-softmax": log_softmax,
    "minus the maximum": lambda x: x - x.max(-1, keepdims=True),
    "minus the minimum": lambda x: x - x.min(-1, keepdims=True),
    "minus the mean": lambda x: x - x.mean(-1, keepdims=True),
    "plus 3": lambda x: x + x.dtype.type(3),
    "minus 100": lambda x: x - x.dtype.type(100),
}
HARMFUL = {
    "softmax": lambda x: np.exp(log_softmax(x)),
    "log-softmax of half": lambda x: log_softmax(x / 2),
    "log2 of softmax": lambda x: log_softmax(x) / np.log(2).astype(x.dtype),
    "a ramp": lambda x: x + np.linspace(0, 1e-2, x.shape[-1], dtype=x.dtype),
    "one number": lambda x: log_softmax(x) + 1e-2 * (np.arange(x.shape[-1]) == 77).astype(x.dtype),
    "the last half": lambda x: x - 3 * (np.arange(x.shape[-1]) > x.shape[-1] // 2).astype(x.dtype),
    "a constant that rounds the rest away": lambda x: x + x.dtype.type(1e9),
    "a constant alone": lambda x: np.full_like(x, 5),
    "soft-capped": lambda x: 30 * np.tanh(x / 30),
    "one token late": lambda x: log_softmax(np.roll(x, 1, -1)),
}


def is_logits(name: str) -> bool:
    return name.endswith("logits")


def changed(port: dict[str, np.ndarray], change, only=is_logits) -> dict[str, np.ndarray]:
    return {name: change(x) if only(name) else x for name, x in port.items()}


@pytest.fixture(scope="module")
def scores(golden: Golden) -> Golden:
    """The golden file with the logits alone, and the rows before them."""
    return replace(
        golden, taps={tap: axes for tap, axes in golden.taps.items() if tap == "text.norm" or is_logits(tap)}
    )


def verdicts(report: Report) -> dict[str, tuple[bool, str]]:
    return {v.name: (v.explained, v.note) for v in report.verdicts if is_logits(v.name)}


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_constant_in_each_row_is_harmless(kind, scores: Golden, float32_port):
    report = compare(scores, Dump(changed(float32_port, HARMLESS[kind])), dtype="float32")
    assert report.first_divergence is None
    assert set(verdicts(report).values()) == {(True, CONSTANT)}
    assert [each["flipped"] for each in report.logits.values()] == [[]] * len(report.logits)
    assert max(each["kl"] for each in report.logits.values()) < 1e-6


@pytest.mark.parametrize("kind", HARMLESS)
def test_it_is_harmless_in_bfloat16(kind, scores: Golden, bfloat16_port):
    """The port rounds what it stores: log-probabilities are larger than logits, and so are their errors."""
    rounded = changed(bfloat16_port, lambda x: widen(pack(HARMLESS[kind](x))))
    report = compare(scores, Dump(rounded), dtype="bfloat16")
    assert report.first_divergence is None
    assert set(verdicts(report).values()) <= {(True, CONSTANT), (True, "")}


@pytest.mark.parametrize("kind", HARMFUL)
def test_what_is_not_constant_stays_unexplained(kind, scores: Golden, float32_port):
    report = compare(scores, Dump(changed(float32_port, HARMFUL[kind])), dtype="float32")
    assert report.status == 1
    assert set(verdicts(report).values()) == {(False, "")}
    assert is_logits(report.first_divergence.name)


def test_equal_logits_have_no_note(scores: Golden, float32_port):
    assert set(verdicts(compare(scores, Dump(float32_port), dtype="float32")).values()) == {(True, "")}


def test_a_constant_is_harmless_in_logits_alone(scores: Golden, float32_port):
    wrong = changed(float32_port, lambda x: x + np.float32(1), lambda name: name == "text.norm")
    assert compare(scores, Dump(wrong), dtype="float32").first_divergence.name == "text.norm"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replay_agrees(dtype, model, scores: Golden, request):
    dump = Dump(changed(request.getfixturevalue(f"{dtype}_port"), log_softmax))
    report = replay(model, scores, dump, compare(scores, dump, dtype=dtype))
    assert (report.status, report.culprits) == (0, [])


def test_the_report_says_it_once(blocks: Golden, float32_port):
    text = as_text(compare(blocks, Dump(changed(float32_port, log_softmax)), dtype="float32"), blocks)
    assert text.count(CONSTANT) == 1
    assert f"logits, steps.1.logits, steps.2.logits: {CONSTANT}" in text
    assert "EXPLAINED: rounding in float32 explains" in text.splitlines()[-1]


def test_the_command_says_it_in_both_formats(float32_port, tmp_path, capsys):
    """The golden file in the package begins as that of the other tests does."""
    dump = {"logits": log_softmax(float32_port["logits"]), "text.norm": float32_port["text.norm"]}
    tiny.save(dump, tmp_path / "dump.safetensors")
    command = ["compare", "embedded", str(tmp_path / "dump.safetensors"), "--allow-missing", "*"]
    assert main(command) == 0
    assert f"logits: {CONSTANT}\n" in capsys.readouterr().out
    assert main([*command, "--format", "json"]) == 0
    notes = {tap["name"]: tap["note"] for tap in json.loads(capsys.readouterr().out)["taps"]}
    assert {name: note for name, note in notes.items() if note} == {"logits": CONSTANT}
