"""For every test: annotations are checked, floating-point errors raise, and hypothesis draws the same examples."""

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


@pytest.fixture(autouse=True)
def _floating_point_errors_raise():
    """Overflow, division by zero and NaN are errors; numbers too small for their dtype become zero."""
    with np.errstate(all="raise", under="ignore"):
        yield
