"""For every test: annotations are checked, floating-point errors raise, and hypothesis draws the same examples.

Some ask for a number of threads.
"""

import signal

import hypothesis
import numpy as np
import pytest
import shapecheck

# the same examples on every run, and no deadline: the first call of a function may have to wait for a busy machine
hypothesis.settings.register_profile("npgemma", derandomize=True, deadline=None)


def pytest_configure() -> None:
    """Before any test module is imported, so that the functions it imports by name are the checked ones."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in a shell's background job; processes inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.load_profile("npgemma")
    shapecheck.install()


def pytest_runtest_setup() -> None:
    shapecheck.begin_test()


@pytest.fixture(autouse=True)
def _floating_point_errors_raise():
    """Overflow, division by zero and NaN are errors; numbers too small for their dtype become zero."""
    with np.errstate(all="raise", under="ignore"):
        yield


@pytest.fixture
def use_threads():
    """use_threads(n): from here on BLAS has n threads, so blocks run on n, however many cores this machine has."""
    from npgemma.layers.threads import BLAS  # not before its annotations are checked

    if BLAS.switch is None:
        pytest.skip("the thread count of this BLAS cannot be set")
    get, put = BLAS.switch
    had = get()
    yield put
    put(had)
