"""Limits: which ids may be chosen."""

import numpy as np
import pytest

from npgemma.decoding.loop import Limits

SCORES = np.array([3.0, 1.0, 4.0, 1.5, 9.0])


@pytest.mark.parametrize(
    ("choices", "never", "expected"),
    [
        (5, (), [3, 1, 4, 1.5, 9]),
        (3, (), [3, 1, 4]),
        (4, (2,), [3, 1, -np.inf, 1.5]),
        (3, (2, 4), [3, 1, -np.inf]),
        (5, (5, 9), [3, 1, 4, 1.5, 9]),
    ],
)
def test_scores_of_ids_that_are_never_chosen_are_minus_infinity(choices, never, expected):
    given = SCORES.copy()
    np.testing.assert_array_equal(Limits(1, (), choices, never=never).allowed(given), expected)
    np.testing.assert_array_equal(given, SCORES)
