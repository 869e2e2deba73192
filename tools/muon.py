"""What moves the weights of the embedded pair of towers: the optimizer Muon, and its schedule."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npgemma.layers.shapes import Array
from npgemma.training.optimizers import AdamW, Moments

ADAMW = AdamW(beta2=0.98)


@dataclass(frozen=True)
class Muon:
    """Muon for arrays with two axes, with a step as long as AdamW's; AdamW for the others.

    w -= 0.2 rate sqrt(longest axis) U V^T, where U S V^T is the gradient averaged over steps (Jordan 2024).
    """

    momentum: float = 0.95
    decay: float = 0.02

    def start(self, w: Array) -> Moments:
        return {"m": np.zeros_like(w)} if w.ndim == 2 else ADAMW.start(w)

    def update(self, w: Array, g: Array, moments: Moments, step: int, rate: float, decay: float) -> None:
        if w.ndim != 2:
            ADAMW.update(w, g, moments, step, rate, decay)
            return
        average = moments["m"]
        average += (1 - self.momentum) * (g - average)
        w *= 1 - rate * self.decay
        w -= 0.2 * rate * max(w.shape) ** 0.5 * orthogonal(g + self.momentum * (average - g))


def orthogonal(x: Array) -> Array:
    """About U V^T of x = U S V^T, by five Newton-Schulz steps with Muon's coefficients."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T).T
    x = x / max(float(np.linalg.norm(x)), 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x


class HeldRate(NamedTuple):
    """Up for a 40th of the steps, held, and down to zero in the last 40%."""

    peak: float
    steps: int

    def rate(self, step: int) -> float:
        done = step - 1
        return self.peak * min(1.0, 40 * (done + 1) / self.steps, max(0.0, (self.steps - done) / (0.4 * self.steps)))
