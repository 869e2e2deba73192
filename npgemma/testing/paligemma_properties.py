"""Properties that every PaliGemma has; each `check_` holds one or says which row breaks it.

What the callables take and return:

    full(row) -> logits [T V]              every row of one sequence
    decode(row, following) -> logits [n + 1 V]   prefill of the row, then a cached step for each of n following ids
    batch(rows) -> list of logits          several sequences at once
    full_at(row, first_position) -> logits [T V]
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from npgemma.checkpoints.paligemma import PaliGemmaConfig, hf_layout
from npgemma.layers.shapes import Array
from npgemma.testing.paligemma import DrawnModel, Row
from npgemma.testing.tolerances import ROUNDINGS, assert_rows_equal, tolerance

Full: TypeAlias = Callable[[Row], Array]
Decode: TypeAlias = Callable[[Row, Sequence[int]], Array]
Batch: TypeAlias = Callable[[Sequence[Row]], Sequence[Array]]
FullAt: TypeAlias = Callable[[Row, int], Array]


def check_cached_decoding(full: Full, decode: Decode, row: Row, eps: float | None = None) -> None:
    """A prefill and one cached step a token give what one pass over everything gives, the tokens as causal suffix."""
    prefix = int((row.token_type_ids == 0).sum())
    start = Row(row.input_ids[:prefix], row.token_type_ids[:prefix], row.pixel_values)
    found = np.asarray(decode(start, row.input_ids[prefix:].tolist()))
    assert_rows_equal("a cached step is not the full pass", found, np.asarray(full(row))[prefix - 1 :], eps)


def check_suffix_causality(full: Full, row: Row, eps: float | None = None) -> None:
    """No suffix token moves the logits of a row before it (PaliGemma, section 3.2.2, figure 2)."""
    expected = np.asarray(full(row))
    for t in np.flatnonzero(row.token_type_ids == 1).tolist():
        found = np.asarray(full(other_token(row, t)))
        assert_rows_equal(f"suffix token {t} is seen before its place", found[:t], expected[:t], eps)


def check_prefix_bidirectionality(full: Full, row: Row, eps: float | None = None) -> None:
    """The last prefix token moves the logits of every prefix row: they all see it (same source)."""
    last = int((row.token_type_ids == 0).sum()) - 1
    before, after = (np.asarray(full(each)) for each in (row, other_token(row, last)))
    moved = np.abs(after - before).max(-1)[:last]
    still = np.flatnonzero(moved <= tolerance(before, eps) / ROUNDINGS)
    if still.size:
        raise AssertionError(
            f"prefix row {still[0]} does not see the last prefix token: it moved by {moved[still[0]]:.3g}"
        )


def check_rows_independent(batch: Batch, rows: Sequence[Row], eps: float | None = None) -> None:
    """Sequences that run together, of any lengths, give what each gives alone."""
    for i, (together, row) in enumerate(zip(batch(rows), rows, strict=True)):
        assert_rows_equal(
            f"sequence {i} depends on its neighbours", np.asarray(together), np.asarray(batch([row])[0]), eps
        )


def check_position_shift(full_at: FullAt, row: Row, shift: int, eps: float | None = None) -> None:
    """All positions moved alike move no logit: rotary attention sees differences (RoFormer, section 3.2.2)."""
    found, expected = (np.asarray(full_at(row, first)) for first in (1 + shift, 1))
    assert_rows_equal(f"positions from {1 + shift} are not those from 1", found, expected, eps)


def check_grouped_heads(
    build: Callable[[PaliGemmaConfig, Mapping[str, Array]], Full], model: DrawnModel, row: Row, eps: float | None = None
) -> None:
    """K key heads give what N give that repeat each of them N/K times: query head n reads n // (N/K).

    `build` makes a callable of a config and tensors, which have the names that transformers 5 saves. Source: Ainslie et
    al. 2023, section 2.2.
    """
    text = model.config.text
    times = text.num_attention_heads // text.num_key_value_heads
    many = replace(model.config, text=replace(text, num_key_value_heads=text.num_attention_heads))
    repeated = {
        stored.name: np.repeat(stored.to_field(model.tensors[stored.name]), times, 0).reshape(-1, text.hidden_size)
        for stored in hf_layout(model.config).stored
        if stored.leaf.axes == "K H D"
    }
    found, expected = build(model.config, model.tensors)(row), build(many, {**model.tensors, **repeated})(row)
    assert_rows_equal("grouped key heads are not repeated ones", np.asarray(found), np.asarray(expected), eps)


def other_token(row: Row, t: int) -> Row:
    """The same row with the token at t replaced by another that is in the row or one above it."""
    ids = row.input_ids.copy()
    ids[t] = 3 if ids[t] != 3 else 4
    return row._replace(input_ids=ids)
