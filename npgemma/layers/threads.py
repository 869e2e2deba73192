"""Blocks of one computation side by side on the cores.

NumPy lets other threads run while it is inside an operation, so threads that each widen, multiply or normalise a block
of their own keep every core busy. BLAS would start threads of its own inside each product, and they and ours would wait
for one another. So BLAS is held to one thread while blocks run, then given back what it had; ours are as many as it
had, so OPENBLAS_NUM_THREADS means what it always means. Where BLAS has no such switch (it is not OpenBLAS), blocks run
one after the other and BLAS does as it likes.
"""

import ctypes
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import copy_context
from importlib import import_module
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

Item = TypeVar("Item")
P = ParamSpec("P")


class Here(threading.local):
    """Whether this thread is working on an item: whatever that calls runs on this thread alone."""

    working = False


here = Here()


def in_parallel(f: Callable[[Item], object], items: Sequence[Item]) -> None:
    """Call `f` on every item, in no particular order, on as many threads as BLAS has; raises what a call raised."""
    if here.working:
        for item in items:
            f(item)
        return
    waiting = deque(items)

    def take() -> Iterator[Item]:
        with suppress(IndexError):
            while True:
                yield waiting.popleft()

    def work() -> None:
        here.working = True
        try:
            for item in take():
                f(item)
        finally:
            here.working = False

    helpers: list[Future[None]] = []
    with BLAS.on_one_thread() as threads:
        with suppress(RuntimeError):  # while Python shuts down, no thread can be asked for help any more
            for _ in range(min(threads, len(items)) - 1):
                # a copy of this context, so that np.errstate holds in every thread
                helpers.append(pool().submit(copy_context().run, work))
        try:
            work()
        finally:
            waiting.clear()
            wait(helpers)
    for helper in helpers:
        helper.result()


@functools.cache
def pool() -> ThreadPoolExecutor:
    """Threads that wait for work; a thread starts when it is first needed."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="npgemma")


def numpy_library() -> ctypes.CDLL:
    """The extension module that does NumPy's products; a name is looked for in the BLAS it is linked with, too."""
    return ctypes.CDLL(import_module("numpy._core._multiarray_umath").__file__)


class Blas:
    """The thread count of the BLAS that NumPy was built with: one number for the whole process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.had = 1

    @functools.cached_property
    def switch(self) -> tuple[Callable[[], int], Callable[[int], Any]] | None:
        """OpenBLAS's functions that get and set the count, by whichever name it was built with."""
        library = numpy_library()
        for prefix in ("scipy_openblas", "openblas"):
            for suffix in ("64_", ""):
                get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
                put = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
                if get and put:
                    return get, put
        return None

    @contextmanager
    def on_one_thread(self) -> Iterator[int]:
        """Gives the number of threads that BLAS had, which it has again afterwards.

        Two threads of the host program may be in here at once: the first in sets the one, the last out puts it back.
        """
        if self.switch is None:
            yield 1
            return
        get, put = self.switch
        with self.lock:
            if not self.users:
                self.had = get()
                put(1)
            self.users += 1
        try:
            yield self.had
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    put(self.had)


BLAS = Blas()


# Numbers that a norm or a gelu works on at once: with what they become on the way, they stay in the cache.
ROW_BLOCK = 1 << 17


def by_rows(f: Callable[P, np.ndarray]) -> Callable[P, np.ndarray]:
    """`f`, which computes each row of its last argument x [*R D] alone, on blocks of rows in parallel."""

    @functools.wraps(f)
    def blocked(*arguments: Any) -> np.ndarray:
        *before, x = arguments
        if x.size <= ROW_BLOCK:
            return f(*arguments)  # type: ignore[call-arg]
        y = np.empty(x.shape, x.dtype)
        rows, width = x.reshape(-1, x.shape[-1]).shape
        height = max(1, ROW_BLOCK // width)

        def block(start: int) -> None:
            part = slice(start, start + height)
            y.reshape(rows, width)[part] = f(*before, x.reshape(rows, width)[part])  # type: ignore[call-arg]

        in_parallel(block, range(0, rows, height))
        return y

    return cast(Callable[P, np.ndarray], blocked)


def forked() -> None:
    """Start anew in a forked child: no thread of its parent's is there, neither to help nor to give back BLAS's."""
    pool.cache_clear()
    BLAS.lock = threading.Lock()
    if BLAS.users and BLAS.switch:
        BLAS.users = 0
        BLAS.switch[1](BLAS.had)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forked)
