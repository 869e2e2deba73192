"""A thread that reads what comes next while the model computes."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_ahead(items: Iterator[Item], read: Callable[[Item], Read], most: int) -> Iterator[tuple[Item, Future[Read]]]:
    """Each item in turn, with what `read` makes of it; meanwhile up to `most` items after it are read.

    They are read one at a time. Items that are not needed any more, since the iterator is closed, are not read.
    """
    waiting: deque[tuple[Item, Future[Read]]] = deque()
    problem: Exception | None = None
    reader = ThreadPoolExecutor(1, thread_name_prefix="npgemma-reader")
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                break
            except Exception as error:  # raised in its turn, after the items before it
                problem = error
                break
            # a copy of this context, so that np.errstate holds in the thread
            waiting.append((item, reader.submit(copy_context().run, read, item)))
            if len(waiting) > most:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
        if problem is not None:
            raise problem
    finally:
        for _, reading in waiting:
            reading.cancel()
        reader.shutdown()
