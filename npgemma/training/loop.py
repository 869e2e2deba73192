"""Steps, one after the other, each: gradients of a batch, clipped; new weights; a line of the log.

    state --> [evaluate] --> gradient --> clip --> update --> log --> [save] --> next step

A state is saved before the evaluation of its step, which a resumed run repeats: it writes the same lines.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npgemma.errors import BadData
from npgemma.layers.shapes import Array
from npgemma.training.optimizers import Moments, Optimizer, clip, length
from npgemma.training.schedules import Schedule
from npgemma.training.state import Facts, Log, State, newest, save

SAVE_AFTER = 60.0  # seconds between two states, unless a number of steps is given
SAVE_SHARE = 20  # and so many times as long as it took to save the last one


class StepGradient(NamedTuple):
    """The loss of a batch, its number of learned tokens, and the gradient of each trained array, by path."""

    loss: float
    tokens: int
    arrays: dict[str, Array]


@dataclass(frozen=True)
class Recipe:
    """What a run does, apart from where it is saved.

    `gradient(step)` is that of a step, counted from 0; `evaluate(last)` gives lines for the log; `origin(step)` says
    where numbers that are not finite began, if a step has any. `decayed` are the paths of the arrays that decay.
    """

    optimizer: Optimizer
    schedule: Schedule
    decay: float
    decayed: frozenset[str]
    clip: float | None
    gradient: Callable[[int], StepGradient]
    evaluate: Callable[[bool], list[dict[str, Any]]]
    evaluate_every: int | None
    origin: Callable[[int], str]

    def is_evaluated(self, step: int) -> bool:
        """Whether there is an evaluation after so many steps: before the first, after the last, and between."""
        between = self.evaluate_every is not None and step % self.evaluate_every == 0
        return step in (0, self.schedule.steps) or between


@dataclass
class Training:
    """A run at some step: `arrays` are changed in place, and `moments` beside them."""

    recipe: Recipe
    arrays: Mapping[str, Array]
    folder: Path
    facts: Facts
    log: Log
    save_every: int | None
    seen: Callable[[Mapping[str, Any]], None]

    def __post_init__(self) -> None:
        self.moments: dict[str, Moments] = {path: self.recipe.optimizer.start(w) for path, w in self.arrays.items()}
        self.done, self.mark, self.saved = 0, 0, -1  # steps; the length of the log after them; the step of a state
        self.is_whole = True  # no update is half done
        self.saved_at, self.save_took = time.monotonic(), 0.0

    def run(self) -> None:
        """Begin, or go on from the newest state, to the last step, with its state saved.

        BadData if a file cannot be written, or if numbers are not finite; the state before that is kept. After Ctrl-C
        the steps so far are saved.
        """
        self.begin()
        try:
            while True:
                last = self.done == self.recipe.schedule.steps
                if self.recipe.is_evaluated(self.done):
                    for line in self.recipe.evaluate(last):
                        self.write({"step": self.done, **line})
                if last:
                    return
                self.step()
                if self.is_due():
                    self.save()
        except KeyboardInterrupt:
            if self.is_whole:
                self.save()
            raise

    def begin(self) -> None:
        """Restore the newest state, or save the first one: a disk that is too small shows before any work."""
        state = newest(self.folder, self.facts)
        if state is None:
            self.log.cut(0)
            self.write({"run": self.facts})
            self.mark = self.log.position
            self.save()
            return
        for name, x in self.every_array().items():
            x[...] = state.arrays[name]
        self.done, self.mark, self.saved = state.step, state.log, state.step
        self.log.cut(state.log)

    def step(self) -> None:
        """One step. BadData if its loss or its gradients are not finite; then nothing has changed."""
        recipe, number = self.recipe, self.done + 1
        found = recipe.gradient(self.done)
        norm = length(found.arrays)
        if not (math.isfinite(found.loss) and math.isfinite(norm)):
            self.stop(f"the loss is {found.loss:g}" if not math.isfinite(found.loss) else "a gradient is not finite")
        rate = recipe.schedule.rate(number)
        self.is_whole = False
        if recipe.clip is not None:
            clip(found.arrays, recipe.clip, norm)
        for path, w in self.arrays.items():
            decay = recipe.decay if path in recipe.decayed else 0.0
            recipe.optimizer.update(w, found.arrays[path], self.moments[path], number, rate, decay)
        self.write(
            {"step": number, "loss": found.loss, "gradient": norm, "rate": rate, "tokens": found.tokens},
        )
        self.done, self.mark, self.is_whole = number, self.log.position, True

    def write(self, line: Mapping[str, Any]) -> None:
        self.log.write(line)
        self.seen(line)

    def is_due(self) -> bool:
        """Whether to save a state now: always after the last step."""
        if self.done == self.recipe.schedule.steps:
            return True
        if self.save_every is not None:
            return self.done % self.save_every == 0
        return time.monotonic() - self.saved_at > max(SAVE_AFTER, SAVE_SHARE * self.save_took)

    def save(self) -> None:
        """Save a state, unless this step has one. BadData if an array is not finite."""
        if self.saved == self.done:
            return
        arrays = self.every_array()
        bad = [name for name, x in arrays.items() if not np.isfinite(x).all()]
        if bad:
            raise BadData(f"after step {self.done}, {bad[0]} is not finite; {ADVICE.format(folder=self.folder)}")
        began = time.monotonic()
        self.log.sync()
        save(self.folder, State(self.done, arrays, self.mark), self.facts)
        self.saved, self.saved_at = self.done, time.monotonic()
        self.save_took = self.saved_at - began

    def every_array(self) -> dict[str, Array]:
        """What a state holds, by name."""
        weights = {f"weights.{path}": w for path, w in self.arrays.items()}
        kept = {f"{kind}.{path}": x for path, moments in self.moments.items() for kind, x in moments.items()}
        return weights | kept

    def stop(self, what: str) -> None:
        """Save the last good state, and raise BadData with the place where the numbers began to be wrong."""
        self.save()
        origin = self.recipe.origin(self.done)
        begins = f", which begins at {origin}" if origin else ""
        raise BadData(f"{what} in step {self.done + 1}{begins}; {ADVICE.format(folder=self.folder)}")


ADVICE = (
    "the state before it is kept in {folder}: use a lower rate (--rate), clipping (--clip 1) or --dtype float64, in a "
    "new folder"
)
