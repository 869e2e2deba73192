"""Attention: multi-head, grouped or multi-query, under any mask.

`attend_block` is the formula, for a block of the scores; `attend` cuts the scores into blocks that fit a cache and runs
them on the cores. 4096 patches have 4096 x 4096 scores in each head: together they would take gigabytes.
"""

from collections.abc import Generator
from typing import TypeAlias

import numpy as np

from npgemma.layers.activations import exponentials
from npgemma.layers.shapes import Array, Bool, Float
from npgemma.layers.taps import Tap, silent
from npgemma.layers.threads import in_parallel

# Scores in a block: a block and what is computed from it stay in the cache. Blocks are smaller if that makes four of
# them for the cores to share, but not so small that the calls take longer than the work.
MOST_SCORES, FEWEST_SCORES = 1 << 20, 1 << 16

# Which key heads, query heads of each, and rows.
ScoreBlock: TypeAlias = tuple[slice, slice, slice]


def attend(
    q: Float[Array, "T N H"],
    keys: Float[Array, "S K H"],
    values: Float[Array, "S K H"],
    mask: Bool[Array, "T S"],
    tap: Tap = silent,
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "T N H"]:
    """y[t n] = sum over s of softmax over s of (q[t n] . keys[s k] scale) values[s k], over the s that t may see.

    `mask` is True where row t may look at row s; every t must see some s. `scale` is 1 / sqrt(H) by default. Scores
    with a `cap` are soft-capped before the mask. Query head n reads key head k = n // (N/K): K = N is multi-head, K = 1
    multi-query attention, anything between is grouped. The G = N/K query heads of a key head are folded into the rows
    of one product, so keys and values are never repeated.

    Source: Vaswani et al. 2017, section 3.2.1; Ainslie et al. 2023 (grouped queries); Gemma 2, section 2 (the cap).
    """
    rows, heads, width = q.shape
    seen, key_heads, _ = keys.shape
    q = q.reshape(rows, key_heads, -1, width).transpose(1, 2, 0, 3)  # K G T H
    keys, values = keys.transpose(1, 2, 0), values.transpose(1, 0, 2)  # K H S, K S H
    blocks = score_blocks(*q.shape[:-1], seen)
    scale = width**-0.5 if scale is None else scale
    running = [attend_block(q[b], keys[b[0]], values[b[0]], mask[b[2]], scale, cap) for b in blocks]
    mixed = np.empty((rows, heads, width), q.dtype).reshape(rows, key_heads, -1, width).transpose(1, 2, 0, 3)  # K G T H
    if tap is silent:
        run_apart(running, blocks, mixed)
    else:
        run_in_step(running, blocks, mixed, np.empty((*q.shape[:-1], seen), q.dtype), tap)
    return mixed.transpose(2, 0, 1, 3).reshape(rows, heads, width)


# Yields a name and a tensor, receives what to go on with, returns the heads.
Attending: TypeAlias = Generator[tuple[str, Float[Array, "K G T S"]], Float[Array, "K G T S"], Float[Array, "K G T H"]]


def attend_block(
    q: Float[Array, "K G T H"],
    keys: Float[Array, "K H S"],
    values: Float[Array, "K S H"],
    mask: Bool[Array, "T S"],
    scale: float,
    cap: float | None,
) -> Attending:
    """softmax(cap(q keys scale), where the mask is True) values, for some key heads and some rows.

    Yields each tensor worth comparing, with its name, and continues with what it is sent: the result of a tap.
    """
    key_heads, queries, rows, width = q.shape
    dots = (q.reshape(key_heads, queries * rows, width) @ keys).reshape(key_heads, queries, rows, -1)
    x = yield "dots", dots
    x = yield "scores", np.multiply(x, scale, out=dots)  # `dots` is in the cache: what follows takes its place
    if cap is not None:
        x = yield "over_cap", x / cap
        x = yield "tanh", np.tanh(x)
        x = yield "capped", x * cap  # activations.soft_cap, a tensor at a time
    x = exponentials(x if mask.all() else np.where(mask, x, -np.inf), out=dots)
    total = x.sum(-1, keepdims=True)  # before the tap: a kernel that rounds the exponentials adds them up unrounded
    x = yield "exp", x
    x = yield "probs", np.divide(x, total, out=dots)
    return (x.reshape(key_heads, queries * rows, -1) @ values).reshape(q.shape)


def attend_block_backward(
    q: Float[Array, "K G T H"],
    keys: Float[Array, "K H S"],
    values: Float[Array, "K S H"],
    mask: Bool[Array, "T S"],
    scale: float,
    cap: float | None,
    dy: Float[Array, "K G T H"],
    tap: Tap = silent,
) -> tuple[Float[Array, "K G T H"], Float[Array, "K S H"], Float[Array, "K S H"]]:
    """forward: y = P values, where P = softmax(x), x = cap tanh(z / cap) and z = q keys scale.

        dP = dy values^T,  dx = P (dP - sum over s of P dP),  dz = dx (1 - tanh^2)
        dq = dz keys^T scale,  dkeys = dz^T q scale,  dvalues = P^T dy

    Where the mask is False, P is 0, and so is dx. Query heads and rows are one axis of the products.
    """
    seen = passed(attend_block(q, keys, values, mask, scale, cap), tap)
    shape, folded = q.shape, (len(q), -1, q.shape[-1])
    q, dy, probs = q.reshape(folded), dy.reshape(folded), seen["probs"].reshape(len(q), -1, mask.shape[1])
    dprobs = dy @ values.transpose(0, 2, 1)
    dscores = probs * (dprobs - (probs * dprobs).sum(-1, keepdims=True))
    if cap is not None:
        dscores *= 1 - np.square(seen["tanh"].reshape(probs.shape))
    dscores *= scale
    dq = (dscores @ keys.transpose(0, 2, 1)).reshape(shape)
    return dq, dscores.transpose(0, 2, 1) @ q, probs.transpose(0, 2, 1) @ dy


def attend_backward(
    q: Float[Array, "T N H"],
    keys: Float[Array, "S K H"],
    values: Float[Array, "S K H"],
    mask: Bool[Array, "T S"],
    dy: Float[Array, "T N H"],
    tap: Tap = silent,
    scale: float | None = None,
    cap: float | None = None,
) -> tuple[Float[Array, "T N H"], Float[Array, "S K H"], Float[Array, "S K H"]]:
    """dq, dkeys, dvalues. The scores are computed again in the blocks of the forward pass; none of them are stored.

    `tap` is that of the forward pass. The blocks' shares of dkeys and dvalues are added in the order of the blocks, so
    the result does not depend on the number of cores. Query heads that share a key head are rows of one product, which
    adds up what they give to it.
    """
    rows, heads, width = q.shape
    seen, key_heads, _ = keys.shape
    q, dy = (x.reshape(rows, key_heads, -1, width).transpose(1, 2, 0, 3) for x in (q, dy))  # K G T H
    keys, values = keys.transpose(1, 2, 0), values.transpose(1, 0, 2)  # K H S, K S H
    blocks = score_blocks(*q.shape[:-1], seen) if tap is silent else [(slice(None),) * 3]
    scale = width**-0.5 if scale is None else scale
    dq = np.empty((rows, heads, width), q.dtype).reshape(rows, key_heads, -1, width).transpose(1, 2, 0, 3)
    shares: dict[int, tuple[Array, Array]] = {}

    def run(i: int) -> None:
        b = blocks[i]
        forward = q[b], keys[b[0]], values[b[0]], mask[b[2]], scale, cap
        dq[b], dk, dv = attend_block_backward(*forward, dy[b], tap)
        shares[i] = dk, dv

    in_parallel(run, range(len(blocks)))
    dkeys, dvalues = np.zeros((2, key_heads, seen, width), q.dtype)
    for i, (k, _, _) in enumerate(blocks):
        dkeys[k] += shares[i][0]
        dvalues[k] += shares[i][1]
    return (
        dq.transpose(2, 0, 1, 3).reshape(rows, heads, width),
        dkeys.transpose(1, 0, 2),
        dvalues.transpose(1, 0, 2),
    )


def passed(running: Attending, tap: Tap) -> dict[str, Float[Array, "K G T S"]]:
    """Run a block to its end; returns what it went on with, by name."""
    seen = {}
    name, x = next(running)
    while True:
        seen[name] = x = tap(name, x.reshape(-1, *x.shape[2:]), "N T S").reshape(x.shape)
        try:
            name, x = running.send(x)
        except StopIteration:
            return seen


def run_apart(running: list[Attending], blocks: list[ScoreBlock], mixed: Float[Array, "K G T H"]) -> None:
    """Run each block from beginning to end, several in parallel, and write the results to `mixed`."""

    def finish(i: int) -> None:
        try:
            _, x = next(running[i])
            while True:
                _, x = running[i].send(x)
        except StopIteration as end:
            mixed[blocks[i]] = end.value

    in_parallel(finish, range(len(blocks)))


def run_in_step(
    running: list[Attending],
    blocks: list[ScoreBlock],
    mixed: Float[Array, "K G T H"],
    scores: Float[Array, "K G T S"],
    tap: Tap,
) -> None:
    """Run all blocks up to each yield in turn: there the tap gets the whole tensor, assembled from the blocks."""
    _, _, rows, seen = scores.shape
    names: list[str] = [""] * len(blocks)

    def advance(i: int) -> None:
        try:
            names[i], x = running[i].send(scores[blocks[i]]) if names[i] else next(running[i])
            made[blocks[i]] = x
        except StopIteration as end:
            mixed[blocks[i]], names[i] = end.value, ""

    while True:
        made = np.empty_like(scores)
        in_parallel(advance, range(len(blocks)))
        if not any(names):
            return
        scores = tap(names[0], made.reshape(-1, rows, seen), "N T S").reshape(made.shape)


def score_blocks(
    key_heads: int, queries: int, rows: int, seen: int, fewest: int = FEWEST_SCORES, most: int = MOST_SCORES
) -> list[ScoreBlock]:
    """The axes K, G and T cut into blocks of about `fewest` to `most` scores: some rows of one key head, or all rows of
    several key heads.
    """
    size = max(fewest, min(most, key_heads * queries * rows * seen // 4))
    height = min(rows, max(1, size // (queries * seen)))
    depth = max(1, size // (queries * max(1, height) * seen))
    return [
        (slice(k, k + depth), slice(None), slice(t, t + height))
        for k in range(0, key_heads, depth)
        for t in range(0, rows, max(1, height))
    ]
