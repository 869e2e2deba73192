"""`npgemma compare` finds every planted mistake in its block, and explains every correct variant."""

import re
from pathlib import Path

import pytest
from mutation_study import Study, first_block
from mutations import BENIGN, BUGS, ROUNDED, Variant

from npgemma import golden


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


def test_tables_of_the_readme_list_every_variant() -> None:
    text = (Path(golden.__file__).parent / "README.md").read_text()
    planted, correct = re.findall(r"\|---\|\n((?:\|.*\n)+)\n(?:found|explained) (\d+) of (\d+)", text)
    names = [line.split(" | ")[0].strip("| ") for line in correct[0].splitlines()]
    assert names == [*BENIGN, *(f"rounded to bfloat16: {name}" for name in ROUNDED)]
    bugs = [line.strip("| ").split(" | ")[:2] for line in planted[0].splitlines()]
    assert bugs == [[name, bug.block] for name, bug in BUGS.items()]
    assert [planted[1:], correct[1:]] == [("39", "39"), ("12", "12")]
