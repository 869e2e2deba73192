"""The first steps of a training in a golden file of gradients: those of a random ViT."""

import numpy as np
import pytest
from gradient_curve_mutations import CURVE_BENIGN, CURVE_BUGS, CurveStudy, curve_study
from gradient_study import first_block

from npgemma.errors import BadGolden
from npgemma.golden import Dump, Report
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_curve import curve_facts, growing
from npgemma.golden.gradient_report import gradients_as_text
from npgemma.golden.gradient_taps import CURVE

STEPS = 4
FLOAT64_ERROR = 1e-14  # of sums of some thousand squares, in two orders
LOSS, LENGTH = CURVE


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> CurveStudy:
    return curve_study(tmp_path_factory.mktemp("curve"), STEPS, 1)


def judged(study: CurveStudy, **tensors: np.ndarray) -> Report:
    """The report on a port whose curves are the truth, but for those given."""
    truth = {name: study.golden.truth[name].astype(np.float32) for name in CURVE}
    named = {f"curve.{name}": x for name, x in tensors.items()}
    return compare_gradients(study.golden, Dump(truth | named), dtype="float32", allow_missing=["*"])


def test_the_first_step_is_the_recorded_loss_and_the_file_says_what_a_step_is(study: CurveStudy) -> None:
    truth, facts = study.golden.truth, study.golden.metadata["gradients"]["curve"]
    assert (truth[LOSS].shape, truth[LENGTH].shape) == ((STEPS,), (STEPS,))
    assert truth[LOSS][0] == truth["loss"]
    np.testing.assert_allclose(truth[LENGTH][0], truth["gradient_norm"], rtol=FLOAT64_ERROR)
    assert (np.diff(truth[LOSS]) < 0).all()
    constants = {name: facts[name] for name in ("optimizer", "steps", "beta1", "beta2", "eps", "decay", "clip")}
    wanted = {"optimizer": "AdamW", "steps": 4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "decay": 0.1, "clip": 1.0}
    assert constants == wanted
    assert facts["rate"] == 3e-5 * 2048 / 24
    assert "classifier.weight" in facts["decayed"]
    assert not [name for name in facts["decayed"] if name.endswith("bias") or "norm" in name or "position" in name]


@pytest.mark.parametrize("name", ["moments not corrected", "beta2 0.95", "gradients not clipped"])
def test_a_wrong_optimizer_is_found_at_its_step(study: CurveStudy, name: str) -> None:
    report = study.judge(CURVE_BUGS[name])
    assert first_block(report) == CURVE_BUGS[name].step
    update = {"step 2": "the first update differs", "step 3": "the first update is right"}[CURVE_BUGS[name].step]
    assert any(update in each for each in report.first_divergence.diagnosis)


def test_a_right_optimizer_that_rounds_differently_is_explained(study: CurveStudy) -> None:
    report = study.judge(CURVE_BENIGN["weights decay after the step"])
    assert all(verdict.explained for verdict in report.verdicts)
    assert len(report.verdicts) == 2 * STEPS


def test_steps_are_judged_one_by_one_and_in_order(study: CurveStudy) -> None:
    loss, length = (study.golden.truth[name].copy() for name in CURVE)
    loss[3], length[2] = 1.01 * loss[3], 1.01 * length[2]
    report = judged(study, loss=loss, gradient_norm=length)
    assert [verdict.name for verdict in report.verdicts if verdict.wrong] == ["curve.gradient_norm[2]", "curve.loss[3]"]
    assert "FIRST DIVERGENCE in block step 3" in gradients_as_text(report, study.golden)


def test_a_curve_of_another_number_of_steps_is_wrong(study: CurveStudy) -> None:
    report = judged(study, loss=study.golden.truth[LOSS][:3])
    assert [verdict.name for verdict in report.verdicts if verdict.wrong] == [LOSS]


def test_the_error_of_a_step_counts_as_no_less_than_those_before() -> None:
    assert growing(np.array([[1.0, 3, 2, 4], [5, 1, 1, 6]])).tolist() == [[1, 3, 3, 4], [5, 5, 5, 6]]


def test_steps_of_a_large_model_are_refused(study: CurveStudy) -> None:
    with pytest.raises(BadGolden, match="train fewer with --train or an adapter"):
        curve_facts(study.model, {"whole": False, "train": []}, 10)
