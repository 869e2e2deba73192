"""Holds the package to its own annotations: `Float[Array, "T D"]` and its kin, on every call while the tests run.

`install` wraps every annotated function and method of the package, wherever a module has it by name. A wrapped
function binds the letters anew on each call:

- in its arguments and its result a letter is one size, a digit is itself, and `*R` is one run of leading axes;
- the kind must fit: float, int, bool, bits (uint16), weight (float, or uint16);
- a record, dataclass or NamedTuple, handed over as an argument must be of the class that is annotated, and its own
  arrays share the letters of the call: the D of a layer's weights is the D of its rows;
- a record inside a record, or any element of a sequence, has letters of its own: the D of SigLIP inside PaliGemma is
  not Gemma's, and no two prompts need have one T.

A weights class checks its fields against each other when it is made, since its constructor is an annotated function:
the projector of a PaliGemma has to end in the D of its decoder.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from npgemma.layers.tree import Slot

# These take what a user hands in, and refuse it themselves where it is wrong: only their results are held to anything.
TAKES_ANYTHING = ("npgemma.model",)

KINDS: dict[str, Callable[[np.dtype], bool]] = {
    "float": lambda dtype: dtype.kind == "f",
    "int": lambda dtype: dtype.kind in "iu",
    "bool": lambda dtype: dtype.kind == "b",
    "bits": lambda dtype: dtype == np.uint16,
    "weight": lambda dtype: dtype.kind == "f" or dtype == np.uint16,
}

Letters = dict[str, int | tuple[int, ...]]


class ShapeError(AssertionError):
    """An array is not what an annotation says. No ValueError: a test that expects one must not take this for it."""


def check(annotation: Any, value: Any, letters: Letters, where: str) -> None:
    """ShapeError unless `value` fits `annotation`; binds the letters that are new. Whatever says no shape fits."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        check_array(*annotation.__metadata__[0], value, letters, where)
    elif origin in (Union, types.UnionType):
        check_union(arguments, value, letters, where)
    elif origin is tuple and arguments[-1] is not ...:
        for i, (each, item) in enumerate(zip(arguments, value, strict=True)):
            check(each, item, letters, f"{where}[{i}]")
    elif origin in (list, tuple, Sequence):
        for i, item in enumerate(value):
            check(arguments[0], item, {}, f"{where}[{i}]")
    elif is_record(annotation):
        check_record(annotation, value, letters, where)


def check_array(kind: str, axes: str, value: Any, letters: Letters, where: str) -> None:
    if isinstance(value, Slot):
        return
    if not isinstance(value, np.ndarray | np.generic):
        raise ShapeError(f"{where} is a {type(value).__name__}, not an array")
    if not KINDS[kind](value.dtype):
        raise ShapeError(f"{where} is {value.dtype}, annotated {kind}")
    shape, names = value.shape, axes.split()
    sizes: list[int | tuple[int, ...]] = list(shape)
    if names[0].startswith("*") and len(shape) >= len(names) - 1:
        leading = len(shape) - len(names) + 1
        sizes = [shape[:leading], *shape[leading:]]
    if len(sizes) != len(names):
        raise ShapeError(f"{where} has the shape {shape}, annotated {axes!r}")
    for name, size in zip(names, sizes, strict=True):
        expected = int(name) if name.isdigit() else letters.setdefault(name, size)
        if size != expected:
            raise ShapeError(f"{where} has the shape {shape}, annotated {axes!r}, and {name} is {expected}")


def check_union(alternatives: Sequence[Any], value: Any, letters: Letters, where: str) -> None:
    if value is None and type(None) in alternatives:
        return
    for alternative in (a for a in alternatives if a is not type(None)):
        tried = dict(letters)
        try:
            check(alternative, value, tried, where)
        except ShapeError as error:
            refused = error
        else:
            letters |= tried
            return
    raise refused


def is_record(annotation: Any) -> bool:
    return isinstance(annotation, type) and (dataclasses.is_dataclass(annotation) or hasattr(annotation, "_fields"))


def check_record(record: type, value: Any, letters: Letters, where: str) -> None:
    if not isinstance(value, record):
        raise ShapeError(f"{where} is a {type(value).__module__}.{type(value).__qualname__}, annotated {record}")
    for name, annotation in get_type_hints(record, include_extras=True).items():
        own = letters if get_origin(annotation) in (Annotated, Union, types.UnionType) else {}
        check(annotation, getattr(value, name), own, f"{where}.{name}")


def is_checkable(annotation: Any) -> bool:
    """Whether the annotation holds an array's shape, or a record, somewhere."""
    return get_origin(annotation) is Annotated or is_record(annotation) or any(map(is_checkable, get_args(annotation)))


@functools.cache
def checked(function: Callable) -> Callable:
    """`function`, checking each call; itself where its annotations say no shape, or where it is checked already."""
    hints = get_type_hints(function, include_extras=True)
    result = hints.pop("return", None)
    if function.__module__ in TAKES_ANYTHING:
        hints = {}
    hints = {name: annotation for name, annotation in hints.items() if is_checkable(annotation)}
    if hasattr(function, "unchecked") or not (hints or is_checkable(result)):
        return function
    signature = inspect.signature(function)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL and name in hints:
            hints[name] = tuple[hints[name], ...]

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        letters: Letters = {}
        given = signature.bind(*args, **kwargs).arguments
        for name in [name for name in given if name in hints]:
            check(hints[name], given[name], letters, f"{function.__qualname__}: {name}")
        returned = function(*args, **kwargs)
        check(result, returned, letters, f"{function.__qualname__}: the result")
        return returned

    checking.unchecked = function
    return checking


def modules(package: str = "npgemma") -> Iterator[types.ModuleType]:
    """The package and every module in it, imported."""
    root = importlib.import_module(package)
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        yield importlib.import_module(found.name)


def homes(module: types.ModuleType) -> Iterator[tuple[Any, str, Callable]]:
    """(module or class, name, function) for every function of the package that the module holds or its classes do."""
    package = module.__name__.partition(".")[0]
    classes = [x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__]
    for home in [module, *classes]:
        for name, x in vars(home).items():
            if inspect.isfunction(x) and (home in classes or x.__module__.partition(".")[0] == package):
                yield home, name, x


def install(package: str = "npgemma") -> None:
    """Wrap all of the package. To be called before a test module takes a function of it by name."""
    for module in list(modules(package)):
        for home, name, function in list(homes(module)):
            setattr(home, name, checked(function))
