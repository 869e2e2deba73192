"""Holds the package to its own annotations: `Float[Array, "T D"]` and its kin, while the tests run.

`install` wraps every annotated function and method of the package, in every module that has it by name. A wrapped
function binds the letters anew on each call, of which the first 30 in a test are checked, and then one in 16:

- in its arguments and its result a letter is one size, a digit is itself, and `*R` is one run of leading axes;
- the kind must fit: float (complex numbers count as such), int, bool, bits (uint16), weight (float, or uint16, or an
  adapted weight);
- a dataclass that is an argument must be of the annotated class, and its own arrays share the letters of the call: the
  D of a layer's weights is the D of its rows;
- a dataclass inside a dataclass, a NamedTuple, or an element of a sequence has letters of its own: the D of SigLIP
  inside PaliGemma is not Gemma's, and no two prompts need have the same T;
- an array of a dataclass may be None: a gradient has none for a weight that is frozen;
- what a generator yields, receives and returns is checked like a result, each yield with new letters.

A weights class checks its fields against each other when it is made, since its constructor is an annotated function:
the projector of a PaliGemma has to end in the D of its decoder. A Slot is checked as an array of its shape; a Slot
without a shape fits every annotation of an array.

Annotations are compiled once. A frozen dataclass cannot change, so what its arrays bind is kept as long as it lives:
the weights of a whole model are walked once, not on every call.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import types
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from npgemma.layers.linear import AdaptedRows, AdaptedWeight
from npgemma.layers.tree import Slot

# The methods of this module take what a user gives and refuse it themselves if it is wrong: only their results are
# checked.
TAKES_ANYTHING = ("npgemma.api.vision_language",)

# The characters of the dtypes of each kind.
FLOATS, WHOLE = np.typecodes["AllFloat"], np.typecodes["AllInteger"]
KINDS = {"float": FLOATS, "int": WHOLE, "bool": "?", "bits": "H", "weight": FLOATS + "H"}

# The first so many calls of a function in a test are checked, and one in so many after them: a test that runs a model
# for many steps calls each function with the same shapes thousands of times.
ALWAYS, EVERY = 30, 16

Letters = dict[str, int | tuple[int, ...]]
# Raises ShapeError unless a value fits; binds the letters that are new.
Checker = Callable[[Any, Letters], None]


class ShapeError(AssertionError):
    """An array is not what an annotation says. No ValueError: a test that expects one must not take this for it."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(f"{where} {what}")
        self.what, self.where = what, where

    def within(self, outer: str) -> "ShapeError":
        return ShapeError(self.what, outer + self.where)


@functools.cache
def checker(annotation: Any) -> Checker | None:
    """What checks values of an annotation; None if the annotation holds neither the shape of an array nor a record."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return array_checker(*annotation.__metadata__[0])
    if origin in (Union, types.UnionType):
        return union_checker(arguments)
    if origin is tuple and arguments[-1] is not ...:
        return tuple_checker([checker(each) for each in arguments])
    if origin in (list, tuple, Sequence):
        return sequence_checker(checker(arguments[0]))
    if dataclasses.is_dataclass(annotation):
        return functools.partial(check_dataclass, annotation)
    if hasattr(annotation, "_fields"):
        return functools.partial(check_named_tuple, annotation)
    return None


def array_checker(kind: str, axes: str) -> Checker:
    dtypes, names, leading = KINDS[kind], axes.split(), axes.startswith("*")
    wanted = [(name, int(name) if name.isdigit() else None) for name in names]

    def check(value: Any, letters: Letters) -> None:
        if type(value) is not np.ndarray:  # the usual case first: this runs for every array of every call
            if kind == "weight" and isinstance(value, AdaptedWeight | AdaptedRows):
                if value.base is None:
                    return
                value = value.base
            if not isinstance(value, np.ndarray | np.generic | Slot):
                raise ShapeError(f"is a {type(value).__name__}, not an array")
            if isinstance(value, Slot) and value.shape is None:
                return
        if type(value) is not Slot and value.dtype.char not in dtypes:
            raise ShapeError(f"is {value.dtype}, annotated {kind}")
        shape = sizes = value.shape
        if leading and len(shape) >= len(names) - 1:
            run = len(shape) - len(names) + 1
            sizes = (shape[:run], *shape[run:])
        if len(sizes) != len(names):
            raise ShapeError(f"has the shape {shape}, annotated {axes!r}")
        for (name, number), size in zip(wanted, sizes, strict=True):
            expected = letters.setdefault(name, size) if number is None else number
            if size != expected:
                raise ShapeError(f"has the shape {shape}, annotated {axes!r}, and {name} is {expected}")

    return check


def union_checker(alternatives: Sequence[Any]) -> Checker | None:
    """The value must fit one alternative, or be of its class if it says no shape."""
    if not any(map(checker, alternatives)):
        return None
    checkers = [checker(each) or functools.partial(check_class, each) for each in alternatives]

    def check(value: Any, letters: Letters) -> None:
        errors = []
        for check_one in checkers:
            tried = dict(letters)
            try:
                check_one(value, tried)
            except ShapeError as error:
                errors.append(error.with_traceback(None))  # its frames would keep the value alive
            else:
                letters |= tried
                return
        raise errors[0]

    return check


def check_class(wanted: Any, value: Any, letters: Letters) -> None:
    if isinstance(wanted, type) and not isinstance(value, wanted):
        raise ShapeError(f"is a {type(value).__module__}.{type(value).__qualname__}, annotated {wanted}")


def tuple_checker(checkers: Sequence[Checker | None]) -> Checker | None:
    def check(value: Any, letters: Letters) -> None:
        for i, (check_one, item) in enumerate(zip(checkers, value, strict=True)):
            if check_one:
                located(check_one, item, letters, f"[{i}]")

    return check if any(checkers) else None


def sequence_checker(check_one: Checker | None) -> Checker | None:
    def check(value: Any, letters: Letters) -> None:
        for i, item in enumerate(value):
            located(check_one, item, {}, f"[{i}]")

    return check if check_one else None


@functools.cache
def fields_of(record: type) -> list[tuple[str, bool, Checker]]:
    """The name of each field to check, whether it shares the letters of the record, and its checker."""
    return [
        (name, get_origin(annotation) in (Annotated, Union, types.UnionType), check_one)
        for name, annotation in get_type_hints(record, include_extras=True).items()
        if (check_one := checker(annotation))
    ]


def check_fields(record: type, value: Any, letters: Letters) -> None:
    check_class(record, value, letters)
    for name, shares, check_one in fields_of(record):
        if getattr(value, name) is not None:
            located(check_one, getattr(value, name), letters if shares else {}, f".{name}")


def check_named_tuple(record: type, value: Any, letters: Letters) -> None:
    check_fields(record, value, {})


# What the arrays of each living frozen dataclass bind, by its id.
bound: dict[int, Letters] = {}


def check_dataclass(record: Any, value: Any, letters: Letters) -> None:
    if not record.__dataclass_params__.frozen:
        check_fields(record, value, letters)
        return
    check_class(record, value, letters)
    if id(value) not in bound:
        own: Letters = {}
        check_fields(record, value, own)
        bound[id(value)] = own
        weakref.finalize(value, bound.pop, id(value)).atexit = False
    if any(letters.setdefault(name, size) != size for name, size in bound[id(value)].items()):
        check_fields(record, value, letters)  # which says where


def located(check_one: Checker, value: Any, letters: Letters, where: str) -> None:
    """Check `value`, which is `where` in something larger: an error says so."""
    try:
        check_one(value, letters)
    except ShapeError as error:
        raise error.within(where) from None


# How many calls of each function this test has made.
counts: list[list[int]] = []


def begin_test() -> None:
    """Count the calls of each function from 0 again."""
    for count in counts:
        count[0] = 0


@functools.cache
def checked(function: Callable) -> Callable:
    """`function`, checking each call; itself if its annotations say no shape, or if it is checked already."""
    if hasattr(function, "unchecked"):
        return function
    hints = get_type_hints(function, include_extras=True)
    result = hints.pop("return", None)
    title = function.__qualname__
    arguments = [
        (i, name, check_one, f"{title}: {name}")
        for i, name in enumerate(inspect.signature(function).parameters)
        if name in hints and function.__module__ not in TAKES_ANYTHING and (check_one := checker(hints[name]))
    ]
    makes_gradients, unset = function.__name__ == "__init__", object()  # some arrays of a gradient may be None
    of_result, of_generator = checker(result), generator_checkers(result)
    if not (arguments or of_result or of_generator):
        return function

    count = [0]
    counts.append(count)

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] > ALWAYS and count[0] % EVERY:
            return function(*args, **kwargs)
        letters: Letters = {}
        for i, name, check_one, where in arguments:
            try:
                value = args[i] if i < len(args) else kwargs.get(name, unset)
                if value is not unset and (value is not None or not makes_gradients):
                    check_one(value, letters)
            except ShapeError as error:
                raise error.within(where) from None
        returned = function(*args, **kwargs)
        if of_result:
            located(of_result, returned, letters, f"{title}: the result")
        return relay(returned, of_generator, letters, title) if of_generator else returned

    checking.unchecked = function  # type: ignore[attr-defined]
    return checking


def generator_checkers(annotation: Any) -> list[Checker | None]:
    """What checks the yields, what is sent and the result of a generator; empty for anything else."""
    checkers = [checker(each) for each in get_args(annotation)] if get_origin(annotation) is Generator else []
    return checkers if any(checkers) else []


def relay(inner: Generator, checkers: list[Checker | None], letters: Letters, title: str) -> Generator:
    """The same generator with its traffic checked; letters are those of the call."""
    yielded, sent, returned = checkers
    value = None
    while True:
        try:
            given = inner.send(value)
        except StopIteration as end:
            if returned:
                located(returned, end.value, dict(letters), f"{title}: the result")
            return end.value
        if yielded:
            located(yielded, given, dict(letters), f"{title}: the yield")
        value = yield given
        if sent and value is not None:
            located(sent, value, dict(letters), f"{title}: what is sent")


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
