"""Golden files of the gradients of SigLIP, CLIP and ViT, of which all weights are random."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gradient_encoder_mutations import CLIP_BUGS, ENCODER_BENIGN, SIGLIP_BUGS, VIT_BUGS
from gradient_mutations import Mutation
from gradient_study import GradientStudy, encoder, first_block
from PIL import Image
from random_encoders import CLIP, CONFIGS, IMAGES, SEVERAL, SIGLIP, VIT, VIT_CONFIG, write_encoder

from npgemma.checkpoints import vit
from npgemma.commands.cli import main
from npgemma.errors import BadPrompt
from npgemma.golden import Dump, Report, read_golden
from npgemma.golden.gradient_case import KINDS, case_of
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_options import GradientOptions
from npgemma.golden.gradient_replay import replay_gradients
from npgemma.golden.gradient_report import gradients_as_text
from npgemma.golden.gradient_run import run
from npgemma.golden.gradient_taps import CURVE, GRADIENTS, ROWS, SIGNS, WEIGHT
from npgemma.golden.names import entry_of
from npgemma.golden.record import computing
from npgemma.layers.taps import Recorder, silent
from npgemma.testing import save_tensors

# Sums of some thousand products in float64, in two orders.
FLOAT64_ERROR = 1e-12
Tensors = dict[str, np.ndarray]
Studies = Callable[[str], GradientStudy]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    found: dict[str, GradientStudy] = {}

    def study(name: str) -> GradientStudy:
        if name not in found:
            found[name] = encoder(name, tmp_path_factory.mktemp("gradients"))
        return found[name]

    return study


def port(study: GradientStudy) -> Tensors:
    """What npgemma computes in float32, without sketches."""
    golden, taps = study.golden, Recorder("grad.*", "loss", "log_probs", "logits_per_image")
    case = case_of(study.model, golden.truth, golden.metadata["gradients"])
    list(run(case, computing(study.model, "float32"), golden.truth[SIGNS], True, taps))
    return {name: x for name, x in taps.items() if not name.startswith(("grad.rows.", "grad.columns."))}


def judged(study: GradientStudy, tensors: Tensors) -> Report:
    return compare_gradients(study.golden, Dump(tensors), dtype="float32")


@pytest.mark.parametrize("name", [SIGLIP, CLIP, VIT])
def test_a_file_has_the_taps_of_the_table_and_a_port_is_explained(studies: Studies, name: str) -> None:
    study = studies(name)
    found = {entry_of(tap).pattern for tap in study.golden.taps}
    assert found == {entry.pattern for entry in GRADIENTS[name]} - {*CURVE} | {"pixel_values"}
    report = judged(study, port(study))
    assert (report.status, report.pairing.missing, report.pairing.unmapped) == (0, [], [])
    inputs = {"pixel_values", "input_ids", "labels", SIGNS}
    assert {verdict.name for verdict in report.verdicts} == set(study.golden.taps) - inputs


TOWER, TEXTS = "vision.layers.1 vision.layers.0", "text.norm text.layers.1 text.layers.0 text.embedding"


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        (
            SIGLIP,
            f"loss image_embeds vision.head vision.norm {TOWER} vision.embedding "
            f"text_embeds text.head text.last {TEXTS}",
        ),
        (
            CLIP,
            f"loss image_embeds vision.projection vision.post_norm vision.class {TOWER} vision.pre_norm "
            f"vision.embedding text_embeds text.projection text.end {TEXTS}",
        ),
        (VIT, "loss logits class norm layers.1 layers.0 embedding"),
    ],
)
def test_blocks_are_in_the_order_of_the_backward_pass(studies: Studies, name: str, blocks: str) -> None:
    facts = studies(name).golden.metadata["gradients"]
    assert list(dict.fromkeys(filter(None, facts["blocks"].values()))) == blocks.split()


@pytest.mark.parametrize("name", [SIGLIP, CLIP, VIT])
def test_a_large_model_has_the_same_sketches_without_the_matrices(studies: Studies, name: str) -> None:
    study = studies(name)
    model, truth = computing(study.model, "float64"), study.golden.truth
    alone = Recorder("grad.*")
    list(run(case_of(model, truth, study.golden.metadata["gradients"]), model, truth[SIGNS], False, alone))
    sketched = {tap for tap in study.golden.taps if tap.startswith(ROWS)}
    assert len(sketched) > 10
    assert sketched <= alone.keys()
    for tap in alone:
        error, size = np.abs(alone[tap] - truth[tap]).max(), np.abs(truth[tap]).max()
        assert tap in study.golden.metadata["gradients"]["zero"] or error <= FLOAT64_ERROR * size, tap


def test_the_joint_matrix_of_the_pooling_has_one_gradient(studies: Studies) -> None:
    golden = studies(SIGLIP).golden
    name = "vision_model.head.attention.in_proj_weight"
    g, s = golden.truth[WEIGHT + name], golden.truth[SIGNS].astype(float)
    assert (g.shape, golden.taps[WEIGHT + name]) == ((72, 24), "O I")
    np.testing.assert_allclose(golden.truth[f"grad.columns.{name}"], s[:72] @ g, rtol=FLOAT64_ERROR, atol=1e-15)
    assert golden.taps["grad.weights.vision_model.head.probe"] == "Z O I"
    assert f"{ROWS}vision_model.head.probe" not in golden.taps


SAMPLE = [
    (SIGLIP, SIGLIP_BUGS, "scores of texts by pictures not transposed"),
    (SIGLIP, SIGLIP_BUGS, "rows of queries and keys exchanged in the joint matrix"),
    (SIGLIP, SIGLIP_BUGS, "mean of a text's rows in place of the last"),
    (CLIP, CLIP_BUGS, "loss of pictures alone"),
    (CLIP, CLIP_BUGS, "slope of quick gelu without its second term"),
    (VIT, VIT_BUGS, "labels counted from 1"),
    (VIT, VIT_BUGS, "slope of the tanh gelu"),
]


@pytest.mark.parametrize(("name", "bugs", "bug"), SAMPLE, ids=[bug for _, _, bug in SAMPLE])
def test_a_planted_mistake_is_found_in_its_block(studies: Studies, name: str, bugs: dict[str, Mutation], bug: str):
    assert first_block(studies(name).judge(bugs[bug])) == bugs[bug].block


@pytest.mark.parametrize(
    ("name", "variant", "dtype"),
    [(SIGLIP, "scores of one text at a time", "float32"), (CLIP, "softmax by dy . y", "bfloat16")],
)
def test_a_correct_variant_is_explained(studies: Studies, name: str, variant: str, dtype: str) -> None:
    assert studies(name).judge(ENCODER_BENIGN[variant], dtype).status == 0


SCALE = f"{WEIGHT}logit_scale"


@pytest.mark.parametrize(
    ("name", "changed", "factor", "block", "diagnosis"),
    [
        (SIGLIP, "grad.", 1 / 3, "loss", "the mean is over all scores"),
        (CLIP, "grad.", 2, "loss", "are added, and not halved"),
        (VIT, "grad.", 3, "loss", "the number of pictures: the loss is a sum"),
        (CLIP, SCALE, 0.1, "loss", "times the scale"),
        (SIGLIP, "logits_per_image", 1.01, "loss", "the scores differ"),
        (VIT, "log_probs", 1.01, "loss", "log p differs"),
    ],
)
def test_what_is_wrong_together_is_diagnosed(
    studies: Studies, name: str, changed: str, factor: float, block: str, diagnosis: str
) -> None:
    tensors = port(studies(name))
    wrong = {tap: x * np.float32(factor) if tap.startswith(changed) else x for tap, x in tensors.items()}
    first = judged(studies(name), wrong).first_divergence
    assert first.block == block
    assert any(diagnosis in sentence for sentence in first.diagnosis), first.diagnosis


def test_a_replay_names_a_block_of_each_tower(studies: Studies) -> None:
    study = studies(CLIP)
    wrong, names = port(study), ("grad.vision.layers.0.out", f"{WEIGHT}text_projection.weight")
    for name in names:
        wrong[name] = wrong[name] * np.float32(1.01)
    dump = Dump(wrong)
    report = replay_gradients(study.model, study.golden, dump, judged(study, wrong))
    culprits = {verdict.name: verdict.blocks for verdict in report.culprits}
    assert {name: culprits[name] for name in names} == {names[0]: ("vision.layers.1",), names[1]: ("text.projection",)}
    assert set(culprits.values()) <= {("vision.layers.1",), ("vision.layers.0",), ("text.projection",)}
    assert "'a red cat', 'two', 'star on it' and 3 pictures" in gradients_as_text(report, study.golden)


@pytest.mark.parametrize(
    ("name", "images", "texts", "answers", "loss", "message"),
    [
        (SIGLIP, IMAGES, ["a", "b"], [], {}, "3 pictures and 2 texts"),
        (CLIP, IMAGES[:1], ["a"], [], {}, "two or more pictures"),
        (CLIP, IMAGES, ["a", "b", "c"], ["d"], {}, "of no suffixes"),
        (CLIP, IMAGES, ["a", "b", "c"], [], {"smoothing": 0.1}, "no smoothing"),
        (VIT, IMAGES, [], ["a"], {}, "3 pictures and 1 labels"),
        (VIT, IMAGES[:1], [], ["h"], {}, "no label 'h'; give its name, or a number from 0 to 6"),
        (VIT, IMAGES[:1], [], ["7"], {}, "no label '7'"),
        (VIT, IMAGES[:1], [], ["1"], {"mean": "token"}, "no mean"),
        (SEVERAL, IMAGES[:1], [], ["a ; h"], {}, "no label 'h'; give its name, or a number from 0 to 6"),
        (SEVERAL, IMAGES[:1], [], ["a"], {"smoothing": 0.1}, "no smoothing"),
        (SEVERAL, IMAGES[:1], [], ["a", "b"], {}, 'several labels of a picture stand in one text, as "a ; b"'),
    ],
)
def test_what_does_not_fit_a_model_is_refused(studies, name, images, texts, answers, loss, message) -> None:
    model = studies(name).model
    with pytest.raises(BadPrompt, match=message):
        KINDS[type(model)].read(model, images, texts, answers, GradientOptions(**loss), silent)


def test_a_model_with_a_single_label_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is a squared error in transformers, unless problem_type says otherwise."""
    monkeypatch.setitem(CONFIGS, VIT, (vit, replace(VIT_CONFIG, labels=("a",))))
    model = write_encoder(tmp_path, VIT).model
    with pytest.raises(BadPrompt, match="a single label, on whose loss implementations disagree"):
        KINDS[type(model)].read(model, IMAGES[:1], [], ["a"], GradientOptions(), silent)


def test_several_labels_of_a_picture(studies: Studies) -> None:
    """The loss is the mean over pictures and labels of the cross-entropy of whether the label fits."""
    study = studies(SEVERAL)
    truth = study.golden.truth
    wanted = np.zeros((3, 7))
    wanted[0, [1, 3]] = wanted[2, [0, 1, 6]] = 1
    np.testing.assert_array_equal(truth["labels"], wanted)
    y = 1 / (1 + np.exp(-computing(study.model, "float64").forward(truth["pixel_values"].astype(np.float64))))
    right = np.log(np.where(wanted == 1, y, 1 - y))
    np.testing.assert_allclose(truth["log_probs"], right.sum(-1), rtol=FLOAT64_ERROR)
    np.testing.assert_allclose(truth["loss"], -right.mean(), rtol=FLOAT64_ERROR)
    assert judged(study, port(study)).status == 0


def test_the_commands_record_and_compare(studies: Studies, tmp_path: Path, capsys) -> None:
    pictures = [str(tmp_path / f"{i}.png") for i in (1, 2)]
    for path, pixels in zip(pictures, IMAGES[1:], strict=True):
        Image.fromarray(pixels).save(path)
    case, dump = str(tmp_path / "case.safetensors"), str(tmp_path / "dump.safetensors")
    vit_folder, clip = (str(studies(name).model.folder) for name in (VIT, CLIP))
    flags = ["--gradients", "--level", "io", "-o", case]
    labels = ["--label", "b", "--smoothing", "0.1", "--steps", "2", "--train", "classifier.*"]
    assert main(["golden", pictures[0], "-m", vit_folder, *labels, *flags]) == 0
    golden = read_golden(case)
    assert (golden.truth["labels"].tolist(), golden.metadata["gradients"]["mean"]) == ([1], "picture")
    assert golden.truth["curve.loss"].shape == (2,)
    assert main(["golden", *pictures, "one", "two", "-m", clip, *flags]) == 0
    golden = read_golden(case)
    save_tensors({tap: golden.truth[tap].astype(np.float32) for tap in golden.taps if tap.startswith("grad.")}, dump)
    capsys.readouterr()
    assert main(["compare", case, dump, "--allow-missing", "*", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["gradients"]["mean"] == "pair"


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        (VIT, [], "needs --label"),
        (VIT, ["--label", "1", "--suffix", "a"], "argument --suffix"),
        (CLIP, ["a text", "--label", "1"], "argument --label"),
    ],
)
def test_answers_of_another_kind_of_model_are_a_usage_error(studies, name, flags, message, tmp_path, capsys) -> None:
    path = str(tmp_path / "picture.png")
    Image.fromarray(IMAGES[1]).save(path)
    output = str(tmp_path / "case.safetensors")
    assert main(["golden", path, *flags, "-m", str(studies(name).model.folder), "--gradients", "-o", output]) == 2
    assert message in capsys.readouterr().err
