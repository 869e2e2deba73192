"""The thread count of BLAS: several users at once, libraries without one, forked and ending processes."""

import os
import threading
from collections import Counter
from types import SimpleNamespace

import pytest
from host_threads import SOON, finish, run_script

from npgemma.layers.threads import BLAS, Blas, in_parallel

has_switch = pytest.mark.skipif(BLAS.switch is None, reason="the thread count of this BLAS cannot be set")


@pytest.mark.parametrize("last_to_leave", ["first", "second"])
def test_two_users_at_once_leave_the_count_that_the_first_found(last_to_leave: str, count) -> None:
    """The second finds one thread, which is not what BLAS had: whoever leaves last sets three again."""
    counts, entered = {}, {"first": threading.Event(), "second": threading.Event()}
    other_left = threading.Event()

    def user(name: str) -> None:
        if name == "second":
            entered["first"].wait(SOON)
        with BLAS.on_one_thread() as had:
            entered[name].set()
            entered["second"].wait(SOON)
            if name == last_to_leave:
                other_left.wait(SOON)
            counts[name] = had, count()
        other_left.set()

    finish(lambda: user("first"), lambda: user("second"))
    assert counts == {"first": (3, 1), "second": (3, 1)}
    assert count() == 3


def test_an_error_of_one_user_leaves_the_other_on_one_thread(count) -> None:
    """And the count is set again when that one is done."""
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


def test_several_host_threads_at_once_have_all_their_items_done(count) -> None:
    done = {host: [] for host in range(4)}
    finish(*(lambda host=host: [in_parallel(done[host].append, range(50)) for _ in range(20)] for host in done))
    assert all(Counter(items) == Counter(list(range(50)) * 20) for items in done.values())
    assert count() == 3


def test_without_a_switch_the_caller_does_all_items() -> None:
    """The threads of such a BLAS cannot be held back, so helpers would only be in its way."""
    blas, seen = Blas(SimpleNamespace), []
    in_parallel(lambda item: seen.append((item, threading.current_thread())), range(4), blas)
    assert seen == [(item, threading.current_thread()) for item in range(4)]
    with blas.on_one_thread() as threads:
        assert threads == 1


@pytest.mark.parametrize("prefix", ["openblas", "scipy_openblas"])
@pytest.mark.parametrize("suffix", ["", "64_"])
def test_the_switch_is_found_by_any_name_of_openblas(prefix: str, suffix: str) -> None:
    functions = {f"{prefix}_{what}_num_threads{suffix}": object() for what in ("get", "set")}
    assert Blas(lambda: SimpleNamespace(**functions)).switch == tuple(functions.values())


@pytest.mark.parametrize("functions", [{}, {"openblas_set_num_threads": print}, {"openblas_get_num_threads": print}])
def test_a_library_without_both_functions_has_no_switch(functions: dict) -> None:
    """A count that can be set but not read could not be set again afterwards."""
    assert Blas(lambda: SimpleNamespace(**functions)).switch is None


@has_switch
def test_importing_and_answering_keep_the_thread_count() -> None:
    """In a process of its own, since this one has imported npgemma already; no machine has five threads by default."""
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
    done = run_script(script)
    assert (done.stdout.strip(), done.returncode) == ("5 5 5", 0), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@has_switch
def test_a_forked_child_starts_threads_of_its_own() -> None:
    """It has none of its parent's: if it waited for them, the first answer of a multiprocessing worker would hang."""
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
    done = run_script(script)
    assert (done.stdout.strip(), done.returncode) == ("12", 0), done.stderr


@has_switch
def test_a_thread_that_outlives_the_main_thread_does_all_items_itself() -> None:
    """Once the main thread has ended, Python starts no helper, but it waits for the threads of the host."""
    script = """
import threading, time
from npgemma.layers.threads import BLAS, in_parallel

BLAS.switch[1](2)

def late():
    threading.main_thread().join()
    time.sleep(0.3)  # until the interpreter has told the pools
    done = []
    in_parallel(done.append, range(3))
    print(sorted(done), BLAS.switch[0]())

threading.Thread(target=late).start()
"""
    done = run_script(script)
    assert (done.stdout.strip(), done.returncode) == ("[0, 1, 2] 2", 0), done.stderr
