"""The tokenizers of SigLIP and SigLIP 2: which text reaches the pieces, how a text ends, and what is refused."""

import json

import numpy as np
import pytest
from siglip_files import spiece_model
from tokenizer_files import BASE, tokenizer_json

from npgemma.errors import BadModel, BadPrompt
from npgemma.io.siglip_tokenizer import Siglip2Tokenizer, SiglipTokenizer, canonical, read_siglip_tokenizer
from npgemma.io.text_rows import text_rows
from npgemma.io.tokenizers import GEMMAS, Tokenizer

N = len(SiglipTokenizer(spiece_model()))


@pytest.fixture
def siglip(tmp_path) -> SiglipTokenizer:
    (tmp_path / "spiece.model").write_bytes(spiece_model())
    return read_siglip_tokenizer(tmp_path, N)


@pytest.fixture(params=["tokenizer.model", "tokenizer.json", "tokenizer.json of transformers"])
def siglip2(request, tmp_path) -> Siglip2Tokenizer:
    name, _, lower = request.param.partition(" ")
    content = tokenizer_json()
    if lower:
        content = content | {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, REPLACE]}}
    (tmp_path / name).write_bytes(BASE if name.endswith("model") else json.dumps(content).encode())
    return read_siglip_tokenizer(tmp_path)


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\N{LOWER ONE EIGHTH BLOCK}"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Photo, of:\n\ta CAT!", "a photo of a cat"),
        ("it's 3.5 % foo_bar-baz", "its 35 foobarbaz"),
        ("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", ""),
        ("“quoted” … ¿what?", "“quoted” … ¿what"),  # the signs of other alphabets stay
        ("\u0391\u03a3 İ", "\u03b1\u03c2 i\u0307"),  # a sigma that ends a word
        (" \u3000\xa0", ""),
    ],
)
def test_siglip_reads_lower_case_without_punctuation(text, expected, siglip):
    assert canonical(text) == expected
    assert siglip.encode(text) == [*siglip.pieces.encode(expected), 1]


def test_special_tokens_in_a_text_of_siglip(siglip):
    cat, inside = siglip.pieces.encode("cat"), siglip.ids["c"]
    assert siglip.encode("cat </s> ") == [*cat, 1]  # one end is enough
    first, end, *rest = siglip.encode("</s> cat")[:1] + siglip.encode("cat </s>c")[len(cat) :]
    assert (first, end, rest) == (1, 1, [inside, 1])  # what follows does not begin a word
    assert siglip.encode("\N{LOWER ONE EIGHTH BLOCK}cat") == [*cat, 1]


def test_rows_of_siglip_end_with_the_end_token_and_are_padded_with_it(siglip):
    a = siglip.pieces.encode("a")
    rows = text_rows(siglip, ["a", "a " * 4, "a " * 3, ""], 4)
    np.testing.assert_array_equal(rows.ids, np.array([[*a, 1, 1, 1], [*a * 3, 1], [*a * 3, 1], [1] * 4]), strict=True)
    assert rows.truncated == [1]


def test_siglip_2_reads_lower_case_with_punctuation(siglip2):
    gemma = Tokenizer(BASE, family=GEMMAS["gemma2"])
    for text in ("A Cat, running!", "", " X  ", "ÀÉ"):
        assert siglip2.encode(text) == [*gemma.encode(text.lower()), 1]
    assert siglip2.encode("\u0391\u03a3") == [*gemma.encode("\u03b1\u03c3"), 1]  # character by character
    ids = siglip2.encode("<bos>a<eos>")
    assert (ids[0], ids[-2:]) == (2, [1, 1])
    assert 2 not in siglip2.encode("<BOS>")  # in upper case it is text


def test_rows_of_siglip_2_are_padded_with_zeros_and_keep_the_end(siglip2):
    x = siglip2.encode("x")[:-1]
    rows = text_rows(siglip2, ["x", "x" * 40], 8)
    assert rows.ids[0].tolist() == [*x, 1] + [0] * (7 - len(x))
    assert (rows.ids[1, -1], rows.truncated) == (1, [1])
    assert (siglip2.end_id, siglip2.pad_id) == (1, 0)


def test_a_lone_surrogate_is_refused(siglip, siglip2):
    for tokenizer in (siglip, siglip2):
        with pytest.raises(BadPrompt, match="surrogates not allowed at character 1"):
            tokenizer.encode("a\ud800")


def test_tokens_that_a_folder_adds(tmp_path):
    (tmp_path / "spiece.model").write_bytes(spiece_model())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<toy>": N}))
    tokenizer = read_siglip_tokenizer(tmp_path, N + 1)
    assert tokenizer.encode("<toy>") == [N, 1]
    assert len(tokenizer) == N + 1
    with pytest.raises(BadModel, match=rf"added_tokens\.json adds '<toy>' as token {N}, but .* {N} rows"):
        read_siglip_tokenizer(tmp_path, N)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {},
            r"spiece\.model is missing, and so are tokenizer\.model and tokenizer\.json: .*hf download google/siglip-",
        ),
        ({"spiece.model": b""}, r"spiece\.model is empty"),
        ({"spiece.model": b"<html>"}, r"spiece\.model is an HTML page"),
        ({"spiece.model": b"\x0a\xff"}, r"spiece\.model is not a valid SentencePiece model"),
        ({"spiece.model": spiece_model()[:-300]}, r"spiece\.model is not a valid SentencePiece model"),
        ({"spiece.model": spiece_model("<end>")}, r"has no piece '</s>'; it belongs to another model than SigLIP"),
        ({"tokenizer.json": b'{"model": {"type": "Unigram"}}'}, r"tokenizer\.json: .* not Gemma's"),
        ({"tokenizer.model": BASE[:-30]}, r"tokenizer\.model is not a valid SentencePiece model"),
        (
            {"spiece.model": spiece_model(), "tokenizer_config.json": b'{"do_lower_case": false}'},
            r"tokenizer_config\.json: do_lower_case is False, which npgemma does not support",
        ),
    ],
)
def test_missing_and_damaged_files_are_refused_by_name(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadModel, match=message) as error:
        read_siglip_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_tokenizer_with_more_pieces_than_rows_is_refused(tmp_path):
    for name, model in (("spiece.model", spiece_model()), ("tokenizer.model", BASE)):
        (tmp_path / name).write_bytes(model)
        with pytest.raises(BadModel, match=rf"{name} has '.*' as token 50, but the embedding table has 50 rows"):
            read_siglip_tokenizer(tmp_path, 50, tmp_path / name)
