"""Items in parallel: each is done exactly once, errors are raised, and afterwards BLAS has the threads it had."""

import threading
import time
from collections import Counter

import numpy as np
import pytest
from host_threads import SOON, finish

from npgemma.layers.threads import BLAS, by_sequences, in_parallel


class Meeting:
    """An item that is done when `parties` threads are each at one: so as many must be at work at once."""

    def __init__(self, parties: int = 2) -> None:
        self.barrier = threading.Barrier(parties, timeout=SOON)
        self.threads: list[threading.Thread] = []

    def __call__(self, item: object) -> None:
        self.barrier.wait()
        self.threads.append(threading.current_thread())


@pytest.mark.parametrize("items", [[], [0], [0, 1], list(range(1000)), range(0, 70, 7), ["a", "a", "b"]], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_item_is_done_exactly_once(items, n, use_threads) -> None:
    """For fewer items than threads and for more; equal items are each done; even with more threads than cores."""
    use_threads(n)
    done: list[object] = []
    in_parallel(done.append, items)
    assert Counter(done) == Counter(items)


@pytest.mark.parametrize("items", [0, 1, 5])
def test_on_one_thread_the_caller_does_all_items(items: int, use_threads) -> None:
    use_threads(1)
    seen = []
    in_parallel(lambda _: seen.append(threading.current_thread()), range(items))
    assert seen == [threading.current_thread()] * items


def test_the_caller_does_items_too(use_threads) -> None:
    """Two threads are the caller and one helper: both must be at an item for either to return."""
    use_threads(2)
    meeting = Meeting()
    in_parallel(meeting, range(2))
    assert len(set(meeting.threads)) == 2
    assert threading.current_thread() in meeting.threads


def test_there_are_as_many_threads_as_blas_has_and_blas_has_one_meanwhile(count) -> None:
    BLAS.switch[1](2)
    seen, meeting = [], Meeting()
    in_parallel(lambda item: (meeting(item), seen.append(count())), range(2))
    assert seen == [1, 1]
    assert len(set(meeting.threads)) == count() == 2


def test_items_within_an_item_run_on_its_thread(use_threads) -> None:
    """While every thread is at an outer item, none is free for the inner ones: waiting for one would never end."""
    use_threads(2)
    done, homes = [], []

    def outer(i: int) -> None:
        threads = set()

        def inner(j: int) -> None:
            time.sleep(0.001)  # long enough for a helper to take the next item, if one were asked
            done.append((i, j))
            threads.add(threading.current_thread())

        in_parallel(inner, range(5))
        homes.append(threads == {threading.current_thread()})

    finish(lambda: in_parallel(outer, range(10)))
    assert Counter(done) == Counter((i, j) for i in range(10) for j in range(5))
    assert homes == [True] * 10


def test_after_an_error_or_nested_items_work_is_shared_again(use_threads) -> None:
    """Otherwise everything that follows would run on one thread, right but slow."""
    use_threads(2)
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda item: 1 // item, [0, 0])
    in_parallel(lambda item: in_parallel(print, []), range(2))
    meeting = Meeting()
    in_parallel(meeting, range(2))
    assert len(set(meeting.threads)) == 2


def test_errstate_of_the_caller_holds_in_every_thread(use_threads) -> None:
    """A NaN in a helper must raise if one in the caller would, and be ignored if that would be."""
    use_threads(2)
    meeting, seen = Meeting(), []
    for wanted in ({"divide": "ignore", "invalid": "raise"}, {"divide": "raise", "invalid": "ignore"}):
        with np.errstate(**wanted):
            in_parallel(lambda item: (meeting(item), seen.append(np.geterr())), range(2))
            assert seen[-2:] == [np.geterr()] * 2
    assert len(set(meeting.threads)) > 1
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        in_parallel(lambda item: (meeting(item), np.ones(2) / np.zeros(2)), range(2))


# errors


@pytest.mark.parametrize("error", [ValueError, IndexError, StopIteration, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["caller", "helper"])
def test_an_error_in_an_item_is_raised_and_blas_has_its_threads_again(error, where, count) -> None:
    """An IndexError too, although it also tells a thread that no item is left."""
    barrier, caller = threading.Barrier(2, timeout=SOON), threading.current_thread()

    def f(_: int) -> None:
        barrier.wait()
        if (threading.current_thread() is caller) == (where == "caller"):
            raise error("mine")

    with pytest.raises(error, match="mine"):
        in_parallel(f, range(2))
    assert count() == 3
    done: list[int] = []
    in_parallel(done.append, range(9))
    assert sorted(done) == list(range(9))
    assert count() == 3


def test_after_an_error_no_further_item_is_started(use_threads) -> None:
    use_threads(1)
    begun = []
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda item: (begun.append(item), 1 // (3 - item)), range(9))
    assert begun == [0, 1, 2, 3]


def test_an_error_of_the_caller_waits_for_the_helpers(use_threads) -> None:
    """What a helper writes to may be gone afterwards, and BLAS has its own threads again."""
    use_threads(2)
    barrier, caller, left = threading.Barrier(2, timeout=SOON), threading.current_thread(), []

    def f(_: int) -> None:
        barrier.wait()
        if threading.current_thread() is caller:
            raise ZeroDivisionError
        time.sleep(0.2)
        left.append(_)

    with pytest.raises(ZeroDivisionError):
        in_parallel(f, range(2))
    assert len(left) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("rows", [7, 300])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_sequences_are_each_computed_once_and_stay_in_order(count, rows, n, use_threads) -> None:
    """Few rows run together, more are shared among the threads, and what cannot be divided evenly runs as well."""
    use_threads(n)
    x = np.arange(count * rows * 2, dtype=np.float32).reshape(count, rows, 2)
    seen: list[int] = []

    def double(part: np.ndarray) -> np.ndarray:
        seen.extend(part[:, 0, 0].astype(int))
        return part * 2

    np.testing.assert_array_equal(by_sequences(double, x), x * 2, strict=True)
    assert sorted(seen) == [*x[:, 0, 0].astype(int)]


def test_threads_share_sequences_of_many_rows(use_threads) -> None:
    use_threads(2)
    meeting, sizes = Meeting(), []

    def f(part: np.ndarray) -> np.ndarray:
        sizes.append(len(part))
        if len(part) == 2:
            meeting(part)
        return part

    by_sequences(f, np.zeros((5, 400, 1), np.float32))
    assert sizes == [2, 2, 1]
    assert len(set(meeting.threads)) == 2
