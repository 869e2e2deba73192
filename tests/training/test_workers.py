"""Parts of a batch on other processes: the same bits as in one, whatever happens to these processes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from worker_parts import SOON, dying, failing, has_ended, overflowing, part, ready, times, tree

import npgemma
from npgemma.layers.tree import thawed
from npgemma.models.paligemma_grad import Labelled
from npgemma.training import gradients
from npgemma.training.batches import Batch
from npgemma.training.gradients import Computing, Found
from npgemma.training.workers import Workers, processes_for

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="workers need memfd_create")
HERE, ELSEWHERE = 0, 1  # the loss of `times`


def of(compute: Callable, count: int = 1) -> Workers:
    return ready(Workers(partial(compute, home=os.getpid()), tree(), count))


def computed(workers: Workers, numbers: range) -> list[float]:
    """The losses of these parts, whose gradients are right."""
    found, weights = [], workers.trained["weight"]
    for number, (loss, arrays) in zip(numbers, workers.gradients([*map(part, numbers)]), strict=True):
        np.testing.assert_array_equal(arrays["weight"], number * weights)
        found.append(loss)
    return found


def test_other_processes_compute_the_same_bits() -> None:
    """Of some of the embedded model, whose weights change between two steps as a run changes them."""
    p = thawed(npgemma.load().weights, lambda path: path.startswith("text.blocks"), np.dtype(np.float32))
    rng = np.random.default_rng(0)
    image = np.full(len(p.vision.embedding.position), p.image_token)
    parts = []
    for i in range(3):
        ids = np.concatenate([image, rng.integers(3, 200, 9)])
        types = np.repeat([0, 1], [len(ids) - 4 - i, 4 + i])
        pixels = rng.uniform(-1, 1, npgemma.load().processor([npgemma.sample_picture()], ["ocr"]).pixel_values.shape)
        parts.append(Batch(pixels.astype(np.float32), (Labelled(ids, types, (0,), types / 20),)))
    compute = partial(gradients.whole, how=Computing(np.dtype(np.float32), 0.1))
    with Workers(compute, p, 1) as workers:
        for _ in range(2):
            expected = [compute(p, each) for each in parts]
            for (loss, arrays), (wanted, here) in zip(ready(workers).gradients(parts), expected, strict=True):
                assert loss == wanted
                assert arrays.keys() == here.keys()
                for path, g in here.items():
                    np.testing.assert_array_equal(arrays[path], g, err_msg=path, strict=True)
            assert workers.are_ready()
            for w in workers.trained.values():
                w *= 0.9


def test_each_process_computes_a_part_and_the_first_is_this_one() -> None:
    with of(times, 2) as workers:
        assert computed(workers, range(5)) == [HERE, ELSEWHERE, ELSEWHERE, HERE, ELSEWHERE]
        assert computed(workers, range(1)) == [HERE]
    assert computed(workers, range(2)) == [HERE, HERE]  # they have ended


@pytest.mark.parametrize("compute", [dying, overflowing])
def test_a_worker_that_ends_is_replaced_by_this_process(compute: Callable, use_threads) -> None:
    use_threads(2)
    with of(compute) as workers, np.errstate(over="raise"):
        for _ in range(2):
            assert computed(workers, range(4)) == [HERE] * 4
            assert not workers.are_ready()


def test_an_error_of_a_part_is_raised() -> None:
    with of(failing) as workers, pytest.raises(ValueError, match="wrong everywhere"):
        list(workers.gradients([part(1), part(2)]))


def test_the_answers_of_an_interrupted_step_are_not_those_of_the_next() -> None:
    def interrupted(p: object, batch: Batch) -> Found:
        raise KeyboardInterrupt

    with of(times) as workers:
        own, workers.compute = workers.compute, partial(interrupted, None)
        with pytest.raises(KeyboardInterrupt):
            computed(workers, range(2))
        workers.compute = own
        assert computed(workers, range(5, 9)) == [HERE] * 4


def test_where_no_process_can_be_started_this_one_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/missing/python")
    with of(times) as workers:
        assert computed(workers, range(4)) == [HERE] * 4


def test_a_worker_ends_when_its_parent_is_killed() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", "import worker_parts; worker_parts.host()"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as host:
        worker = int(host.stdout.readline())
        assert not has_ended(worker)
        host.kill()
    end = time.monotonic() + SOON
    while not has_ended(worker):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("threads", "parts", "frozen", "expected"), [(4, 2, False, 2), (2, 8, False, 2), (1, 8, False, 1), (2, 8, True, 1)]
)
def test_there_is_a_process_for_each_part_and_core(
    threads: int, parts: int, frozen: bool, expected: int, use_threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_threads(threads)
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    assert processes_for(parts) == expected
