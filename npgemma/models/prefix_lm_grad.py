"""The loss of a language model on prompts whose tokens it should predict, and its gradient.

    loss = - sum over learned tokens t of weights[t] log p(token t | the tokens before it)

The weights say which mean the loss is. By token: 1 / the number of learned tokens of the whole batch, as transformers
counts. By example: 1 / (the number of examples x the learned tokens of this one), as big_vision counts. A batch that is
cut into parts has the weights of the whole batch, so that the gradients of its parts add up to its own.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from npgemma.layers.linear import embed_backward
from npgemma.layers.losses import cross_entropy, cross_entropy_backward
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Kept, Tap, at, silent
from npgemma.layers.tree import Gradient
from npgemma.models.gemma import Decoder, decoder, logits, new_caches
from npgemma.models.gemma_grad import decoder_backward, decoder_needs, logits_backward
from npgemma.models.prefix_lm import Prompt, lay_out

# Logits that are held at a time: 256 rows of 257,216 tokens would take 263 MB in float32.
MOST_LOGITS = 1 << 22


class Learned(NamedTuple):
    """The rows from which a token is predicted, the tokens, and their weights in the loss."""

    rows: Int[Array, "T"]
    targets: Int[Array, "T"]
    weights: Float[Array, "T"]


def learned_rows(prompts: Sequence[Prompt], weights: Sequence[Float[Array, "T"]]) -> Learned:
    """Row t - 1 of a sequence predicts its token t. ValueError if a sequence's first token has a weight."""
    parts, start = [], 0
    for prompt, each in zip(prompts, weights, strict=True):
        if each[0]:
            raise ValueError("the first token of a sequence has a weight in the loss, but no row predicts it")
        tokens = np.flatnonzero(each)
        parts.append(Learned(start + tokens - 1, prompt.input_ids[tokens], each[tokens]))
        start += len(each)
    return Learned(*map(np.concatenate, zip(*parts, strict=True)))


def token_loss(
    p: Decoder, x: Float[Array, "T D"], learned: Learned, smoothing: float = 0.0, tap: Tap = silent
) -> tuple[float, Float[Array, "T D"], Gradient]:
    """The loss of the hidden states x, dx, and the gradient of the head.

    Only rows that predict a learned token meet the head, some at a time, each block forwards and backwards.
    """
    height = max(1, MOST_LOGITS // len(p.embedding))
    loss, dx, dhead = 0.0, np.zeros_like(x), None
    for start in range(0, len(learned.rows), height):
        rows, targets, weights = (each[start : start + height] for each in learned)
        y = tap("logits", logits(p, x[rows], at(tap, "logits")), "T V")
        loss += cross_entropy(y, targets, weights, smoothing)
        dx[rows], dw = logits_backward(p, x[rows], cross_entropy_backward(y, targets, weights, smoothing))
        dhead = dw if dhead is None or dw is None else dhead + dw
    return loss, dx, dhead


def loss_and_gradient(
    p: Decoder,
    prompts: Sequence[Prompt],
    weights: Sequence[Float[Array, "T"]],
    smoothing: float = 0.0,
    recompute: bool = False,
    tap: Tap = silent,
) -> tuple[float, list[Float[Array, "R D"]], Decoder]:
    """The loss, the gradient of the soft rows of each prompt, and that of the weights.

    `tap` gets the tensors of the forward pass, and gradients under `grad.`. With `recompute`, only the results of
    blocks are kept, and each block is computed again on the way back: the same bits from less memory.
    """
    saw = Kept((f"text.{name}" for name in decoder_needs(p, recompute)), tap)
    caches = [new_caches(p, len(prompt.input_ids), prompt.dtype) for prompt in prompts]
    embedded, rows = lay_out(p, prompts, saw)
    hidden = decoder(p, embedded, rows, caches, tap=at(saw, "text"))
    loss, dy, dhead = token_loss(p, hidden, learned_rows(prompts, weights), smoothing, tap)
    dx, gradient = decoder_backward(p, rows, saw.inside("text"), dy, at(tap, "grad.text"))
    dx = at(tap, "grad.text")("embedding", dx, "T D")
    soft = np.concatenate([prompt.is_soft for prompt in prompts])
    ends = np.cumsum([prompt.is_soft.sum() for prompt in prompts])
    ids = np.concatenate([prompt.input_ids for prompt in prompts])[~soft]
    dtable = embed_backward(ids, p.embedding, dx[~soft] * np.asarray(math.sqrt(dx.shape[1]), dx.dtype))
    if p.head is None:  # one table, used twice
        dtable, dhead = (None, None) if dtable is None else (dtable + dhead, None)
    return loss, np.split(dx[soft], ends[:-1]), replace(gradient, embedding=dtable, head=dhead)
