"""Blocks of one computation in parallel on the cores.

NumPy lets other threads run while it is inside an operation, so threads that each widen, multiply or normalise a block
of their own keep every core busy. BLAS would start threads of its own inside each product, and the two sets of threads
would wait for one another. So while blocks run, BLAS is set to one thread, and afterwards to the number it had; that
number is also the number of our threads, so OPENBLAS_NUM_THREADS keeps its usual meaning. A BLAS other than OpenBLAS
cannot be set: then blocks run one after the other, and BLAS uses as many threads as it wants.
"""

import ctypes
import functools
import math
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

from npgemma.layers.shapes import Array, Float

Item = TypeVar("Item")
P = ParamSpec("P")
Result = TypeVar("Result")


def numpy_library() -> ctypes.CDLL:
    """The extension module that does NumPy's products: looking up a name in it also searches the BLAS it links to."""
    return ctypes.CDLL(import_module("numpy._core._multiarray_umath").__file__)


class Blas:
    """The thread count of the BLAS in a library: one number for the whole process."""

    def __init__(self, library: Callable[[], Any] = numpy_library) -> None:
        self.library = library
        self.lock = threading.Lock()
        self.users = 0
        self.had = 1

    @functools.cached_property
    def switch(self) -> tuple[Callable[[], int], Callable[[int], Any]] | None:
        """OpenBLAS's functions that get and set the count, whatever names it was built with; None without both."""
        library = self.library()
        for prefix in ("scipy_openblas", "openblas"):
            for suffix in ("64_", ""):
                get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
                put = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
                if get and put:
                    return get, put
        return None

    @property
    def threads(self) -> int:
        """The number of threads it has, or had before it was set to one; 1 without `switch`."""
        with self.lock:
            if self.switch is None or self.users:
                return self.had
            return self.switch[0]()

    @contextmanager
    def on_one_thread(self) -> Iterator[int]:
        """Set BLAS to one thread; yields the number of threads it had, and sets that again afterwards.

        Several threads of the host program may be inside at once: the first to enter sets one, the last to leave sets
        the old number.
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


# The processors for which OpenBLAS has kernels that multiply small matrices where they are.
IN_PLACE = (b"SkylakeX", b"Cooperlake", b"SapphireRapids")


@functools.cache
def multiplies_in_place() -> bool:
    """Whether BLAS multiplies small matrices where they are; other kernels first copy them into tiles."""
    kernels = getattr(numpy_library(), "scipy_openblas_get_corename64_", None)
    if kernels is None:
        return False
    kernels.restype = ctypes.c_char_p
    return kernels() in IN_PLACE


class Here(threading.local):
    """Whether this thread is working on an item: what the item calls then runs on this thread alone."""

    working = False


here = Here()


def alone() -> bool:
    """Whether this thread is working on an item, so that no other takes part in what it calls."""
    return here.working


def in_parallel(f: Callable[[Item], object], items: Sequence[Item], blas: Blas = BLAS) -> None:
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
    with blas.on_one_thread() as threads:
        with suppress(RuntimeError):  # while Python shuts down, the pool accepts no work
            for _ in range(min(threads, len(items)) - 1):
                # a copy of this context, so that np.errstate holds in every thread
                helpers.append(pool().submit(copy_context().run, work))
        try:
            work()
        finally:
            waiting.clear()
            if helpers:
                wait(helpers)
    for helper in helpers:
        helper.result()


@functools.cache
def pool() -> ThreadPoolExecutor:
    """The threads that help; each starts when it is first needed."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="npgemma")


# Numbers in a block of a norm or a gelu: a block and what is computed from it stay in the cache.
ROW_BLOCK = 1 << 17


def by_rows(f: Callable[P, Result], results: int = 1) -> Callable[P, Result]:
    """`f`, which computes each row of its last argument x [*R D] separately, on blocks of rows in parallel.

    Other arguments that are arrays of the shape of x are cut like it. `f` returns an array of that shape, or a tuple of
    so many `results`.
    """

    @functools.wraps(f)
    def blocked(*arguments: Any) -> Any:
        x = arguments[-1]
        if x.size <= ROW_BLOCK:
            return f(*arguments)  # type: ignore[call-arg]
        made = tuple(np.empty(x.shape, x.dtype) for _ in range(results))
        rows, width = x.reshape(-1, x.shape[-1]).shape
        height = max(1, ROW_BLOCK // width)
        cut = [isinstance(each, np.ndarray) and each.shape == x.shape for each in arguments]
        flat = [each.reshape(rows, width) if like_x else each for each, like_x in zip(arguments, cut, strict=True)]

        def block(start: int) -> None:
            part = slice(start, start + height)
            own = [each[part] if like_x else each for each, like_x in zip(flat, cut, strict=True)]
            blocks: Any = f(*own)  # type: ignore[call-arg]
            for y, of_block in zip(made, blocks if results > 1 else [blocks], strict=True):
                y.reshape(rows, width)[part] = of_block

        in_parallel(block, range(0, rows, height))
        return made if results > 1 else made[0]

    return cast(Callable[P, Result], blocked)


# Rows of sequences that a core takes through a model at a time: with fewer, BLAS copies each matrix into tiles for too
# little work; with more, what one operation computes is no longer in the cache for the next.
FEWEST_ROWS, MOST_ROWS = 256, 1024


def by_sequences(
    f: Callable[[Float[Array, "B T D"]], Float[Array, "B T D"]], x: Float[Array, "B T D"], blas: Blas = BLAS
) -> Float[Array, "B T D"]:
    """f(x), where `f` computes each sequence separately, with some sequences at a time on each core.

    Cores that share single operations wait for one another after each. Sequences that cannot be divided evenly among
    the cores run last, together; so do all of them if they are few.
    """
    count, rows, _ = x.shape
    y = np.empty_like(x)

    def run(part: slice) -> None:
        y[part] = f(x[part])

    share = count // blas.threads
    divided = share * blas.threads if share * rows >= FEWEST_ROWS else 0
    if divided:
        size = math.ceil(share / math.ceil(share * rows / MOST_ROWS))
        in_parallel(run, [slice(start, min(start + size, divided)) for start in range(0, divided, size)], blas)
    if divided < count:
        run(slice(divided, count))
    return y


def rows_at_a_time(sequences: int, rows: int, blas: Blas = BLAS) -> int:
    """How many rows of sequences `by_sequences` computes at a time, at most."""
    return min(sequences * rows, blas.threads * max(MOST_ROWS, rows))


def forked() -> None:
    """Start afresh in a forked child: the threads of its parent that help, or would reset BLAS, do not exist there."""
    pool.cache_clear()
    BLAS.lock = threading.Lock()
    if BLAS.users and BLAS.switch:
        BLAS.users = 0
        BLAS.switch[1](BLAS.had)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forked)
