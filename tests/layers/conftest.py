"""Blocks of computation on as many threads as a test asks for."""

import pytest

from npgemma.layers.threads import BLAS


@pytest.fixture
def use_threads():
    """use_threads(n): from here on BLAS has n threads, so blocks run on n, however many cores this machine has."""
    if BLAS.switch is None:
        pytest.skip("the thread count of this BLAS cannot be set")
    get, put = BLAS.switch
    had = get()
    yield put
    put(had)


@pytest.fixture
def count(use_threads):
    """The function that gives BLAS's thread count, which is three in this test."""
    use_threads(3)
    return BLAS.switch[0]
