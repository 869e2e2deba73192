"""Taps: how one looks into the model while it computes.

Every tensor worth comparing passes through `tap(name, tensor)` on the line that makes it, and what the tap returns is
what the model goes on with. So a tap can record, round or replace. The default, `silent`, does nothing.

    >>> taps = Recorder("text.layers.3.*")
    >>> model.forward(ids, pixels, tap=taps)
    >>> taps["text.layers.3.attn.q"].shape
"""

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase

import numpy as np

from npgemma.layers.shapes import Array

Tap = Callable[[str, Array], Array]


def silent(name: str, x: Array) -> Array:
    """The tap that does nothing."""
    return x


def at(tap: Tap, scope: str) -> Tap:
    """`tap`, hearing every name with `scope.` before it."""
    return tap if tap is silent else lambda name, x: tap(f"{scope}.{name}", x)


class Recorder(Mapping[str, np.ndarray]):
    """A tap that keeps a copy of each tensor whose name matches one of `patterns`, in the order they were computed.

    A pattern is a shell glob: `*` matches any run of characters, dots included. With no pattern, everything is kept.
    A name that comes again (a decode step after the prefill) replaces the earlier tensor.
    """

    def __init__(self, *patterns: str) -> None:
        self.patterns = patterns or ("*",)
        self.tensors: dict[str, np.ndarray] = {}

    def __call__(self, name: str, x: Array) -> Array:
        if any(fnmatchcase(name, pattern) for pattern in self.patterns):
            self.tensors[name] = x.copy()
        return x

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
