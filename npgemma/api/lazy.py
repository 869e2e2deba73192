"""What an object computes when it is first asked for, and then keeps."""

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, overload

Value = TypeVar("Value")


class lazy(Generic[Value]):  # noqa: N801 - a decorator
    """As functools.cached_property, without the lock that this holds in Python 3.11.

    A process that forks while one of its threads computes would leave the lock held in its child for good. Two threads
    may compute at the same time, and both get what the first one to finish has.
    """

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self.compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...

    def __get__(self, instance: object | None, owner: type) -> Self | Value:
        """The value, which from now on stands in the object's dictionary and is found there."""
        if instance is None:
            return self
        found: Value = vars(instance).setdefault(self.name, self.compute(instance))
        return found
