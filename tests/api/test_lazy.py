"""A value that is computed once, and forks that meet a thread which computes it."""

import os
import signal
import threading

import pytest

from npgemma.api.lazy import lazy


class Slow:
    def __init__(self) -> None:
        self.begun, self.go_on, self.count = threading.Event(), threading.Event(), 0

    @lazy
    def value(self) -> object:
        """What it is."""
        self.count += 1
        self.begun.set()
        assert self.go_on.wait(60)
        return object()


def test_a_value_is_computed_once() -> None:
    slow = Slow()
    slow.go_on.set()
    assert slow.value is slow.value
    assert (slow.count, Slow.value.__doc__) == (1, "What it is.")


def test_threads_that_ask_at_once_get_the_same_value() -> None:
    slow, found = Slow(), []
    threads = [threading.Thread(target=lambda: found.append(slow.value)) for _ in range(4)]
    for thread in threads:
        thread.start()
    slow.go_on.set()
    for thread in threads:
        thread.join()
    assert len({*map(id, found)}) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_does_not_wait_for_a_thread_of_its_parent() -> None:
    slow = Slow()
    thread = threading.Thread(target=lambda: slow.value)
    thread.start()
    assert slow.begun.wait(60)
    child = os.fork()
    if not child:
        signal.alarm(60)
        other = Slow()
        other.go_on.set()
        os._exit(0 if other.value is other.value else 1)
    slow.go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
