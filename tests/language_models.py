"""Gemma 1, 2 and 3 as plain language models: random decoders, and their logits from one pass without a cache."""

import functools

import numpy as np
from architectures import ARCHITECTURES

from npgemma import testing
from npgemma.models.gemma import Decoder, Rows, Segment, decoder, embed_tokens, logits, new_caches

FAMILIES = ("Gemma 1", "Gemma 2", "Gemma 3")
# Longer than the window of three tokens.
IDS = np.array([2, 5, 9, 3, 4, 11, 7, 23, 8, 5, 14])


@functools.cache
def weights(family: str) -> Decoder:
    layout = ARCHITECTURES[family].layouts["hf"]
    return layout.fill(testing.layout_tensors(layout))


def whole(p: Decoder, ids: np.ndarray, dtype: str = "float64") -> np.ndarray:
    """The logits of every row: each sees itself and those before, or the last `window` of them."""
    count = len(ids)
    causal = np.tri(count, dtype=bool)
    near = p.window and causal & ~np.tri(count, k=-p.window, dtype=bool)
    rows = Rows(slice(None), np.arange(count), [Segment(slice(0, count), causal, near)])
    x = embed_tokens(p, ids, np.dtype(dtype))
    return logits(p, decoder(p, x, rows, [new_caches(p, count, x.dtype)]))
