"""Blocks side by side: each is done once, errors come out, and BLAS has its threads back, whatever happens."""

import ctypes
import os
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from npgemma.layers import threads
from npgemma.layers.linear import linear
from npgemma.layers.threads import BLAS, Blas, in_parallel

ROOT = Path(__file__).parents[2]
# Nothing here takes a second; what waits longer than this waits for ever.
SOON = 60

has_switch = pytest.mark.skipif(BLAS.switch is None, reason="the BLAS of this NumPy has no thread count to set")


@pytest.fixture
def count():
    """The function that gives BLAS's thread count, which is three in this test: on no machine what it is anyway."""
    get, put = BLAS.switch
    had = get()
    put(3)
    yield get
    put(had)


def finish(*functions) -> None:
    """Call each in a thread of its own, as a host program may; a failure, not a hang, where one does not come back."""
    running = [threading.Thread(target=f, daemon=True) for f in functions]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(SOON)
    assert not any(thread.is_alive() for thread in running), "waits for ever"


def process(script: str, **environment: str) -> subprocess.CompletedProcess:
    """A Python of its own that runs the script, with npgemma to import."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", script]
    return subprocess.run(command, timeout=SOON, check=False, env=environment, capture_output=True, text=True)


class Meeting:
    """An item that is done when `parties` threads are each at one: so as many must be at work at once."""

    def __init__(self, parties: int = 2) -> None:
        self.barrier = threading.Barrier(parties, timeout=SOON)
        self.threads: list[threading.Thread] = []

    def __call__(self, item: object) -> None:
        self.barrier.wait()
        self.threads.append(threading.current_thread())


# ------------------------------------------------------------------------------------------------------------- the work


@pytest.mark.parametrize("items", [[], [0], [0, 1], list(range(1000)), range(0, 70, 7), ["a", "a", "b"]], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_item_is_done_exactly_once(items, n, use_threads) -> None:
    """No more and no fewer than there are threads; equal items are each done; more threads than this machine's too."""
    use_threads(n)
    done: list[object] = []
    in_parallel(done.append, items)
    assert Counter(done) == Counter(items)


@pytest.mark.parametrize("items", [0, 1, 5])
def test_on_one_thread_the_callers_does_it_all(items: int, use_threads) -> None:
    use_threads(1)
    seen = []
    in_parallel(lambda _: seen.append(threading.current_thread()), range(items))
    assert seen == [threading.current_thread()] * items


def test_the_caller_works_along(use_threads) -> None:
    """Two threads are the caller's and one more: both are at an item, or neither would come back."""
    use_threads(2)
    meeting = Meeting()
    in_parallel(meeting, range(2))
    assert len(set(meeting.threads)) == 2
    assert threading.current_thread() in meeting.threads


@has_switch
def test_as_many_threads_as_blas_has_and_blas_itself_on_one(count) -> None:
    BLAS.switch[1](2)
    seen, meeting = [], Meeting()
    in_parallel(lambda item: (meeting(item), seen.append(count())), range(2))
    assert seen == [1, 1]
    assert len(set(meeting.threads)) == count() == 2


def test_items_within_items_are_done_and_wait_for_nobody(use_threads) -> None:
    """With every thread at an outer item, none is left for the inner ones: each does its own alone."""
    use_threads(2)
    done, homes = [], []

    def outer(i: int) -> None:
        inner = []
        in_parallel(lambda j: (done.append((i, j)), inner.append(threading.current_thread())), range(5))
        homes.append(set(inner) == {threading.current_thread()})

    finish(lambda: in_parallel(outer, range(20)))
    assert Counter(done) == Counter((i, j) for i in range(20) for j in range(5))
    assert homes == [True] * 20


def test_after_an_item_its_thread_shares_its_work_again(use_threads) -> None:
    """Also after one that raised: else all that follows would run on one thread, right and slow."""
    use_threads(2)
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda item: 1 // item, [0, 0])
    in_parallel(lambda item: in_parallel(print, []), range(2))
    meeting = Meeting()
    in_parallel(meeting, range(2))
    assert len(set(meeting.threads)) == 2


def test_the_callers_floating_point_errors_hold_in_every_thread(use_threads) -> None:
    """A NaN that a helper makes must raise where one of the caller's would, and be quiet where that would be."""
    use_threads(2)
    meeting, seen = Meeting(), []
    for wanted in ({"divide": "ignore", "invalid": "raise"}, {"divide": "raise", "invalid": "ignore"}):
        with np.errstate(**wanted):
            in_parallel(lambda item: (meeting(item), seen.append(np.geterr())), range(2))
            assert seen[-2:] == [np.geterr()] * 2
    assert len(set(meeting.threads)) > 1
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        in_parallel(lambda item: (meeting(item), np.ones(2) / np.zeros(2)), range(2))


# --------------------------------------------------------------------------------------------------------------- errors


@has_switch
@pytest.mark.parametrize("error", [ValueError, IndexError, StopIteration, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["caller", "helper"])
def test_what_an_item_raises_comes_out_and_blas_has_its_threads_back(error, where, count, use_threads) -> None:
    """An IndexError too, though it is by one that a thread learns that no item is left."""
    use_threads(2)
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


def test_after_an_error_no_further_item_is_begun(use_threads) -> None:
    use_threads(1)
    begun = []
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda item: (begun.append(item), 1 // (3 - item)), range(9))
    assert begun == [0, 1, 2, 3]


def test_no_helper_is_still_at_work_when_an_error_comes_out(use_threads, monkeypatch) -> None:
    """What it writes into may be gone by then, and BLAS has its own threads again: wait for all, not for the first."""
    use_threads(3)
    barrier, slow_one = threading.Barrier(3, timeout=SOON), threading.Event()
    left, me = [], threading.local()

    class Pool:
        """Each helper in a thread that knows which it is."""

        submitted = 0

        def submit(self, run, work) -> Future:
            number, future = self.submitted, Future()
            self.submitted += 1

            def begin() -> None:
                me.number = number
                try:
                    future.set_result(run(work))
                except ZeroDivisionError as error:
                    future.set_exception(error)

            threading.Thread(target=begin, daemon=True).start()
            return future

    def f(_: int) -> None:
        barrier.wait()
        number = getattr(me, "number", None)
        if number == 0:
            raise ZeroDivisionError
        if number == 1:
            slow_one.wait(0.5)
            left.append(number)

    helpers = Pool()
    monkeypatch.setattr(threads, "pool", lambda: helpers)
    with pytest.raises(ZeroDivisionError):
        in_parallel(f, range(3))
    assert left == [1]


# ----------------------------------------------------------------------------------------------------- BLAS's own count


@has_switch
@pytest.mark.parametrize("last_out", ["first in", "last in"])
def test_two_at_once_leave_blas_as_the_first_found_it(last_out: str, count) -> None:
    """The second finds one thread, but must not take that for what BLAS had: whoever leaves last puts three back."""
    counts, entered = {}, {"first in": threading.Event(), "last in": threading.Event()}
    other_left = threading.Event()

    def user(name: str) -> None:
        if name == "last in":
            entered["first in"].wait(SOON)
        with BLAS.on_one_thread() as had:
            entered[name].set()
            entered["last in"].wait(SOON)
            if name == last_out:
                other_left.wait(SOON)
            counts[name] = had, count()
        other_left.set()

    finish(lambda: user("first in"), lambda: user("last in"))
    assert counts == {"first in": (3, 1), "last in": (3, 1)}
    assert count() == 3


@has_switch
def test_an_error_in_one_of_two_leaves_the_other_on_one_thread(count) -> None:
    """And the count is put back when that one is done, not before and not never."""
    entered, failed, seen = threading.Event(), threading.Event(), []

    def long() -> None:
        with BLAS.on_one_thread():
            entered.set()
            failed.wait(SOON)
            seen.append(count())

    def failing() -> None:
        entered.wait(SOON)
        with pytest.raises(ZeroDivisionError):
            in_parallel(lambda item: 1 // item, range(5))
        failed.set()

    finish(long, failing)
    assert seen == [1]
    assert count() == 3


@has_switch
def test_two_hosts_at_once_each_have_all_their_items_done(count) -> None:
    done = {host: [] for host in range(4)}
    finish(*(lambda host=host: [in_parallel(done[host].append, range(50)) for _ in range(20)] for host in done))
    assert all(Counter(items) == Counter(list(range(50)) * 20) for items in done.values())
    assert count() == 3


def test_a_blas_without_a_switch_still_computes_on_the_callers_thread(monkeypatch) -> None:
    """Threads of ours and threads of its own would be in each other's way, so ours stay away."""
    monkeypatch.setattr(BLAS, "switch", None)
    seen = []
    in_parallel(lambda item: seen.append((item, threading.current_thread())), range(4))
    assert seen == [(item, threading.current_thread()) for item in range(4)]
    with BLAS.on_one_thread() as count:
        assert count == 1
    y = linear(np.ones((2, 4), np.float32), np.full((3, 4), 0x4000, np.uint16))  # twos
    np.testing.assert_array_equal(y, np.full((2, 3), 8, np.float32), strict=True)


def test_a_library_with_none_of_the_names_has_no_switch(monkeypatch) -> None:
    """Half a switch is none: a count that can be set but not read could not be put back."""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert Blas().switch is None
    half = type("Library", (), {"openblas_set_num_threads": print})
    monkeypatch.setattr(ctypes, "CDLL", lambda _: half)
    assert Blas().switch is None
    half.openblas_get_num_threads = len
    assert Blas().switch == (len, print)


@has_switch
def test_importing_and_answering_leave_the_count_alone() -> None:
    """A process of its own, since this one has imported npgemma long ago. Five is what no machine has by itself."""
    script = """
import ctypes
import numpy as np
from numpy._core import _multiarray_umath
library = ctypes.CDLL(_multiarray_umath.__file__)
names = [prefix + "openblas_{}_num_threads" + suffix for prefix in ("scipy_", "") for suffix in ("64_", "")]
get, put = next(
    (getattr(library, name.format("get")), getattr(library, name.format("set")))
    for name in names
    if hasattr(library, name.format("get"))
)
put(5)
import npgemma
counts = [get()]
model = npgemma.load()
counts.append(get())
model.generate(np.zeros((8, 8, 3), np.uint8), "caption en", max_new_tokens=3)
counts.append(get())
print(*counts)
"""
    done = process(script)
    assert (done.stdout.strip(), done.returncode) == ("5 5 5", 0), done.stderr


# ------------------------------------------------------------------------------------------------------------ processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@has_switch
def test_a_forked_child_has_threads_of_its_own() -> None:
    """Its parent's did not come along: waiting for them, the first answer of a multiprocessing worker would hang."""
    script = """
import os, signal, sys, threading
from npgemma.layers.threads import BLAS, in_parallel

BLAS.switch[1](2)

def meet():
    barrier, seen = threading.Barrier(2, timeout=20), set()
    in_parallel(lambda _: (barrier.wait(), seen.add(threading.get_ident())), range(2))
    return len(seen)

assert meet() == 2
child = os.fork()
if not child:
    signal.alarm(30)  # a child that hangs ends
    os._exit(10 + meet())
assert meet() == 2
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = process(script)
    assert (done.stdout.strip(), done.returncode) == ("12", 0), done.stderr


@has_switch
def test_a_thread_that_outlives_the_main_one_still_gets_its_work_done() -> None:
    """Python starts no helper once the main thread has ended, but waits for the host's threads: they go on alone."""
    script = """
import threading, time
from npgemma.layers.threads import BLAS, in_parallel

BLAS.switch[1](2)

def late():
    threading.main_thread().join()
    time.sleep(0.3)  # until the interpreter has said so to the pools
    done = []
    in_parallel(done.append, range(3))
    print(sorted(done), BLAS.switch[0]())

threading.Thread(target=late).start()
"""
    done = process(script)
    assert (done.stdout.strip(), done.returncode) == ("[0, 1, 2] 2", 0), done.stderr
