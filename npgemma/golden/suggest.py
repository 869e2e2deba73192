"""A first mapping file for a port: which of its tensors look like which taps. A person reads it before it is used.

A tensor and a tap belong together if their shapes fit, perhaps with axes in another order or RoPE pairs side by side,
and their numbers are nearly parallel. Each takes the best that is left, the surest first.
"""

import re
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np

from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden
from npgemma.golden.mapping import fit
from npgemma.layers.shapes import Array

# The cosine above which two tensors are taken for one another: a port with a mistake should still be recognised.
ALIKE = 0.9


def suggest_map(golden: Golden, dump: Dump) -> dict[str, Any]:
    """A mapping file's content (see mapping): a rule for each name that has a likely tap; the others have none."""
    found = []
    for theirs in dump:
        x = np.asarray(dump[theirs])
        if not np.isfinite(x).all():
            continue
        for tap in golden.taps:
            truth = golden.truth[tap]
            likeness, change = max(variants(x, truth), key=lambda pair: pair[0], default=(0.0, {}))
            if likeness > ALIKE:
                found.append((likeness, -len(change), theirs, tap, change))
    rules, used = {}, set()
    for _, _, theirs, tap, change in sorted(found, key=lambda each: (-round(each[0], 6), -each[1], each[2], each[3])):
        if theirs not in rules and tap not in used:
            used.add(tap)
            rules[theirs] = {"theirs": re.escape(theirs), "ours": tap.replace("\\", r"\\"), **change}
    order = list(golden.taps)
    return {"rules": sorted(rules.values(), key=lambda rule: order.index(rule["ours"])), "ignore": [], "absent": []}


def variants(x: Array, truth: Array) -> Iterator[tuple[float, dict[str, Any]]]:
    """How much `x` is like the truth, as it is and with its axes moved, and the rule that moves them."""
    if x.size != truth.size or x.size < 2:
        return
    for order in permutations(range(x.ndim)):
        moved = fit(x.transpose(order), truth.shape)
        if moved is not None:
            change: dict[str, Any] = {} if order == tuple(range(x.ndim)) else {"transpose": list(order)}
            yield cosine(moved, truth), change
            if truth.ndim == 3 and truth.shape[-1] % 2 == 0:
                halves = np.concatenate([moved[..., 0::2], moved[..., 1::2]], -1)
                if moved.shape == x.transpose(order).shape:
                    yield cosine(halves, truth), {**change, "interleaved": True}


def cosine(x: Array, y: Array) -> float:
    x, y = (array.astype(np.float64).reshape(-1) for array in (x, y))
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / length if length else 0.0
