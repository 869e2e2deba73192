"""Items are read ahead in order, one at a time, and no more of them than asked for."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from npgemma.api.read_ahead import read_ahead


class Reader:
    """Reads numbers, and notes which; 13 cannot be read."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.busy = threading.Lock()

    def __call__(self, item: int) -> str:
        self.begun.append(item)
        assert self.busy.acquire(blocking=False), "two items are read at once"
        self.busy.release()
        if item == 13:
            raise ValueError("13 cannot be read")
        return str(item)


def all_read(reader: Reader, numbers: list[int], most: int) -> list[tuple[int, str]]:
    return [(item, found.result()) for item, found in read_ahead(iter(numbers), reader, most)]


@pytest.mark.parametrize("most", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_item_comes_in_order_with_what_was_read(most: int, count: int) -> None:
    assert all_read(Reader(), list(range(count)), most) == [(i, str(i)) for i in range(count)]


def test_an_error_belongs_to_its_item_alone() -> None:
    found = dict(read_ahead(iter([12, 13, 14]), Reader(), 0))
    with pytest.raises(ValueError, match="13 cannot be read"):
        found[13].result()
    assert (found[12].result(), found[14].result()) == ("12", "14")


@pytest.mark.parametrize("most", [0, 1, 3])
def test_no_more_items_are_taken_than_asked_for(most: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(20):
            taken.append(i)
            yield i

    for item, _ in read_ahead(items(), Reader(), most):
        assert len(taken) <= item + most + 1


def test_a_closed_iterator_reads_nothing_more() -> None:
    reader, go_on = Reader(), threading.Event()

    def slow(item: int) -> str:
        go_on.wait(10)
        return reader(item)

    found = read_ahead(iter(range(10)), slow, 5)
    next(found)
    go_on.set()
    found.close()
    assert len(reader.begun) < 6


def test_numpy_warns_in_the_thread_as_it_does_outside() -> None:
    with np.errstate(over="raise"):
        ((_, found),) = read_ahead(iter([1e300]), lambda x: np.float64(x) * x, 1)
    with pytest.raises(FloatingPointError):
        found.result()


def test_an_error_of_the_source_comes_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the source is lost")

    found = read_ahead(items(), Reader(), 5)
    assert next(found)[1].result() == "1"
    with pytest.raises(OSError, match="the source is lost"):
        next(found)
