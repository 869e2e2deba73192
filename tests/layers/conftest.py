"""Threads to compute on, as many as a test asks for."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from npgemma.layers.threads import BLAS


@pytest.fixture
def use_threads(monkeypatch):
    """use_threads(n): blocks run on n threads, however many cores this machine has; each product on one."""
    on_one_thread = BLAS.on_one_thread

    def use(count: int) -> None:
        @contextmanager
        def counted() -> Iterator[int]:
            with on_one_thread():
                yield count

        monkeypatch.setattr(BLAS, "on_one_thread", counted)

    return use
