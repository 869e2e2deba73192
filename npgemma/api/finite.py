"""Runs whose numbers become NaN or infinite: one error that says why, in place of NumPy's warnings.

Infinity does not always reach the logits: where the square in a norm overflows, the row becomes 0, and all tokens are
equally likely. So an overflow that NumPy reports is followed up, too: the run is repeated with a tap that looks for
tensors whose squares overflow. An overflow without one is harmless, as in the cube of gelu.

A run whose weights change under it, in a mapped file, is an error as well, whatever its numbers are.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

import numpy as np

from npgemma.api.guard import Guard
from npgemma.checkpoints.layout import not_finite
from npgemma.decoding.loop import NotFinite
from npgemma.errors import BadModel, listed
from npgemma.layers.shapes import Array
from npgemma.layers.taps import Tap, silent
from npgemma.layers.tree import leaves

T = TypeVar("T")
MOST_NAMES = 3  # how many tensors an error names
# The same run again; it is called with `tap`.
Rerun = Callable[..., Any]


class Running(Protocol):
    """What the checks need of a model."""

    @property
    def checkpoint(self) -> ModuleType: ...

    @property
    def guard(self) -> Guard[Any]: ...

    folder: Path
    config: Any
    weights: Any
    dtype: np.dtype


class TooLarge(Exception):
    """The name of the first tap that is out of range."""


@dataclass
class Overflows:
    """Called by NumPy when a number overflows. `harmless` says that the run is known to have no tensor out of range."""

    seen: bool = False
    harmless: bool = False

    def __call__(self, kind: str, flag: int) -> None:
        self.seen = True


@contextmanager
def quiet(overflows: Overflows | None = None) -> Iterator[None]:
    """NumPy does not warn of overflow and NaN; who asked it to raise or to print still gets that."""
    modes = {kind: "ignore" for kind, mode in np.geterr().items() if mode == "warn"}
    if overflows and "over" in modes:
        modes["over"] = "call"
    with np.errstate(**modes, call=overflows):  # type: ignore[arg-type]
        yield


@contextmanager
def finite(model: Running, rerun: Rerun, overflows: Overflows | None = None) -> Iterator[None]:
    """A run of `model` without NumPy's warnings. BadModel, with the cause, for a NotFinite and for a harmful overflow.

    BadModel, too, if the weights have changed meanwhile. `rerun` is the same run with a tap.
    """
    overflows = overflows or Overflows()
    try:
        with quiet(overflows):
            yield
        model.guard.check_files()
    except (NotFinite, FloatingPointError):
        model.guard.check_files()
        error = explained(model, rerun)
        if error is None:
            raise
        raise error from None
    if overflows.seen and not overflows.harmless:
        error = explained(model, rerun)
        if error:
            raise error
        overflows.seen, overflows.harmless = False, True


def watched(model: Running, items: Iterator[T], rerun: Rerun, overflows: Overflows | None = None) -> Iterator[T]:
    """The items of a run that goes on between them, each computed in `finite`; `rerun` repeats all of it."""
    overflows = overflows or Overflows()
    while True:
        with finite(model, rerun, overflows):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def computed(model: Running, run: Callable[..., Array], tap: Tap = silent) -> Array:
    """The array that `run(tap=tap)` computes. BadModel if it is not finite, unless it is the tap that makes it so."""
    with finite(model, run):
        x = run(tap=tap)
        require_in_range(x if tap is silent or in_range(x) else run(), "the model's numbers are not finite")
    return x


def require_in_range(x: Array, message: str) -> None:
    """NotFinite if a number of `x` is NaN or infinite, or has an infinite square."""
    if not in_range(x):
        raise NotFinite(message)


def in_range(x: Array) -> bool:
    """Whether all numbers are finite and have finite squares."""
    if x.dtype.kind != "f":
        return True
    most = math.sqrt(np.finfo(x.dtype).max)
    return bool(-most <= x.min(initial=0) and x.max(initial=0) <= most)  # a minimum is NaN if any number is


def explained(model: Running, rerun: Rerun) -> BadModel | None:
    """Why a run is not finite: weights that are not, or activations that overflow. None if neither is found."""
    names = model.checkpoint.names_of(model.weights, model.config)
    # what is trained beside the model's own arrays has a path alone
    bad = not_finite({names.get(leaf.path, leaf.path): leaf.value for leaf in leaves(model.weights)})
    if bad:
        found = f"{listed(bad, MOST_NAMES)} contain{'s' * (len(bad) == 1)} NaN or infinity"
        hint = f"run 'npgemma verify {model.folder}', and download or save the model again"
        return BadModel(f"the model's weights are not finite: {found}; {hint}")
    tap = first_too_large(rerun)
    if tap is None:
        return None
    hint = "compute in float64 (--dtype float64), or " * (model.dtype.itemsize < 8)
    return BadModel(
        f"the model's weights are finite, and its activations overflow {model.dtype} at the tap {tap}; "
        f"{hint}check how the checkpoint was converted"
    )


def first_too_large(rerun: Rerun) -> str | None:
    """The name of the first tap of a run that is not in range."""

    def stop(name: str, x: Array, axes: str) -> Array:
        if not in_range(x):
            raise TooLarge(name)
        return x

    tap: Tap = stop
    try:
        with np.errstate(all="ignore"):
            rerun(tap=tap)
    except TooLarge as found:
        return str(found)
    return None
