"""Write the rules of a mapping from names and the taps that their tensors match, as few of them as the digits allow.

Names that differ in their digits alone have a common form: "blk.0.k" and "blk.1.k" have "blk.#.k". Where most names of
a form match taps of a form, each number of the tap is looked for among those of the name, and one rule stands for all:
the number of a layer is a group, a number that is always the same is written out. A tensor with a mistake is covered by
the rule of the others, whatever it is like itself.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from npgemma.errors import BadGolden
from npgemma.golden.mapping import EACH, NameMap, pair
from npgemma.golden.mapping_file import frozen, rule_of

# A single name needs a larger cosine than names that match taps of one form together.
SINGLE = 0.97
# What ports call the segments of keys and values.
CACHE = "cache", "segments"


# The slice of a rule: which part of a tensor it takes; () is the whole.
Part = tuple[Any, ...]


@dataclass(frozen=True)
class Match:
    """The cosine between a tensor and a tap, the keys of the rule that lays it out, and the size of the tap."""

    score: float
    name: str
    tap: str
    change: dict[str, Any]
    size: int

    def rank(self) -> tuple[float, int]:
        """The larger, the better: the nearer one, then the one with fewer changes."""
        return self.score, -len(self.change)


@dataclass(frozen=True)
class Draft:
    """A rule in JSON, what it gives taps (name, part, tap), how many matches speak for it, and their mean cosine."""

    rule: dict[str, Any]
    claims: Sequence[tuple[str, Part, str]]
    support: int
    score: float

    def rank(self) -> tuple[float, int, int, int, str]:
        """The smaller, the better: nearer, more support, more words in common, fewer changes, and the alphabet."""
        theirs, ours = (
            set(re.findall(r"[a-z]+", self.rule[key].lower().replace(*CACHE))) for key in ("theirs", "ours")
        )
        return -round(self.score, 4), -self.support, -len(theirs & ours), len(self.rule), self.rule["theirs"]


def draft(matches: Sequence[Match], names: Sequence[str], taps: Sequence[str]) -> tuple[list[dict[str, Any]], set[str]]:
    """The rules in the order of the taps, and the names that they map; no two rules are for one tap or one name."""
    together = defaultdict(list)
    for match in matches:
        together[form(match.name), form(match.tap), json.dumps(numbers_out(match.change))].append(match)
    drafts = [each for same in together.values() for each in drafts_of(same, names, taps)]
    drafts += [single(match) for match in matches if match.score >= SINGLE]
    rules: dict[str, list[dict[str, Any]]] = {}
    taken: dict[str, str] = {}
    used: dict[str, set[Part]] = defaultdict(set)
    by_name: dict[str, str] = {}
    for each in sorted(drafts, key=Draft.rank):
        theirs = each.rule["theirs"]
        if any(by_name.get(name, theirs) != theirs or overlaps(part, used[name]) for name, part, _ in each.claims):
            continue
        if any(tap in taken for _, _, tap in each.claims):
            continue
        rules.setdefault(theirs, []).append(each.rule)
        for name, part, tap in each.claims:
            by_name[name], taken[tap] = theirs, name
            used[name].add(part)
    order = {tap: i for i, tap in enumerate(taps)}
    first = {theirs: min(order[tap] for tap, name in taken.items() if by_name[name] == theirs) for theirs in rules}
    return [joined(rules[theirs]) for theirs in sorted(rules, key=first.__getitem__)], set(by_name)


def overlaps(part: Part, used: set[Part]) -> bool:
    """Whether a part of a tensor is used already, or the whole is."""
    return part in used or (bool(used) and () in (part, *used))


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rules for the same names as one, with a list of taps if they are several."""
    if len(parts) == 1:
        return parts[0]
    return {"theirs": parts[0]["theirs"], "ours": [{k: v for k, v in part.items() if k != "theirs"} for part in parts]}


def form(name: str) -> str:
    """A name with # for each number."""
    return re.sub(r"\d+", "#", name)


def numbers_out(change: dict[str, Any]) -> dict[str, Any]:
    """The keys of a rule with # for each index in its slice, which may be the number of a layer."""
    return change | {"slice": ["#" if type(each) is int else each for each in change.get("slice", [])]}


def indices(match: Match) -> list[int]:
    """The indices in the slice of a match."""
    return [each for each in match.change.get("slice", []) if type(each) is int]


def single(match: Match) -> Draft:
    """The rule for a name alone."""
    rule = {"theirs": re.escape(match.name), "ours": match.tap, **match.change}
    return Draft(rule, [(match.name, frozen(match.change.get("slice", [])), match.tap)], 1, match.score)


# Where a number of a tap comes from: "name" or "index" and which, or "fixed" and its value.
Source = tuple[str, int]


def drafts_of(same: Sequence[Match], names: Sequence[str], taps: Sequence[str]) -> Iterator[Draft]:
    """Rules for several matches whose names, and whose taps, differ in their numbers alone."""
    sources = [source_of(same, place) for place in range(form(same[0].tap).count("#"))]
    kept = [match for match in same if all(follows(match, place, source) for place, source in enumerate(sources))]
    if len(kept) < 2 or len(kept) * 2 < len(same):
        return
    alike = defaultdict(list)
    used = {which for kind, which in sources if kind == "name"}
    moved = {which for kind, which in sources if kind == "index"}
    for match in kept:
        texts = enumerate(re.findall(r"\d+", match.name))
        rest = [text for i, text in texts if i not in used and same_as(kept, i, used) is None]
        alike[(*rest, *(n for i, n in enumerate(indices(match)) if i not in moved))].append(match)
    for each in alike.values():
        theirs = regex(kept, each[0].name, used)
        rule = {"theirs": theirs, "ours": replacement(each[0].tap, sources, used), **each[0].change}
        if moved:
            seen = iter(range(len(indices(each[0]))))
            rule["slice"] = [(EACH if next(seen) in moved else n) if type(n) is int else n for n in rule["slice"]]
        try:
            pairing = pair(NameMap((rule_of(rule, "the draft"),)), names, taps)
        except BadGolden:  # two names, such as a1 and a01, would have one tap
            continue
        claims = [(name, made.slice, tap) for tap, (name, made) in pairing.pairs.items()]
        yield Draft(rule, claims, len(each), sum(match.score for match in each) / len(each))


def source_of(same: Sequence[Match], place: int) -> Source:
    """What gives the number of the tap at `place` in most matches."""
    values = {int(re.findall(r"\d+", match.tap)[place]) for match in same}
    choices: list[Source] = [("fixed", value) for value in sorted(values)]
    choices += [("name", i) for i in range(form(same[0].name).count("#"))]
    choices += [("index", i) for i in range(len(indices(same[0])))]
    return max(choices, key=lambda source: sum(follows(match, place, source) for match in same))


def follows(match: Match, place: int, source: Source) -> bool:
    """Whether the number of the tap at `place` is that of the source."""
    kind, which = source
    wanted = int(re.findall(r"\d+", match.tap)[place])
    if kind == "fixed":
        return wanted == which
    return wanted == (int(re.findall(r"\d+", match.name)[which]) if kind == "name" else indices(match)[which])


def same_as(kept: Sequence[Match], place: int, used: Iterable[int]) -> int | None:
    """The number among `used` that the number of the name at `place` always equals."""
    found = [re.findall(r"\d+", match.name) for match in kept]
    return next((i for i in sorted(used) if all(int(texts[i]) == int(texts[place]) for texts in found)), None)


def regex(kept: Sequence[Match], name: str, used: set[int]) -> str:
    """What matches the names that differ from `name` in the numbers `used`."""
    texts, order = re.split(r"(\d+)", name), sorted(used)
    padded = {i for match in kept for i, text in enumerate(re.findall(r"\d+", match.name)) if text != str(int(text))}
    for i, text in enumerate(texts[1::2]):
        equal = None if i in used else same_as(kept, i, used)
        found = r"(\d+)" if i in used else text if equal is None else rf"\{order.index(equal) + 1}"
        texts[2 * i + 1] = "0*" * (i in padded and (i in used or equal is not None)) + found
    return "".join(text if i % 2 else re.escape(text) for i, text in enumerate(texts))


def replacement(tap: str, sources: Sequence[Source], used: set[int]) -> str:
    """The name of the tap with its groups."""
    texts, order = re.split(r"(\d+)", tap), sorted(used)
    for i, (kind, which) in enumerate(sources):
        texts[2 * i + 1] = EACH if kind == "index" else str(which) if kind == "fixed" else f"\\{order.index(which) + 1}"
    return "".join(texts)
