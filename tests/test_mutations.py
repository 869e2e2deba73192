"""`npgemma compare` finds every mistake of the mutation study where it was planted, and lets correct runs pass."""

import pytest
from mutation_study import Study
from mutations import BENIGN, BUGS, ROUNDED, Variant


@pytest.fixture(scope="module")
def study() -> Study:
    return Study()


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_not_explained_and_its_block_is_named(study: Study, name: str) -> None:
    report = study.judge(BUGS[name])
    assert report.status == 1
    assert report.first_divergence.block == BUGS[name].block


@pytest.mark.parametrize("name", BENIGN)
def test_a_correct_run_that_rounds_otherwise_is_explained(study: Study, name: str) -> None:
    assert study.judge(BENIGN[name]).status == 0


@pytest.mark.parametrize("name", ROUNDED)
def test_another_rounding_to_bfloat16_is_explained(study: Study, name: str) -> None:
    assert study.judge(Variant(), "bfloat16", ROUNDED[name]).status == 0


def test_the_study_is_as_large_as_it_says() -> None:
    assert len(BUGS) >= 20
    assert len(BENIGN) + len(ROUNDED) >= 6
