"""tokenizer.json in place of tokenizer.model: the same ids, and refusals of what npgemma does not read."""

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_files import MODEL, SPACE, tokenizer_json, write

from npgemma.errors import BadModel, NpgemmaError
from npgemma.io.tokenizers import Tokenizer, paligemma_family, read_tokenizer

FILE = tokenizer_json()
REPLACE = FILE["normalizer"]
EMBEDDED = Tokenizer(MODEL)
IMAGE = EMBEDDED.image_id
PALIGEMMA = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizer"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory) -> Tokenizer:
    return read_tokenizer(write(tmp_path_factory.mktemp("json"), tokenizer=FILE), paligemma_family(IMAGE))


def edited(*keys, value, of=FILE):
    """The file with one value replaced; `...` stands for a key that is removed."""
    first, *rest = keys
    if rest:
        value = edited(*rest, value=value, of=of[first])
    if isinstance(of, list):
        return [*of[:first], value, *of[first + 1 :]]
    return {key: each for key, each in of.items() if key != first} | ({} if value is ... else {first: value})


# ------------------------------------------------------------------------------------------------------------ same ids


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text("abt\n\t <>locseg01", max_size=30))
@settings(max_examples=150)
def test_a_rebuilt_model_gives_the_ids_and_the_text_of_tokenizer_model(rebuilt, text):
    if SPACE not in text:  # the file cuts runs of it out of a text, the model does not
        assert rebuilt.encode(text) == EMBEDDED.encode(text)
        assert rebuilt.decode(rebuilt.encode(text)) == text


def test_every_piece_has_its_id_and_its_text(rebuilt):
    assert rebuilt.ids == EMBEDDED.ids
    assert rebuilt.specials == EMBEDDED.specials
    for i in range(len(rebuilt)):
        assert rebuilt.decode([i]) == EMBEDDED.decode([i])


@pytest.mark.parametrize(
    "content",
    [
        tokenizer_json(as_text=True),
        edited(
            "pre_tokenizer",
            value={"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        ),
        edited("normalizer", value={"type": "Sequence", "normalizers": [REPLACE]}),
        edited("truncation", value={"max_length": 128, "strategy": "LongestFirst", "direction": "Right", "stride": 0}),
        edited("padding", value={"strategy": "BatchLongest"}),
        edited("model", "ignore_merges", value=False),
        edited("model", "type", value=...),
        edited("model", "vocab", value={"\t" if t == "<0x09>" else t: i for t, i in FILE["model"]["vocab"].items()}),
        edited("model", "vocab", value=dict(reversed(FILE["model"]["vocab"].items()))),
        edited("added_tokens", value=[t for t in FILE["added_tokens"] if t["content"] != "<image>"]),
    ],
    ids=[
        "merges as text",
        "split",
        "sequence",
        "truncation",
        "padding",
        "ignore_merges",
        "no type",
        "tab",
        "order",
        "image",
    ],
)
def test_forms_that_mean_the_same_are_read(content, tmp_path):
    read = read_tokenizer(write(tmp_path, tokenizer=content), paligemma_family(IMAGE))
    for text in ("detect a blue star\n", "\t\tx\ty", "<loc0001><seg127> cat", "a  b   c", "<image><bos>é😀\n\n"):
        assert read.encode(text) == EMBEDDED.encode(text)


def test_tokenizer_model_and_tokenizer_json_together_are_one_tokenizer(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    read = read_tokenizer(write(tmp_path, tokenizer=FILE), paligemma_family(IMAGE))
    assert read.ids == EMBEDDED.ids


# ------------------------------------------------------------------------------------------------------------- refused

OTHER_PARTS = {
    "normalizer is 'Prepend', not": edited("normalizer", value={"type": "Prepend", "prepend": SPACE}),
    "normalizer is 'NFKC'": edited("normalizer", value={"type": "NFKC"}),
    "normalizer is None": edited("normalizer", value=None),
    "normalizer is 'Sequence' with other settings": edited(
        "normalizer", value={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, REPLACE]}
    ),
    "normalizer is 'Replace' with other settings": edited("normalizer", "content", value="_"),
    "pre_tokenizer is 'ByteLevel'": edited("pre_tokenizer", value={"type": "ByteLevel", "add_prefix_space": False}),
    "pre_tokenizer is 'Metaspace'": edited("pre_tokenizer", value={"type": "Metaspace", "replacement": SPACE}),
    "pre_tokenizer is 'Split' with other settings": edited(
        "pre_tokenizer", value={"type": "Split", "pattern": {"Regex": r"\d"}}
    ),
    "decoder is None": edited("decoder", value=None),
    "decoder is 'ByteLevel'": edited("decoder", value={"type": "ByteLevel"}),
    "decoder is 'Sequence' with other settings": edited("decoder", "decoders", value=[{"type": "Fuse"}]),
    "type is 'Unigram'": edited("model", "type", value="Unigram"),
    "type is 'WordPiece'": edited("model", "type", value="WordPiece"),
    "byte_fallback is False": edited("model", "byte_fallback", value=False),
    "dropout is 0.1": edited("model", "dropout", value=0.1),
    "ignore_merges is True": edited("model", "ignore_merges", value=True),
    "end_of_word_suffix is '</w>'": edited("model", "end_of_word_suffix", value="</w>"),
}


@pytest.mark.parametrize("said", OTHER_PARTS)
def test_tokenizers_that_work_otherwise_than_gemmas_are_refused_by_name(said, tmp_path):
    with pytest.raises(BadModel) as error:
        read_tokenizer(write(tmp_path, tokenizer=OTHER_PARTS[said]), paligemma_family(IMAGE))
    assert said in str(error.value)
    assert str(tmp_path / "tokenizer.json") in str(error.value)


VOCAB, MERGES = FILE["model"]["vocab"], FILE["model"]["merges"]
TWO_WAYS = next(i for i, (a, b) in enumerate(MERGES) if a + b == "".join(MERGES[i + 1]))  # a piece of two merges


def without(text: str) -> dict:
    return {piece: i for piece, i in VOCAB.items() if piece != text}


DAMAGED = {
    "empty": ({}, "normalizer is None"),
    "no model": (edited("model", value=...), "model: byte_fallback is None"),
    "a list as model": (edited("model", value=[]), "model is"),
    "no vocab": (edited("model", "vocab", value=...), "vocab is missing"),
    "a list as vocab": (edited("model", "vocab", value=[["<unk>", 0.0]]), "vocab is a list"),
    "an id as text": (edited("model", "vocab", value=VOCAB | {"a": "7"}), "id that is not a whole number"),
    "a true id": (edited("model", "vocab", value=VOCAB | {"a": True}), "id that is not a whole number"),
    "a hole": (
        edited("model", "vocab", value=VOCAB | {"<seg127>": 10**9}),
        f"none or several with the id {VOCAB['<seg127>']}",
    ),
    "an id twice": (edited("model", "vocab", value=VOCAB | {"<seg127>": 5}), "none or several"),
    "a negative id": (edited("model", "vocab", value=VOCAB | {"<seg127>": -1}), "none or several"),
    "no <0x41>": (
        edited("model", "vocab", value={"x" * 9 if t == "<0x41>" else t: i for t, i in VOCAB.items()}),
        "<0x41>",
    ),
    "no merges": (edited("model", "merges", value=...), "merges is missing"),
    "merges of one": (edited("model", "merges", value=[*MERGES, ["a"]]), "not two pieces"),
    "merges of three": (edited("model", "merges", value=[*MERGES, "a b c"]), "not two pieces"),
    "merges of numbers": (edited("model", "merges", value=[*MERGES, [1, 2]]), "the vocabulary lacks"),
    "merges of nothing": (edited("model", "merges", value=[*MERGES, None]), "not two pieces"),
    "a merge without its piece": (edited("model", "merges", value=[*MERGES, ["zq", "zq"]]), "'zqzq'"),
    "a merge twice": (edited("model", "merges", value=[*MERGES, MERGES[-1]]), "of them make a piece of two"),
    "a merge removed": (edited("model", "merges", value=MERGES[:-1]), "of them make a piece of two"),
    "a piece's merges apart": (
        edited("model", "merges", value=[*MERGES[: TWO_WAYS + 1], *MERGES[TWO_WAYS + 2 :], MERGES[TWO_WAYS + 1]]),
        "do not stand together",
    ),
    "a million merges": (edited("model", "merges", value=["a b"] * 1_000_000), "which the vocabulary lacks"),
    "no unk_token": (edited("model", "unk_token", value=None), "unk_token is None"),
    "added tokens as object": (edited("added_tokens", value={}), "added_tokens is a dict"),
    "an added token without id": (edited("added_tokens", value=[{"content": "<a>"}]), "gives '<a>' no id"),
    "an added token without text": (edited("added_tokens", 0, "content", value=...), "added_tokens[0] is"),
    "an added token with a flag of text": (edited("added_tokens", 0, "special", value="yes"), "special is 'yes'"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_sentence(name, tmp_path):
    content, said = DAMAGED[name]
    with pytest.raises(BadModel) as error:
        read_tokenizer(write(tmp_path, tokenizer=content), paligemma_family(IMAGE))
    assert said in str(error.value)
    assert str(tmp_path / "tokenizer.json") in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", ["{", "[]", "{}x", '{"a": ' * 100_000, '{"model": {"vocab": {"a": 0, "a": 1}}}'])
def test_a_file_that_is_not_such_json_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BadModel, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path, paligemma_family(IMAGE))


def test_a_tokenizer_json_that_contradicts_tokenizer_model_is_refused(tmp_path):
    renamed = next(text for text in reversed(VOCAB) if len(text) == 1)
    vocab = {("\u0416\u0416" if text == renamed else text): i for text, i in VOCAB.items()}
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    with pytest.raises(BadModel) as error:
        read_tokenizer(write(tmp_path, tokenizer=edited("model", "vocab", value=vocab)), paligemma_family(IMAGE))
    assert f"token {VOCAB[renamed]} is '\u0416\u0416' in {tmp_path / 'tokenizer.json'}" in str(error.value)
    assert f"{renamed!r} in {tmp_path / 'tokenizer.model'}" in str(error.value)


def test_damaged_files_are_refused_or_read(tmp_path):
    """Bytes that are flipped, removed or repeated end in an NpgemmaError or in a tokenizer that works."""
    rng, whole = Random(0), json.dumps(FILE).encode()
    for _ in range(25):
        raw = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            at, kind = rng.randrange(len(raw)), rng.random()
            if kind < 0.6:
                raw[at] ^= 1 << rng.randrange(8)
            elif kind < 0.8:
                raw[at:at] = raw[at : at + rng.randrange(20)]
            else:
                del raw[at : at + rng.randrange(1, 20)]
        (tmp_path / "tokenizer.json").write_bytes(raw)
        try:
            read = read_tokenizer(tmp_path, paligemma_family(IMAGE))
            assert isinstance(read.decode(read.encode("detect cat\n<loc0001>é")), str)
        except NpgemmaError:
            pass
