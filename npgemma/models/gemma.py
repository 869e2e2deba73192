"""Gemma 1, 2 and 3, the decoder: it takes rows of some sequences, returns as many, and extends each sequence's cache.

    rows --> L x block --> norm --> logits                            block:  x += [norm] attention(norm x)
                                                                              x += [norm] mlp(norm x)

Gemma 1 has what stands outside the brackets. Gemma 2 norms what attention and MLP write, caps scores and logits, and
lets every second layer see only a window of the last tokens. Gemma 3 norms queries and keys instead of capping, and has
one layer without a window in six, which rotates by another theta.

Sources: Gemma (Gemma Team 2024, arXiv:2403.08295), section 2; Gemma 2 (arXiv:2408.00118), section 2; Gemma 3
(arXiv:2503.19786), section 2; and the order of operations of google/gemma_pytorch.

Rows of several sequences are concatenated in one `x` [T D]. Linear layers, norms and the MLP treat every row alike;
only attention needs to know which rows belong together. So prompts of different lengths run together without padding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npgemma.layers.activations import geglu, soft_cap
from npgemma.layers.attention import attend
from npgemma.layers.linear import embed, linear, project, unproject
from npgemma.layers.norms import RMSNorm, rms_norm
from npgemma.layers.rope import rope
from npgemma.layers.shapes import Array, Bool, Float, Int, Weight
from npgemma.layers.taps import Tap, at, silent


class Segment(NamedTuple):
    """The rows of one sequence, and the masks: which of its S rows so far (these T are the last) each may look at.

    `near` is the mask of layers with a window; None if the model has none.
    """

    rows: slice
    mask: Bool[Array, "T S"]
    near: Bool[Array, "T S"] | None = None


class Rows(NamedTuple):
    """Some rows of x: which ones, the position of each, and a segment for each sequence, counted within these rows."""

    which: slice | Array
    positions: Array
    segments: Sequence[Segment]


def last_rows(rows: Rows) -> Rows:
    """The last row of each sequence: the one that the next token is chosen from."""
    ends = np.array([segment.rows.stop - 1 for segment in rows.segments])
    alone = [
        Segment(slice(i, i + 1), mask[-1:], None if near is None else near[-1:])
        for i, (_, mask, near) in enumerate(rows.segments)
    ]
    return Rows(ends, rows.positions[ends], alone)


MOST_ROWS = 8  # of a sequence in one step: its cache can forget all but the first


class Cache:
    """Keys and values of one sequence in one layer, for up to `capacity` rows: allocated once, filled from the front.

    A layer with a window never reads more than the window - 1 rows before the new ones, so its cache keeps no more than
    these and some spare rows. When they are used up, the rows still needed move to the front. There are enough spare
    ones to forget rows of the last step: see `forget`.
    """

    def __init__(self, capacity: int, key_heads: int, width: int, dtype: np.dtype, window: int | None = None) -> None:
        self.capacity = capacity
        self.window = window
        held = cache_rows(capacity, window)
        self.keys = np.empty((held, key_heads, width), dtype)
        self.values = np.empty_like(self.keys)
        self.length = 0  # of the sequence
        self.end = 0  # of its last rows in the arrays

    @property
    def kept(self) -> int:
        """How many rows before new ones may be looked at."""
        return self.length if self.window is None else min(self.length, self.window - 1)

    def append(self, keys: Float[Array, "T K H"], values: Float[Array, "T K H"]) -> tuple[Array, Array]:
        """Store T more rows; returns the S keys and values that they may look at, themselves last.

        Without a window, these are views of all rows so far. ValueError if they do not fit.
        """
        if self.length + len(keys) > self.capacity:
            raise ValueError(f"a cache of {self.capacity} rows cannot hold {self.length + len(keys)}")
        kept, new = self.kept, len(keys)
        if kept + new > len(self.keys):  # a prompt longer than the window
            seen = np.concatenate([self.rows(self.keys), keys]), np.concatenate([self.rows(self.values), values])
            self.length += new
            self.fill(*(x[len(x) - self.kept :] for x in seen))
            return seen
        if self.end + new > len(self.keys):
            self.fill(self.rows(self.keys), self.rows(self.values))
        self.keys[self.end : self.end + new] = keys
        self.values[self.end : self.end + new] = values
        self.length += new
        self.end += new
        return self.keys[self.end - kept - new : self.end], self.values[self.end - kept - new : self.end]

    def forget(self, count: int) -> None:
        """Drop the last `count` rows; what follows takes their place.

        ValueError if the rows before them that new ones may look at are not all held: so after a prompt longer than the
        window, but never for fewer than MOST_ROWS rows of one step.
        """
        self.length -= count
        self.end -= count
        if self.kept > self.end:
            self.length += count
            self.end += count
            raise ValueError(f"a cache with a window of {self.window} rows cannot forget {count}")

    def rows(self, x: Array) -> Array:
        """The rows of `x` that new ones may look at."""
        return x[self.end - self.kept : self.end]

    def fill(self, keys: Array, values: Array) -> None:
        """Hold these rows, from the front."""
        self.end = len(keys)
        self.keys[: self.end] = keys
        self.values[: self.end] = values

    def copy(self) -> "Cache":
        """A cache with the same content, which then grows separately."""
        twin = Cache(self.capacity, self.keys.shape[1], self.keys.shape[2], self.keys.dtype, self.window)
        twin.become(self)
        return twin

    def become(self, other: "Cache") -> None:
        """Replace the content by that of `other`."""
        self.length = other.length
        self.fill(other.rows(other.keys), other.rows(other.values))


def cache_rows(tokens: int, window: int | None) -> int:
    """How many rows a cache for so many tokens holds."""
    return tokens if window is None else min(tokens, window + max(window // 16, MOST_ROWS - 1))


@dataclass(frozen=True)
class HeadNorm(RMSNorm):
    """An RMS norm over the width of a head: one weight for all heads."""

    weight: Float[Array, "H"]


def normed(p: RMSNorm | None, x: Float[Array, "*R D"], tap: Tap, name: str, axes: str) -> Float[Array, "*R D"]:
    """The norm of x, which passes through the tap by this name; x itself in a model that lacks this norm."""
    return x if p is None else tap(name, rms_norm(p, x), axes)


@dataclass(frozen=True)
class Attention:
    """By default Gemma 1's. `cap` is Gemma 2's, `q_norm`, `k_norm` and `factor` are Gemma 3's; both have windows."""

    q: Weight[Array, "N H D"]
    k: Weight[Array, "K H D"]
    v: Weight[Array, "K H D"]
    theta: float
    o: Weight[Array, "D N H"]
    q_norm: HeadNorm | None = None
    k_norm: HeadNorm | None = None
    factor: float = 1.0
    scale: float | None = None
    cap: float | None = None
    window: int | None = None


def attention(
    p: Attention, x: Float[Array, "T D"], rows: Rows, asking: Rows, caches: Sequence[Cache], tap: Tap = silent
) -> Float[Array, "Q D"]:
    """The keys and values of all rows are appended to the caches, one a segment; the `asking` rows attend to them."""
    q = tap("q", project(x[asking.which], p.q), "T N H")
    q = normed(p.q_norm, q, tap, "q_norm", "T N H")
    q = tap("q_rope", rope(q, asking.positions, p.theta, at(tap, "q_rope"), p.factor), "T N H")
    k = tap("k", project(x, p.k), "T K H")
    k = normed(p.k_norm, k, tap, "k_norm", "T K H")
    v = tap("v", project(x, p.v), "T K H")
    k = tap("k_rope", rope(k, rows.positions, p.theta, at(tap, "k_rope", N="K"), p.factor), "T K H")
    heads = np.empty_like(q)
    for i, (new, (asks, mask, near), cache) in enumerate(zip(rows.segments, asking.segments, caches, strict=True)):
        segment_tap = at(tap, f"segments.{i}")
        keys, values = cache.append(k[new.rows], v[new.rows])
        keys, values = segment_tap("keys", keys, "S K H"), segment_tap("values", values, "S K H")
        if p.window is not None:
            assert near is not None, "a layer with a window needs a mask of its own"
            mask = near[:, near.shape[1] - len(keys) :]
        heads[asks] = attend(q[asks], keys, values, mask, segment_tap, p.scale, p.cap)
    heads = tap("heads", heads, "T N H")
    return tap("out", unproject(heads, p.o), "T D")


@dataclass(frozen=True)
class MLP:
    gate: Weight[Array, "F D"]
    up: Weight[Array, "F D"]
    down: Weight[Array, "D F"]


def mlp(p: MLP, x: Float[Array, "T D"], tap: Tap = silent) -> Float[Array, "T D"]:
    """y = down(gelu(gate x) * up x). Source: GeGLU, Shazeer 2020."""
    gate = tap("gate", linear(x, p.gate), "T F")
    up = tap("up", linear(x, p.up), "T F")
    hidden = tap("hidden", geglu(gate, up, tap), "T F")
    return tap("out", linear(hidden, p.down), "T D")


@dataclass(frozen=True)
class Block:
    """`attn_post_norm` and `mlp_post_norm` are Gemma 2's and 3's: they norm what is added to x."""

    attn_norm: RMSNorm
    attn: Attention
    mlp_norm: RMSNorm
    mlp: MLP
    attn_post_norm: RMSNorm | None = None
    mlp_post_norm: RMSNorm | None = None


def block(
    p: Block, x: Float[Array, "T D"], rows: Rows, asking: Rows, caches: Sequence[Cache], tap: Tap = silent
) -> Float[Array, "Q D"]:
    """x += attention(norm x); x += mlp(norm x), for the `asking` rows."""
    h = tap("attn_norm", rms_norm(p.attn_norm, x), "T D")
    h = attention(p.attn, h, rows, asking, caches, at(tap, "attn"))
    x = tap("mid", x[asking.which] + normed(p.attn_post_norm, h, tap, "attn_post_norm", "T D"), "T D")
    h = tap("mlp_norm", rms_norm(p.mlp_norm, x), "T D")
    h = mlp(p.mlp, h, at(tap, "mlp"))
    return tap("out", x + normed(p.mlp_post_norm, h, tap, "mlp_post_norm", "T D"), "T D")


@dataclass(frozen=True)
class Decoder:
    """`head` is None if the embedding table is also the head, as in nearly every Gemma; `cap` is Gemma 2's.

    Positions count from `first_position`: 0 in a language model, and in PaliGemma 1 in transformers, 0 in big_vision.
    Attention depends only on their differences, so this changes only the cached keys.
    """

    embedding: Weight[Array, "V D"]
    blocks: tuple[Block, ...]
    norm: RMSNorm
    head: Weight[Array, "V D"] | None = None
    cap: float | None = None
    first_position: int = 0

    @property
    def window(self) -> int | None:
        """The window of the layers that have one."""
        return next((block.attn.window for block in self.blocks if block.attn.window), None)


def embed_tokens(p: Decoder, input_ids: Int[Array, "T"], dtype: np.dtype, tap: Tap = silent) -> Float[Array, "T D"]:
    """x[t] = sqrt(D) embedding[id of t]; sqrt(D) is rounded to `dtype` before it multiplies."""
    scale = tap("scale", np.array(math.sqrt(p.embedding.shape[1]), dtype), "")
    return embed(input_ids, p.embedding, dtype) * scale


def new_caches(p: Decoder, capacity: int, dtype: np.dtype) -> list[Cache]:
    """An empty cache for each layer, for one sequence of up to `capacity` rows."""
    layers = [block.attn for block in p.blocks]
    return [Cache(capacity, p.k.shape[0], p.k.shape[1], dtype, p.window) for p in layers]


def decoder(
    p: Decoder,
    x: Float[Array, "T D"],
    rows: Rows,
    caches: Sequence[Sequence[Cache]],
    asking: Rows | None = None,
    tap: Tap = silent,
) -> Float[Array, "Q D"]:
    """The last hidden states, normed, of the `asking` rows (by default of all rows).

    `caches` has, for each segment, its caches layer by layer. All rows are appended to all of them; in the last layer,
    only the `asking` rows are computed beyond their keys and values.
    """
    for i, (weights, *layer_caches) in enumerate(zip(p.blocks, *caches, strict=True)):
        wanted = asking if asking and i == len(p.blocks) - 1 else rows
        x = block(weights, x, rows, wanted, layer_caches, at(tap, f"layers.{i}"))
    return tap("norm", rms_norm(p.norm, x), "T D")


def logits(p: Decoder, x: Float[Array, "T D"], tap: Tap = silent) -> Float[Array, "T V"]:
    """A score for each token of the vocabulary: x head^T, soft-capped in Gemma 2."""
    y = linear(x, p.embedding if p.head is None else p.head)
    return y if p.cap is None else soft_cap(tap("uncapped", y, "T V"), p.cap, tap)
