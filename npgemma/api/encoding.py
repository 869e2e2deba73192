"""Pictures or texts -> a row for each, some at a time, so that many need no more memory than some."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from npgemma.api.finite import computed
from npgemma.api.model import LoadedModel
from npgemma.decoding.options import require_count
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, checked

BATCH = 16  # how many pictures or texts run at a time by default


def encoded(
    model: LoadedModel[Any, Any],
    run: Callable[..., Array],
    items: Sequence[Any] | Array,
    width: int,
    batch_size: int,
    tap: Tap,
    tokens: int | None = None,
) -> Float[Array, "B E"]:
    """`run(batch, tap=tap)` for each batch of items: pictures, or texts of so many tokens.

    Raises TooLittleMemory, and BadModel as for `computed`, for the model's files too; ValueError for a batch size below
    1, TypeError for what is not a tap.
    """
    require_count("batch_size", batch_size)
    tap, at_a_time = checked(tap), min(batch_size, len(items))
    model.guard.check_memory([] if tokens is None else [tokens] * at_a_time, at_a_time if tokens is None else 0)
    rows = [np.empty((0, width), model.dtype)]
    for start in range(0, len(items), batch_size):
        model.guard.check_files()
        rows.append(computed(model, partial(run, items[start : start + batch_size]), tap))
    return np.concatenate(rows)
