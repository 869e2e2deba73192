"""Random numbers that are a function of their key."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgemma.training.draws import permutation, uniform, words


def test_the_numbers_of_a_key_never_change() -> None:
    """A run that is resumed with another version must go on with the same examples. Plain integers gave these."""
    assert [hex(each) for each in words(2, "order", 0, 0)] == ["0xbe0be55fa2138321", "0xdd86481e0f096bb0"]
    assert permutation(7, "order", 3, 1).tolist() == [4, 6, 5, 3, 1, 2, 0]


@settings(max_examples=30)
@given(size=st.integers(0, 60), seed=st.integers(), epoch=st.integers(0))
def test_a_permutation_has_each_number_once(size: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(size, seed, epoch).tolist()) == list(range(size))


@pytest.mark.parametrize("other", [("a", 1), ("b", 0), ("a", "0"), ("a",), ("a0",)])
def test_another_key_draws_other_numbers(other: tuple[int | str, ...]) -> None:
    assert not np.intersect1d(words(100, "a", 0), words(100, *other)).size


def test_uniform_numbers_fill_the_interval_evenly() -> None:
    """Of 10,000 numbers, the mean has a standard deviation of 0.0029, and a tenth of them one of 30."""
    x = uniform(10_000, "any")
    assert 0 <= x.min() <= x.max() < 1
    assert abs(x.mean() - 0.5) < 4 * 0.0029
    assert (np.abs(np.histogram(x, 10, (0, 1))[0] - 1000) < 4 * 30).all()
