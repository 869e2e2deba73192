"""LoRA adapters merged into the weights that they were trained on.

    W' = W + scale B A                                          Hu et al. 2021 (arXiv:2106.09685), section 4.1
    W' = m (W + scale B A) / ||W + scale B A||                  DoRA: Liu et al. 2024 (arXiv:2402.09353), equation 5

The norm is that of each row of a matrix [out, in]; in PEFT, that of each column of an embedding table.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches

import numpy as np

from npgemma.checkpoints.adapter import FLOAT64, Adapter, LowRank, Rows
from npgemma.errors import BadModel, listed
from npgemma.layers.bits import widened
from npgemma.layers.packed import BLOCK, row_blocks
from npgemma.layers.shapes import Array, Float
from npgemma.layers.threads import in_parallel

# The most names that one error lists.
MOST_NAMED = 5


def prepared(tensors: Mapping[str, Array], adapter: Adapter) -> dict[str, Array]:
    """All tensors, with table and head as the adapter needs them: of its size, and two if they become different.

    As in PEFT, an adapter that changes only the table leaves a tied head unchanged, but rows of certain tokens change
    in both. BadModel if table and head would have different numbers of rows, or if the order of changes would matter.
    """
    table, head = adapter.names.table, adapter.names.head
    whole, tables, is_tied = dict(tensors), dict(adapter.tables), head not in tensors
    changed = {*adapter.added, *adapter.replaced}
    if adapter.rows.keys() & changed or (is_tied and table in adapter.rows and head in changed):
        what = "trainable_token_indices together with another change of the same table or of the head tied to it"
        raise BadModel(f"{adapter.path}: {what} is not supported")
    if is_tied and head in tables and np.array_equal(tables[head], tables.get(table, tables[head])):
        tables[table] = tables.pop(head)  # tied: one matrix under two names
    for name, x in tables.items():
        whole[name] = of_any_size(x, whole.get(name, whole[table]), name, adapter)
    if head not in whole and (changed & {head, table} or head in adapter.rows):
        whole[head] = whole[table]
    for name in {head, table} & adapter.replaced.keys():
        whole[name] = of_any_size(adapter.replaced[name], whole[name], name, adapter)
    for name in {head, table} & adapter.rows.keys():
        whole[name] = grown(whole[name], adapter.rows[name], adapter)
    rows = {name: len(whole[name]) for name in (table, head) if name in whole}
    if len({*rows.values()}) > 1:
        sizes = ", ".join(f"{name} has {count} rows" for name, count in rows.items())
        raise BadModel(f"{adapter.path}: {sizes}; save the adapter with save_embedding_layers=True, which saves both")
    return whole


def of_any_size(new: Array, old: Array, name: str, adapter: Adapter) -> Array:
    """The new table. BadModel unless its rows are as wide as those of the old one."""
    if new.shape[1:] != old.shape[1:]:
        raise another_model(adapter, name, old.shape, new.shape)
    return new


def grown(table: Array, rows: Rows, adapter: Adapter) -> Array:
    """The table with rows for new tokens, which `rows` must all have: those of a resized model are random."""
    new = [token for token in rows.ids.tolist() if token >= len(table)]
    if not new:
        return table
    if sorted(new) != [*range(len(table), max(new) + 1)]:
        what = f"trainable_token_indices has the new tokens {new[:MOST_NAMED]}, but the table has {len(table)} rows"
        raise BadModel(f"{adapter.path}: {what}; save the adapter with save_embedding_layers=True")
    return np.concatenate([table, np.zeros((len(new), table.shape[1]), table.dtype)])


def merged(tensors: Mapping[str, Array], adapter: Adapter, dtype: np.dtype) -> dict[str, Array]:
    """All tensors; those that the adapter changes are `dtype` and in memory. BadModel if it does not fit the model.

    `tensors` come from `prepared`.
    """
    whole = dict(tensors)
    check_fit(adapter, whole)
    for name, new in adapter.replaced.items():
        whole[name] = np.array(widened(new, dtype))  # a copy: the adapter's file may be deleted
    for name, change in adapter.added.items():
        whole[name] = updated(whole[name], change, dtype)
    for name, rows in adapter.rows.items():
        whole[name] = np.array(widened(whole[name], dtype))
        whole[name][rows.ids] = rows.values
    for name, shift in adapter.shifts.items():
        whole[name] = (widened(whole[name], FLOAT64) + shift).astype(dtype)
    return whole


def check_fit(adapter: Adapter, tensors: Mapping[str, Array]) -> None:
    """BadModel if a tensor that the adapter changes has another shape, or does not exist; with names that are alike."""
    shapes = [(name, x.shape) for each in (adapter.replaced, adapter.added, adapter.shifts) for name, x in each.items()]
    shapes += [(name, (len(tensors.get(name, ())), *rows.values.shape[1:])) for name, rows in adapter.rows.items()]
    for name, shape in shapes:
        if name in tensors and tensors[name].shape != shape:
            raise another_model(adapter, name, tensors[name].shape, shape)
    missing = sorted({name for name, _ in shapes} - tensors.keys())
    if missing:
        like = sorted({each for name in missing[:MOST_NAMED] for each in get_close_matches(name, tensors, 1)})
        has = f"; similar names in the model: {', '.join(like)}" if like else ""
        raise BadModel(
            f"{adapter.path} changes tensors that the model does not have: {listed(missing, MOST_NAMED)}{has}"
        )


def another_model(adapter: Adapter, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> BadModel:
    return BadModel(
        f"{adapter.path} is for another model: {name} has shape {shape}, the adapter changes one of {wanted}"
    )


def updated(w: Array, change: LowRank, dtype: np.dtype) -> Array:
    """W + scale B A, or DoRA's formula, computed in float64 and rounded once, a block of rows at a time."""
    a, b, scale, _, magnitude = change
    y, matrix = np.empty(w.shape, dtype), w.reshape(len(w), -1)
    out, blocks = y.reshape(matrix.shape), row_blocks(matrix, BLOCK)

    def total(rows: slice) -> Array:
        return widened(matrix[rows], FLOAT64) + scale * (b[rows] @ a)

    gain = None if magnitude is None else magnitude / norms(total, blocks, magnitude.shape[1] == 1)

    def block(rows: slice) -> None:
        out[rows] = total(rows) if gain is None else total(rows) * (gain[rows] if len(gain) > 1 else gain)

    in_parallel(block, blocks)
    return y


def norms(total: Callable[[slice], Array], blocks: list[slice], by_row: bool) -> Float[Array, "O I"]:
    """The norm of each row as [O 1], or of each column as [1 I], of a matrix that is computed in blocks of rows."""
    squares = [np.square(total(rows)).sum(int(by_row), keepdims=True) for rows in blocks]
    return np.sqrt(np.concatenate(squares) if by_row else np.sum(squares, axis=0))
