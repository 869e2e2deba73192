"""Attention and rotation in other spellings: the part of correct_variants.py that has to do with positions and scores.

An attention is a generator, as npgemma.layers.attention.attend_block: it yields the tensors that a port would dump.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from mutations import Variant

from npgemma.golden.rounding import FLOAT32, rounding
from npgemma.layers import attention
from npgemma.layers.taps import Tap, silent
from npgemma.models import gemma

Array = np.ndarray
# q [K G T H], keys [K H S], values [K S H], mask [T S] -> names and tensors [K G T S], and in the end [K G T H].
Attend = Callable[..., Iterator[tuple[str, Array]]]


def attend(q: Array, keys: Array, values: Array, mask: Array, scale: float, cap: None) -> Iterator[tuple[str, Array]]:
    """Keys and values are repeated for each query head, and every product is an einsum."""
    keys, values = np.repeat(keys[:, None], q.shape[1], 1), np.repeat(values[:, None], q.shape[1], 1)
    dots = yield "dots", np.einsum("kgth,kghs->kgts", q, keys)
    scores = yield "scores", dots * scale
    exp = np.exp(np.where(mask, scores, -np.inf) - scores.max(-1, keepdims=True))
    probs = yield "probs", exp / exp.sum(-1, keepdims=True)
    return np.einsum("kgts,kgsh->kgth", probs, values)


def scaled_first(
    q: Array, keys: Array, values: Array, mask: Array, scale: float, cap: None
) -> Iterator[tuple[str, Array]]:
    """q scale before its product with the keys, and the largest negative number added instead of minus infinity."""
    scores = yield "scores", (q * scale) @ keys[:, None]
    masked = scores + np.where(mask, np.float32(0), np.finfo(np.float32).min)
    exp = np.exp(masked - masked.max(-1, keepdims=True))
    probs = yield "probs", exp / exp.sum(-1, keepdims=True)
    return probs @ values[:, None]


def without_maximum(
    q: Array, keys: Array, values: Array, mask: Array, scale: float, cap: None
) -> Iterator[tuple[str, Array]]:
    """No maximum is subtracted: the scores are small enough."""
    dots = yield "dots", q @ keys[:, None]
    scores = yield "scores", dots * scale
    exp = np.exp(scores) * mask
    probs = yield "probs", exp * (np.float32(1) / exp.sum(-1, keepdims=True))
    return probs @ values[:, None]


def in_powers_of_2(
    q: Array, keys: Array, values: Array, mask: Array, scale: float, cap: None
) -> Iterator[tuple[str, Array]]:
    """Powers of 2, and log2(e) in the scale."""
    dots = yield "dots", q @ keys[:, None]
    scores = np.where(mask, dots * np.float32(scale * math.log2(math.e)), -np.inf)
    exp = yield "exp", np.exp2(scores - scores.max(-1, keepdims=True))
    return (exp @ values[:, None]) / exp.sum(-1, keepdims=True)


def by_logarithm(
    q: Array, keys: Array, values: Array, mask: Array, scale: float, cap: None
) -> Iterator[tuple[str, Array]]:
    """exp(log softmax), the sum by a loop."""
    dots = yield "dots", q @ keys[:, None]
    scores = yield "scores", dots * scale
    masked = np.where(mask, scores, -np.inf)
    below = masked - masked.max(-1, keepdims=True)
    total = np.cumsum(np.exp(below), -1)[..., -1:]
    probs = yield "probs", np.exp(below - np.log(total))
    return probs @ values[:, None]


def online(q: Array, keys: Array, values: Array, mask: Array, scale: float, cap: None) -> Iterator[tuple[str, Array]]:
    """Eight keys at a time: what came before is scaled whenever the maximum grows, as in FlashAttention."""
    shape = (*q.shape[:-1], 1)
    largest, total = np.full(shape, -1e30, q.dtype), np.zeros(shape, q.dtype)
    mixed, dots = np.zeros_like(q), []
    for start in range(0, keys.shape[-1], 8):
        some = slice(start, start + 8)
        dots.append(q @ keys[:, None, :, some])
        scores = np.where(mask[:, some], dots[-1] * scale, -np.inf)
        higher = np.maximum(largest, scores.max(-1, keepdims=True))
        exp, fading = np.exp(scores - higher), np.exp(largest - higher)
        total = total * fading + exp.sum(-1, keepdims=True)
        mixed = mixed * fading + exp @ values[:, None, some]
        largest = higher
    yield "dots", np.concatenate(dots, -1)
    return mixed / total


# Each with globs of the tensors that it does not have.
ATTENTIONS: dict[str, tuple[Attend, tuple[str, ...]]] = {
    "key heads repeated, einsum": (attend, ("*.exp",)),
    "q scaled before its product": (scaled_first, ("*.dots", "*.exp")),
    "softmax without a maximum": (without_maximum, ("*.exp",)),
    "softmax in powers of 2": (in_powers_of_2, ("*.scores", "*.probs")),
    "softmax by a logarithm": (by_logarithm, ("*.exp",)),
    "softmax of eight keys at a time": (online, ("*.scores", "*.exp", "*.probs")),
}


def attending(attend: Attend, absent: tuple[str, ...]) -> Variant:
    return Variant(replacements=((attention, "attend_block", attend),), absent=absent)


def angles_of(frequencies: Array, positions: Array) -> Array:
    return positions.astype(np.float32)[:, None] * frequencies


def inverse_powers(theta: float, half: int) -> Array:
    """1 / theta^(2j/H), as transformers has it."""
    return np.float32(1) / np.float32(theta) ** (np.arange(0, 2 * half, 2, dtype=np.float32) / np.float32(2 * half))


def powers_of_e(theta: float, half: int) -> Array:
    """e^(-2j log(theta)/H)."""
    return np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(theta) / half))


def powers_of_2(theta: float, half: int) -> Array:
    return np.exp2(np.arange(half, dtype=np.float32) * np.float32(-math.log2(theta) / half))


def halves_rotated(x: Array, angles: Array) -> Array:
    """y = x cos + (-second, first) sin."""
    cos, sin = (np.concatenate([f(angles)] * 2, -1)[:, None] for f in (np.cos, np.sin))
    first, second = np.split(x, 2, -1)
    return x * cos + np.concatenate([-second, first], -1) * sin


def complex_rotated(x: Array, angles: Array) -> Array:
    """Pairs are complex numbers."""
    first, second = np.split(x, 2, -1)
    turned = (first + 1j * second) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)


def by_timescale(x: Array, positions: Array, theta: float) -> Array:
    """position / theta^(2j/H), as big_vision has it."""
    half = x.shape[-1] // 2
    timescale = np.float32(theta) ** (np.arange(half, dtype=np.float32) / np.float32(half))
    return halves_rotated(x, positions.astype(np.float32)[:, None] / timescale)


ROTATIONS: dict[str, Callable[[Array, Array, float], Array]] = {
    "angles by inverse powers": lambda x, positions, theta: halves_rotated(
        x, angles_of(inverse_powers(theta, x.shape[-1] // 2), positions)
    ),
    "angles by powers of e": lambda x, positions, theta: halves_rotated(
        x, angles_of(powers_of_e(theta, x.shape[-1] // 2), positions)
    ),
    "angles by powers of 2, complex pairs": lambda x, positions, theta: complex_rotated(
        x, angles_of(powers_of_2(theta, x.shape[-1] // 2), positions)
    ),
    "angles by timescales": by_timescale,
}


def rotating(rotate: Callable[[Array, Array, float], Array]) -> Variant:
    def rope(x: Array, positions: Array, theta: float, tap: Tap = silent, factor: float = 1.0) -> Array:
        return rotate(x, positions, theta).astype(x.dtype)

    absent = ("*.attn.?_rope.*",)
    return Variant(tap=lambda: rounding(silent, FLOAT32), replacements=((gemma, "rope", rope),), absent=absent)
