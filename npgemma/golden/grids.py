"""Which dtype holds the numbers of a tensor, however it is stored.

A .npz file cannot hold bfloat16, so its numbers come as float32 numbers whose lower 16 bits are 0.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from npgemma.golden.dump import Dump
from npgemma.golden.rounding import SIXTEEN_BITS

# So many numbers tell; fewer may be on a grid by chance, such as a factor that is a power of 2.
ENOUGH, SAMPLE = 16, 4096


def grid_of(dump: Dump, name: str) -> str:
    """'bfloat16' or 'float16' if all numbers of a tensor are of that dtype, else 'float32'; '' if they do not tell."""
    if dump.dtypes[name] in SIXTEEN_BITS:
        return dump.dtypes[name]
    x = dump[name]
    if x.dtype.kind != "f" or np.unique(x.reshape(-1)[:SAMPLE]).size < ENOUGH:
        return ""
    single = x.astype(np.float32)
    if not np.array_equal(single, x, equal_nan=True):
        return "float32"
    with np.errstate(invalid="ignore"):
        return next((dtype for dtype, grid in SIXTEEN_BITS.items() if np.array_equal(grid(single), x, True)), "float32")


def most_common(grids: Iterable[str]) -> str:
    """The dtype of more than half of those that tell; float32 if there is none."""
    counts = Counter(grid for grid in grids if grid)
    return next((grid for grid, count in counts.items() if count * 2 > counts.total()), "float32")
