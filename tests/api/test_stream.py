"""VisionLanguageModel.stream: its pieces are the text of generate, and no piece would be changed by a later token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_model import IMAGE, PICTURES, TOKENIZER

from npgemma.decoding.loop import Token
from npgemma.decoding.text import Detokenizer, pieces


@pytest.mark.parametrize("sampling", [{}, {"temperature": 3.0, "top_k": 300, "seed": 4}], ids=str)
@pytest.mark.parametrize(
    ("images", "prompt"), [(PICTURES[0], "caption en"), ([], "hi"), (PICTURES[1:], "answer en how many? é")]
)
def test_the_pieces_of_a_stream_are_the_text_of_generate(images, prompt, sampling, small):
    found = list(small.stream(images, prompt, max_new_tokens=30, **sampling))
    assert "".join(found) == small.generate(images, prompt, max_new_tokens=30, **sampling).text
    assert all(found)


def streamed(ids: list[int]) -> list[str]:
    """The pieces in which an answer of these tokens is sent."""
    reasons = [None] * (len(ids) - 1) + ["length"]
    tokens = (Token(0, each, reason, 0.0) for each, reason in zip(ids, reasons, strict=True))
    return list(pieces(Detokenizer(TOKENIZER.decode), tokens))


@pytest.mark.parametrize("text", ["é", "naïve café", "😀", "한국어", "a😀b\n", "\N{ZERO WIDTH JOINER}x"])
def test_a_character_of_several_tokens_is_sent_whole(text):
    """Half of one would be shown as a question mark, and could not be taken back."""
    found = streamed(TOKENIZER.encode(text))
    assert "".join(found) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


def test_a_token_that_is_whole_is_sent_at_once():
    ids = TOKENIZER.encode("two red cats")
    assert streamed(ids) == [TOKENIZER.decode([each]) for each in ids]


def test_an_incomplete_character_at_the_end_is_sent_as_generate_shows_it():
    ids = TOKENIZER.encode("ok 猫")[:-1]  # two of three bytes
    assert "".join(streamed(ids)) == TOKENIZER.decode(ids)
    assert streamed(ids)[-1].startswith("\N{REPLACEMENT CHARACTER}")


BYTES = [
    TOKENIZER.pieces.piece_to_id(f"<0x{byte:02X}>") for byte in b"\xe2\x82\xac\xf0\x9f\x98\x80\xc3\xa9\xef\xbf\xbdA\xff"
]


@given(ids=st.lists(st.sampled_from(BYTES) | st.integers(0, IMAGE), min_size=1, max_size=12))
def test_the_pieces_of_any_ids_are_their_text(ids):
    """Complete and incomplete characters in any order."""
    assert "".join(streamed(ids)) == TOKENIZER.decode(ids)
