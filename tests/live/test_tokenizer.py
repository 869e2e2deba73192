"""npgemma's tokenizer against transformers' GemmaTokenizer with what PaliGemmaProcessor adds to it.

Three differences are meant, and kept out of the comparison; npgemma does as SentencePiece does, and so as training did:

- More than 31 spaces in a row, the longest run that is one piece. SentencePiece takes 31 and then the rest,
  transformers merges to other lengths (40 to 16 and 24).
- U+2581, the sign that SentencePiece writes for a space. Where one stands in the text itself beside a real space,
  transformers cuts between them, SentencePiece does not.
- Byte pieces that are no UTF-8. transformers makes a replacement character of every byte of such a run, the good ones
  too; SentencePiece of the bad ones alone.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hard_texts import PARTS, PIECES, SPECIAL, random_text

from npgemma.io.tokenizers import Tokenizer

pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

STRINGS, ID_ROWS = 1500, 1000


@pytest.fixture(scope="module")
def ours(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer((tokenizer_folder / "tokenizer.model").read_bytes())


@pytest.fixture(scope="module")
def theirs(tokenizer_folder: Path) -> "transformers.GemmaTokenizer":
    """As PaliGemmaProcessor hands it out: with locations, codes and the image token, without bos of its own."""
    tokenizer = transformers.GemmaTokenizer.from_pretrained(tokenizer_folder)
    return transformers.PaliGemmaProcessor(SiglipImageProcessorPil(image_seq_length=1), tokenizer).tokenizer


@pytest.fixture(scope="module")
def encode(theirs: "transformers.GemmaTokenizer") -> Callable[[str], list[int]]:
    return lambda text: theirs(text, add_special_tokens=False).input_ids


@pytest.fixture(scope="module")
def decode(theirs: "transformers.GemmaTokenizer") -> Callable[[list[int]], str]:
    return lambda ids: theirs.decode(ids, skip_special_tokens=True)


def test_the_vocabularies_are_the_same(ours: Tokenizer, theirs: "transformers.GemmaTokenizer") -> None:
    """As many ids, and each location, code and special piece under the same."""
    assert len(ours) == len(theirs)
    assert ours.image_id == theirs.convert_tokens_to_ids("<image>")
    for piece in (*PIECES, *SPECIAL):
        assert ours.pieces.piece_to_id(piece) == theirs.convert_tokens_to_ids(piece), piece


@pytest.mark.parametrize("text", ["", *PARTS, *(f"a{part}b" for part in PARTS), *(f" {part} " for part in PARTS)])
def test_a_part_alone_and_between_others(text: str, ours: Tokenizer, encode: Callable[[str], list[int]]) -> None:
    assert ours.encode(text) == encode(text)


def test_random_texts_become_the_same_ids(ours: Tokenizer, encode: Callable[[str], list[int]]) -> None:
    rng = Random(0)
    for _ in range(STRINGS):
        text = random_text(rng)
        assert ours.encode(text) == encode(text), text


def test_ids_of_random_texts_become_the_same_text(
    ours: Tokenizer, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]
) -> None:
    """Byte pieces included: what a text was encoded to is whole UTF-8."""
    rng = Random(1)
    for _ in range(STRINGS):
        ids = [i for i in encode(random_text(rng)) if i not in skipped(ours)]
        assert ours.decode(ids) == decode(ids), ids


def test_random_ids_become_the_same_text(ours: Tokenizer, decode: Callable[[list[int]], str]) -> None:
    """Any ids but byte pieces; half of them of the first few hundred and the last few, where the unusual ones are."""
    rng = Random(2)
    unusual = [*range(300), *range(len(ours) - 20, len(ours))]
    usable = [i for i in range(len(ours)) if not ours.pieces.is_byte(i) and i not in skipped(ours)]
    unusual = [i for i in unusual if not ours.pieces.is_byte(i) and i not in skipped(ours)]
    for _ in range(ID_ROWS):
        ids = [rng.choice(usable if rng.random() < 0.5 else unusual) for _ in range(rng.randint(1, 10))]
        assert ours.decode(ids) == decode(ids), ids


def skipped(tokenizer: Tokenizer) -> list[int]:
    """<unk> and <mask>, which have a test of their own."""
    return [tokenizer.pieces.piece_to_id(piece) for piece in ("<unk>", "<mask>")]


@pytest.mark.parametrize("piece", SPECIAL)
def test_special_pieces_have_no_text(piece: str, ours: Tokenizer, decode: Callable[[list[int]], str]) -> None:
    """Whatever transformers counts as special is left out, alone and between others."""
    ids = ours.encode(f"a{piece}b")
    assert decode(ids) == "ab"
    assert ours.decode(ids) == "ab"


def test_what_is_kept_out_of_the_comparison_differs(
    ours: Tokenizer, encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]
) -> None:
    """Were a difference gone, the random texts should have it too. Only PaliGemma's own has pieces of spaces."""
    newline, continuation = (ours.pieces.piece_to_id(f"<0x{byte:02X}>") for byte in (0x0A, 0xA0))
    assert ours.decode([newline, continuation]) == "\n\N{REPLACEMENT CHARACTER}"
    assert decode([newline, continuation]) == "\N{REPLACEMENT CHARACTER}" * 2
    if ours.pieces.piece_to_id("\u2581" * 2) != ours.pieces.unk_id():
        assert ours.encode("\u2581\u2581  ") != encode("\u2581\u2581  ")
        assert ours.encode(" " * 40) != encode(" " * 40)
