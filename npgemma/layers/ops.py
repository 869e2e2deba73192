"""The operations without large weights: norms, gelu, softmax, rotary positions, attention.

Each computes in the dtype of its first argument. Constants are Python floats: a NumPy float64 scalar would silently
turn a float32 model into a float64 one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np

from npgemma.layers.shapes import Array, Bool, Float, Int
from npgemma.layers.taps import Tap, silent
from npgemma.layers.threads import in_parallel

# Numbers that a norm or gelu works on at once: with what they become on the way, they stay in the cache.
NUMBERS = 1 << 17
# Scores that attention works on at once, for the same reason: all of them are 4096 x 4096 a head at 896 pixels. Fewer
# where that makes four blocks for the cores to share, but not so few that calls take longer than work.
MOST_SCORES, FEWEST_SCORES = 1 << 20, 1 << 16


def by_rows(f: Callable[..., Array]) -> Callable[..., Array]:
    """`f`, which treats each row of its arrays alike, on a block of rows at a time and on several threads."""

    @wraps(f)
    def blocked(*arguments: Any) -> Array:
        x = arguments[-1]
        if x.size <= NUMBERS:
            return f(*arguments)
        y = np.empty(x.shape, x.dtype)
        rows, width = x.reshape(-1, x.shape[-1]).shape
        height = max(1, NUMBERS // width)

        def block(start: int) -> None:
            part = slice(start, start + height)
            cut = (a.reshape(rows, width)[part] if isinstance(a, np.ndarray) else a for a in arguments)
            y.reshape(rows, width)[part] = f(*cut)

        in_parallel(block, range(0, rows, height))
        return y

    return blocked


@dataclass(frozen=True)
class LayerNorm:
    weight: Float[Array, "D"]
    bias: Float[Array, "D"]
    eps: float


@by_rows
def layer_norm(p: LayerNorm, x: Float[Array, "*R D"]) -> Float[Array, "*R D"]:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, mean and (biased) variance over the last axis.

    Source: Ba et al. 2016, section 3; torch.nn.LayerNorm. The variance is taken of the centred values: the shorter
    mean(x^2) - mean(x)^2 cancels where the mean is large.
    """
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + p.eps) * p.weight + p.bias


@dataclass(frozen=True)
class RMSNorm:
    weight: Float[Array, "D"]
    eps: float


@by_rows
def rms_norm(p: RMSNorm, x: Float[Array, "*R D"]) -> Float[Array, "*R D"]:
    """y = x / sqrt(mean(x^2) + eps) * (1 + weight), the mean over the last axis.

    Source: Zhang and Sennrich 2019, equation 4. The 1 + weight is Gemma's: its checkpoints store the distance from one.
    """
    scale = np.add(p.weight, 1, dtype=x.dtype)  # 1 + a float32 weight would be rounded to float32 in a float64 run
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + p.eps) * scale


@by_rows
def gelu(x: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the tanh form, which Gemma and SigLIP were trained with.

    Source: Hendrycks and Gimpel 2016, section 2.
    """
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def geglu(gate: Float[Array, "*R"], up: Float[Array, "*R"], tap: Tap = silent) -> Float[Array, "*R"]:
    """y = gelu(gate) * up. Source: Shazeer 2020, equation 6."""
    if tap is silent:
        return gelu_times(gate, up)
    return tap("act", gelu(gate)) * up


@by_rows
def gelu_times(gate: Float[Array, "*R"], up: Float[Array, "*R"]) -> Float[Array, "*R"]:
    """`geglu` in one pass: the product is taken while gelu(gate) is in the cache."""
    return gelu(gate) * up


def softmax(x: Float[Array, "*R S"]) -> Float[Array, "*R S"]:
    """y = exp(x) / sum(exp(x)) over the last axis; the maximum is taken off first, so nothing overflows.

    -inf becomes exactly 0. A row must hold one finite number: a row of nothing but -inf has no softmax.
    """
    y = exponentials(x)
    y /= y.sum(-1, keepdims=True)
    return y


def log_softmax(x: Float[Array, "*R S"]) -> Float[Array, "*R S"]:
    """y = x - log(sum(exp(x))) over the last axis, the maximum taken off first: the logarithm of `softmax`."""
    y = x - x.max(-1, keepdims=True)
    return y - np.log(np.exp(y).sum(-1, keepdims=True))


def exponentials(x: Float[Array, "*R S"]) -> Float[Array, "*R S"]:
    """y = exp(x - max x), the maximum over the last axis: a softmax before it is divided by its sum."""
    return np.exp(x - x.max(-1, keepdims=True))


def rope(
    x: Float[Array, "T N H"], positions: Int[Array, "T"], theta: float, tap: Tap = silent
) -> Float[Array, "T N H"]:
    """Rotary position embedding: turns pair j of every head by the angle position * theta^(-2j/H).

        y[j]       = x[j] cos - x[j + H/2] sin
        y[j + H/2] = x[j + H/2] cos + x[j] sin          j = 0 .. H/2 - 1

    Source: RoFormer (Su et al. 2021), section 3.2.2, with the half-split pairs of the Gemma checkpoints: j goes with j
    + H/2, where the paper pairs 2j with 2j + 1. Angles are computed in float64, since in float32 position 4000 would be
    off by 1e-4 radians, which no later precision could mend.
    """
    half = x.shape[-1] // 2
    angle = tap("angle", positions[:, None] * tap("frequencies", theta ** (-np.arange(half) / half)))
    cos, sin = (tap(f.__name__, f(angle).astype(x.dtype))[:, None, :] for f in (np.cos, np.sin))
    first, second = x[..., :half], x[..., half:]
    x_cos = tap("x_cos", np.concatenate([first * cos, second * cos], -1))
    x_sin = tap("x_sin", np.concatenate([-second * sin, first * sin], -1))
    return x_cos + x_sin


def attend(
    q: Float[Array, "T N H"],
    keys: Float[Array, "S K H"],
    values: Float[Array, "S K H"],
    mask: Bool[Array, "T S"],
    tap: Tap = silent,
) -> Float[Array, "T N H"]:
    """y[t n] = sum over s of softmax over s of (q[t n] . keys[s k] / sqrt(H)) values[s k], over the s that t may see.

    `mask` is True where row t may look at row s; every t must see some s. Query head n reads key head k = n // (N/K): K
    = N is multi-head, K = 1 multi-query attention, anything between is grouped. The N/K query heads of a key head are
    folded into the rows of one product, so keys and values are never repeated. Rows and heads do not depend on each
    other: they are worked out in blocks, and a tap, which is shown all scores at once, changes no bit.

    Source: Vaswani et al. 2017, section 3.2.1; Ainslie et al. 2023 (grouped queries).
    """
    rows, heads, width = q.shape
    seen, groups, _ = keys.shape
    q = q.reshape(rows, groups, -1, width).transpose(1, 2, 0, 3)  # K N/K T H
    keys, values = keys.transpose(1, 2, 0), values.transpose(1, 0, 2)  # K H S, K S H

    def dot(block: Block) -> Array:
        asking = q[block]
        folded = asking.reshape(len(asking), -1, width)
        return (folded @ keys[block[0]]).reshape(*asking.shape[:-1], seen)

    def masked(block: Block, scores: Array) -> Array:
        return np.where(mask[block[2]], scores, -np.inf)

    def mix(block: Block, probs: Array) -> Array:
        folded = probs.reshape(len(probs), -1, seen)
        return (folded @ values[block[0]]).reshape(*probs.shape[:-1], width)

    blocks = attention_blocks(*q.shape[:-1], seen)

    def every(f: Callable[[Block], Array], last: int) -> Array:
        y = np.empty((*q.shape[:-1], last), q.dtype)
        in_parallel(lambda block: y.__setitem__(block, f(block)), blocks)
        return y

    def shown(name: str, x: Array) -> Array:
        return tap(name, x.reshape(heads, rows, seen)).reshape(x.shape)

    scale = width**-0.5
    if tap is silent:
        mixed = every(lambda block: mix(block, softmax(masked(block, dot(block) * scale))), width)
    else:
        dots = shown("dots", every(dot, seen))
        scores = shown("scores", dots * scale)
        exps = every(lambda block: exponentials(masked(block, scores[block])), seen)
        sums = exps.sum(-1, keepdims=True)
        probs = shown("probs", shown("exp", exps) / sums)
        mixed = every(lambda block: mix(block, probs[block]), width)
    return mixed.transpose(2, 0, 1, 3).reshape(rows, heads, width)


Block = tuple[slice, slice, slice]


def attention_blocks(groups: int, per_group: int, rows: int, seen: int) -> list[Block]:
    """The axes K, N/K and T cut into blocks: some rows of one key head, or all rows of several."""
    size = max(FEWEST_SCORES, min(MOST_SCORES, groups * per_group * rows * seen // 4))
    height = min(rows, max(1, size // (per_group * seen)))
    depth = max(1, size // (per_group * max(1, height) * seen))
    return [
        (slice(k, k + depth), slice(None), slice(t, t + height))
        for k in range(0, groups, depth)
        for t in range(0, rows, max(1, height))
    ]
