"""Gemma, the decoder: rows of one or several sequences in, the same rows out, each sequence's cache grown by its own.

    rows --> L x block --> norm --> logits                            block:  x += attention(norm x)
                                                                              x += mlp(norm x)

Source: Gemma (Gemma Team 2024), section 2, and the order of operations of google/gemma_pytorch.

Rows of several sequences stand under each other in one `x` [T D]. Linear layers, norms and the MLP treat every row
alike and never notice; only attention asks which rows belong together. So prompts of different lengths run together
without padding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npgemma.layers.matmul import embed, linear, project, unproject
from npgemma.layers.ops import RMSNorm, attend, geglu, rms_norm, rope
from npgemma.layers.shapes import Array, Bool, Float, Int, Weight
from npgemma.layers.taps import Tap, at, silent


class Segment(NamedTuple):
    """The rows of `x` that are one sequence's, and which of the S rows seen so far (its T the last) each may see."""

    rows: slice
    mask: Bool[Array, "T S"]


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
        """A cache that goes on from here on its own."""
        capacity, key_heads, width = self.keys.shape
        twin = Cache(capacity, key_heads, width, self.keys.dtype)
        twin.become(self)
        return twin

    def become(self, other: "Cache") -> None:
        """Hold what `other` holds and nothing else."""
        self.length = 0
        self.append(other.keys[: other.length], other.values[: other.length])


@dataclass(frozen=True)
class Attention:
    q: Weight[Array, "N H D"]
    k: Weight[Array, "K H D"]
    v: Weight[Array, "K H D"]
    theta: float
    o: Weight[Array, "D N H"]


def remember(
    p: Attention,
    x: Float[Array, "T D"],
    positions: Int[Array, "T"],
    segments: Sequence[Segment],
    caches: Sequence[Cache],
    tap: Tap = silent,
) -> list[tuple[Array, Array]]:
    """Each segment's rows leave their keys and values in its cache; returns the S keys and values each then holds."""
    k = tap("k", project(x, p.k))
    v = tap("v", project(x, p.v))
    k = tap("k_rope", rope(k, positions, p.theta, at(tap, "k_rope")))
    seen = []
    for i, (segment, cache) in enumerate(zip(segments, caches, strict=True)):
        hear = at(tap, f"segments.{i}")
        keys, values = cache.append(k[segment.rows], v[segment.rows])
        seen.append((hear("keys", keys), hear("values", values)))
    return seen


def attention(
    p: Attention,
    x: Float[Array, "T D"],
    positions: Int[Array, "T"],
    segments: Sequence[Segment],
    caches: Sequence[Cache],
    tap: Tap = silent,
) -> Float[Array, "T D"]:
    """Each segment's rows look at its cache and at themselves, as far as its mask lets them; the caches grow."""
    q = tap("q", project(x, p.q))
    q = tap("q_rope", rope(q, positions, p.theta, at(tap, "q_rope")))
    seen = remember(p, x, positions, segments, caches, tap)
    heads = np.empty_like(q)
    for i, ((rows, mask), (keys, values)) in enumerate(zip(segments, seen, strict=True)):
        heads[rows] = attend(q[rows], keys, values, mask, at(tap, f"segments.{i}"))
    return tap("out", unproject(tap("heads", heads), p.o))


@dataclass(frozen=True)
class MLP:
    gate: Weight[Array, "F D"]
    up: Weight[Array, "F D"]
    down: Weight[Array, "D F"]


def mlp(p: MLP, x: Float[Array, "T D"], tap: Tap = silent) -> Float[Array, "T D"]:
    """y = down(gelu(gate x) * up x). Source: GeGLU, Shazeer 2020."""
    gate = tap("gate", linear(x, p.gate))
    up = tap("up", linear(x, p.up))
    hidden = tap("hidden", geglu(gate, up, tap))
    return tap("out", linear(hidden, p.down))


@dataclass(frozen=True)
class Block:
    attn_norm: RMSNorm
    attn: Attention
    mlp_norm: RMSNorm
    mlp: MLP


def block(
    p: Block,
    x: Float[Array, "T D"],
    positions: Int[Array, "T"],
    segments: Sequence[Segment],
    caches: Sequence[Cache],
    tap: Tap = silent,
) -> Float[Array, "T D"]:
    """x += attention(norm x); x += mlp(norm x)."""
    h = tap("attn_norm", rms_norm(p.attn_norm, x))
    x = tap("mid", x + attention(p.attn, h, positions, segments, caches, at(tap, "attn")))
    h = tap("mlp_norm", rms_norm(p.mlp_norm, x))
    return tap("out", x + mlp(p.mlp, h, at(tap, "mlp")))


@dataclass(frozen=True)
class Decoder:
    embedding: Weight[Array, "V D"]
    blocks: tuple[Block, ...]
    norm: RMSNorm
    head: Weight[Array, "V D"]


def embed_tokens(p: Decoder, input_ids: Int[Array, "T"], dtype: np.dtype, tap: Tap = silent) -> Float[Array, "T D"]:
    """x[t] = sqrt(D) embedding[id of t]; sqrt(D) is rounded to `dtype` before it multiplies."""
    scale = tap("scale", np.array(math.sqrt(p.embedding.shape[1]), dtype))
    return embed(input_ids, p.embedding, dtype) * scale


def new_caches(p: Decoder, capacity: int, dtype: np.dtype) -> list[Cache]:
    """An empty cache for each layer, for one sequence of up to `capacity` rows."""
    return [Cache(capacity, block.attn.k.shape[0], block.attn.k.shape[1], dtype) for block in p.blocks]


def decoder(
    p: Decoder,
    x: Float[Array, "T D"],
    positions: Int[Array, "T"],
    segments: Sequence[Segment],
    caches: Sequence[Sequence[Cache]],
    tap: Tap = silent,
) -> Float[Array, "T D"]:
    """The last hidden states, normed. `caches` holds, for each segment, its caches layer by layer."""
    for i, (weights, *layer_caches) in enumerate(zip(p.blocks, *caches, strict=True)):
        x = block(weights, x, positions, segments, layer_caches, at(tap, f"layers.{i}"))
    return tap("norm", rms_norm(p.norm, x))


def decoder_last_rows(
    p: Decoder,
    x: Float[Array, "T D"],
    positions: Int[Array, "T"],
    segments: Sequence[Segment],
    caches: Sequence[Sequence[Cache]],
) -> Float[Array, "B D"]:
    """`decoder`, but the last row of each of B segments alone, which the next tokens are chosen from.

    Of the others the last layer wants nothing but keys and values; then the last rows take it like any step.
    """
    *earlier, (last_block, *last_caches) = zip(p.blocks, *caches, strict=True)
    for weights, *layer_caches in earlier:
        x = block(weights, x, positions, segments, layer_caches)
    others = [Segment(slice(rows.start, rows.stop - 1), mask[:-1]) for rows, mask in segments]
    remember(last_block.attn, rms_norm(last_block.attn_norm, x), positions, others, last_caches)
    ends = np.array([rows.stop - 1 for rows, _ in segments])
    alone = [Segment(slice(i, i + 1), mask[-1:]) for i, (_, mask) in enumerate(segments)]
    return rms_norm(p.norm, block(last_block, x[ends], positions[ends], alone, last_caches))


def logits(p: Decoder, x: Float[Array, "T D"]) -> Float[Array, "T V"]:
    """A score for each token of the vocabulary: x head^T; the head is nearly always the embedding table itself."""
    return linear(x, p.head)
