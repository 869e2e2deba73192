"""Merging an adapter into the weights that it was trained on.

    W' = W + scale B A                                        LoRA (Hu et al. 2021), A [r, in], B [out, r]
    W' = m (W + scale B A) / ||W + scale B A||                DoRA (Liu et al. 2024), the norm of each row

Sources: Hu et al. 2021 (arXiv:2106.09685), section 4.1; Liu et al. 2024 (arXiv:2402.09353), section 4.3, and
huggingface/peft, which takes the norms of an embedding table along its columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgemma.errors import BadModel
from npgemma.layers.bits import widened
from npgemma.layers.packed import BLOCK, row_blocks
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.threads import in_parallel

FLOAT64 = np.dtype(np.float64)


class LowRank(NamedTuple):
    """The update of a matrix: scale B A, and for DoRA the magnitude of each row, or of each column of a table."""

    a: Float[Array, "R I"]
    b: Float[Array, "O R"]
    scale: float
    magnitude: Float[Array, "M"] | None = None
    of_columns: bool = False


class TokenRows(NamedTuple):
    """New rows of a table: which ones, and their values."""

    tokens: Int[Array, "T"]
    values: Float[Array, "T D"]


@dataclass(frozen=True)
class Adapter:
    """By the names that transformers 5 saves: updates of matrices, tensors that replace the model's, and rows."""

    path: Path
    added: Mapping[str, LowRank]
    replaced: Mapping[str, Array]
    rows: Mapping[str, TokenRows] = field(default_factory=dict)

    @property
    def changed(self) -> set[str]:
        return {*self.added, *self.replaced, *self.rows}


def resized_rows(adapter: Adapter, tensors: Mapping[str, Array], table: str) -> int:
    """How many rows the embedding table has with the adapter, which may have been trained with more tokens."""
    new = adapter.replaced.get(table)
    return len(tensors[table]) if new is None else len(new)


def untied(tensors: Mapping[str, Array], adapter: Adapter, head: str, table: str) -> dict[str, Array]:
    """All tensors; the head is one of its own if the adapter changes a tied head or the table that it is tied to.

    `head` and `table` are their names. As in PEFT, an adapter that changes only the table leaves the head unchanged;
    but new rows of a table are the head's too, and so is a table of another size.
    """
    changed = {*adapter.added, *adapter.replaced} & {head, table} or head in adapter.rows
    if head in tensors or not changed:
        return dict(tensors)
    if head not in adapter.changed and resized_rows(adapter, tensors, table) != len(tensors[table]):
        return dict(tensors)
    return {**tensors, head: tensors[table]}


def merged(tensors: Mapping[str, Array], adapter: Adapter, dtype: np.dtype) -> dict[str, Array]:
    """All tensors; those that the adapter changes are `dtype` and in memory. BadModel if it does not fit the model.

    `tensors` come from `untied`.
    """
    whole = dict(tensors)

    def base(name: str, wanted: tuple[int, ...], grows: bool = False) -> Array:
        if name not in whole:
            raise BadModel(f"{adapter.path} changes {name}, which the model does not have")
        found = whole[name].shape
        if found != wanted and not (grows and found[1:] == wanted[1:] and found < wanted):
            raise BadModel(
                f"{adapter.path} is for another model: {name} has shape {found}, the adapter changes one of {wanted}"
            )
        return whole[name]

    for name, new in adapter.replaced.items():
        base(name, new.shape, grows="embed_tokens" in name or "lm_head" in name)
        whole[name] = np.array(widened(new, dtype))  # a copy: the adapter's file may be deleted
    for name, low in adapter.added.items():
        whole[name] = updated(base(name, (len(low.b), low.a.shape[1])), low, dtype)
    for name, (tokens, values) in adapter.rows.items():
        y = np.array(widened(base(name, (whole.get(name, values).shape[0], values.shape[1])), dtype))
        if tokens.max() >= len(y):
            raise BadModel(f"{adapter.path} changes row {tokens.max()} of {name}, which has {len(y)} rows")
        y[tokens] = values
        whole[name] = y
    return whole


def updated(w: Array, low: LowRank, dtype: np.dtype) -> Array:
    """W', computed in float64 and rounded once, a block of rows at a time."""
    y = np.empty(w.shape, dtype)
    blocks = row_blocks(w, BLOCK)
    columns = None
    if low.magnitude is not None and low.of_columns:
        squares = sum(np.square(moved(w, low, rows)).sum(0) for rows in blocks)
        columns = low.magnitude / np.sqrt(squares)

    def block(rows: slice) -> None:
        x = moved(w, low, rows)
        if columns is not None:
            x = x * columns
        elif low.magnitude is not None:
            x = x * (low.magnitude[rows] / np.sqrt(np.square(x).sum(1)))[:, None]
        y[rows] = x

    in_parallel(block, blocks)
    return y


def moved(w: Array, low: LowRank, rows: slice) -> Float[Array, "O I"]:
    """W + scale B A of some rows, in float64."""
    return widened(w[rows], FLOAT64) + low.scale * (low.b[rows] @ low.a)
