"""Golden files of the gradients of a part of a model: of an adapter beside it, or of weights chosen by pattern."""

from pathlib import Path

import numpy as np
import pytest
from gradient_adapter_mutations import ADAPTER_BENIGN, ADAPTER_BUGS
from gradient_study import GradientStudy, adapted, first_block, two_pictures
from random_encoders import CLIP, VIT, write_encoder

import npgemma
from npgemma.api.trainable import beside, frozen, trained
from npgemma.commands.cli import main
from npgemma.errors import BadData, BadGolden, BadModel
from npgemma.golden import Dump, Golden, read_golden
from npgemma.golden.gradient_case import case_of
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_options import GradientOptions
from npgemma.golden.gradient_record import record_gradients
from npgemma.golden.gradient_replay import replay_gradients
from npgemma.golden.gradient_report import gradients_as_text
from npgemma.golden.gradient_run import run
from npgemma.golden.gradient_taps import SIGNS, WEIGHT
from npgemma.golden.record import computing
from npgemma.layers.taps import Recorder

LAYER = "base_model.model.model.language_model.layers.{}"
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> GradientStudy:
    return adapted(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def port(study: GradientStudy) -> Tensors:
    """What npgemma computes in float32, without sketches."""
    golden, taps = study.golden, Recorder("grad.*", "loss", "log_probs")
    case = case_of(study.model, golden.truth, golden.metadata["gradients"])
    list(run(case, computing(study.model, "float32"), golden.truth[SIGNS], True, taps))
    return {name: x for name, x in taps.items() if not name.startswith(("grad.rows.", "grad.columns."))}


def gradients(golden: Golden) -> set[str]:
    """The tensors that have a gradient."""
    return {name.removeprefix(WEIGHT) for name in golden.taps if name.startswith(WEIGHT)}


def test_a_file_has_the_gradients_of_both_halves_by_the_names_of_peft(study: GradientStudy) -> None:
    facts, names = study.golden.metadata["gradients"], gradients(study.golden)
    assert len(names) == 4 * 5 * 2
    assert study.golden.truth[f"{WEIGHT}{LAYER.format(0)}.mlp.up_proj.lora_B.weight"].shape == (56, 3)
    assert facts["blocks"][f"{WEIGHT}{LAYER.format(2)}.mlp.up_proj.lora_A.weight"] == "text.layers.2"
    assert set(facts["frozen"]) == set(study.model.checkpoint.hf_layout(study.model.config).shapes)
    assert set(facts["scales"].values()) == {7 / 3}


def test_no_gradient_is_asked_for_behind_the_last_trained_block(study: GradientStudy, port: Tensors) -> None:
    behind = ("grad.projector", "grad.vision.embedding", "grad.text.layers.0.attn_norm")
    assert behind[0] not in study.golden.taps
    report = compare_gradients(study.golden, Dump({name: x for name, x in port.items() if name not in behind}))
    assert (report.status, report.pairing.absent) == (0, [behind[2]])


def test_a_gradient_of_a_frozen_weight_is_noted(study: GradientStudy, port: Tensors) -> None:
    name = "grad.weights.language_model.model.norm.weight"
    report = compare_gradients(study.golden, Dump(port | {name: np.ones(48, np.float32)}), dtype="float32")
    assert report.status == 0
    assert f"gradients of weights that are frozen in the golden file, which are not compared: {name}" in report.hints[0]
    assert name in gradients_as_text(report, study.golden)


@pytest.mark.parametrize(
    ("name", "diagnosis"),
    [
        ("alpha / r forgotten", "alpha / r, is missing"),
        ("scale twice", "is applied twice"),
        ("alpha / sqrt(r) for alpha / r", "alpha / sqrt(r), not alpha / r"),
        ("rows of A read as columns", ""),
        ("alpha / sqrt(r) for alpha / r, forwards too", "the forward pass does"),
        ("A of the queries given to the keys", ""),
    ],
)
def test_a_planted_mistake_is_found_in_its_block(study: GradientStudy, name: str, diagnosis: str) -> None:
    report = study.judge(ADAPTER_BUGS[name])
    assert first_block(report) == ADAPTER_BUGS[name].block
    assert any(diagnosis in each for each in [*report.first_divergence.diagnosis, report.first_divergence.reason])


def test_a_correct_variant_is_explained(study: GradientStudy) -> None:
    assert study.judge(ADAPTER_BENIGN["dx by W + scale B A"]).status == 0


def test_a_replay_needs_the_adapter(study: GradientStudy, port: Tensors) -> None:
    name = f"{WEIGHT}{LAYER.format(1)}.self_attn.q_proj.lora_B.weight"
    wrong, base = Dump(port | {name: port[name] * np.float32(1.1)}), npgemma.load(study.model.folder)
    report = compare_gradients(study.golden, wrong, dtype="float32")
    with pytest.raises(BadGolden, match="recorded with another adapter"):
        replay_gradients(base, study.golden, wrong, report)
    again = replay_gradients(base, study.golden, wrong, report, study.adapter)
    assert {verdict.blocks for verdict in again.culprits} == {("text.layers.1",)}


@pytest.mark.parametrize(
    ("train", "count", "last"),
    [
        (("text.blocks.3.attn.*",), 4, "text.layers.3"),
        (("projector", "language_model.model.norm.weight"), 3, "projector"),
        (("*.layer_norm1.*",), 4, "vision.layers.0"),
    ],
)
def test_weights_are_chosen_by_pattern(study: GradientStudy, tmp_path: Path, train, count: int, last: str) -> None:
    model, path = npgemma.load(study.model.folder), tmp_path / "case.safetensors"
    record_gradients(model, two_pictures()[:1], "caption en", ["a"], path, "io", GradientOptions(train=train))
    golden = read_golden(path)
    facts = golden.metadata["gradients"]
    assert (len(trained(model, train)), facts["train"]) == (count, list(train))
    assert set(facts["frozen"]) == {*frozen(model, train)}
    assert [block for block in facts["blocks"].values() if block][-1] == last


@pytest.mark.parametrize(("name", "train"), [(CLIP, "vision_model.*"), (VIT, "classifier.*"), (CLIP, "logit_scale")])
def test_an_encoder_is_trained_in_part(tmp_path: Path, name: str, train: str) -> None:
    model, pictures, texts = write_encoder(tmp_path / "model", name)
    options, path = GradientOptions(train=(train,)), tmp_path / "case.safetensors"
    record_gradients(model, pictures, texts, ["a", "b", "c"] if name == VIT else [], path, "blocks", options)
    names = gradients(golden := read_golden(path))
    assert names
    assert {each.startswith(train.rstrip("*")) for each in names} == {True}
    assert not [tap for tap in golden.taps if tap.startswith("grad.text")]


def test_what_cannot_be_trained_is_refused(study: GradientStudy) -> None:
    model = npgemma.load(study.model.folder)
    with pytest.raises(BadData, match=r"--train vision_tower names no weight of .* that is trained"):
        trained(model, ("vision_tower",))
    with pytest.raises(BadData, match="those are base_model"):
        trained(study.model, ("vision",))
    with pytest.raises(BadModel, match="only a PaliGemma or a Gemma has adapters"):
        beside(npgemma.DualEncoder.load(), study.adapter)


def test_the_commands_record_and_compare(study: GradientStudy, tmp_path: Path, capsys) -> None:
    two_pictures()[0].save(tmp_path / "cat.png")
    case, dump = str(tmp_path / "case.safetensors"), str(tmp_path / "dump.safetensors")
    with_adapter = ["-m", str(study.model.folder), "--adapter", str(study.adapter)]
    command = ["golden", str(tmp_path / "cat.png"), "caption en", "--suffix", "a cat", "--gradients", "--level", "io"]
    assert main([*command, "-o", case, *with_adapter, "--train", "*.lora_B.*"]) == 0
    golden = read_golden(case)
    assert all(".lora_B." in name for name in gradients(golden) | {tap for tap in golden.taps if "grad.rows" in tap})
    kept = {tap: golden.truth[tap].astype(np.float32) for tap in golden.taps if tap.startswith("grad")}
    npgemma.testing.save_tensors(kept, dump)
    assert main(["compare", case, dump, "--allow-missing", "*", "--replay", *with_adapter]) == 0
    assert "of an adapter, *.lora_B.* trained" in capsys.readouterr().out
