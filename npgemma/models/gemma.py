"""Gemma, the decoder: it takes rows of one or several sequences, returns as many, and extends each sequence's cache.

    rows --> L x block --> norm --> logits                            block:  x += attention(norm x)
                                                                              x += mlp(norm x)

Source: Gemma (Gemma Team 2024), section 2, and the order of operations of google/gemma_pytorch.

Rows of several sequences are concatenated in one `x` [T D]. Linear layers, norms and the MLP treat every row alike;
only attention needs to know which rows belong together. So prompts of different lengths run together without padding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npgemma.layers.activations import geglu
from npgemma.layers.attention import attend
from npgemma.layers.linear import embed, linear, project, unproject
from npgemma.layers.norms import RMSNorm, rms_norm
from npgemma.layers.rope import rope
from npgemma.layers.shapes import Array, Bool, Float, Int, Weight
from npgemma.layers.taps import Tap, at, silent


class Segment(NamedTuple):
    """The rows of one sequence, and the mask: which of its S rows so far (these T are the last) each may look at."""

    rows: slice
    mask: Bool[Array, "T S"]


class Rows(NamedTuple):
    """Some rows of x: which ones, the position of each, and a segment for each sequence, counted within these rows."""

    which: slice | Array
    positions: Array
    segments: Sequence[Segment]


def last_rows(rows: Rows) -> Rows:
    """The last row of each sequence: the one that the next token is chosen from."""
    ends = np.array([segment.rows.stop - 1 for segment in rows.segments])
    alone = [Segment(slice(i, i + 1), segment.mask[-1:]) for i, segment in enumerate(rows.segments)]
    return Rows(ends, rows.positions[ends], alone)


class Cache:
    """Keys and values of one sequence in one layer: allocated once, filled from the front."""

    def __init__(self, capacity: int, key_heads: int, width: int, dtype: np.dtype) -> None:
        self.keys = np.empty((capacity, key_heads, width), dtype)
        self.values = np.empty_like(self.keys)
        self.length = 0

    def append(self, keys: Float[Array, "T K H"], values: Float[Array, "T K H"]) -> tuple[Array, Array]:
        """Store T more rows; returns views of all S keys and values so far. ValueError if they do not fit."""
        length = self.length + len(keys)
        if length > len(self.keys):
            raise ValueError(f"a cache of {len(self.keys)} rows cannot hold {length}")
        self.keys[self.length : length] = keys
        self.values[self.length : length] = values
        self.length = length
        return self.keys[: self.length], self.values[: self.length]

    def copy(self) -> "Cache":
        """A cache with the same content, which then grows separately."""
        capacity, key_heads, width = self.keys.shape
        twin = Cache(capacity, key_heads, width, self.keys.dtype)
        twin.become(self)
        return twin

    def become(self, other: "Cache") -> None:
        """Replace the content by that of `other`."""
        self.length = 0
        self.append(other.keys[: other.length], other.values[: other.length])


@dataclass(frozen=True)
class Attention:
    q: Weight[Array, "N H D"]
    k: Weight[Array, "K H D"]
    v: Weight[Array, "K H D"]
    theta: float
    o: Weight[Array, "D N H"]


def attention(
    p: Attention, x: Float[Array, "T D"], rows: Rows, asking: Rows, caches: Sequence[Cache], tap: Tap = silent
) -> Float[Array, "Q D"]:
    """The keys and values of all rows are appended to the caches, one a segment; the `asking` rows attend to them."""
    q = tap("q", project(x[asking.which], p.q), "T N H")
    q = tap("q_rope", rope(q, asking.positions, p.theta, at(tap, "q_rope")), "T N H")
    k = tap("k", project(x, p.k), "T K H")
    v = tap("v", project(x, p.v), "T K H")
    k = tap("k_rope", rope(k, rows.positions, p.theta, at(tap, "k_rope", N="K")), "T K H")
    heads = np.empty_like(q)
    for i, (new, (asks, mask), cache) in enumerate(zip(rows.segments, asking.segments, caches, strict=True)):
        segment_tap = at(tap, f"segments.{i}")
        keys, values = cache.append(k[new.rows], v[new.rows])
        keys, values = segment_tap("keys", keys, "S K H"), segment_tap("values", values, "S K H")
        heads[asks] = attend(q[asks], keys, values, mask, segment_tap)
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
    attn_norm: RMSNorm
    attn: Attention
    mlp_norm: RMSNorm
    mlp: MLP


def block(
    p: Block, x: Float[Array, "T D"], rows: Rows, asking: Rows, caches: Sequence[Cache], tap: Tap = silent
) -> Float[Array, "Q D"]:
    """x += attention(norm x); x += mlp(norm x), for the `asking` rows."""
    h = tap("attn_norm", rms_norm(p.attn_norm, x), "T D")
    x = tap("mid", x[asking.which] + attention(p.attn, h, rows, asking, caches, at(tap, "attn")), "T D")
    h = tap("mlp_norm", rms_norm(p.mlp_norm, x), "T D")
    return tap("out", x + mlp(p.mlp, h, at(tap, "mlp")), "T D")


@dataclass(frozen=True)
class Decoder:
    """`head` is None if the embedding table is also the head, as in nearly every Gemma."""

    embedding: Weight[Array, "V D"]
    blocks: tuple[Block, ...]
    norm: RMSNorm
    head: Weight[Array, "V D"] | None = None


def embed_tokens(p: Decoder, input_ids: Int[Array, "T"], dtype: np.dtype, tap: Tap = silent) -> Float[Array, "T D"]:
    """x[t] = sqrt(D) embedding[id of t]; sqrt(D) is rounded to `dtype` before it multiplies."""
    scale = tap("scale", np.array(math.sqrt(p.embedding.shape[1]), dtype), "")
    return embed(input_ids, p.embedding, dtype) * scale


def new_caches(p: Decoder, capacity: int, dtype: np.dtype) -> list[Cache]:
    """An empty cache for each layer, for one sequence of up to `capacity` rows."""
    return [Cache(capacity, block.attn.k.shape[0], block.attn.k.shape[1], dtype) for block in p.blocks]


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


def logits(p: Decoder, x: Float[Array, "T D"]) -> Float[Array, "T V"]:
    """A score for each token of the vocabulary: x head^T."""
    return linear(x, p.embedding if p.head is None else p.head)
