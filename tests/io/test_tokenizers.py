"""The tokenizer: PaliGemma's ids, text that is decoded unchanged, and errors for damaged models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizer_files import BASE, MODEL

from npgemma.errors import BadModel, BadPrompt
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import (
    CONTROL,
    IMAGE,
    LOCATIONS,
    SEGMENTS,
    Tokenizer,
    append_pieces,
    paligemma_family,
    read_tokenizer,
)

ROOT = Path(__file__).resolve().parents[2]
PALIGEMMA = ROOT.parent / "shared" / "data" / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(MODEL)


def pieces(tokenizer: Tokenizer) -> list[str]:
    """The pieces in the order of their ids."""
    return [tokenizer.pieces.id_to_piece(i) for i in range(len(tokenizer))]


# ------------------------------------------------------------------------------------------------------ PaliGemma's ids


@pytest.fixture(scope="module")
def paligemma():
    if not PALIGEMMA.exists():
        pytest.skip("this machine does not have PaliGemma's tokenizer.model, which is not part of the repository")
    return Tokenizer((PALIGEMMA / "paligemma.model").read_bytes())


def test_300_prompts_have_paligemmas_ids(paligemma):
    cases = json.loads((PALIGEMMA / "cases.json").read_text("utf-8"))
    assert len(cases) == 300
    wrong = [(text, ids, found) for text, ids in cases if (found := paligemma.encode(text)) != ids]
    assert wrong == []


def test_special_ids_are_the_published_ones(paligemma):
    specials = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<image>": 257152}
    published = specials | {"\n": 108, "\n\n": 109, "<loc0000>": 256000, "<loc1023>": 257023}
    published |= {"<seg000>": 257024, "<seg127>": 257151}
    assert {text: paligemma.encode(text) for text in published} == {text: [id_] for text, id_ in published.items()}
    assert (len(paligemma), paligemma.image_id) == (257153, 257152)
    assert paligemma.encode("caption en") == [21209, 659]
    assert paligemma.encode("caption en ") == [21209, 659, 235248]


# -------------------------------------------------------------------------------------------------- locations and codes


def test_base_is_a_valid_model_without_locations_and_codes():
    """This checks the position where BASE is cut."""
    base = sentencepiece.SentencePieceProcessor(model_proto=BASE)
    whole = sentencepiece.SentencePieceProcessor(model_proto=MODEL)
    assert base.vocab_size() == whole.vocab_size() - len(LOCATIONS) - len(SEGMENTS)
    assert base.piece_to_id("<loc0000>") == base.unk_id()


def test_missing_locations_and_codes_are_appended(tokenizer):
    """Gemma's own 256,000 pieces and PaliGemma's 257,152 give the same ids."""
    base = Tokenizer(BASE)
    assert pieces(base) == pieces(tokenizer)
    assert base.specials == tokenizer.specials
    for text in ("detect cat\n", "<loc0001><loc1023><seg127> cat", "x<image><bos>y", "é😀"):
        assert base.encode(text) == tokenizer.encode(text)


def test_missing_codes_are_appended_after_the_locations(tokenizer):
    assert pieces(Tokenizer(append_pieces(BASE, LOCATIONS))) == pieces(tokenizer)


def test_the_last_ids_are_locations_codes_and_the_image(tokenizer):
    assert pieces(tokenizer)[-1153:] == [*LOCATIONS, *SEGMENTS, IMAGE]
    assert tokenizer.image_id == len(tokenizer) - 1
    assert (LOCATIONS[0], LOCATIONS[-1]) == ("<loc0000>", "<loc1023>")
    assert (SEGMENTS[0], SEGMENTS[-1]) == ("<seg000>", "<seg127>")


@pytest.mark.parametrize("piece", [*LOCATIONS[::93], LOCATIONS[-1], *SEGMENTS[::25], SEGMENTS[-1]])
def test_a_location_or_code_is_one_token_anywhere_in_a_text(piece, tokenizer):
    """If <loc0001> were split into characters, detection would fail silently."""
    id_ = pieces(tokenizer).index(piece)
    assert tokenizer.encode(piece) == [id_]
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert tokenizer.encode(f"a{piece}{piece}b") == [*a, id_, id_, *b]
    assert tokenizer.decode([id_]) == piece


@pytest.mark.parametrize("text", ["<loc12", "<loc1024>", "<loc00001>", "<seg128>", "<loc 0001>", "<LOC0001>"])
def test_text_similar_to_a_location_is_plain_text(text, tokenizer):
    first = pieces(tokenizer).index(LOCATIONS[0])
    assert max(tokenizer.encode(text)) < first
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_appended_pieces_have_the_given_kind():
    model = append_pieces(append_pieces(BASE, ["<x>"]), ["<y>"], CONTROL)
    read = sentencepiece.SentencePieceProcessor(model_proto=model)
    x, y = read.vocab_size() - 2, read.vocab_size() - 1
    assert (read.id_to_piece(x), read.id_to_piece(y)) == ("<x>", "<y>")
    assert read.encode("<x>") == [x]
    assert y not in read.encode("<y>")
    assert (read.is_control(x), read.is_control(y)) == (False, True)
    assert (read.get_score(x), read.get_score(y)) == (0.0, 0.0)


# ------------------------------------------------------------------------------------------------------- special pieces


@pytest.mark.parametrize("piece", ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"])
def test_a_special_piece_in_a_text_becomes_its_id(piece, tokenizer):
    """As in transformers."""
    id_ = pieces(tokenizer).index(piece)
    assert tokenizer.encode(piece) == [id_]
    before, after = tokenizer.encode("caption "), tokenizer.encode(" en\n")
    assert tokenizer.encode(f"caption {piece}{piece} en\n") == [*before, id_, id_, *after]


@pytest.mark.parametrize("piece", ["<pad>", "<eos>", "<bos>", "<image>"])
def test_decoding_leaves_out_special_pieces(piece, tokenizer):
    ids = tokenizer.encode(f"a{piece} cat{piece}")
    assert tokenizer.decode(ids) == "a cat"


def test_decoding_leaves_out_the_unknown_piece(tokenizer):
    """As transformers does with skip_special_tokens."""
    assert tokenizer.decode(tokenizer.encode("a<unk> cat")) == "a cat"


def test_decoding_leaves_out_ids_out_of_range(tokenizer):
    cat = tokenizer.encode("cat")
    assert tokenizer.decode([-1, *cat, len(tokenizer), 10**12]) == "cat"


def test_decoding_keeps_locations_and_codes(tokenizer):
    text = "<loc0001><loc0002><loc0003><loc0004><seg001> cat ; dog"
    assert tokenizer.decode(tokenizer.encode(text)) == text


# ----------------------------------------------------------------------------------------------------------------- text


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=400)
def test_any_text_is_decoded_unchanged(tokenizer, text):
    """Characters without a piece are encoded as bytes. U+2581 is excluded, since SentencePiece uses it for a space."""
    assume("\N{LOWER ONE EIGHTH BLOCK}" not in text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["", " ", "  a  b  ", "\n", "\n" * 40, "\t", "\0", "a\0b", "\r\n", "é😀한ⅷ", "ﬁ"])
def test_white_space_and_rare_characters_are_decoded_unchanged(text, tokenizer):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encoding_adds_nothing_and_does_not_normalise_text(tokenizer):
    """No space before the first word, no <bos>, and different ids for composed and decomposed letters."""
    assert tokenizer.encode("") == []
    assert tokenizer.encode(" cat") != tokenizer.encode("cat")
    assert tokenizer.encode("\u00e9") != tokenizer.encode("e\u0301")


@given(
    specials=st.lists(st.sampled_from(["<bos>", "<eos>", "<image>", "<pad>"]), max_size=4),
    texts=st.lists(st.text(st.characters(codec="ascii"), max_size=6), max_size=4),
)
@settings(max_examples=100)
def test_the_parts_of_a_text_between_special_pieces_are_encoded_separately(tokenizer, specials, texts):
    """The ids of "a<bos>b" are those of "a", of <bos> and of "b": no piece spans a special one."""
    parts = [part for pair in zip(texts, specials, strict=False) for part in pair]
    assert tokenizer.encode("".join(parts)) == [i for part in parts for i in tokenizer.encode(part)]


@pytest.mark.parametrize("text", ["\ud800", "caption \udcff", "a<bos>\udfff"])
def test_text_with_a_lone_surrogate_is_a_bad_prompt(text, tokenizer):
    """Python decodes a shell argument that is not UTF-8 to such text."""
    with pytest.raises(BadPrompt, match="not valid text"):
        tokenizer.encode(text)


# ---------------------------------------------------------------------------------------------------------------- files


def folder_with(model: bytes, tmp_path: Path) -> Path:
    """A folder whose tokenizer.model has the content `model`."""
    (tmp_path / "tokenizer.model").write_bytes(model)
    return tmp_path


def test_the_tokenizer_of_a_folder_is_read(tokenizer, tmp_path):
    assert pieces(read_tokenizer(folder_with(MODEL, tmp_path), paligemma_family(tokenizer.image_id))) == pieces(
        tokenizer
    )


@pytest.mark.parametrize("off", [-1, 1, 64])
def test_a_tokenizer_of_another_model_is_refused_with_both_ids(off, tokenizer, tmp_path):
    with pytest.raises(BadModel) as error:
        read_tokenizer(folder_with(MODEL, tmp_path), paligemma_family(tokenizer.image_id + off))
    assert f"<image> is token {tokenizer.image_id} in {tmp_path / 'tokenizer.model'}" in str(error.value)
    assert f"{tokenizer.image_id + off} in config.json" in str(error.value)


def test_a_missing_tokenizer_error_names_generate_ids(tmp_path):
    with pytest.raises(BadModel, match=r"tokenizer\.model is missing.*generate_ids"):
        read_tokenizer(tmp_path, paligemma_family(0))


def test_a_folder_in_place_of_the_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").mkdir()
    with pytest.raises(BadModel, match=r"tokenizer\.model is not a valid SentencePiece model"):
        read_tokenizer(tmp_path, paligemma_family(0))


DAMAGED = {
    "one byte": b"\n",
    "the first half": MODEL[: len(MODEL) // 2],
    "last byte missing": MODEL[:-1],
    "first byte missing": MODEL[1:],
    "zeros": bytes(1000),
    "a web page": b"<!DOCTYPE html><html></html>",
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "JSON": b'{"model": {"type": "BPE"}}',
    "a repeated piece": append_pieces(MODEL, ["<loc0001>"]),
    "an empty piece": append_pieces(MODEL, [""]),
    "a missing byte piece": MODEL.replace(b"<0x41>", b"<0x42>"),
    "a misspelt byte piece": MODEL.replace(b"<0x41>", b"<0y41>"),
}


@pytest.mark.parametrize("model", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_tokenizer_is_named_in_the_error(model, tokenizer, tmp_path):
    with pytest.raises(BadModel) as error:
        read_tokenizer(folder_with(model, tmp_path), paligemma_family(tokenizer.image_id))
    assert str(tmp_path / "tokenizer.model") in str(error.value)


def test_an_empty_tokenizer_is_refused_without_other_output(capfd, tokenizer, tmp_path):
    with pytest.raises(BadModel, match=r"tokenizer\.model"):
        read_tokenizer(folder_with(b"", tmp_path), paligemma_family(tokenizer.image_id))
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_with_an_error_message_that_is_not_utf_8_is_refused(tokenizer, tmp_path):
    """The message of SentencePiece quotes the damaged name of a byte piece, which contains the byte 0xd9."""
    with pytest.raises(BadModel):
        read_tokenizer(
            folder_with(MODEL.replace(b"<0x41>", b"<0\xd941>"), tmp_path), paligemma_family(tokenizer.image_id)
        )


def test_a_piece_that_is_not_utf_8_is_refused_or_decoded(tokenizer, tmp_path):
    """Generation must not raise UnicodeDecodeError if the model generates this piece."""
    word = max((piece for piece in pieces(tokenizer) if piece.isalpha() and piece.isascii()), key=len)
    damaged = MODEL.replace(
        b"\n" + bytes([len(word)]) + word.encode(), b"\n" + bytes([len(word)]) + b"\xa2" * len(word)
    )
    assert damaged != MODEL
    try:
        read = read_tokenizer(folder_with(damaged, tmp_path), paligemma_family(tokenizer.image_id))
    except BadModel:
        return
    assert isinstance(read.decode(list(range(len(read)))), str)


FUZZ = """
import random, sys
from pathlib import Path
from npgemma.errors import NpgemmaError
from npgemma.io.tokenizers import paligemma_family, read_tokenizer

model, image_id, folder = Path(sys.argv[1]).read_bytes(), int(sys.argv[2]), Path(sys.argv[3])
rng = random.Random(0)
for i in range(60):
    raw = bytearray(model)
    for _ in range(rng.choice((1, 2, 8, 50))):
        at, kind = rng.randrange(len(raw)), rng.random()
        if kind < 0.6:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind < 0.8:
            raw[at] = rng.randrange(256)
        elif kind < 0.9:
            other = rng.randrange(len(raw))
            raw[at:at] = raw[other : other + rng.randrange(200)]
        elif len(raw) > 200:
            del raw[at : at + rng.randrange(1, 100)]
    (folder / "tokenizer.model").write_bytes(raw)
    try:
        tokenizer = read_tokenizer(folder, paligemma_family(image_id))
        text = tokenizer.decode(tokenizer.encode("detect cat ; <loc0001>\\u00e9\\n"))
        print("read", type(text).__name__)
    except NpgemmaError as error:
        print("refused")
"""


def test_60_damaged_tokenizers_are_refused_or_read_and_never_crash(tokenizer, tmp_path):
    """In a process of its own: SentencePiece is C++, and a memory error in it would end the process."""
    command = [sys.executable, "-c", FUZZ, str(EMBEDDED / "tokenizer.model"), str(tokenizer.image_id), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split("\n")[:-1]
    assert len(outcomes) == 60
    assert set(outcomes) == {"refused", "read str"}
