"""Read the mapping from a port's names to the names of taps from JSON.

    {"rules": [{"theirs": "blk\\.(\\d+)\\.k", "ours": "text.layers.\\1.attn.k_rope", "interleaved": true}, ...],
     "ignore": ["debug.*"],
     "absent": ["*.attn.segments.0.*"]}

A rule whose regular expression `theirs` matches a whole name gives it the name `ours`. An expression may not repeat a
group, nor match in very many ways (see io.expressions). A rule may change the tensor, in this order:

    slice         an index or [start, stop] for each leading axis, null for an open end, "..." for all axes between
    reshape       a shape, with -1 for one size
    transpose     the new order of the axes
    scale         a factor
    interleaved   true if the last axis holds interleaved RoPE pairs: it is reordered to halves
    mask          "additive" if it holds 0 where a row may look, and a large negative number elsewhere

`rows`, an index or [start, stop], says which rows of the tap the tensor holds; the others are not compared. What needs
no rule is in layout.py and conventions.py.

Several taps in one tensor, such as a fused qkv, are a list in `ours`: names, or objects with `ours` and their own keys.
Stacked layers are one rule: `{i}` in `ours`, and "{i}" in `slice`, stand for each layer whose tap the golden file has.

    {"theirs": "qkv\\.(\\d+)", "ours": [{"ours": "vision.layers.\\1.attn.q", "slice": ["...", [0, 128]]}, ...]}
    {"theirs": "keys", "ours": "text.layers.{i}.attn.segments.0.keys", "slice": ["{i}"]}

`ignore` holds globs of names without a rule that are skipped; `absent` holds globs of taps that the port does not dump.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

from npgemma.errors import BadGolden, BadModel
from npgemma.golden.gradient_taps import matrix_of
from npgemma.golden.mapping import EACH, NameMap, Rule
from npgemma.golden.names import TABLES
from npgemma.io.expressions import compiled
from npgemma.io.strict_json import load


def read_mapping(path: str | Path) -> NameMap:
    """Read a mapping file. BadGolden if it is missing or invalid."""
    try:
        found = load(Path(path))
    except FileNotFoundError:
        raise BadGolden(f"{path} does not exist; --suggest-map writes a mapping file to start from") from None
    except BadModel as error:
        raise BadGolden(f"{error}; --suggest-map writes a mapping file to start from") from None
    return mapping_of(found, str(path))


def mapping_of(found: Any, where: str) -> NameMap:
    """The mapping that JSON describes, as at the head of this file. BadGolden, with `where`, if it is invalid."""
    known = {"rules", "ignore", "absent"}
    if not isinstance(found, dict) or not isinstance(found.get("rules"), list) or found.keys() - known:
        raise BadGolden(f"{where}: a mapping is an object with the list 'rules', and optionally 'ignore' and 'absent'")
    globs = {}
    for key in ("ignore", "absent"):
        globs[key] = found.get(key, [])
        if not isinstance(globs[key], list) or not all(isinstance(each, str) for each in globs[key]):
            raise BadGolden(f"{where}: {key!r} must be a list of globs")
    rules: list[Rule] = []
    first: dict[str, int] = {}
    for i, each in enumerate(found["rules"], 1):
        parts = rules_of(each, f"{where}: rule {i}")
        same = first.setdefault(parts[0].theirs, i)
        if same != i:
            raise BadGolden(
                f"{where}: rule {i} has the same 'theirs' as rule {same}, {parts[0].theirs!r}; "
                "list several taps in the 'ours' of one rule"
            )
        rules += parts
    return NameMap(tuple(rules), tuple(globs["ignore"]), tuple(globs["absent"]), where)


KINDS: dict[str, Any] = {
    "theirs": str,
    "ours": str,
    "slice": list,
    "reshape": list,
    "transpose": list,
    "scale": (int, float),
    "interleaved": bool,
    "mask": str,
    "rows": (int, list),
}


def rules_of(found: Any, where: str) -> list[Rule]:
    """The rules that JSON describes: one for each tap that `ours` lists. BadGolden, with `where`, if it is invalid."""
    if not isinstance(found, dict) or not {"theirs", "ours"} <= found.keys():
        raise BadGolden(f"{where} must be an object with the keys 'theirs' and 'ours'")
    ours = found["ours"]
    if not isinstance(ours, list):
        return [rule_of(found, where)]
    parts = [{"ours": part} if isinstance(part, str) else part for part in ours]
    if not parts or not all(isinstance(part, dict) and "ours" in part for part in parts):
        raise BadGolden(f"{where}: 'ours' must be a name, or a list of names and of objects with the key 'ours'")
    return [rule_of({**found, **part}, f"{where}, part {i}") for i, part in enumerate(parts, 1)]


def rule_of(found: Mapping[str, Any], where: str) -> Rule:
    """The rule for one tap that JSON describes. BadGolden, with `where`, if it is invalid."""
    for key, value in found.items():
        if key not in KINDS:
            raise BadGolden(f"{where}: {key!r} is not a key of a rule; a rule may have {', '.join(KINDS)}")
        if not isinstance(value, KINDS[key]):
            raise BadGolden(f"{where}: the value of {key!r} has the wrong type, {type(value).__name__}")
    rule = Rule(**{key: frozen(value) for key, value in found.items()})
    bad = next((text for text, is_bad in faults(rule) if is_bad), None)
    if bad:
        raise BadGolden(f"{where}: {bad}")
    try:
        compiled(rule.theirs)
        re.compile(f"(?:{rule.theirs})|").fullmatch("").expand(rule.ours)  # type: ignore[union-attr]
    except (ValueError, re.error, IndexError) as error:
        raise BadGolden(
            f"{where}: 'theirs' must be a regular expression, and 'ours' its replacement ({error})"
        ) from None
    if not can_be_tap(rule.ours):
        raise BadGolden(
            f"{where}: 'ours' is {rule.ours!r}, which is not the name of a tap; `npgemma golden --list` prints all"
        )
    return rule


def faults(rule: Rule) -> Iterator[tuple[str, bool]]:
    """What may be wrong with the values of a rule, and whether it is."""
    each = '\'slice\' must hold for each leading axis an index, [start, stop], "..." once, or "{i}" for a layer'
    named = [part for part in rule.slice if isinstance(part, str)]
    yield each, not all(is_index(part) or part in ("...", EACH) for part in rule.slice) or named.count("...") > 1
    yield "'{i}' must be in both 'ours' and 'slice', or in neither", (EACH in named) != (EACH in rule.ours)
    yield "'reshape' must hold integers", not all(map(is_whole, rule.reshape))
    yield "'transpose' must hold integers", not all(map(is_whole, rule.transpose))
    yield "'scale' must be a finite number other than 0", not 0 < abs(rule.scale) <= sys.float_info.max
    yield "'mask' must be \"additive\"", rule.mask not in ("", "additive")
    yield "'rows' must be an index or [start, stop]", rule.rows is not None and not is_index(rule.rows)


def is_index(value: Any) -> bool:
    """Whether `value` is an index, or a (start, stop) with None for an open end, perhaps with a step."""
    if isinstance(value, tuple):
        return len(value) in (2, 3) and all(n is None or is_whole(n) for n in value) and value[2:] != (0,)
    return is_whole(value)


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number that may count what an array holds."""
    return type(value) is int and abs(value) < 1 << 48


# The name of a tap for each entry of the table, in the prefill and in a step, with 0 for every number.
_EXAMPLES = [
    step + re.sub(r"\{[ibn]\}", "0", entry.pattern)
    for table in TABLES.values()
    for entry in table
    for step in ([""] if entry.pattern.startswith("steps") else ["", "steps.0."])
]


@cache
def can_be_tap(ours: str) -> bool:
    """Whether some match could make the name of a tap of `ours`, whose groups may hold anything."""
    if matrix_of(ours):  # any name of a checkpoint may follow
        return True
    parts = re.split(r"\\\d+|\\g<[^>]*>", ours.replace(EACH, "0"))
    fixed = [escape(re.sub(r"(?<=\.)\d+(?=\.)", "0", part.replace("\\\\", "\\"))) for part in parts]
    return any(fnmatchcase(name, "*".join(fixed)) for name in _EXAMPLES)


def frozen(value: Any) -> Any:
    """`value` with tuples for lists, at any depth."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value
