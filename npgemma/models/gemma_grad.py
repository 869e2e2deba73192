"""Gemma read backwards: each function takes what its namesake in `gemma` took, and the gradient of its result.

`saw` has what the forward pass kept: the tensors named by `decoder_needs`. A gradient passes through the tap under the
name of its tensor, and what the tap returns is what the function continues with. The gradient of a weights dataclass is
that dataclass, with None where a weight is frozen. All rows are computed in all layers, as in training.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from npgemma.layers.activations import geglu_backward, soft_cap_backward
from npgemma.layers.attention import attend_backward
from npgemma.layers.linear import linear, linear_backward, project_backward, unproject_backward
from npgemma.layers.norms import Norm, rms_norm_backward
from npgemma.layers.rope import rope_backward
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Kept, Tap, at, silent
from npgemma.layers.tree import Gradient
from npgemma.models.gemma import MLP, Attention, Block, Cache, Decoder, Rows, block

# The results of blocks, without which nothing of a decoder can be computed again.
OUTPUTS = frozenset({"embedding", "layers.{i}.out"})


def block_needs(p: Block) -> Iterable[str]:
    """What the backward pass of a block reads."""
    yield from ("attn_norm", "attn.q_rope", "attn.k_rope", "attn.v", "attn.heads")
    yield from ("mid", "mlp_norm", "mlp.gate", "mlp.up", "mlp.hidden")
    if p.attn.q_norm is not None:
        yield from ("attn.q", "attn.k")
    if p.attn_post_norm is not None:
        yield from ("attn.out", "mlp.out")


def decoder_needs(p: Decoder, recompute: bool = False) -> frozenset[str]:
    """What the backward pass of a decoder reads; only the results of blocks if it computes the blocks again."""
    if recompute:
        return OUTPUTS
    return OUTPUTS | {f"layers.{{i}}.{name}" for each in p.blocks for name in block_needs(each)}


def attention_backward(
    p: Attention, x: Float[Array, "T D"], rows: Rows, saw: Kept, dy: Float[Array, "T D"], tap: Tap = silent
) -> tuple[Float[Array, "T D"], Attention]:
    """The rows of each sequence attend to those of the same sequence: y = o(attend(rope q(x), rope k(x), v(x)))."""
    dheads, o = unproject_backward(saw["heads"], p.o, tap("out", dy, "T D"))
    dheads = tap("heads", dheads, "T N H")
    q, k, v = saw["q_rope"], saw["k_rope"], saw["v"]
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    for i, (t, mask, near) in enumerate(rows.segments):
        seen = mask if near is None or p.window is None else near
        forward_tap = at(saw.tap, f"segments.{i}")
        dq[t], dk[t], dv[t] = attend_backward(q[t], k[t], v[t], seen, dheads[t], forward_tap, p.scale, p.cap)
    dq = rope_backward(tap("q_rope", dq, "T N H"), rows.positions, p.theta, p.factor)
    dk = rope_backward(tap("k_rope", dk, "T K H"), rows.positions, p.theta, p.factor)
    q_norm, k_norm = p.q_norm, p.k_norm
    if q_norm is not None and k_norm is not None:
        dq, q_norm = rms_norm_backward(q_norm, saw["q"], tap("q_norm", dq, "T N H"))
        dk, k_norm = rms_norm_backward(k_norm, saw["k"], tap("k_norm", dk, "T K H"))
    dx_q, wq = project_backward(x, p.q, tap("q", dq, "T N H"))
    dx_k, wk = project_backward(x, p.k, tap("k", dk, "T K H"))
    dx_v, wv = project_backward(x, p.v, tap("v", dv, "T K H"))
    return dx_q + dx_k + dx_v, replace(p, q=wq, k=wk, v=wv, o=o, q_norm=q_norm, k_norm=k_norm)


def mlp_backward(
    p: MLP, x: Float[Array, "T D"], saw: Kept, dy: Float[Array, "T D"], tap: Tap = silent
) -> tuple[Float[Array, "T D"], MLP]:
    """forward: y = down(gelu(gate x) * up x)."""
    dhidden, down = linear_backward(saw.take("hidden"), p.down, tap("out", dy, "T D"))
    dgate, dup = geglu_backward(saw.take("gate"), saw.take("up"), tap("hidden", dhidden, "T F"), tap)
    dx_gate, gate = linear_backward(x, p.gate, tap("gate", dgate, "T F"))
    dx_up, up = linear_backward(x, p.up, tap("up", dup, "T F"))
    return dx_gate + dx_up, MLP(gate, up, down)


def block_backward(
    p: Block, x: Float[Array, "T D"], rows: Rows, saw: Kept, dy: Float[Array, "T D"], tap: Tap = silent
) -> tuple[Float[Array, "T D"], Block]:
    """forward: mid = x + attention(norm x); y = mid + mlp(norm mid)."""
    attn, ff = saw.inside("attn"), saw.inside("mlp")
    dy = tap("out", dy, "T D")
    dh, mlp_post_norm = post_norm_backward(p.mlp_post_norm, ff, tap, "mlp_post_norm", dy)
    dh, mlp = mlp_backward(p.mlp, saw["mlp_norm"], ff, dh, at(tap, "mlp"))
    dmid, mlp_norm = rms_norm_backward(p.mlp_norm, saw["mid"], tap("mlp_norm", dh, "T D"))
    dmid = tap("mid", dy + dmid, "T D")
    dh, attn_post_norm = post_norm_backward(p.attn_post_norm, attn, tap, "attn_post_norm", dmid)
    dh, attention = attention_backward(p.attn, saw["attn_norm"], rows, attn, dh, at(tap, "attn"))
    dx, attn_norm = rms_norm_backward(p.attn_norm, x, tap("attn_norm", dh, "T D"))
    return dmid + dx, Block(attn_norm, attention, mlp_norm, mlp, attn_post_norm, mlp_post_norm)


def post_norm_backward(
    p: Norm | None, saw: Kept, tap: Tap, name: str, dy: Float[Array, "T D"]
) -> tuple[Float[Array, "T D"], Norm | None]:
    """forward: the norm of what attention or MLP wrote; that itself in a model that lacks this norm."""
    return (dy, None) if p is None else rms_norm_backward(p, saw["out"], tap(name, dy, "T D"))


def decoder_backward(
    p: Decoder, rows: Rows, saw: Kept, dy: Float[Array, "T D"], tap: Tap = silent
) -> tuple[Float[Array, "T D"], Decoder]:
    """The gradients of the embedded rows, and of blocks and norm; those of table and head, used elsewhere, are None.

    A block of which only the result was kept is computed again.
    """
    outputs = [saw["embedding"], *(saw[f"layers.{i}.out"] for i in range(len(p.blocks)))]
    dx, norm = rms_norm_backward(p.norm, outputs[-1], tap("norm", dy, "T D"))
    blocks = list(p.blocks)
    for i in reversed(range(len(blocks))):
        inside = block_again(p.blocks[i], outputs[i], rows, saw.inside(f"layers.{i}"))
        dx, blocks[i] = block_backward(p.blocks[i], outputs[i], rows, inside, dx, at(tap, f"layers.{i}"))
    unused: Gradient = None
    return dx, replace(p, embedding=unused, head=None, blocks=tuple(blocks), norm=norm)


def block_again(p: Block, x: Float[Array, "T D"], rows: Rows, saw: Kept) -> Kept:
    """What a block saw: as it was kept, or computed again under the tap of the forward pass."""
    if "mid" in saw:
        return saw
    again = saw.again(block_needs(p))
    key_heads, width, _ = p.attn.k.shape
    caches = [Cache(len(each.mask), key_heads, width, x.dtype, p.attn.window) for each in rows.segments]
    block(p, x, rows, rows, caches, again)
    return again


def logits_backward(
    p: Decoder, x: Float[Array, "T D"], dy: Float[Array, "T V"]
) -> tuple[Float[Array, "T D"], Gradient]:
    """forward: y = x head^T, soft-capped in Gemma 2. The gradient of a tied head is its share of that of the table."""
    head = p.embedding if p.head is None else p.head
    if p.cap is not None:
        dy = soft_cap_backward(linear(x, head), p.cap, dy)
    return linear_backward(x, head, dy)
