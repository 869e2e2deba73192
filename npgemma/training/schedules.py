"""The rate of each step, as the schedulers of transformers give it: a linear warm-up, and then a curve down to zero."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# The share of the rate that is left when a share `done` of the steps after the warm-up has been made.
CURVES: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


@dataclass(frozen=True)
class Schedule:
    """`rate(step)` of steps 1 to `steps`: rises to `peak` over `warmup` steps, the first of which has the rate 0."""

    curve: str
    peak: float
    steps: int
    warmup: int

    def rate(self, step: int) -> float:
        before = step - 1
        if before < self.warmup:
            return self.peak * (before / self.warmup)
        return self.peak * CURVES[self.curve]((before - self.warmup) / max(1, self.steps - self.warmup))
