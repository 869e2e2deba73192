"""Runs that learn a small quadratic, in this process or in one that is killed."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from npgemma.training.loop import Recipe, StepGradient, Training
from npgemma.training.optimizers import AdamW
from npgemma.training.schedules import Schedule
from npgemma.training.state import claimed

STEPS = 40
FACTS = {"rate": 0.1, "seed": 7, "data sha256": "d", "model sha256": "m"}
NOISE = np.random.default_rng(3).standard_normal((STEPS, 6, 5)).astype(np.float32)


def learn(
    folder: Path,
    facts: dict = FACTS,
    save_every: int | None = 3,
    steps: int = STEPS,
    before: Callable[[int], None] = lambda step: None,
    loss_at: dict[int, float] = {},  # noqa: B006
    pause: float = 0.0,
) -> dict[str, np.ndarray]:
    """A run in a folder, begun or continued; `before` is called with each step. Returns the weights."""
    arrays = {"matrix": np.full((6, 5), 2, np.float32), "vector": np.arange(4, dtype=np.float32)}

    def gradient(step: int) -> StepGradient:
        before(step)
        time.sleep(pause)
        slopes = {"matrix": arrays["matrix"] + NOISE[step], "vector": 2 * arrays["vector"]}
        loss = float(np.square(arrays["vector"]).sum() + np.square(arrays["matrix"]).sum() / 2)
        return StepGradient(loss_at.get(step, loss), 30, slopes)

    def evaluate(last: bool) -> list[dict]:
        return [{"eval": {"loss": float(np.square(arrays["matrix"]).sum())}}]

    schedule = Schedule("cosine", facts["rate"], steps, 2)
    recipe = Recipe(
        AdamW(), schedule, 0.1, frozenset(["matrix"]), 5.0, gradient, evaluate, 10, lambda step: "the tap text.x"
    )
    with claimed(folder, facts) as log:
        Training(recipe, arrays, folder, facts, log, save_every, lambda line: None).run()
    return arrays


def result(folder: Path) -> tuple[bytes, dict[str, bytes]]:
    """The log of a run that has reached its end, and its last state, array by array."""
    from npgemma.io.safetensors import open_file

    state = folder / f"state-{STEPS:08d}.safetensors"
    return (folder / "log.jsonl").read_bytes(), {name: x.tobytes() for name, x in open_file(state).items()}


if __name__ == "__main__":  # a run that tells its parent how far it is
    folder, pause = sys.argv[1:]
    learn(Path(folder), before=lambda step: os.write(1, b"."), pause=float(pause))
