"""Regular expressions from files, for names: those whose matching is known to end soon.

Python's `re` tries the ways in which an expression may match one after the other, and some expressions have
exponentially many. Here the ways are counted before anything is matched: a repetition of one character, such as `.*`,
may end anywhere in the name, `a?` has two ways, `(q|k|v)` three. A repeated group, which has ways within ways, is
refused, and so are lookarounds, flags and counts such as `{2}`.
"""

import re
from collections.abc import Iterable
from functools import cache
from math import comb, prod

from npgemma.errors import shortened

LONGEST = 1000  # characters of an expression
DEEPEST = 50  # groups in groups
# How many ways a single name may be tried, and how many steps all names may take: a few seconds at most.
MOST_WAYS, MOST_STEPS = 100_000, 100_000_000
TOKEN = re.compile(
    r"""(?P<open>\((?:\?:|\?P<\w+>)?(?!\?)) | (?P<close>\)) | (?P<or>\|) | (?P<anchor>[$^]|\\b)
    | (?P<one>\\[0-9dDwWsS] | \\[^0-9A-Za-z] | \[\^?(?:[^]\\[]|\\[^0-9A-Za-z]|\\[dDwWsS])+\] | \.
        | [^\\()\[\]{}|*+?^$.])
    (?P<repeat>[*+?]\??)?""",
    re.VERBOSE | re.DOTALL,
)
AGAIN = re.compile(r"[*+?{]")
# What a number ends at: after digits up to one of these, only one way is left.
DIGITS, NOT_DIGIT = re.compile(r"\\d|\[0-9\]|0"), re.compile(r"\)*(?:\\[^0-9A-Za-z]|\[[./_]+\]|[^\d\\()\[\]{}|*+?^$.])")
# What else is left of an expression after a repetition that has one way: nothing, or the digits after leading zeros.
END, NUMBER = re.compile(r"\)*$"), re.compile(r"\(?(?:\?:|\?P<\w+>)?(?:\\d|\[0-9\])[*+]")
ALLOWED = "names may be spelt with \\d+, [0-9], .*, (a|b) and (a)?, and a group may not be repeated"


@cache
def compiled(expression: str) -> re.Pattern[str]:
    """The expression. ValueError unless it is one that this module can count."""
    counted(expression)
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(f"it is not a regular expression: {error}") from None


def check_steps(expressions: Iterable[str], places: int, longest: int) -> None:
    """ValueError, with the expression, unless matching all of them at so many places of names ends soon.

    `longest` is the length of the longest name.
    """
    total = 0
    for expression in expressions:
        runs, scans, choices = counted(expression)
        ways = comb(longest + runs, runs) * choices
        total += places * (longest + ways * (longest if runs and scans else 1))  # a scan reads on, in every way
        if ways > MOST_WAYS or total > MOST_STEPS:
            many = f"{shortened(repr(expression))} may match in {ways:,} ways"
            what = many if ways > MOST_WAYS else "there are too many of them"
            raise ValueError(f"{what}, in names of up to {longest:,} characters; write more of the names out")


@cache
def counted(expression: str) -> tuple[int, int, int]:
    """How many repetitions may end anywhere, how many have one way, and how many other choices there are.

    ValueError if it cannot be told.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"it has {len(expression):,} characters, more than {LONGEST:,}")
    runs, scans, at = 0, 0, 0
    groups: list[list[int]] = [[1]]  # of every open group, the choices in each alternative
    while at < len(expression):
        token = TOKEN.match(expression, at)
        if token is None:
            raise ValueError(f"{expression[at : at + 20]!r} in it is not supported: {ALLOWED}")
        at = token.end()
        if token["open"]:
            groups.append([1])
        elif token["or"]:
            groups[-1].append(1)
        elif token["close"]:
            inside = sum(groups.pop())
            if not groups:
                raise ValueError("a parenthesis is not opened")
            if expression.startswith("?", at):
                inside, at = inside + 1, at + (2 if expression.startswith("??", at) else 1)
            groups[-1][-1] *= inside
        elif token["repeat"]:
            if token["repeat"][0] == "?":
                groups[-1][-1] *= 2
            elif has_one_way(token["one"], expression, at):
                scans += 1
            else:
                runs += 1
        if len(groups) > DEEPEST or AGAIN.match(expression, at):
            raise ValueError(f"{expression[max(0, at - 10) : at + 5]!r} in it is not supported: {ALLOWED}")
    if len(groups) > 1:
        raise ValueError("a parenthesis is not closed")
    return runs, scans, prod(map(sum, groups))


def has_one_way(one: str, expression: str, at: int) -> bool:
    """Whether a repetition of `one` that ends at a place in an expression has a single way to match a name.

    It has one at the end of the expression, and if it repeats a digit and something else follows.
    """
    follows = NOT_DIGIT.match(expression, at) or (one == "0" and NUMBER.match(expression, at))
    return bool(END.match(expression, at) or (DIGITS.fullmatch(one) and follows))
