"""Processes that each compute the gradients of a part of a batch.

Threads wait for one another at Python's lock, which short operations on small arrays hold for much of their time;
processes do not. What is large is in memory that all of them map, and the rest goes through pipes:

    this process                                       a worker
    trained arrays  -- memory, before each step -->    its tree
    a part          -- pipe -->
                    <-- memory --                      gradients
                    <-- pipe --                        the loss

A worker is a new program and not a fork, which can stop for ever if its parent has threads. It ends when its pipe does,
however this process ended. Where workers cannot start, or one has ended, threads compute the same bits.
"""

import mmap
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np

from npgemma.layers.shapes import Array
from npgemma.layers.threads import BLAS
from npgemma.layers.tree import Leaf, is_frozen, map_tree, trained
from npgemma.training.batches import Batch
from npgemma.training.gradients import Found, in_parallel

# It has the modules that this process has, whatever folder it starts in.
PROGRAM = "import sys; sys.path = {path!r}; from npgemma.training.workers import work; work({pipe}, {file})"
ALIGNED = 64  # bytes, between the beginnings of arrays
# A function of a module, or a partial of one: the gradients of a tree of weights.
Compute: TypeAlias = Callable[[Any, Batch], Found]


def processes_for(parts: int) -> int:
    """How many processes can compute so many parts at once: one for each core, where a system has what they need.

    In a program that holds its own Python (frozen), no Python can be started.
    """
    can_start = hasattr(os, "memfd_create") and not getattr(sys, "frozen", False)
    return min(parts, BLAS.threads) if can_start else 1


class Shared(NamedTuple):
    """An object whose arrays are in a file: what is left of it, and for each array its bytes, and if it is frozen."""

    rest: bytes
    places: tuple[tuple[slice, bool], ...]

    def mapped(self, file: int) -> Any:
        """The object, with views of the file as its arrays."""
        memory = memoryview(mmap.mmap(file, 0))
        arrays = [memory[place].toreadonly() if frozen else memory[place] for place, frozen in self.places]
        return pickle.loads(self.rest, buffers=arrays)


def shared(x: Any) -> tuple[IO[bytes], Shared]:
    """A nameless file in memory with the arrays of an object, and the rest of it. OSError if memory is short."""
    buffers: list[pickle.PickleBuffer] = []
    rest, places = pickle.dumps(x, protocol=5, buffer_callback=buffers.append), []
    file = os.fdopen(os.memfd_create("npgemma"), "w+b")
    for each in buffers:
        data, begin = each.raw(), file.tell()
        places.append((slice(begin, begin + data.nbytes), data.readonly))
        file.write(data)
        file.write(bytes(-data.nbytes % ALIGNED))
    file.flush()
    return file, Shared(rest, tuple(places))


def without_gaps(leaf: Leaf) -> Array:
    """An array whose numbers follow one another, by rows or by columns, as shared arrays must; frozen if it was."""
    x = np.asarray(leaf.value, order="A")
    x.flags.writeable = not is_frozen(leaf.value)
    return x


class Worker:
    """A process that does `work`. OSError if it cannot be started."""

    def __init__(self, file: int) -> None:
        self.pipe, other = Pipe()
        path = [each for each in sys.path if isinstance(each, str)]
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM.format(path=path, pipe=other.fileno(), file=file)],
                pass_fds=(other.fileno(), file),
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the parent alone
            )

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.wait()


def work(pipe: int, file: int) -> None:
    """Compute the gradients of parts until the pipe ends. An error ends it too: the parent computes the part again."""
    with suppress(EOFError, OSError), Connection(pipe) as parent:
        number, compute, place = parent.recv()
        tree, slots = place.mapped(file)
        parent.send("ready")
        while True:
            part, errors = parent.recv()
            with np.errstate(**errors):
                ((loss, found),) = in_parallel(partial(compute, tree), [part])
            for path, g in found.items():
                slots[number][path][...] = g
            parent.send(loss)


class Workers:
    """Gradients of the parts of batches, computed by `count` processes beside this one.

    They start while this process goes on, and take part when all are ready. A run changes the arrays of `tree` that
    are not frozen in place.
    """

    def __init__(self, compute: Compute, tree: Any, count: int) -> None:
        self.compute = partial(compute, tree)
        self.workers: list[Worker] = []
        self.starting: list[Worker] = []
        self.trained, self.copies, self.slots = trained(tree), dict[str, Array](), list[dict[str, Array]]()
        if count:
            try:
                self.start(compute, tree, count)
            except OSError:
                self.end()

    def start(self, compute: Compute, tree: Any, count: int) -> None:
        """Start all. OSError if one cannot start."""
        slots = [{path: np.zeros_like(w) for path, w in self.trained.items()} for _ in range(count)]
        file, place = shared((map_tree(without_gaps, tree), slots))
        with file:
            copy, self.slots = place.mapped(file.fileno())
            self.copies = trained(copy)
            for number in range(count):
                self.workers.append(Worker(file.fileno()))
                self.workers[-1].pipe.send((number, compute, place))
        self.starting = [*self.workers]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """End all; from here on threads compute."""
        while self.workers:
            self.workers.pop().end()

    def gradients(self, parts: Sequence[Batch]) -> Iterator[Found]:
        """Those of the parts, in order. The arrays of each may change when the next part is asked for."""
        if not self.are_ready():
            yield from in_parallel(self.compute, parts)
            return
        width = 1 + len(self.workers)
        for first in range(0, len(parts), width):
            yield from self.at_once(parts[first : first + width])

    def are_ready(self) -> bool:
        """Whether there are workers, and all have started."""
        try:
            while self.starting and self.starting[0].pipe.poll():
                self.starting.pop(0).pipe.recv()
        except (EOFError, OSError):
            self.end()
        return bool(self.workers) and not self.starting

    def at_once(self, parts: Sequence[Batch]) -> list[Found]:
        """Those of one part for each process; all from this one if a worker ends."""
        with suppress(EOFError, OSError):
            if self.workers:
                return self.shared_out(parts)
        return in_parallel(self.compute, parts)

    def shared_out(self, parts: Sequence[Batch]) -> list[Found]:
        """Those of the first part from here, and of the others from workers. EOFError or OSError if one has ended."""
        for path, w in self.trained.items():
            self.copies[path][...] = w
        busy = self.workers[: len(parts) - 1]
        try:
            for worker, part in zip(busy, parts[1:], strict=True):
                worker.pipe.send((part, np.geterr()))
            found = in_parallel(self.compute, parts[:1])
            return found + [(worker.pipe.recv(), slot) for worker, slot in zip(busy, self.slots, strict=False)]
        except BaseException:  # the answers of the others would be taken for those of the next step
            self.end()
            raise
