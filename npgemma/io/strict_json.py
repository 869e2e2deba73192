"""Strict reading of JSON files, and of their objects key by key: every error names the file and the key."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from npgemma.errors import BadModel
from npgemma.io.file_kinds import foreign_kind
from npgemma.io.regular_files import read_regular
from npgemma.io.unusable import folder_report

MAX_JSON_BYTES = 10_000_000
MOST_MARKS = {b"{": 1_000_000, b"[": 1_000_000, b",": 4_000_000}  # a tokenizer.json of Gemma has half as many
MOST_DIGITS = 1000  # of a whole number; Python reads no more than 4,300, in quadratic time


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file. BadModel for anything else, a large file, a repeated key or an infinite number.

    If the file is missing, the error says what its folder holds instead.
    """
    try:
        return load(path, max_bytes)
    except FileNotFoundError:
        raise BadModel(folder_report(path.parent, path.name)) from None


def load(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """As `read_json`, for a file outside a model's folder. FileNotFoundError if it is missing."""
    if kind := foreign_kind(path):
        raise BadModel(f"{path} is {kind}")
    try:
        content = parse_json(read_regular(path, max_bytes))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BadModel(f"{path} cannot be read as JSON: {reason(error)}") from None
    if not isinstance(content, dict):
        raise BadModel(f"{path} contains a JSON {type(content).__name__}, not an object")
    return content


def reason(error: Exception) -> str:
    """Why a JSON text cannot be read, without the words of the parser."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno} is not valid JSON"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8 text"
    if isinstance(error, RecursionError):
        return "its objects are nested too deeply"
    return getattr(error, "strerror", None) or str(error)


def parse_json(text: bytes, most_marks: Mapping[bytes, int] = MOST_MARKS) -> Any:
    """The value of a JSON text. ValueError for a repeated key or an infinite number; RecursionError if too deep.

    ValueError also if it holds so many values that they would take much more memory than the text.
    """
    for mark, most in most_marks.items():
        if text.count(mark) > most:
            raise ValueError(f"it holds more than {most:,} values")

    def only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key appears twice")
        return found

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number} is not a finite number")
        return float(number)

    def whole(number: str) -> int:
        if len(number) > MOST_DIGITS:
            raise ValueError(f"a number has {len(number):,} digits")
        return int(number)

    return json.loads(text, object_pairs_hook=only_once, parse_float=finite, parse_constant=finite, parse_int=whole)


def words(text: str) -> frozenset[str]:
    """The words of a text: a table of keys."""
    return frozenset(text.split())


def find_section(path: Path) -> "Section | None":
    """The object in a JSON file, or None if there is no such file. BadModel as for `read_json`."""
    return read_section(path) if path.exists() else None


def read_section(path: Path) -> "Section":
    """The object in a JSON file, to read key by key. BadModel as for `read_json`."""
    return Section(read_json(path), str(path))


class Section:
    """One object of a config file, read key by key; every error names the file and the key.

    It records the keys that were read, so that `unknown` lists the others.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where
        self.known: set[str] = set()
        self.inner: dict[str, Section] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default if the key is missing or null."""
        self.known.add(key)
        value = self.values.get(key)
        return default if value is None else value

    def section(self, key: str) -> "Section":
        """The object under `key`; an empty one if the key is missing or null."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise BadModel(f"{self.where}: {key} is {value!r}, not an object")
        return self.inner.setdefault(key, Section(value, f"{self.where}: {key}"))

    def count(self, key: str, default: int, at_most: int) -> int:
        """A whole number from 1 to `at_most`."""
        value = self.get(key, default)
        if type(value) is not int or not 1 <= value <= at_most:
            raise self.fault(key, value, f"not a whole number from 1 to {at_most}")
        return value

    def positive(self, key: str, default: float) -> float:
        """A finite number above zero."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise self.fault(key, value, "not a number above zero")
        return float(value)

    def positive_or_null(self, key: str, default: float | None) -> float | None:
        """A finite number above zero, or None for null, which differs from a missing key."""
        if (key in self.values and self.get(key) is None) or (default is None and self.get(key) is None):
            return None
        return self.positive(key, default or 1.0)

    def token(self, key: str, default: int, at_most: int) -> int:
        """A token id."""
        value = self.get(key, default)
        if type(value) is not int or not 0 <= value <= at_most:
            raise self.fault(key, value, f"not a token id from 0 to {at_most}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.fault(key, value, "not true or false")
        return value

    def tokens(self, key: str, default: Sequence[int], at_most: int) -> tuple[int, ...]:
        """One token id, or a list of them; the default may be several."""
        value = self.get(key, list(default))
        for one in value if isinstance(value, list) and value else [value]:
            if type(one) is not int or not 0 <= one <= at_most:
                raise self.fault(key, one, f"not a token id from 0 to {at_most}")
        return tuple(value) if isinstance(value, list) else (value,)

    def require(self, key: str, *allowed: Any) -> None:
        """BadModel if the key has a value other than those that npgemma supports."""
        value = self.get(key)
        if value is not None and value not in allowed:
            supported = f"; supported: {list(allowed)}" if allowed else "; remove the key"
            raise BadModel(f"{self.where}: {key} is {value!r}, which npgemma does not support{supported}")

    def fault(self, key: str, value: Any, wrong: str) -> BadModel:
        """The error for a value, or for the default in its place, that is `wrong` ("not a number above zero")."""
        if self.values.get(key) is not None:
            return BadModel(f"{self.where}: {key} is {value!r}, {wrong}")
        return BadModel(f"{self.where}: {key} is missing, and its default {value!r} is {wrong}")

    def named(self, key: str, value: Any) -> str:
        """A second key of a message and its value; a default is called one."""
        return f"{key}, {value!r}" if self.values.get(key) is not None else f"{key}, by default {value!r}"

    def ignore(self, keys: Collection[str]) -> None:
        """Count `keys` as known, together with everything inside them: they do not matter."""
        self.known.update(keys)

    def unknown(self) -> list[str]:
        """The keys that were neither read nor ignored; for a key inside an object, the dotted path."""
        mine = [key for key in self.values if key not in self.known]
        return mine + [f"{key}.{found}" for key, inner in self.inner.items() for found in inner.unknown()]
