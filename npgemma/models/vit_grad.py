"""The vision transformer read backwards: each function takes what its namesake in `vit` took, and dy.

See `gemma_grad` for what `saw`, `tap` and the results are.
"""

from collections.abc import Iterable

import numpy as np

from npgemma.layers.activations import Activation, activation_backward
from npgemma.layers.attention import attend_backward
from npgemma.layers.linear import (
    embed_backward,
    linear_backward,
    project_backward,
    reshaped,
    total,
    unproject_backward,
)
from npgemma.layers.losses import (
    binary_cross_entropy,
    binary_cross_entropy_backward,
    cross_entropy,
    cross_entropy_backward,
)
from npgemma.layers.norms import layer_norm_backward
from npgemma.layers.shapes import Array, Bool, Float, Int, Weight
from npgemma.layers.taps import Kept, Tap, at, silent
from npgemma.layers.tree import Gradient
from npgemma.models.vit import (
    MLP,
    Attention,
    Block,
    Head,
    PatchEmbedding,
    TokenEmbedding,
    ViT,
    block,
    every_row,
    forward,
    patches,
    sequences,
)

# What the backward pass of a block reads.
BLOCK_NEEDS = (
    *("attn_norm", "attn.q", "attn.k", "attn.v", "attn.heads"),
    *("mid", "mlp_norm", "mlp.fc1", "mlp.hidden"),
)
OUTPUTS = frozenset({"embedding", "layers.{i}.out"})


def encoder_needs(recompute: bool = False) -> frozenset[str]:
    """What the backward pass of an encoder reads; only the results of blocks if it computes the blocks again."""
    return OUTPUTS if recompute else OUTPUTS | {f"layers.{{i}}.{name}" for name in BLOCK_NEEDS}


def towers_need(recompute: bool, others: Iterable[str]) -> frozenset[str]:
    """What the backward pass of a vision and a text tower reads: what their encoders need, and `others`."""
    encoders = {f"{tower}.{name}" for tower in ("vision", "text") for name in encoder_needs(recompute)}
    return frozenset(encoders.union(others))


def attention_backward(
    p: Attention,
    x: Float[Array, "B Q D"],
    seen: Float[Array, "B P D"],
    mask: Bool[Array, "Q P"],
    saw: Kept,
    dy: Float[Array, "B Q D"],
    tap: Tap = silent,
) -> tuple[Float[Array, "B Q D"], Float[Array, "B P D"], Attention]:
    """The gradients of `x` and of `seen`, which are the same tensor in self-attention: their gradients add up."""
    q, k, v = saw["q"], saw["k"], saw["v"]
    dy = tap("out", dy, "B Q D")
    dheads, o = unproject_backward(saw["heads"], p.o, dy)
    dheads = tap("heads", dheads, "B Q N H")
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    for i in range(len(x)):
        dq[i], dk[i], dv[i] = attend_backward(q[i], k[i], v[i], mask, dheads[i], at(saw.tap, f"pictures.{i}"))
    dq, dk, dv = tap("q", dq, "B Q N H"), tap("k", dk, "B P N H"), tap("v", dv, "B P N H")
    dx, wq = project_backward(x, p.q, dq)
    dseen_k, wk = project_backward(seen, p.k, dk)
    dseen_v, wv = project_backward(seen, p.v, dv)
    biases = total(p.q_bias, dq), total(p.k_bias, dk), total(p.v_bias, dv), total(p.o_bias, dy)
    gradient = Attention(wq, biases[0], wk, biases[1], wv, biases[2], o, biases[3])
    return dx, dseen_k + dseen_v, gradient


def mlp_backward(
    p: MLP, x: Float[Array, "B P D"], act: Activation, saw: Kept, dy: Float[Array, "B P D"], tap: Tap = silent
) -> tuple[Float[Array, "B P D"], MLP]:
    """forward: y = fc2(act(fc1(x)))."""
    dy = tap("out", dy, "B P D")
    dhidden, fc2 = linear_backward(saw.take("hidden"), p.fc2, dy)
    dfc1 = tap("fc1", activation_backward(act, saw.take("fc1"), tap("hidden", dhidden, "B P F")), "B P F")
    dx, fc1 = linear_backward(x, p.fc1, dfc1)
    return dx, MLP(fc1, total(p.fc1_bias, dfc1), fc2, total(p.fc2_bias, dy))


def block_backward(
    p: Block,
    x: Float[Array, "B P D"],
    mask: Bool[Array, "P P"],
    act: Activation,
    saw: Kept,
    dy: Float[Array, "B P D"],
    tap: Tap = silent,
) -> tuple[Float[Array, "B P D"], Block]:
    """forward: mid = x + attention(norm x); y = mid + mlp(norm mid)."""
    dy = tap("out", dy, "B P D")
    dh, mlp = mlp_backward(p.mlp, saw["mlp_norm"], act, saw.inside("mlp"), dy, at(tap, "mlp"))
    dmid, mlp_norm = layer_norm_backward(p.mlp_norm, saw["mid"], tap("mlp_norm", dh, "B P D"))
    dmid = tap("mid", dy + dmid, "B P D")
    h, attn = saw["attn_norm"], saw.inside("attn", Q="P")
    dh_q, dh_kv, attention = attention_backward(p.attn, h, h, mask, attn, dmid, at(tap, "attn", Q="P"))
    dx, attn_norm = layer_norm_backward(p.attn_norm, x, tap("attn_norm", dh_q + dh_kv, "B P D"))
    return dmid + dx, Block(attn_norm, attention, mlp_norm, mlp)


def encoder_backward(
    blocks: tuple[Block, ...],
    mask: Bool[Array, "P P"],
    act: Activation,
    saw: Kept,
    dy: Float[Array, "B P D"],
    tap: Tap = silent,
    first: str = "embedding",
) -> tuple[Float[Array, "B P D"], tuple[Block, ...]]:
    """The blocks from the last to the first; `first` is the name of what the first one took.

    A block of which only the result was kept is computed again.
    """
    outputs = [saw[first], *(saw[f"layers.{i}.out"] for i in range(len(blocks)))]
    gradients = list(blocks)
    for i in reversed(range(len(blocks))):
        inside = block_again(blocks[i], outputs[i], mask, act, saw.inside(f"layers.{i}"))
        dy, gradients[i] = block_backward(blocks[i], outputs[i], mask, act, inside, dy, at(tap, f"layers.{i}"))
    return dy, tuple(gradients)


def last_rows(blocks: tuple[Block, ...], saw: Kept) -> Float[Array, "B P D"]:
    """What the last block wrote; the embedding in a model without blocks."""
    return saw[f"layers.{len(blocks) - 1}.out" if blocks else "embedding"]


def block_again(p: Block, x: Float[Array, "B P D"], mask: Bool[Array, "P P"], act: Activation, saw: Kept) -> Kept:
    """What a block saw: as it was kept, or computed again under the tap of the forward pass."""
    if "mid" in saw:
        return saw
    again = saw.again(BLOCK_NEEDS)
    block(p, x, mask, act, again)
    return again


def token_embedding_backward(
    p: TokenEmbedding, input_ids: Int[Array, "U T"], dy: Float[Array, "U T D"]
) -> TokenEmbedding:
    """forward: y[u t] = tokens[id[u t]] + position[t]. A position gets the sum over the texts."""
    tokens = embed_backward(input_ids.reshape(-1), p.tokens, dy.reshape(-1, dy.shape[-1]))
    position = np.zeros(p.position.shape, dy.dtype)
    position[: dy.shape[1]] = dy.sum(0)
    return TokenEmbedding(tokens, total(p.position, position))


def patches_backward(
    w: Weight[Array, "D C h w"], pixel_values: Float[Array, "B C Y X"], dy: Float[Array, "B P D"]
) -> Gradient:
    """forward: y = W patch. The gradient of W; pixels get none."""
    width, _, size, _ = w.shape
    _, dw = linear_backward(patches(pixel_values, size), reshaped(w, (width, -1)), dy)
    return reshaped(dw, w.shape)


def patch_embedding_backward(
    p: PatchEmbedding, pixel_values: Float[Array, "B C Y X"], dy: Float[Array, "B T D"], tap: Tap = silent
) -> PatchEmbedding:
    """forward: y = row + position, where row 0 is the class token and row 1 + i is W patch[i] + bias."""
    dpatches = tap("patches", dy[:, 1:], "B P D")
    weight = patches_backward(p.weight, pixel_values, dpatches)
    class_token, position = total(p.class_token, dy[:, 0]), total(p.position, dy)
    return PatchEmbedding(weight, total(p.bias, dpatches), class_token, position)


def forward_backward(
    p: ViT, pixel_values: Float[Array, "B C Y X"], saw: Kept, dy: Float[Array, "B A"], tap: Tap = silent
) -> ViT:
    """The gradient of the model from that of its logits. Behind the norm, only the class row of a picture is read."""
    dy = tap("logits", dy, "B A")
    dclass, weight = linear_backward(saw["class"], p.head.weight, dy)
    last = last_rows(p.blocks, saw)
    dx = np.zeros_like(last)
    dx[:, 0] = tap("class", dclass, "B D")
    dx, norm = layer_norm_backward(p.norm, last, tap("norm", dx, "B T D"))
    mask, inside = every_row(last.shape[1]), saw.under(sequences(saw.tap, "pictures", P="T"))
    dx, blocks = encoder_backward(p.blocks, mask, p.act, inside, dx, sequences(tap, "pictures", P="T"))
    embedding = patch_embedding_backward(p.embedding, pixel_values, tap("embedding", dx, "B T D"), at(tap, "embedding"))
    return ViT(embedding, blocks, p.act, norm, Head(weight, total(p.head.bias, dy)))


def loss_and_gradient(
    p: ViT,
    pixel_values: Float[Array, "B C Y X"],
    labels: Int[Array, "B"] | Bool[Array, "B V"],
    weights: Float[Array, "B"],
    smoothing: float = 0.0,
    recompute: bool = False,
    tap: Tap = silent,
) -> tuple[float, ViT]:
    """- sum over pictures of weight log p(label), and its gradient. Weights of 1/B are the mean over a batch.

    `labels` has the number of the label of each picture; or whether each label fits, of which the loss is the binary
    cross-entropy, without smoothing.
    `tap` gets the tensors of the forward pass, and gradients under `grad.`. With `recompute`, only the results of
    blocks are kept, and each block is computed again on the way back: the same bits from less memory.
    """
    saw = Kept({"class", *encoder_needs(recompute)}, tap)
    logits = forward(p, pixel_values, saw)
    if labels.ndim == 1:
        loss = cross_entropy(logits, labels, weights, smoothing)
        dlogits = cross_entropy_backward(logits, labels, weights, smoothing)
    else:
        loss = binary_cross_entropy(logits, labels, weights)
        dlogits = binary_cross_entropy_backward(logits, labels, weights)
    return loss, forward_backward(p, pixel_values, saw, dlogits, at(tap, "grad"))
