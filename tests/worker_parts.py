"""What workers compute in tests: a function of a module that they can import, which says where it ran."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np

from npgemma.layers.norms import RMSNorm
from npgemma.layers.tree import thawed
from npgemma.training.batches import Batch
from npgemma.training.gradients import Found
from npgemma.training.workers import Workers

SOON = 60  # seconds; whoever waits longer waits for ever


def tree() -> RMSNorm:
    """An array that is not frozen."""
    return thawed(RMSNorm(np.arange(5, dtype=np.float32), 1e-6), lambda path: True, np.dtype(np.float32))


def part(number: float) -> Batch:
    return Batch(np.full(5, number, np.float32), ())


def times(p: RMSNorm, batch: Batch, home: int) -> Found:
    """The weights times the part. The loss is 1 in another process than `home`."""
    return float(os.getpid() != home), {"weight": p.weight * batch.pixel_values}


def dying(p: RMSNorm, batch: Batch, home: int) -> Found:
    """The same, but other processes are killed by it."""
    if os.getpid() != home:
        os.kill(os.getpid(), signal.SIGKILL)
    return times(p, batch, home)


def failing(p: RMSNorm, batch: Batch, home: int) -> Found:
    """An error in every process."""
    raise ValueError("wrong everywhere")


def overflowing(p: RMSNorm, batch: Batch, home: int) -> Found:
    """An overflow, in other processes alone."""
    if os.getpid() != home:
        np.square(p.weight * np.float32(1e38))
    return times(p, batch, home)


def ready(workers: Workers) -> Workers:
    """The same, when all have started."""
    end = time.monotonic() + SOON
    while workers.workers and not workers.are_ready():
        assert time.monotonic() < end
        time.sleep(0.01)
    return workers


def has_ended(process: int) -> bool:
    """Whether a process of this number is gone, or waits for its parent to see that."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def host() -> None:
    """A program that says which process works for it, and waits."""
    workers = ready(Workers(partial(times, home=os.getpid()), tree(), 1))
    print(workers.workers[0].process.pid, flush=True)
    time.sleep(SOON)
