"""Prompt lookup: what follows from prompt and answer, by hand and in the tokens of real tokenizers."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from npgemma.decoding.lookup import LONGEST, PLAIN, ObjectSyntax, asked, continued, lookup, no_drafts, object_syntax
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import Tokenizer
from npgemma.models.gemma import MOST_ROWS

PALIGEMMA = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizer" / "paligemma.model"
LOC, SEG = range(100, 200), range(200, 250)


@pytest.mark.parametrize(
    ("before", "written", "follows"),
    [
        ([1], [1], []),
        ([1, 2, 3], [], []),
        ([1, 2, 3, 9], [1, 2], [3, 9, 1, 2]),
        ([5, 2, 3, 9], [1, 2], []),  # one token is not a context
        ([1, 2, 3, 1, 2, 4, 9], [1, 2], [4, 9, 1, 2]),  # the last time
        ([7, 1, 2, 3, 8, 1, 2, 4], [7, 1, 2], [3, 8, 1, 2, 4, 7, 1]),  # the longest context before a later one
        ([], [4, 4, 4], [4]),
        ([], [1, 2, 1, 2, 1, 2], [1, 2]),
        ([1, 2, *range(20, 40)], [1, 2], list(range(20, 20 + MOST_ROWS - 1))),
        ([6, 100, 101, 3, 4, 100, 5], [6, 150, 151], [3, 4]),  # locations are alike, and are not guessed
        ([6, 100, 101, 3, 4], [6, 150, 201], []),  # and codes are something else
        ([6, 100, 101, 3, 4], [7, 150, 151], []),  # they alone are not a context
        ([0, *([8] * LONGEST), 3, 5, *([8] * LONGEST), 4], [0, *([8] * LONGEST)], [4, 0, *([8] * 5)]),
    ],
)
def test_what_followed_the_longest_context_by_hand(before: list[int], written: list[int], follows: list[int]) -> None:
    assert continued(np.array(before, int), written, (LOC, SEG)) == follows


def test_nothing_is_alike_in_a_plain_text() -> None:
    draft = lookup(np.array([2, 100, 101, 3, 4]))
    assert (draft([100, 101]), draft([150, 151])) == ([3, 4, 100, 101], [])
    assert list(no_drafts(np.array([1, 2, 3]))([1, 2])) == []


def test_the_answer_that_a_prompt_asks_for_by_hand() -> None:
    """Of two kinds of prompts, in labels of one and of two tokens; others have no such answer."""
    syntax = ObjectSyntax((LOC, SEG), 2, {(7,): (100, 100), (8, 9): (100, 200)}, (10,), (10, 11))
    first, second = (100, 100, 21, 10, 11), (100, 100, 22, 23, 10, 11)
    assert asked([50, 50, 2, 7, 21, 10, 22, 23, 1], syntax) == [1, *first, *second, *second, -1]
    assert asked([2, 8, 9, 21, 1], syntax) == [1, *(100, 200, 21, 10, 11) * 2, -1]
    for other in ([2, 8, 21, 1], [7, 21, 1], [2], [2, 1], []):
        assert asked(other, syntax) == []
    assert asked([2, 7, 21, 1], PLAIN) == []


def box(*numbers: int) -> str:
    return "".join(f"<loc{n:04d}>" for n in numbers)


BOX, OTHER = box(1, 20, 300, 1023), box(7, 9, 11, 13)
MASK, ANOTHER = ("".join(f"<seg{n % 128:03d}>" for n in range(first, first + 16)) for first in (5, 90))
# A prompt, what is written, what is likely to follow: up to the next location, which nothing tells.
DRAFTS = [
    ("detect star ; red ring", "", ""),
    ("detect star ; red ring", box(1, 20, 300), ""),
    ("detect star ; red ring", BOX, " star ; "),
    ("detect star ; red ring", f"{BOX} star ; {OTHER}", " red ring ; "),  # the next label of the prompt
    ("detect star ; red ring", f"{BOX} red", " ring ; "),
    ("detect star ; red ring", f"{BOX} star ; {OTHER} star ; {box(4, 4, 4, 4)}", " star ; "),  # the label used last
    ("detect star", f"{BOX} star ; {OTHER}", " star ; "),
    ("detect star", f"{BOX} star ; {box(7, 9)}", ""),
    ("find star", f"{BOX} star ; {OTHER}", ""),  # not one of PaliGemma's prompts: the answer alone tells
    ("find star", f"{BOX} star ; {OTHER} star ; {OTHER}", " star ; "),
    ("segment star", BOX, ""),
    ("segment star", BOX + MASK[:-8], ""),
    ("segment star", BOX + MASK, " star ; "),
    ("segment star ; red ring", f"{BOX}{MASK} star ; {OTHER}{ANOTHER}", " red ring ; "),
    ("segment star", f"{BOX}{MASK} star ; {OTHER}{ANOTHER[:-8]}", ""),
    ("caption en", "a red star", ""),
    ("caption en", "a red star and red star", " and red star"),
    ("answer en what color is the red star?", "is the red", " star?\nis the red"),
]


@pytest.fixture(params=[EMBEDDED / "tokenizer.model", PALIGEMMA], ids=["embedded", "PaliGemma"], scope="module")
def tokenizer(request) -> Tokenizer:
    if not request.param.exists():
        pytest.skip(f"needs {request.param}")
    return Tokenizer(request.param.read_bytes())


@pytest.mark.parametrize(("prompt", "written", "follows"), DRAFTS)
def test_drafts_of_answers(prompt: str, written: str, follows: str, tokenizer: Tokenizer) -> None:
    bos = tokenizer.ids["<bos>"]
    ids = np.array([bos, *tokenizer.encode(f"{prompt}\n")])
    draft = lookup(ids, object_syntax(tokenizer.encode, tokenizer.ids, bos))
    assert tokenizer.decode(draft(tokenizer.encode(written))) == follows


@pytest.mark.parametrize("encoded", [[], [7], [7, 8, 9]], ids=str)
def test_any_tokenizer_has_a_syntax(encoded: list[int]) -> None:
    """Also one whose locations are in another order, or whose words have no tokens."""
    syntax = object_syntax(lambda text: encoded, {"<loc0000>": 5, "<loc1023>": 3, "<seg000>": 4, "<seg127>": 6}, 2)
    for prompt in ([2, 7, 3, 7, 1], [2, 1], [2], [1, 7, 8, 9]):
        draft = lookup(np.array(prompt), syntax)
        assert {*itertools.chain(*(draft([7, 3, *prompt][:n]) for n in range(1, 7)))} <= set(range(10))


def test_a_tokenizer_without_locations_has_plain_texts_alone() -> None:
    assert object_syntax(lambda text: [], {"<bos>": 2}, 2) is PLAIN
