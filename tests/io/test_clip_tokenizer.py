"""CLIP's byte-pair encoding: words, pieces, merges and special tokens, with a vocabulary to check by hand."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from clip_files import IDS, MERGES, write

from npgemma.errors import BadPrompt
from npgemma.io.clip_tokenizer import END, SIGNS, START, ClipTokenizer, merged, normalize, pieces
from npgemma.io.clip_vocabulary import read_clip_tokenizer
from npgemma.io.text_rows import text_rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> ClipTokenizer:
    return read_clip_tokenizer(write(tmp_path_factory.mktemp("clip")))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        (" \n\t\u3000", []),
        ("cat", ["cat</w>"]),
        ("THE  Cat's\n", ["the</w>", "cat</w>", "'s</w>"]),
        ("cab", ["ca", "b</w>"]),
        ("cats", ["ca", "t", "s</w>"]),  # c a joins before a t</w> could
        ("a12", ["a</w>", "1</w>", "2</w>"]),
        ("cat!!", ["cat</w>", "!!</w>"]),
        ("é", ["Ã", "©</w>"]),  # UTF-8 C3 A9
        ("e\u0301", ["Ã", "©</w>"]),  # composed first
        ("a\x1cb", ["a</w>", SIGNS[0x1C] + "</w>", "b</w>"]),  # not white space
        (f"a{END}cat", ["a</w>", END, "cat</w>"]),
        (START.upper(), ["<", "|</w>", *"startoftex", "t</w>", "|", "></w>"]),
    ],
)
def test_texts_become_these_tokens(text, tokens, tokenizer):
    names = list(IDS)
    start, *found, end = tokenizer.encode(text)
    assert [names[i] for i in found] == tokens
    assert (names[start], names[end]) == (START, END)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("it's", ["it", "'s"]),
        ("'d'll've're'm't", ["'d", "'ll", "'ve", "'re", "'m", "'t"]),
        ("'still", ["'s", "till"]),  # wherever a contraction stands
        ("!'s", ["!'", "s"]),  # a run of signs takes the apostrophe along
        ("x²½ⅷ三", ["x", "²", "½", "ⅷ", "三"]),  # numbers of every kind are single
        ("日本語", ["日本語"]),
        ("e\u0302n\u0323", ["e", "\u0302", "n", "\u0323"]),  # marks are not letters
        (START + END + "x", ["<|", "startoftext", "|>", "<|", "endoftext", "|>", "x"]),
        ("!" + START, ["!<|", "startoftext", "|>"]),
        ("_a-b_", ["_", "a", "-", "b", "_"]),
    ],
)
def test_words_become_these_pieces(word, expected):
    assert list(pieces(word)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u0391\u03a3 \u03a3", "\u03b1\u03c3 \u03c3"),
        ("İ", "i\u0307"),
        ("ẞ", "ß"),
        ("A\xa0\u2003B", "a b"),
        ("\u212b", "å"),
    ],
)
def test_text_is_composed_and_lower_case_character_by_character(text, expected):
    assert normalize(text) == expected


def by_definition(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Sennrich et al. 2016, with one pair joined at a time."""
    while known := [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]:
        _, i = min(known)
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
    return parts


def test_merges_join_the_pair_of_lowest_rank_first():
    """Random merges of three signs, whose ranks do not follow the order in which they are made."""
    rng = Random(0)
    for _ in range(300):
        tokens = list("abc")
        made: list[tuple[str, str]] = []
        for _ in range(12):
            made.append((rng.choice(tokens), rng.choice(tokens)))
            tokens.append("".join(made[-1]))
        rng.shuffle(made)
        ranks = {pair: rank for rank, pair in enumerate(made)}
        word = rng.choices("abc", k=rng.randint(1, 25))
        assert merged(word, ranks) == by_definition(word, ranks)


def test_a_long_word_does_not_take_quadratic_time(tokenizer):
    """By definition this word would take hours."""
    assert len(tokenizer.encode("ca" * 20_000)) == 20_000 + 3  # the last a carries the end of the word


def test_signs_are_gpt_2s():
    assert len({*SIGNS}) == 256
    assert (SIGNS[0], SIGNS[ord(" ")], SIGNS[ord("A")], SIGNS[0x7F], SIGNS[0xAD], SIGNS[0xFF]) == tuple("ĀĠAġŃÿ")


def test_a_lone_surrogate_is_refused(tokenizer):
    with pytest.raises(BadPrompt, match="surrogates not allowed at character 2"):
        tokenizer.encode("ab\ud800")


def test_rows_are_padded_or_truncated_with_the_end_token_kept(tokenizer):
    start, end = IDS[START], IDS[END]
    cat, the = IDS["cat</w>"], IDS["the</w>"]
    rows = text_rows(tokenizer, ["cat", "the cat the", "the cat the cat"], 5)
    expected = [[start, cat, end, end, end], [start, the, cat, the, end], [start, the, cat, the, end]]
    np.testing.assert_array_equal(rows.ids, np.array(expected), strict=True)
    assert rows.lengths == (3, 5, 6)
    assert rows.truncated == [2]


def test_no_texts_give_no_rows(tokenizer):
    rows = text_rows(tokenizer, [], 5)
    assert rows.ids.shape == (0, 5)
    assert rows.truncated == []


def test_the_number_of_ids(tokenizer):
    assert len(tokenizer) == 512 + len(MERGES) + 2
