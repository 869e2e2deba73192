"""Draft a mapping file for a port, from shapes and numbers. A person corrects it before it is used.

A tensor and a tap match if their shapes fit, perhaps with the axes in a different order or with interleaved RoPE pairs,
and the cosine between them is large. The best matches are taken first, each name and each tap once.
"""

import re
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np

from npgemma.api.finite import quiet
from npgemma.golden.dump import Dump
from npgemma.golden.file import Golden
from npgemma.golden.layout import fit
from npgemma.layers.shapes import Array

# The cosine above which a tensor and a tap match: a tensor with a mistake in it should still match its tap.
ALIKE = 0.9


@quiet()  # a port's numbers may be so large that their squares overflow
def suggest_map(golden: Golden, dump: Dump) -> dict[str, Any]:
    """The content of a mapping file (see mapping): a rule for each name that matches a tap, none for the others."""
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
    """The cosine between `x` and the truth, as it is and with its axes moved, each with the keys of the rule."""
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
    """x . y / (|x| |y|) of all numbers in a row; 0 for a tensor of zeros."""
    x, y = (array.astype(np.float64).reshape(-1) for array in (x, y))
    length = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / length if length else 0.0
