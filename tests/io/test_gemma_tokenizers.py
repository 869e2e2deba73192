"""Tokenizers of Gemma as a language model: what the files say, without PaliGemma's tokens."""

import pytest
from tokenizer_files import BASE, MODEL, token, tokenizer_json, write

from npgemma.errors import BadModel
from npgemma.io.sentencepiece_model import read_pieces
from npgemma.io.tokenizers import GEMMAS, LOCATIONS, Tokenizer, read_tokenizer

TURN = "<start_of_turn>"
SOFT = "<image_soft_token>"


@pytest.fixture(scope="module")
def n() -> int:
    """The number of pieces of BASE."""
    return len(Tokenizer(BASE, family=GEMMAS["gemma"]))


def read(folder, model_type="gemma2", model=BASE, **options) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(model)
    return read_tokenizer(folder, GEMMAS[model_type], **options)


@pytest.mark.parametrize("model_type", GEMMAS)
def test_the_pieces_are_those_of_the_file(model_type, tmp_path):
    found = read(tmp_path, model_type)
    pieces = [text for text, _ in read_pieces(found.pieces.serialized_model_proto())]
    assert pieces == [text for text, _ in read_pieces(Tokenizer(MODEL).pieces.serialized_model_proto())][: len(found)]
    assert found.ids == {text: i for i, text in enumerate(pieces)}
    for text in (LOCATIONS[1], "<image>", f"cat{LOCATIONS[1]} <image>"):
        assert len(found.encode(text)) >= len(text) // 2
        assert found.decode(found.encode(text)) == text


def test_pieces_of_tokenizer_json_are_those_of_the_file(tmp_path):
    content = tokenizer_json()
    added = [each for each in content["added_tokens"] if each["content"] != "<image>"]
    found = read_tokenizer(write(tmp_path, tokenizer=content | {"added_tokens": added}), GEMMAS["gemma3_text"])
    assert found.ids == content["model"]["vocab"]
    assert found.decode(found.encode("a<image>b")) == "a<image>b"


TURNS = {
    "tokenizer_config.json": lambda n: {"tokenizer_config": {"additional_special_tokens": [TURN]}},
    "added_tokens_decoder": lambda n: {
        "tokenizer_config": {"added_tokens_decoder": {str(n): {"content": TURN, "special": True}}}
    },
}


@pytest.mark.parametrize("name", TURNS)
def test_the_tokens_of_turns_are_one_id_and_have_no_text(name, n, tmp_path):
    found = read(write(tmp_path, **TURNS[name](n)))
    ids = found.encode(f"{TURN}cat{TURN}")
    assert (ids[0], ids[-1], ids[1:-1]) == (n, n, found.encode("cat"))
    assert found.decode(ids) == "cat"


def test_a_fine_tune_may_add_a_token_named_image_with_a_text_of_its_own(n, tmp_path):
    found = read(write(tmp_path, added_tokens={"<image>": n}))
    assert found.encode("a<image>") == [*found.encode("a"), n]
    assert found.decode([n]) == "<image>"


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("model_type", "base"),
    [("gemma", "google/gemma-2b"), ("gemma2", "google/gemma-2-2b"), ("gemma3_text", "google/gemma-3-1b-pt")],
)
def test_a_missing_tokenizer_error_names_the_model_to_copy_from(model_type, base, tmp_path):
    with pytest.raises(BadModel, match=rf"\(hf download {base} tokenizer\.model\)"):
        read_tokenizer(tmp_path, GEMMAS[model_type])


def test_a_tokenizer_with_more_pieces_than_rows_is_refused(n, tmp_path):
    assert len(read(tmp_path, rows=n)) == n
    with pytest.raises(BadModel) as error:
        read(tmp_path, rows=n - 1)
    assert f"as token {n - 1}, but the embedding table has {n - 1} rows (config.json: vocab_size)" in str(error.value)
    assert str(tmp_path / "tokenizer.model") in str(error.value)


def test_gemma_3s_token_for_pictures_needs_no_row(n, tmp_path):
    """Its tokenizer has 262,145 tokens, and the embedding table of its models without vision 262,144 rows."""
    folder = write(tmp_path, tokenizer_config={"added_tokens_decoder": {str(n): token(SOFT, n, True)}})
    assert read(folder, "gemma3_text", rows=n).encode(SOFT) == [n]
    with pytest.raises(BadModel, match=rf"tokenizer_config\.json adds '{SOFT}' as token {n}, but .* {n} rows"):
        read(folder, "gemma2", rows=n)
