"""Blocks of computation on as many threads as a test asks for."""

import pytest

from npgemma.layers.threads import BLAS


@pytest.fixture
def count(use_threads):
    """The function that gives BLAS's thread count, which is three in this test."""
    use_threads(3)
    return BLAS.switch[0]
