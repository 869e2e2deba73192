"""Golden files of the gradients of a part of a model: of an adapter beside it, or of weights chosen by pattern."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from gradient_adapter_mutations import ADAPTER_BENIGN, ADAPTER_BUGS
from gradient_study import GradientStudy, adapted, first_block, two_pictures
from random_encoders import CLIP, VIT, write_encoder

import npgemma
from npgemma.api.load import AnyModel
from npgemma.api.trainable import beside, frozen, scales_of, trained
from npgemma.checkpoints.adapter import LowRank, Rows
from npgemma.checkpoints.adapter_writing import write_adapter
from npgemma.commands.cli import main
from npgemma.errors import BadData, BadGolden, BadModel
from npgemma.golden import Dump, Golden, read_golden
from npgemma.golden.gradient_case import KINDS, case_of
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_options import GradientOptions
from npgemma.golden.gradient_record import exact_run
from npgemma.golden.gradient_replay import replay_gradients
from npgemma.golden.gradient_report import gradients_as_text
from npgemma.golden.gradient_run import place_of, run
from npgemma.golden.gradient_taps import SIGNS, WEIGHT
from npgemma.golden.record import computing
from npgemma.layers.taps import Recorder, silent
from npgemma.testing import save_tensors

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


def test_an_adapter_of_a_language_model_may_train_rows_of_tokens(tmp_path: Path) -> None:
    model, table, query = npgemma.LanguageModel.load(), "model.embed_tokens", "model.layers.0.self_attn.q_proj"
    shapes = model.checkpoint.hf_layout(model.config).shapes
    outputs, inputs = shapes[f"{query}.weight"]
    update = LowRank(np.ones((2, inputs)), np.ones((outputs, 2)), 2.0, (outputs, inputs))
    rows = Rows(np.array([5, 99]), np.ones((2, shapes[f"{table}.weight"][1])))
    write_adapter(tmp_path, {f"{query}.weight": update}, {f"{table}.weight": rows}, shapes, "the embedded model")
    adapted_model = beside(model, tmp_path)
    found = {tensor.name: place_of(adapted_model, tensor) for tensor in trained(adapted_model).values()}
    assert found == {
        f"base_model.model.{table}.token_adapter.trainable_tokens_delta": "text.embedding.rows",
        f"base_model.model.{query}.lora_A.weight": "text.blocks[0].attn.q.a",
        f"base_model.model.{query}.lora_B.weight": "text.blocks[0].attn.q.b",
    }
    assert scales_of(adapted_model) == {f"base_model.model.{query}.lora_{half}.weight": 2.0 for half in "AB"}


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
    base, dump = npgemma.load(study.model.folder), Dump(port)
    with pytest.raises(BadGolden, match="recorded with another adapter"):
        replay_gradients(base, study.golden, dump, compare_gradients(study.golden, dump, dtype="float32"))


def blocks(model: AnyModel, images: Sequence[object], text: object, answers: Sequence[str], train: str) -> dict:
    """The blocks of the gradients of what is trained, as a file would have them."""
    case = KINDS[type(model)].read(model, images, text, answers, GradientOptions(train=(train,)), silent)
    facts = {"train": [train], "frozen": frozen(model, [train]), "whole": True}
    return exact_run(case, model, facts, silent)["blocks"]


@pytest.mark.parametrize(
    ("train", "count", "last"),
    [
        ("text.blocks.3.attn.*", 4, "text.layers.3"),
        ("language_model.model.norm.weight", 1, "text.norm"),
        ("projector", 2, "projector"),
        ("*.layer_norm1.*", 4, "vision.layers.0"),
    ],
)
def test_weights_are_chosen_by_pattern(study: GradientStudy, train: str, count: int, last: str) -> None:
    model = npgemma.load(study.model.folder)
    found = blocks(model, two_pictures()[:1], "caption en", ["a"], train)
    assert len([name for name in found if name.startswith(WEIGHT)]) == count
    assert [block for block in found.values() if block][-1] == last
    assert len(frozen(model, [train])) == len(trained(model)) - count


@pytest.mark.parametrize(
    ("name", "train", "last"),
    [(CLIP, "vision_model.*", "vision.embedding"), (VIT, "classifier.*", "logits"), (CLIP, "logit_scale", "loss")],
)
def test_an_encoder_is_trained_in_part(tmp_path: Path, name: str, train: str, last: str) -> None:
    model, pictures, texts = write_encoder(tmp_path / "model", name)
    found = blocks(model, pictures, texts, ["a", "b", "c"] if name == VIT else [], train)
    weights = [each.removeprefix(WEIGHT) for each in found if each.startswith(WEIGHT)]
    assert weights
    assert {each.startswith(train.rstrip("*")) for each in weights} == {True}
    assert not [tap for tap in found if tap.startswith("grad.text")]
    assert [block for block in found.values() if block][-1] == last


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
    assert main([*command, "-o", case, *with_adapter, "--train", "*.3.*.lora_B.*"]) == 0
    golden = read_golden(case)
    assert len(gradients(golden)) == 0
    kept = {tap: golden.truth[tap].astype(np.float32) for tap in golden.taps if tap.startswith("grad")}
    assert len([tap for tap in kept if ".layers.3." in tap and ".lora_B." in tap]) == 2 * 5
    kept[f"grad.rows.{LAYER.format(3)}.mlp.up_proj.lora_B.weight"] *= np.float32(1.1)
    save_tensors(kept, dump)
    assert main(["compare", case, dump, "--allow-missing", "*", "--replay", *with_adapter]) == 1
    report = capsys.readouterr().out
    assert "of an adapter, *.3.*.lora_B.* trained" in report
    assert "CULPRIT between the inputs and grad.rows.base_model" in report


def test_an_adapter_is_for_files_of_gradients(study: GradientStudy, tmp_path: Path, capsys) -> None:
    save_tensors({"projector": np.ones((1, 2, 3), np.float32)}, tmp_path / "dump.safetensors")
    arguments = ["compare", "embedded", str(tmp_path / "dump.safetensors"), "--adapter", str(study.adapter)]
    assert main(arguments) == 2
    assert "embedded has no gradients" in capsys.readouterr().err
