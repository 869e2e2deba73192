"""`npgemma compare` finds every planted mistake in its block, and explains every correct variant."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from correct_variants import BENIGN
from mutation_study import PLANTED, Study, first_block, with_every_tap
from mutations import ROUNDED, Variant

from npgemma import golden
from npgemma.golden.names import is_in_level
from npgemma.golden.rounding import HF_EAGER

Studies = Callable[[str], Study]
# Mistakes as small as what an unusual order of sums may cause: they are borderline.
FAINT = ("rms norm eps 1e-5", "one logit off by 1e-4", "eps of CLIP")


@pytest.fixture(scope="module")
def study_of(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    """The study of each model of PLANTED, made once; of encoders what a file of level 'blocks' has, and the scale."""

    @cache
    def make(name: str) -> Study:
        study = PLANTED[name][1](tmp_path_factory.mktemp("study"))
        writes = "generated_ids" in study.golden.taps
        return study if writes else study.of(lambda tap: tap == "scale" or is_in_level(tap, "blocks"))

    return make


@pytest.fixture(scope="module")
def every_tap(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return with_every_tap(tmp_path_factory.mktemp("study"))


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, (bugs, _) in PLANTED.items() for name in bugs])
def test_planted_bug_is_not_explained_and_its_block_is_named(study_of: Studies, model: str, name: str) -> None:
    bug = PLANTED[model][0][name]
    report = study_of(model).judge(bug)
    assert (report.status, first_block(report)) == (4 if name in FAINT else 1, bug.block)
    # the erf gelu has errors of the size of TF32's behind an exact convolution, as a GPU may have it
    assert any("TF32" in hint for hint in report.hints) == (name == "erf gelu in the tower")


@pytest.mark.parametrize("model", PLANTED)
@pytest.mark.parametrize(("dtype", "schedule"), [("float32", {}), ("bfloat16", HF_EAGER)])
def test_run_of_npgemma_is_explained(study_of: Studies, model: str, dtype: str, schedule: dict[str, str]) -> None:
    assert study_of(model).judge(Variant(), dtype, schedule).status == 0


@pytest.mark.parametrize("name", BENIGN)
def test_correct_run_with_different_rounding_is_explained(study_of: Studies, name: str) -> None:
    assert study_of("the embedded model").judge(BENIGN[name]).status == 0


@pytest.mark.live
@pytest.mark.parametrize(
    "name",
    ["products in one accumulator", "softmax by a logarithm", "gelu by exponentials", "positions from 0"],
)
def test_correct_run_is_explained_with_every_tap_and_a_replay(every_tap: Study, name: str) -> None:
    report = every_tap.judge(BENIGN[name], replayed=True)
    assert report.status == 0
    assert len(report.replayed) > 350


@pytest.mark.parametrize("name", ROUNDED)
def test_run_with_different_rounding_to_bfloat16_is_explained(study_of: Studies, name: str) -> None:
    assert study_of("the embedded model").judge(Variant(), "bfloat16", ROUNDED[name]).status == 0


def test_tables_of_the_readme_list_every_variant() -> None:
    page = (Path(golden.__file__).parent / "README.md").read_text()
    _, text = page.split("\n## What it finds, and what it explains\n")
    *planted, correct = re.findall(r"\|---\|\n((?:\|.*\n)+)\n(?:found|explained) (\d+) of (\d+)", text)
    names = [line.split(" | ")[0].strip("| ") for line in correct[0].splitlines()]
    assert names == [*BENIGN, *(f"rounded to bfloat16: {name}" for name in ROUNDED)]
    for (rows, *found), (bugs, _) in zip(planted, PLANTED.values(), strict=True):
        assert [line.strip("| ").split(" | ")[:2] for line in rows.splitlines()] == [
            [name, bug.block] for name, bug in bugs.items()
        ]
        assert found == [str(len(bugs))] * 2
    assert correct[1:] == (str(len(BENIGN) + len(ROUNDED)),) * 2
