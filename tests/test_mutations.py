"""`npgemma compare` finds every planted mistake in its block, and explains every correct variant."""

import pytest
from mutation_study import Study, first_block
from mutations import BENIGN, BUGS, ROUNDED, Variant


@pytest.fixture(scope="module")
def study() -> Study:
    return Study()


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_not_explained_and_its_block_is_named(study: Study, name: str) -> None:
    report = study.judge(BUGS[name])
    assert (report.status, first_block(report)) == (1, BUGS[name].block)


@pytest.mark.parametrize("name", BENIGN)
def test_correct_run_with_different_rounding_is_explained(study: Study, name: str) -> None:
    assert study.judge(BENIGN[name]).status == 0


@pytest.mark.parametrize("name", ROUNDED)
def test_run_with_different_rounding_to_bfloat16_is_explained(study: Study, name: str) -> None:
    assert study.judge(Variant(), "bfloat16", ROUNDED[name]).status == 0


def test_number_of_variants_is_the_documented_one() -> None:
    assert (len(BUGS), len(BENIGN) + len(ROUNDED)) == (39, 12)
