"""Golden files of language models: no pictures, positions from 0, and the same verdicts, replays and commands."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ports import port
from random_models import GEMMAS, PROMPT, write_model

import npgemma
from npgemma.api.language import LanguageModel
from npgemma.commands.cli import main
from npgemma.golden import Dump, Golden, compare, read_golden, record, replay
from npgemma.golden.names import entry_of, is_in_level
from npgemma.golden.provenance import model_hashes
from npgemma.golden.tap_table import TABLE

# Two runs in float64 that sum in another order: rounding errors of 1e-16 grow to 1e-14 in four layers.
FLOAT64_ERROR = 1e-12
# The first words of the taps of pictures.
OF_PICTURES = {"pictures", "pixel_values", "vision", "projector"}


def test_truth_is_the_float64_run(model_3: LanguageModel, golden_3: Golden) -> None:
    ids = golden_3.truth["prompts.0.input_ids"].astype(np.int64)
    np.testing.assert_array_equal(ids, model_3.processor.encode(PROMPT))
    logits = LanguageModel.load(model_3.folder, "float64").forward(ids)
    np.testing.assert_allclose(golden_3.truth["logits"], logits[-1:], rtol=0, atol=FLOAT64_ERROR, strict=True)
    assert golden_3.truth["generated_ids"].tolist() == model_3.generate(PROMPT, max_new_tokens=3).token_ids
    assert golden_3.truth["positions"].tolist() == list(range(8))
    assert golden_3.truth["steps.2.positions"].tolist() == [9]


def test_it_has_every_tap_but_those_of_pictures_and_types(golden_3: Golden) -> None:
    recorded = {entry_of(name).pattern for name in golden_3.taps}
    named = {entry.pattern for entry in TABLE if not entry.meaning.endswith("; Gemma 2")}
    of_pictures = {name for name in named if name.split(".")[0] in OF_PICTURES}
    assert named - recorded == of_pictures | {"prompts.{b}.token_type_ids"}


POST_NORMED = {"post_norms", "window"}
ADDED = {1: set(), 2: POST_NORMED, 3: POST_NORMED | {"head_norms", "rotation"}}


@pytest.mark.parametrize("number", GEMMAS)
def test_policy_says_what_the_family_computes(number: int, tmp_path: Path, golden: Golden) -> None:
    model = npgemma.load(write_model(tmp_path, GEMMAS[number]))
    record(model, [], PROMPT, tmp_path / "g.safetensors", "io", steps=0)
    metadata = read_golden(tmp_path / "g.safetensors").metadata
    found = metadata["policy"]
    assert (metadata["case"]["images"], metadata["preprocessing"]) == ([], None)
    assert (found["positions"], found["mask"]) == ("from 0", "causal")
    assert "image" not in json.dumps(found)
    assert "big_vision" not in json.dumps(found)
    assert found.keys() - golden.metadata["policy"].keys() == ADDED[number]
    assert (found["soft_caps"] is not None) == (number == 2)
    if number == 3:
        local, distant = {"theta": 1e4, "factor": 1.0}, {"theta": 1e6, "factor": 8.0}
        assert found["rotation"] == [local, distant, local, distant]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_honest_port_is_explained_and_has_no_culprit(model_3: LanguageModel, golden_3: Golden, dtype: str) -> None:
    dump = Dump(port(model_3, golden_3, dtype))
    report = replay(model_3, golden_3, dump, compare(golden_3, dump, dtype=dtype))
    assert (report.status, report.culprits) == (0, [])
    assert {"text.layers.1.attn.k_norm", "steps.2.logits"} <= {verdict.name for verdict in report.replayed}


def test_mistake_is_found_by_the_commands(model_3: LanguageModel, tmp_path: Path, capsys) -> None:
    """A golden file that lies in the folder of its model is not part of the model."""
    folder = shutil.copytree(model_3.folder, tmp_path / "model")
    golden, dump = folder / "g.safetensors", tmp_path / "dump.npz"
    assert main(["golden", PROMPT, "-m", str(folder), "-o", str(golden), "--level", "ops", "--steps", "1"]) == 0

    def louder(name: str, x: np.ndarray, axes: str) -> np.ndarray:
        return x * np.float32(1.01) if name == "text.layers.1.attn.k_norm" else x

    np.savez(dump, **port(model_3, read_golden(golden), change=louder))
    assert main(["compare", str(golden), str(dump), "--replay", "-m", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "FIRST DIVERGENCE in block text.layers.1" in out
    assert "CULPRIT block text.layers.1" in out


@pytest.mark.parametrize(
    ("case", "status", "message"),
    [
        (["caption en", "-m", "tiny"], 2, "answers about pictures; name one before the prompt"),
        ([str(npgemma.sample_picture())], 2, "is a file; give a prompt after it"),
        ([str(npgemma.sample_picture()), "caption en", "-m", "GEMMA"], 1, "a language model reads no pictures"),
        (["of", "text", "-m", "GEMMA"], 1, "a language model reads no pictures"),
    ],
)
def test_pictures_and_models_that_do_not_fit_are_refused(
    case: list[str], status: int, message: str, model_3: LanguageModel, tmp_path: Path, capsys
) -> None:
    arguments = [str(model_3.folder) if each == "GEMMA" else each for each in case]
    assert main(["golden", *arguments, "-o", str(tmp_path / "g.safetensors")]) == status
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- the files of a model


@pytest.fixture
def io(model_3: LanguageModel, golden_3: Golden, tmp_path: Path) -> tuple[LanguageModel, Golden]:
    """A copy of the model, and a golden file of the prefill, which lies elsewhere."""
    taps = {tap: axes for tap, axes in golden_3.taps.items() if is_in_level(tap, "io") and not tap.startswith("steps")}
    truth = golden_3.truth | {"generated_ids": golden_3.truth["generated_ids"][:1]}
    return LanguageModel.load(shutil.copytree(model_3.folder, tmp_path / "model")), replace(
        golden_3, taps=taps, truth=truth
    )


def replayed(model: LanguageModel, golden: Golden) -> int:
    dump = Dump({tap: golden.truth[tap] for tap in golden.taps})
    return replay(model, golden, dump, compare(golden, dump, dtype="float32")).status


def test_files_beside_the_weights_do_not_count(io: tuple[LanguageModel, Golden]) -> None:
    model, golden = io
    (model.folder / "dump.safetensors").write_bytes(b"anything")
    assert replayed(model, golden) == 0
    hashes = {**golden.metadata["model"]["weights"], "dump.safetensors": "listed by an earlier release"}
    listed = {**golden.metadata["model"], "weights": hashes}
    assert replayed(model, replace(golden, metadata={**golden.metadata, "model": listed})) == 0


def test_other_weights_are_refused(io: tuple[LanguageModel, Golden]) -> None:
    model, golden = io
    write_model(model.folder, GEMMAS[3], seed=5)
    with pytest.raises(npgemma.BadGolden, match="was not recorded from"):
        replayed(LanguageModel.load(model.folder), golden)


def test_weights_are_those_of_the_file_that_was_loaded(io: tuple[LanguageModel, Golden]) -> None:
    model, golden = io
    other = (model.folder / "model.safetensors").rename(model.folder / "other.safetensors")
    (sha256,) = golden.metadata["model"]["weights"].values()
    assert model_hashes(LanguageModel.load(other))["weights"] == {"other.safetensors": sha256}
