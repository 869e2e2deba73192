"""Golden files of gradients: what they hold, and how a port's gradients are judged by them.

The model is a random PaliGemma 2 with two pictures and an answer to each, of different lengths.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from gradient_mutations import BUGS, LATER_BUGS
from gradient_study import GradientStudy, first_block, random_paligemma_2, two_pictures
from gradient_variants import BENIGN

import npgemma
from npgemma.api.processor import text_inputs
from npgemma.commands.cli import main
from npgemma.errors import BadGolden, BadPrompt
from npgemma.golden import Dump, Report, read_golden
from npgemma.golden.gradient_answers import AnswerCase, make_case
from npgemma.golden.gradient_case import case_of
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_judge import ZERO, judge_gradient
from npgemma.golden.gradient_options import GradientOptions
from npgemma.golden.gradient_record import DTYPES, honest_runs
from npgemma.golden.gradient_replay import replay_gradients
from npgemma.golden.gradient_report import gradients_as_text
from npgemma.golden.gradient_run import run
from npgemma.golden.gradient_taps import CURVE, GRADIENTS, SIGNS, SKETCHES, WEIGHT, block_of_weight
from npgemma.golden.mapping_file import read_mapping
from npgemma.golden.names import entry_of
from npgemma.golden.record import computing
from npgemma.golden.rounding import schedule_in
from npgemma.golden.sketches import signs, sketches
from npgemma.layers.taps import Recorder, silent

# Sums of some thousand products in float64, in two orders.
FLOAT64_ERROR = 1e-12
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> GradientStudy:
    return random_paligemma_2(tmp_path_factory.mktemp("gradients"))


@pytest.fixture(scope="module")
def port(study: GradientStudy) -> Tensors:
    """What npgemma computes in float32: every tensor, forward and backward, and no sketches."""
    taps, golden = Recorder(), study.golden
    case = case_of(study.model, golden.truth, golden.metadata["gradients"])
    for _ in run(case, computing(study.model, "float32"), golden.truth[SIGNS], True, taps):
        pass
    return {name: x for name, x in taps.items() if not name.startswith(("grad.rows.", "grad.columns.", "text.scale"))}


def judged(study: GradientStudy, port: Tensors, **options: object) -> Report:
    return compare_gradients(study.golden, Dump(port), dtype="float32", **options)


def changed(port: Tensors, change: Callable[[np.ndarray], np.ndarray], pattern: str) -> Tensors:
    return {name: change(x) if re.fullmatch(pattern, name) else x for name, x in port.items()}


# ------------------------------------------------------------------------------------------------------------ the file


def test_a_file_has_the_taps_of_the_table_with_their_axes(study: GradientStudy) -> None:
    golden = study.golden
    found = {entry_of(name).pattern for name in golden.taps}
    named = {entry.pattern for entry in GRADIENTS["PaliGemma and Gemma"] if not entry.meaning.endswith("; Gemma 3")}
    assert found == named - {*CURVE} | {"pixel_values", "prompts.{b}.input_ids", "prompts.{b}.token_type_ids"}
    assert golden.taps["grad.weights.vision_tower.vision_model.embeddings.patch_embedding.weight"] == "O C Y X"
    assert golden.metadata["gradients"]["mean"] == "token"
    assert golden.metadata["case"]["suffixes"] == ["a red star above a blue square", "two green circles and a star"]


def test_taps_are_in_the_order_of_the_backward_pass(study: GradientStudy) -> None:
    blocks = list(study.golden.metadata["gradients"]["blocks"].values())
    layers = [f"text.layers.{i}" for i in (3, 2, 1, 0)]
    towers = ["vision.norm", "vision.layers.1", "vision.layers.0", "vision.embedding"]
    wanted = ["loss", "text.norm", *layers, "text.embedding", "projector", *towers]
    assert list(dict.fromkeys(filter(None, blocks))) == wanted
    assert list(study.golden.taps)[:4] == ["log_probs", "loss", "grad.text.norm", "grad.weights.lm_head.weight"]


def test_sketches_are_those_of_the_matrices(study: GradientStudy) -> None:
    truth = study.golden.truth
    names = [name for name in truth if name.startswith(WEIGHT) and truth[name].ndim > 1]
    assert len(names) == 45
    for name in names:
        for start, wanted in zip(("grad.rows.", "grad.columns."), sketches(truth[name], truth[SIGNS]), strict=True):
            np.testing.assert_allclose(truth[name.replace(WEIGHT, start)], wanted, rtol=FLOAT64_ERROR, atol=1e-18)
    squares = sum(np.square(truth[name]).sum() for name in truth if name.startswith(WEIGHT))
    np.testing.assert_allclose(truth["gradient_norm"], np.sqrt(squares), rtol=FLOAT64_ERROR)


@pytest.mark.parametrize("tied", [True, False])
def test_a_large_model_has_the_same_sketches_without_the_matrices(study: GradientStudy, tied: bool) -> None:
    model = computing(study.model, "float64")
    text = model.weights.text
    model.weights = replace(model.weights, text=replace(text, head=None) if tied else text)
    model.config = replace(model.config, tied=tied)
    whole, alone = Recorder("grad.*"), Recorder("grad.*")
    for recorder, is_whole in ((whole, True), (alone, False)):
        case = case_of(model, study.golden.truth, study.golden.metadata["gradients"])
        list(run(case, model, study.golden.truth[SIGNS], is_whole, recorder))
    matrices = {name for name in whole if name.startswith(WEIGHT) and whole[name].ndim > 1}
    position = "grad.weights.vision_tower.vision_model.embeddings.position_embedding.weight"
    assert whole.keys() - alone.keys() == matrices - {position}
    for name in alone:
        error = np.abs(alone[name] - whole[name]).max()
        zero = name.endswith("k_proj.bias")
        assert zero or error <= FLOAT64_ERROR * np.abs(whole[name]).max(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_honest_runs_of_a_large_model_are_near_the_truth(study: GradientStudy, dtype: str) -> None:
    taps, truth = Recorder("grad.rows.*", "loss"), study.golden.truth
    facts = study.golden.metadata["gradients"] | {"whole": False}
    case = case_of(study.model, truth, facts)
    honest_runs(study.model, case, facts, schedule_in("hf_eager", dtype), dtype, taps)
    assert len(taps) == 46
    name = "grad.rows.language_model.model.layers.3.mlp.down_proj.weight"
    error = np.linalg.norm(taps[name] - truth[name]) / np.linalg.norm(truth[name])
    assert error < {"float32": 1e-5, "tf32": 1e-2, "bfloat16": 0.1}[dtype]


def test_signs_do_not_depend_on_their_number() -> None:
    assert signs(8).tolist() == [1, -1, -1, -1, 1, 1, 1, 1]
    assert signs(1000)[:8].tolist() == signs(8).tolist()
    assert abs(int(signs(10_000).sum())) < 300


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("text.blocks[3].attn.q", "text.layers.3"),
        ("vision.blocks[0].mlp.fc1_bias", "vision.layers.0"),
        ("text.embedding", "text.embedding"),
        ("embedding", "embedding"),
        ("text.head", "loss"),
        ("text.head.weight", "text.head"),
        ("head.bias", "logits"),
        ("vision_head.attn.q", "vision.head"),
        ("log_scale", "loss"),
        ("vision.embedding.position", "vision.embedding"),
        ("projector.weight", "projector"),
        ("norm.weight", "norm"),
        ("blocks[1].mlp.fc1", "layers.1"),
    ],
)
def test_the_block_of_a_weight(path: str, block: str) -> None:
    assert block_of_weight(path) == block


def test_the_mean_is_over_tokens_or_over_examples() -> None:
    prompts = [np.array([5, 6]), np.array([5, 6])]
    wanted = {"token": [[0, 0, 1 / 3], [0, 0, 1 / 3, 1 / 3]], "example": [[0, 0, 1 / 2], [0, 0, 1 / 4, 1 / 4]]}
    for mean, weights in wanted.items():
        case = make_case(text_inputs(prompts), prompts, [[7], [8, 9]], mean, 0)
        assert [each.weights.tolist() for each in case.examples] == weights


@pytest.mark.parametrize("suffixes", [[], ["a", "b", "c"]])
def test_answers_are_one_or_one_for_each_picture(study: GradientStudy, suffixes: list[str]) -> None:
    with pytest.raises(BadPrompt, match=r"there are 2 pictures and \d suffixes"):
        AnswerCase.read(study.model, two_pictures(), "caption en", suffixes, GradientOptions(), silent)


# ------------------------------------------------------------------------------------------------------------- verdicts


def test_a_port_is_explained_by_matrices_and_by_sketches_alone(study: GradientStudy, port: Tensors) -> None:
    report = judged(study, port)
    assert (report.status, report.pairing.missing, report.pairing.unmapped) == (0, [], [])
    assert {verdict.name for verdict in report.verdicts} == set(study.golden.taps)
    s, small = study.golden.truth[SIGNS], dict(port)
    for name in [name for name in port if name.startswith(WEIGHT) and port[name].ndim > 1]:
        for start, sketch in zip(SKETCHES, sketches(small[name], s), strict=True):
            small[name.replace(WEIGHT, start)] = sketch
        small.pop(name)
    small.pop("gradient_norm")
    report = judged(study, small)
    assert (report.status, report.pairing.missing) == (3, ["gradient_norm"])
    assert all(verdict.explained for verdict in report.verdicts)


def test_a_mapping_file_gives_a_port_s_names_those_of_gradients(study: GradientStudy, port: Tensors, tmp_path: Path):
    up = "grad.weights.language_model.model.layers.{}.mlp.up_proj.weight"
    rules = [
        {"theirs": r"blk\.(\d+)\.dx", "ours": r"grad.text.layers.\1.out"},
        {"theirs": r"blk\.(\d+)\.w_up", "ours": up.format(r"\1"), "transpose": [1, 0]},
    ]
    (tmp_path / "names.json").write_text(json.dumps({"rules": rules}))
    theirs = {f"blk.{i}.w_up": port[up.format(i)].T for i in range(4)}
    theirs |= {f"blk.{i}.dx": port[f"grad.text.layers.{i}.out"] for i in range(4)}
    report = compare_gradients(study.golden, Dump(theirs), read_mapping(tmp_path / "names.json"), "float32", ["*"])
    assert (report.status, report.pairing.unmapped, len(report.verdicts)) == (0, [], 16)


def test_a_missing_gradient_makes_a_report_incomplete(study: GradientStudy, port: Tensors) -> None:
    names = {"grad.text.layers.2.out", "grad.weights.multi_modal_projector.linear.weight", "gradient_norm"}
    report = judged(study, {name: x for name, x in port.items() if name not in names})
    sketched = {f"grad.{kind}.multi_modal_projector.linear.weight" for kind in ("rows", "columns")}
    assert (report.status, set(report.pairing.missing)) == (3, names | sketched)


@pytest.mark.parametrize("padded_before", [False, True])
def test_a_padded_batch_is_harmless(study: GradientStudy, port: Tensors, padded_before: bool) -> None:
    lengths = [len(study.golden.truth[f"prompts.{i}.input_ids"]) for i in (0, 1)]
    assert lengths[0] != lengths[1]

    def batch(x: np.ndarray) -> np.ndarray:
        rows = np.zeros((2, max(lengths), *x.shape[1:]), x.dtype)
        for each, part in zip(rows, np.split(x, lengths[:1]), strict=True):
            each[len(each) - len(part) if padded_before else 0 :][: len(part)] = part
        return rows.reshape(2, max(lengths), -1)

    report = judged(study, changed(port, batch, r"grad\.text\..*"))
    assert report.status == 0
    assert any("padded" in verdict.note for verdict in report.verdicts)


@pytest.mark.parametrize(
    ("pattern", "change", "block", "diagnosis"),
    [
        (r"grad\..*|loss", lambda x: x * np.float32(22 / 62), "loss", "which is learned tokens / rows"),
        (r"grad\..*|loss", lambda x: x * np.float32(22), "loss", "the loss is a sum"),
        (r"grad\.(projector|vision.*|weights\.(vision|multi).*)", lambda x: 0 * x, "text.embedding", "the image rows"),
        (r"log_probs|loss", lambda x: x + np.float32(0.1), "loss", "compare those first"),
        (r"loss", lambda x: x * np.float32(1.1), "loss", "the labels, their weights or the smoothing differ"),
    ],
)
def test_what_is_wrong_together_is_diagnosed(study, port: Tensors, pattern: str, change, block: str, diagnosis: str):
    truth = study.golden.truth
    labels = [truth[f"prompts.{i}.labels"] for i in (0, 1)]
    assert (sum((each >= 0).sum() for each in labels), sum(map(len, labels))) == (22, 62)
    first = judged(study, changed(port, change, pattern)).first_divergence
    assert first.block == block
    assert any(diagnosis in sentence for sentence in first.diagnosis), first.diagnosis


def of_ids(golden, kind: str) -> Iterator[int]:
    ids = np.concatenate([golden.truth[f"prompts.{i}.input_ids"] for i in (0, 1)])
    values, counts = np.unique(ids, return_counts=True)
    yield from {"repeated": values[counts > 1], "looked up": values, "all": range(100)}[kind]


@pytest.mark.parametrize(
    ("kind", "diagnosis"),
    [("repeated", "must add up"), ("looked up", "share of the lookup"), ("all", "tied to the table")],
)
def test_rows_of_the_table_tell_which_share_is_wrong(study: GradientStudy, port: Tensors, kind: str, diagnosis: str):
    rows = list(of_ids(study.golden, kind))
    wrong = changed(port, np.copy, r"grad\.weights\..*embed_tokens.weight")
    wrong["grad.weights.language_model.model.embed_tokens.weight"][rows] += 10
    first = judged(study, wrong).first_divergence
    assert first.block == "text.embedding"
    assert [sentence for sentence in first.diagnosis if diagnosis in sentence]


def test_the_bias_of_keys_is_judged_by_the_size_of_the_queries(study: GradientStudy, port: Tensors) -> None:
    name = "grad.weights.vision_tower.vision_model.encoder.layers.1.self_attn.{}_proj.bias"
    queries = port[name.format("q")]
    zero = {verdict.name: verdict for verdict in judged(study, port).verdicts}[name.format("k")]
    assert (zero.explained, zero.note) == (True, ZERO)
    wrong = judged(study, {**port, name.format("k"): 0.001 * queries})
    assert [verdict.name for verdict in wrong.verdicts if verdict.wrong] == [name.format("k")]


def test_a_gradient_that_is_not_finite_or_not_of_its_shape_is_wrong(study: GradientStudy, port: Tensors) -> None:
    up = "grad.weights.language_model.model.layers.1.mlp.up_proj.weight"
    for wrong, reason in ((np.full_like(port[up], np.nan), "NaN"), (port[up][1:], r"expected \[56, 48\]")):
        first = judged(study, {**port, up: wrong}).first_divergence
        assert (first.block, bool(re.search(reason, first.reason))) == ("text.layers.1", True)


@pytest.mark.parametrize(
    ("error", "explained"), [(3.9, True), (4.1, False), (7.9, True)], ids=["below", "above", "above, of few values"]
)
def test_the_limit_of_the_rms_is_four_times_the_honest_error(error: float, explained: bool) -> None:
    truth, few = np.ones((40, 30)), error > 5
    truth = truth[:, :20] if few else truth
    envelope = np.full((2, 40), 0.01, np.float32)
    x = truth + 0.01 * error * np.where(np.arange(truth.size) % 2, 1, -1).reshape(truth.shape)
    assert judge_gradient("grad.text.norm", "T D", "x", x, truth, envelope, "float32").explained == explained


def test_rows_that_are_zero_count_as_no_values() -> None:
    truth, envelope = np.ones((40, 30)), np.full((2, 40), 0.01, np.float32)
    truth[10:] = 0
    signs_of_errors = np.where(np.arange(truth.size) % 2, 1, -1).reshape(truth.shape)
    x = truth + 0.01 * 6 * signs_of_errors
    verdict = judge_gradient("grad.text.norm", "T D", "x", x, truth, envelope, "float32")
    assert (verdict.explained, verdict.limits["rms"]) == (True, 8)


# --------------------------------------------------------------------------------------------- replay, study, commands


def test_a_replay_names_the_block_that_is_wrong_on_its_own_inputs(study: GradientStudy, port: Tensors) -> None:
    """Two mistakes: the gradient out of a layer, which all later ones are computed from, and a weight further on."""
    early, late = "grad.text.layers.1.out", "grad.weights.language_model.model.layers.0.mlp.down_proj.weight"
    wrong = changed(port, lambda x: x * np.float32(1.01), f"{re.escape(early)}|{re.escape(late)}")
    dump = Dump(wrong)
    report = replay_gradients(study.model, study.golden, dump, compare_gradients(study.golden, dump, dtype="float32"))
    assert report.first_divergence.name == early
    culprits = [(verdict.name, verdict.blocks) for verdict in report.culprits]
    assert (early, ("text.layers.2",)) in culprits
    assert (late, ("text.layers.0",)) in culprits
    assert {blocks for _, blocks in culprits} == {("text.layers.2",), ("text.layers.1",), ("text.layers.0",)}
    assert "CULPRIT block text.layers.2: wrong even when computed" in gradients_as_text(report, study.golden)


def test_a_replay_needs_the_model_that_was_recorded(study: GradientStudy, port: Tensors) -> None:
    dump = Dump(port)
    with pytest.raises(BadGolden, match="was not recorded from"):
        replay_gradients(npgemma.load(), study.golden, dump, judged(study, port))


SAMPLE = {
    name: BUGS[name] for name in ("1 + w missing", "slope of the erf gelu", "positions averaged over the pictures")
}
SAMPLE |= {name: LATER_BUGS[name] for name in ("slope of the cap of the scores missing", "windows forgotten")}


@pytest.mark.parametrize("name", SAMPLE)
def test_a_planted_mistake_is_found_in_its_block(study: GradientStudy, name: str) -> None:
    report = study.judge(SAMPLE[name])
    assert first_block(report) == SAMPLE[name].block
    assert report.hints == []


@pytest.mark.parametrize(
    ("name", "dtype"), [("softmax by dy . y, heads repeated", "float32"), ("rms norm by the inverse root", "bfloat16")]
)
def test_a_correct_variant_is_explained(study: GradientStudy, name: str, dtype: str) -> None:
    assert study.judge(BENIGN[name], dtype).status == 0


def test_the_commands_record_and_compare(study: GradientStudy, tmp_path: Path, capsys) -> None:
    two_pictures()[0].save(tmp_path / "cat.png")
    case, dump = str(tmp_path / "case.safetensors"), str(tmp_path / "dump.safetensors")
    command = ["golden", str(tmp_path / "cat.png"), "caption en", "-m", str(study.model.folder), "-o", case]
    answer = ["--gradients", "--suffix", "a cat", "--level", "io", "--mean", "example", "--smoothing", "0.1"]
    assert main([*command, *answer]) == 0
    golden = read_golden(case)
    assert golden.metadata["gradients"]["smoothing"] == 0.1
    assert {axes for name, axes in golden.taps.items() if name.startswith("grad.")} == {"I"}
    tiny.save({name: x.astype(np.float32) for name, x in golden.truth.items() if name.startswith("grad.")}, dump)
    capsys.readouterr()
    assert main(["compare", case, dump, "--allow-missing", "*", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["limits"]["row"] == 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--suffix", "a cat"], "--suffix is for --gradients"),
        (["--mean", "token"], "--mean is for --gradients"),
        (["--smoothing", "0"], "--smoothing is for --gradients"),
        (["--train", "all"], "--train is for --gradients"),
        (["--gradients", "--suffix", "a", "--steps", "0"], "counts from 1"),
        (["--gradients", "--suffix", "a", "--taps", "*"], "takes no --taps"),
        (["--gradients", "--suffix", "a", "--smoothing", "1"], "less than 1"),
    ],
)
def test_flags_that_do_not_go_together_are_a_usage_error(flags: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["golden", "cat.png", "caption en", "-o", "case.safetensors", *flags])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "tokens"}, "mean must be one of token, example"),
        ({"smoothing": 1.5}, "below 1"),
        ({"steps": 0}, "steps"),
    ],
)
def test_options_out_of_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GradientOptions(**options)
