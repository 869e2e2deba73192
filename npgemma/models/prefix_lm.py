"""Gemma as a prefix language model: prompts in, the logits of the next token out.

    input_ids --> embedding table, scaled --.
                                            |-- one row a token --> Gemma --> logits --> the next token
    soft_rows (pictures), unscaled ---------'                        ^                         |
                                                                     '------- one step --------'

A prompt is [prefix | suffix]. The prefix attends to all of itself, the suffix is causal (PaliGemma, Beyer et al. 2024,
section 3.2, figure 2). A plain language model is the case without a prefix: its prompts are suffix only. Rows that do
not come from the embedding table, such as those of pictures, are soft.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from npgemma.layers.shapes import Array, Bool, Float, Int
from npgemma.layers.taps import Tap, at, silent
from npgemma.models.gemma import Cache, Decoder, Rows, Segment, decoder, embed_tokens, last_rows, logits, new_caches


class Prompt(NamedTuple):
    """One sequence to start from: ids, the type of each (0 prefix, 1 suffix), and the rows of those that are soft.

    The dtype of the soft rows is that of the run, also if there are none of them.
    """

    input_ids: Int[Array, "T"]
    token_type_ids: Int[Array, "T"]
    is_soft: Bool[Array, "T"]
    soft_rows: Float[Array, "R D"]

    @property
    def dtype(self) -> np.dtype:
        return self.soft_rows.dtype


def causal_prompt(p: Decoder, input_ids: Int[Array, "T"], dtype: np.dtype) -> Prompt:
    """The prompt of a plain language model: suffix only, and no token is soft."""
    no_rows = np.empty((0, p.embedding.shape[1]), dtype)
    return Prompt(input_ids, np.ones_like(input_ids), np.zeros(len(input_ids), bool), no_rows)


def followed_by(prompt: Prompt, answer: Int[Array, "S"]) -> Prompt:
    """The prompt and an answer to it: more suffix."""
    return prompt._replace(
        input_ids=np.concatenate([prompt.input_ids, answer]),
        token_type_ids=np.concatenate([prompt.token_type_ids, np.ones_like(answer)]),
        is_soft=np.concatenate([prompt.is_soft, np.zeros(len(answer), bool)]),
    )


def prefix_lm_mask(token_type_ids: Int[Array, "T"], window: int | None = None) -> Bool[Array, "T T"]:
    """t may look at s if s is not after t, and less than `window` before it; or if both are prefix (type 0).

    Source: PaliGemma (Beyer et al. 2024), section 3.2, figure 2. That the prefix overrides the window is what
    transformers does; big_vision trained PaliGemma 2 without windows.
    """
    t = np.arange(len(token_type_ids))
    prefix = token_type_ids == 0
    mask = within(t, t, window)
    mask |= prefix & prefix[:, None]
    return mask


def within(t: Int[Array, "T"], s: Int[Array, "S"], window: int | None) -> Bool[Array, "T S"]:
    """Row t may look at row s if s is not after t, and less than `window` before it."""
    mask = s <= t[:, None]
    if window is not None:
        mask &= s > t[:, None] - window
    return mask


def embed_prompt(p: Decoder, prompt: Prompt, tap: Tap = silent) -> Float[Array, "T D"]:
    """Tokens are looked up and scaled; the soft ones become the soft rows, in order and unscaled.

    Raises ValueError unless there are as many soft rows as soft tokens.
    """
    ids, _, is_soft, soft_rows = prompt
    if is_soft.sum() != len(soft_rows):
        raise ValueError(f"the prompt has {is_soft.sum()} soft tokens and {len(soft_rows)} soft rows")
    x = np.empty((len(ids), soft_rows.shape[1]), prompt.dtype)
    x[is_soft] = soft_rows
    x[~is_soft] = embed_tokens(p, ids[~is_soft], prompt.dtype, tap)
    return x


def lay_out(p: Decoder, prompts: Sequence[Prompt], tap: Tap = silent) -> tuple[Float[Array, "T D"], Rows]:
    """All prompts concatenated: their embeddings, and which rows belong together."""
    ends = np.cumsum([len(prompt.input_ids) for prompt in prompts])
    segments, positions, embeddings, window = [], [], [], p.window
    for i, (prompt, end) in enumerate(zip(prompts, ends.tolist(), strict=True)):
        prompt_tap = at(tap, f"prompts.{i}")
        ids = prompt_tap("input_ids", prompt.input_ids, "T")
        types = prompt_tap("token_type_ids", prompt.token_type_ids, "T")
        mask = prompt_tap("mask", prefix_lm_mask(types), "T S")
        near = None if window is None else prompt_tap("near", prefix_lm_mask(types, window), "T S")
        segments.append(Segment(slice(end - len(ids), end), mask, near))
        positions.append(p.first_position + np.arange(len(ids)))
        embeddings.append(embed_prompt(p, prompt._replace(input_ids=ids), at(tap, "text")))
    x = tap("text.embedding", np.concatenate(embeddings), "T D")
    return x, Rows(slice(None), tap("positions", np.concatenate(positions), "T"), segments)


def prefill(
    p: Decoder,
    prompts: Sequence[Prompt],
    caches: Sequence[Sequence[Cache]],
    tap: Tap = silent,
) -> Float[Array, "T D"]:
    """Run whole prompts through the decoder: fills their caches, and returns the hidden states of all their rows."""
    x, rows = lay_out(p, prompts, tap)
    return decoder(p, x, rows, caches, tap=at(tap, "text"))


def start(
    p: Decoder,
    prompts: Sequence[Prompt],
    caches: Sequence[Sequence[Cache]],
    tap: Tap = silent,
) -> Float[Array, "B V"]:
    """Fill the caches of B prompts; returns the logits of the token after each.

    In the last layer, only the last row of each prompt is computed beyond its keys and values.
    """
    x, rows = lay_out(p, prompts, tap)
    x = decoder(p, x, rows, caches, last_rows(rows), at(tap, "text"))
    return tap("logits", logits(p, x, at(tap, "logits")), "B V")


def step(
    p: Decoder,
    input_ids: Int[Array, "T"],
    caches: Sequence[Sequence[Cache]],
    tap: Tap = silent,
    counts: Sequence[int] | None = None,
) -> Float[Array, "T V"]:
    """Add tokens to sequences; returns the logits of the token after each of them, in the dtype of the caches.

    `counts` says how many of the ids each sequence gets, by default one. A token attends to everything cached and to
    the tokens of its own sequence up to itself, or to the last of these where a layer has a window.
    """
    segments, positions, end = [], [], 0
    for sequence, count in zip(caches, counts or [1] * len(caches), strict=True):
        before, end = sequence[0].length, end + count
        t, s = np.arange(before, before + count), np.arange(before + count)
        segments.append(Segment(slice(end - count, end), within(t, s, None), within(t, s, p.window)))
        positions.append(p.first_position + t)
    rows = Rows(slice(None), tap("positions", np.concatenate(positions), "T"), segments)
    x = embed_tokens(p, tap("input_ids", input_ids, "T"), caches[0][0].keys.dtype, at(tap, "text"))
    x = tap("text.embedding", x, "T D")
    x = decoder(p, x, rows, caches, tap=at(tap, "text"))
    return tap("logits", logits(p, x, at(tap, "logits")), "B V")


def forward(p: Decoder, prompt: Prompt, tap: Tap = silent) -> Float[Array, "T V"]:
    """The logits of every row of one sequence in one pass, as in training; its caches are dropped."""
    caches = [new_caches(p, len(prompt.input_ids), prompt.dtype)]
    return tap("logits", logits(p, prefill(p, [prompt], caches, tap), at(tap, "logits")), "T V")
