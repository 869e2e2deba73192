"""What runs really allocate, measured in a process of its own: `python measure_memory.py TASK ARGUMENTS...`.

Each task prints one JSON object. The process has the two threads that OPENBLAS_NUM_THREADS=2 sets, on any machine: each
thread works on blocks of its own.
"""

import contextlib
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from processes import ROOT
from small_model import config_of, with_tokenizer

import npgemma
from npgemma.api.guard import Budget, PictureGuard
from npgemma.checkpoints.footprint import Footprint
from npgemma.commands.cli import main
from npgemma.io.system_memory import kernel_value
from npgemma.testing import random_tensors, write_folder

PICTURE = npgemma.sample_picture()
STATUS = Path("/proc/self/status")

# Runs of a small model with one size so large that it needs nearly all of the memory.
LONG = " ".join(["what color is the star"] * 40)
CACHES = config_of({}, dict(num_hidden_layers=2, num_attention_heads=2, head_dim=1024))
ROWS = config_of({}, dict(hidden_size=64, intermediate_size=4000, num_hidden_layers=2))
PIXELS = config_of(dict(hidden_size=48, intermediate_size=600, image_size=140, num_hidden_layers=1), {})
WORDS = config_of({}, dict(vocab_size=200_000, num_hidden_layers=1))


def samples(model: npgemma.VisionLanguageModel, prompt: str, count: int, new: int) -> Any:
    return model.generate(PICTURE, prompt, num_return_sequences=count, temperature=1.0, max_new_tokens=new)


def beams(model: npgemma.VisionLanguageModel, prompt: str, count: int, new: int) -> Any:
    return model.generate(PICTURE, prompt, num_beams=count, max_new_tokens=new)


def answers(model: npgemma.VisionLanguageModel, prompt: str, count: int, new: int) -> Any:
    return model.generate([PICTURE] * count, [prompt] * count, max_new_tokens=new)


RUNS: dict[str, tuple[Any, Callable[[npgemma.VisionLanguageModel], Any]]] = {
    "caches of samples": (CACHES, lambda m: samples(m, LONG, 8, 2)),
    "caches of beams": (CACHES, lambda m: beams(m, LONG, 16, 4)),
    # any token ends the answer, so the caches are allocated and not filled
    "caches of a long answer": (CACHES, lambda m: m.generate_ids([3, 4, 5], max_new_tokens=2000, eos_ids=range(9999))),
    "rows of the decoder": (ROWS, lambda m: answers(m, LONG, 8, 1)),
    "pictures": (PIXELS, lambda m: answers(m, "ocr", 24, 1)),
    "logits of prompts": (WORDS, lambda m: answers(m, "ocr", 20, 2)),
    "logits of samples": (WORDS, lambda m: samples(m, "ocr", 20, 3)),
    "logits of beams": (WORDS, lambda m: beams(m, "ocr", 20, 3)),
    "logits of a score": (WORDS, lambda m: m.score(PICTURE, "ocr", LONG[:100])),
}


@dataclass(frozen=True)
class Recording(Budget):
    """A budget that keeps what a model asks for, and allows it."""

    asked: list[Footprint] = field(default_factory=list)

    def require(self, needed: Footprint, **_: object) -> None:
        self.asked.append(needed)


def traced(work: Callable[[], object]) -> int:
    """The most bytes that Python and NumPy hold at once during `work`, without those that they held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def task_runs(folder: str) -> dict[str, Any]:
    """By name of a run: the bytes it allocates at most, and the caches and activations of its footprint."""
    found = {}
    for i, (name, (config, work)) in enumerate(RUNS.items()):
        made = with_tokenizer(write_folder(Path(folder) / str(i), config, random_tensors(config), "bfloat16"))
        model, budget = npgemma.load(made), Recording()
        model.guard = PictureGuard(model.config, model.dtype, budget=budget)
        model.processor  # noqa: B018 - the tokenizer is read before
        peak = traced(lambda work=work, model=model: work(model))
        (needed,) = budget.asked
        found[name] = [peak, needed.caches + needed.activations]
    return found


def task_resident(folder: str, adapter: str) -> dict[str, Any]:
    """The bytes that loading resident weights with an adapter allocates at most, and the dtype of the head."""
    models: list[npgemma.VisionLanguageModel] = []
    peak = traced(lambda: models.append(npgemma.load(folder, resident=True, adapter=adapter)))
    return {"peak": peak, "head": str(models[0].weights.text.head.dtype)}


def task_kernel(folder: str, options: str) -> dict[str, Any]:
    """The largest resident set of this process after it answers two prompts, and the footprint of that."""
    model = npgemma.load(folder, **json.loads(options))
    budget = model.guard.budget
    recording = Recording(budget.weights)
    model.guard = PictureGuard(model.config, model.dtype, budget=recording)
    model.generate([np.zeros((30, 30, 3), np.uint8)] * 2, ["star " * 60] * 2, max_new_tokens=3)
    (needed,) = recording.asked
    # getrusage's maximum would be that of the tests, if theirs was larger
    return {"needed": needed.total, "peak": kernel_value(STATUS, "VmHWM:", 1024)}


def task_command(space: str, *arguments: str) -> dict[str, Any]:
    """A command of npgemma with so many bytes of address space more than the imports have taken."""
    import resource

    limit = kernel_value(STATUS, "VmSize:", 1024) + int(space)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with contextlib.redirect_stdout(sys.stderr):
        return {"status": main(list(arguments))}


TASKS = {"runs": task_runs, "resident": task_resident, "kernel": task_kernel, "command": task_command}


def measure(task: str, *arguments: object) -> tuple[dict[str, Any], str]:
    """Run a task in a process of its own: its result, and what it writes to stderr."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, __file__, task, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](*sys.argv[2:])))
