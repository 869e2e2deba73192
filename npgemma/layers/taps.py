"""Taps: access to the tensors inside a model while it computes.

Every tensor worth comparing passes through `tap(name, tensor, axes)` on the line that makes it, and the model continues
with what the tap returns. So a tap can record, round or replace a tensor. The default, `silent`, does nothing.

    >>> import numpy as np
    >>> from npgemma.layers.activations import geglu
    >>> taps = Recorder("act")
    >>> y = geglu(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), taps)
    >>> taps["act"].shape, taps.axes["act"]
    ((2, 3), 'T F')
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from fnmatch import fnmatchcase
from typing import Any, Protocol

import numpy as np

from npgemma.layers.shapes import Array


class Tap(Protocol):
    """`axes` has a letter of the alphabet in `shapes` for each axis of `x`: "T N H"."""

    def __call__(self, name: str, x: Array, axes: str, /) -> Array: ...


def silent(name: str, x: Array, axes: str) -> Array:
    """The tap that does nothing."""
    return x


def at(tap: Tap, scope: str, **letters: str) -> Tap:
    """`tap`, called with `scope.` before every name. `letters` rename axes: N="K" turns "T N H" into "T K H"."""
    if tap is silent:
        return silent
    if isinstance(tap, Kept | Renamed):
        return tap.at(scope, letters)
    renamed = str.maketrans(letters)
    return lambda name, x, axes: tap(f"{scope}.{name}", x, axes.translate(renamed))


class Renamed:
    """`tap`, called with "new." in place of "old." in names, and with renamed letters in axes."""

    def __init__(self, tap: Tap, old: str, new: str, letters: Mapping[str, str]) -> None:
        self.tap, self.old, self.new, self.letters = tap, old, new, letters
        self.renamed = str.maketrans(dict(letters))

    def __call__(self, name: str, x: Array, axes: str) -> Array:
        return self.tap(name.replace(f"{self.old}.", f"{self.new}."), x, axes.translate(self.renamed))

    def at(self, scope: str, letters: Mapping[str, str]) -> Tap:
        """The tap of a part of the model: silent if `tap` is, there."""
        part = at(self.tap, f"{scope}.".replace(f"{self.old}.", f"{self.new}.").removesuffix("."))
        both = {**self.letters, **{old: self.letters.get(new, new) for old, new in letters.items()}}
        return part if part is silent else Renamed(part, self.old, self.new, both)


class Kept:
    """A tap that keeps a reference to each tensor that the backward pass needs: `saw["mid"]`, `saw.at("attn")["q"]`.

    `needs` has the full names of these tensors, with `{i}` for any number. `tap` comes first: what it returns is what
    the model continues with, and is what is kept. Nobody may write to a tensor that has passed a tap.
    """

    def __init__(self, needs: Iterable[str], tap: Tap = silent) -> None:
        self.needs = frozenset(needs)
        self.parts = {name[: i + 1] for name in self.needs for i, letter in enumerate(name) if letter == "."}
        self.tap = tap
        self.scope = ""
        self.tensors: dict[str, np.ndarray] = {}

    def __call__(self, name: str, x: Array, axes: str) -> Array:
        x = self.tap(name, x, axes)
        if numbered(self.scope + name) in self.needs:
            self.tensors[self.scope + name] = x
        return x

    def __getitem__(self, name: str) -> Array:
        return self.tensors[self.scope + name]

    def __contains__(self, name: str) -> bool:
        return self.scope + name in self.tensors

    def take(self, name: str) -> Array:
        """The tensor, which is forgotten: nobody else needs it, and its memory is free once it has been used."""
        return self.tensors.pop(self.scope + name)

    def inside(self, scope: str, **letters: str) -> "Kept":
        """What was kept of a part of the model, and the tap of that part."""
        part = copy(self)
        part.tap = at(self.tap, scope, **letters)
        part.scope = f"{self.scope}{scope}."
        return part

    def at(self, scope: str, letters: Mapping[str, str]) -> Tap:
        """The tap of a part of the model: only `tap` itself if nothing of the part is needed."""
        part = self.inside(scope, **letters)
        return part if numbered(part.scope) in self.parts else part.tap

    def under(self, tap: Tap) -> "Kept":
        """The same tensors, which passed `tap` in the forward pass."""
        part = copy(self)
        part.tap = tap
        return part

    def again(self, needs: Iterable[str]) -> "Kept":
        """A tap that keeps more of the same part, for computing the part again; the names in `needs` are the part's."""
        return Kept(needs, self.tap)


@functools.cache
def numbered(name: str) -> str:
    """The name with `{i}` in place of each number between its dots."""
    return ".".join("{i}" if part.isdecimal() else part for part in name.split("."))


def checked(tap: Callable[..., Any]) -> Tap:
    """A tap that a user wrote, as `(name, x, axes)` or `(name, x)`, with its results checked.

    Raises TypeError at once if the tap takes other parameters, and while the model runs if it returns anything but an
    array of the shape and dtype of its argument.
    """
    if tap is silent:
        return silent
    takes_axes, takes_name = (fits(tap, *arguments) for arguments in (("", None, ""), ("", None)))
    if not takes_axes and not takes_name:
        raise TypeError(f"{tap!r} is not a tap: it must take (name, x, axes) and return x, or an array like it")

    def call(name: str, x: Array, axes: str) -> Array:
        y = tap(name, x, axes) if takes_axes else tap(name, x)
        if not isinstance(y, np.ndarray) or y.shape != x.shape or y.dtype != x.dtype:
            found = f"{y.dtype} {list(y.shape)}" if isinstance(y, np.ndarray) else type(y).__name__
            raise TypeError(f"the tap returned {found} for {name}, which is {x.dtype} {list(x.shape)}")
        return y

    return call


def fits(f: Callable[..., Any], *arguments: object) -> bool:
    """Whether `f` can be called with these arguments."""
    try:
        inspect.signature(f).bind(*arguments)
    except TypeError:
        return False
    return True


class Recorder(Mapping[str, np.ndarray]):
    """A tap that keeps a copy of each tensor whose name matches a pattern, in the order of computation.

    Parameters
    ----------
    *patterns
        Shell globs: `*` matches any run of characters, dots included. Without a pattern, everything is kept.

    Attributes
    ----------
    axes : dict of str to str
        The axes of each tensor that was kept, such as "T N H".

    Notes
    -----
    A recorder is a mapping from names to arrays. A repeated name, such as in a decode step after the prefill, replaces
    the earlier tensor.

    Examples
    --------
    >>> import npgemma
    >>> model = npgemma.load()
    >>> inputs = model.processor([npgemma.sample_picture()], ["caption en"])
    >>> taps = npgemma.Recorder("text.layers.3.attn.q_rope", "projector")
    >>> logits = model.forward(inputs.input_ids[0], inputs.pixel_values, tap=taps)
    >>> taps.axes
    {'projector': 'B P D', 'text.layers.3.attn.q_rope': 'T N H'}
    """

    def __init__(self, *patterns: str) -> None:
        self.patterns = patterns or ("*",)
        self.tensors: dict[str, np.ndarray] = {}
        self.axes: dict[str, str] = {}

    def __call__(self, name: str, x: Array, axes: str) -> Array:
        if any(fnmatchcase(name, pattern) for pattern in self.patterns):
            self.tensors[name] = x.copy()
            self.axes[name] = axes
        return x

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)
