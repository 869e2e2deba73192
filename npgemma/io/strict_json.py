"""JSON files read strictly, and their objects key by key: every error names the file and the key."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npgemma.errors import BadModel

MAX_JSON_BYTES = 10_000_000


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. BadModel for whatever is no JSON object, too large, ambiguous or not finite."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {MAX_JSON_BYTES // 1_000_000} MB")
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise BadModel(f"{path} is missing: a model folder needs it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadModel(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadModel(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def parse_json(text: bytes) -> Any:
    """What JSON says. ValueError where it says it twice or says no finite number; RecursionError if nested too deep."""

    def only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key appears twice")
        return found

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number} is no finite number")
        return float(number)

    return json.loads(text, object_pairs_hook=only_once, parse_float=finite, parse_constant=finite)


class Section:
    """One object of a config file, read key by key; every complaint names the file and the key."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def get(self, key: str, default: Any) -> Any:
        """The value, or the default where there is none or null."""
        value = self.values.get(key)
        return default if value is None else value

    def section(self, key: str) -> "Section":
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise BadModel(f"{self.where}: {key} is {value!r}, not an object")
        return Section(value or {}, f"{self.where}: {key}")

    def count(self, key: str, default: int, at_most: int) -> int:
        """A whole number from 1 to `at_most`."""
        value = self.get(key, default)
        if type(value) is not int or not 1 <= value <= at_most:
            raise BadModel(f"{self.where}: {key} is {value!r}, not a whole number from 1 to {at_most}")
        return value

    def positive(self, key: str, default: float) -> float:
        """A finite number above zero."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise BadModel(f"{self.where}: {key} is {value!r}, not a number above zero")
        return float(value)

    def token(self, key: str, default: int, at_most: int) -> int:
        """A token id."""
        value = self.get(key, default)
        if type(value) is not int or not 0 <= value <= at_most:
            raise BadModel(f"{self.where}: {key} is {value!r}, not a token id from 0 to {at_most}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise BadModel(f"{self.where}: {key} is {value!r}, not true or false")
        return value

    def tokens(self, key: str, default: int, at_most: int) -> tuple[int, ...]:
        """One token id, or a list of them."""
        value = self.values.get(key)
        each = value if isinstance(value, list) and value else [value]
        return tuple(Section({key: one}, self.where).token(key, default, at_most) for one in each)

    def require(self, key: str, *allowed: Any) -> None:
        """Nothing, or one of the values whose mathematics npgemma has."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise BadModel(
                f"{self.where}: {key} is {value!r}, which npgemma does not compute; it knows {list(allowed)}"
            )
