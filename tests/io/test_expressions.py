"""Regular expressions of strangers: what matches, what is refused, and that matching ends soon."""

import time

import pytest

from npgemma.io.expressions import LONGEST, MOST_WAYS, check_steps, compiled

NAME = "model.layers.12.self_attn.q_proj"
FITS = {
    "a name": (r"model\.layers\.12\.self_attn\.q_proj", True),
    "numbers": (r"(\w+)\.layers\.(\d+)\..*", True),
    "alternatives": (r"model\.(?:layers|blocks)\.12\.self_attn\.(q|k|v)_proj", True),
    "an optional group": (r"(steps\.\d+\.)?model\..*(q_proj)??", True),
    "a class, lazily": (r"[^.]+?\.layers\.[0-9]+\.[\w.]*", True),
    "named groups and repeated text": (r"(?P<a>\w+)\..*(2)\.self_\D+", True),
    "another name": (r"model\.layers\.(\d+)\.mlp", False),
}


@pytest.mark.parametrize(("expression", "fits"), FITS.values(), ids=FITS)
def test_plain_expressions_match(expression, fits):
    check_steps([expression], 100, len(NAME))
    assert bool(compiled(expression).fullmatch(NAME)) == fits


REFUSED = {
    "a repeated group": "(a+)+b",
    "a repeated choice": "(a|aa)*b",
    "a counted group": "(a|aa){20}",
    "nested groups": "(" * 60 + "a" + ")" * 60,
    "a lookahead": "(?=a)a",
    "a flag": "(?i)a",
    "an atomic group": "(?>a)",
    "a possessive repetition": "a++",
    "a repeated backreference of nothing": r"\1",
    "a repeated optional group": "(a)?*",
    "nothing to repeat": "*a",
    "an open group": "(a",
    "an open class": "[a",
    "a closed group": "a)",
    "an unknown escape": r"\q",
    "a reversed range": "[z-a]",
    "the end of a backslash": "a\\",
    "too long": "a" * (LONGEST + 1),
}


@pytest.mark.parametrize("expression", REFUSED.values(), ids=REFUSED)
def test_other_expressions_are_refused(expression):
    with pytest.raises(ValueError, match=r"."):
        compiled(expression)


# Expressions of the grammar whose ways multiply, each with a name that makes them be tried.
SLOW = {
    "choices": ("a?" * 60 + "b", "a" * 60),
    "the same alternatives": ("(a|a)" * 60 + "b", "a" * 60),
    "repetitions": (r".*\w*.+a*[bc]", "a" * 200),
    "a long name": ("a*a*b", "a" * 10_000),
}


@pytest.mark.parametrize(("expression", "name"), SLOW.values(), ids=SLOW)
def test_expressions_with_too_many_ways_are_refused(expression, name):
    with pytest.raises(ValueError, match=f"may match in [0-9,]+ ways, in names of up to {len(name):,} characters"):
        check_steps([expression], 1, len(name))


def test_too_many_expressions_are_refused():
    with pytest.raises(ValueError, match="too many of them"):
        check_steps([rf"a{i}.*" for i in range(5000)], 5000, 50)


@pytest.mark.parametrize("expression", [r".*.*.*[bc]", "(a|a)" * 16 + "[bc]", r".*(a|a|a)(a|a|a)\w*(a|a)[bc]"])
def test_the_most_ways_that_are_allowed_take_a_moment(expression):
    name = "a" * next(n for n in range(200, 0, -1) if allows(expression, n))
    start = time.process_time()
    assert not compiled(expression).fullmatch(name)
    assert time.process_time() - start < 5, f"{MOST_WAYS:,} ways"


def allows(expression: str, length: int) -> bool:
    """Whether names of this length may be matched."""
    try:
        check_steps([expression], 1, length)
    except ValueError:
        return False
    return True
