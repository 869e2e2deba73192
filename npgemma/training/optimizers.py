"""How gradients move weights: AdamW, SGD with momentum and Adafactor, each as torch.optim computes it.

An optimizer knows its constants alone. What it remembers of an array, its moments, stands beside the array, so that a
run can be saved and continued: `start(w)` makes it, `update(w, g, moments, step, rate, decay)` changes it and `w` in
place. `step` counts from 1. `decay` is that of this array; `decayed` says which arrays have any.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from npgemma.layers.shapes import Array
from npgemma.layers.threads import in_parallel
from npgemma.layers.tree import Leaf

# What an optimizer remembers of one array, by name.
Moments: TypeAlias = Mapping[str, Array]
# Numbers in a block: all arrays of an update of so many stay in the cache.
BLOCK = 1 << 16


class Optimizer(Protocol):
    """The rule by which one array follows its gradient."""

    def start(self, w: Array) -> Moments: ...

    def update(self, w: Array, g: Array, moments: Moments, step: int, rate: float, decay: float) -> None: ...


@dataclass(frozen=True)
class AdamW:
    """w -= rate decay w, then w -= rate m' / (sqrt v' + eps), m' = m / (1 - beta1^step), v' = v / (1 - beta2^step).

    m += (1 - beta1) (g - m),  v = beta2 v + (1 - beta2) g^2. Source: Loshchilov & Hutter 2019 (arXiv:1711.05101),
    algorithm 2; the order of operations of torch.optim.AdamW.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def start(self, w: Array) -> Moments:
        return {"m": np.zeros_like(w), "v": np.zeros_like(w)}

    def update(self, w: Array, g: Array, moments: Moments, step: int, rate: float, decay: float) -> None:
        size = rate / (1 - self.beta1**step)
        correction = math.sqrt(1 - self.beta2**step)

        def block(parts: tuple[Array, ...]) -> None:
            g, w, m, v = parts
            w *= 1 - rate * decay
            m += (1 - self.beta1) * (g - m)
            v *= self.beta2
            v += (1 - self.beta2) * g * g
            w -= size * (m / (np.sqrt(v) / correction + self.eps))

        in_parallel(block, list(blocks(g, w, moments["m"], moments["v"])))


@dataclass(frozen=True)
class SGD:
    """w -= rate b, b = momentum b + (g + decay w), as torch.optim.SGD."""

    momentum: float = 0.9

    def start(self, w: Array) -> Moments:
        return {"m": np.zeros_like(w)} if self.momentum else {}

    def update(self, w: Array, g: Array, moments: Moments, step: int, rate: float, decay: float) -> None:
        def block(parts: tuple[Array, ...]) -> None:
            g, w, *kept = parts
            move = g + decay * w
            for b in kept:
                b *= self.momentum
                b += move
                move = b
            w -= rate * move

        in_parallel(block, list(blocks(g, w, *moments.values())))


@dataclass(frozen=True)
class Adafactor:
    """The variant of torch.optim.Adafactor: it keeps the mean square of each row and of each column of a matrix.

    v' = rows columns^T / mean(rows),  u = g / sqrt v',  w -= rate decay w,  w -= alpha u / max(1, rms(u) / most),
    alpha = max(eps, rms(w)) min(rate, 1 / sqrt step). The means follow g^2 with the weight step^-0.8. Source: Shazeer &
    Stern 2018 (arXiv:1804.04235), algorithms 4 and 5. A weight with more axes is the matrix of its first axis and the
    others; where the last axis is the longer one, of its last and the others.
    """

    power: float = -0.8
    eps: float = 1e-3
    most: float = 1.0

    def start(self, w: Array) -> Moments:
        if w.ndim < 2:
            return {"v": np.zeros_like(w)}
        rows, columns = as_matrix(w).shape
        return {"rows": np.zeros((rows, 1), w.dtype), "columns": np.zeros((1, columns), w.dtype)}

    def update(self, w: Array, g: Array, moments: Moments, step: int, rate: float, decay: float) -> None:
        share = step**self.power
        smallest = float(np.finfo(w.dtype).eps)
        alpha = max(self.eps, rms(w)) * min(rate, 1 / math.sqrt(step))
        w *= 1 - rate * decay
        if w.ndim < 2:
            (v,) = moments.values()
            v += share * (g * g - v)
            squares = v
        else:
            w, g = as_matrix(w), as_matrix(g)
            rows, columns = moments["rows"], moments["columns"]
            rows += share * (np.square(g).mean(1, keepdims=True) - rows)
            columns += share * (np.square(g).mean(0, keepdims=True) - columns)
            squares = rows @ columns / max(float(rows.mean()), smallest)
        u = g / np.sqrt(np.maximum(squares, smallest**2))
        w -= alpha / max(1.0, rms(u) / self.most) * u


def blocks(g: Array, *changed: Array) -> Iterator[tuple[Array, ...]]:
    """The same BLOCK numbers of all arrays, which have one shape: views of those that are to be changed in place.

    ValueError if one of these is not contiguous.
    """
    if not all(x.flags.c_contiguous for x in changed):
        raise ValueError("an array that an optimizer changes must be contiguous")
    flat = [x.reshape(-1) for x in (g, *changed)]
    for start in range(0, g.size, BLOCK):
        yield tuple(x[start : start + BLOCK] for x in flat)


def as_matrix(w: Array) -> Array:
    """A view of w with two axes: its first, or its last if that is longer, and all others."""
    return w.reshape(len(w), -1) if len(w) >= w.shape[-1] else w.reshape(-1, w.shape[-1])


def rms(x: Array) -> float:
    """The root of the mean square."""
    return math.sqrt(float(np.square(x).mean()))


def is_decayed(leaf: Leaf) -> bool:
    """Whether weight decay applies to an array: to matrices, and not to norms, biases and position tables."""
    return leaf.value.ndim > 1 and (leaf.kind == "weight" or leaf.path.endswith((".a", ".b")))


def length(gradients: Mapping[str, Array]) -> float:
    """The length of all gradients as one vector; squares are added in float64."""
    return math.sqrt(sum(squared(part) for g in gradients.values() for (part,) in blocks(g)))


def squared(x: Array) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def clip(gradients: Mapping[str, Array], most: float, length: float) -> None:
    """Scale all gradients, in place, by most / (length + 1e-6) if that is less than 1; `length` is theirs.

    As torch.nn.utils.clip_grad_norm_.
    """
    scale = most / (length + 1e-6)
    if scale < 1:
        for g in gradients.values():
            g *= scale


OPTIMIZERS: Mapping[str, Optimizer] = {"adamw": AdamW(), "sgd": SGD(), "adafactor": Adafactor()}
