"""Tokens that JSON files add: their ids, how they are cut out of a text, and files that contradict each other."""

import pytest
from tokenizer_files import MODEL, token, tokenizer_json, write

from npgemma.errors import BadModel
from npgemma.io.tokenizers import LOCATIONS, SEGMENTS, Tokenizer, paligemma_family, read_tokenizer

EMBEDDED = Tokenizer(MODEL)
N = EMBEDDED.image_id  # the number of pieces
A, B = "<answer>", "<box>"


def decoder(**ids: int) -> dict:
    """`added_tokens_decoder` of a tokenizer_config.json."""
    return {
        "added_tokens_decoder": {
            str(i): {"content": f"<{name}>", "special": name == "image"} for name, i in ids.items()
        }
    }


def listed(*tokens: dict) -> dict:
    """A tokenizer.json with these added tokens after those of the pieces."""
    content = tokenizer_json()
    return content | {"added_tokens": [*content["added_tokens"][:-1], *tokens]}


def read(folder, image_id=N, rows=N + 64, model: bytes | None = MODEL) -> Tokenizer:
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)
    return read_tokenizer(folder, paligemma_family(image_id), rows)


# ---------------------------------------------------------------------------------------------------------------- ids

IDS = {  # files, and the ids of A, B and <image> in them
    "after, in the config": ({"tokenizer_config": decoder(image=N, answer=N + 1, box=N + 2)}, (N + 1, N + 2, N)),
    "before, in the config": ({"tokenizer_config": decoder(answer=N, box=N + 1, image=N + 2)}, (N, N + 1, N + 2)),
    "in any order": ({"tokenizer_config": decoder(box=N, image=N + 1, answer=N + 2)}, (N + 2, N, N + 1)),
    "in added_tokens.json": ({"added_tokens": {A: N, B: N + 1, "<image>": N + 2}}, (N, N + 1, N + 2)),
    "image in no file": ({"added_tokens": {A: N, B: N + 1}}, (N, N + 1, N + 2)),
    "in two files": (
        {"added_tokens": {A: N + 1}, "tokenizer_config": decoder(image=N, answer=N + 1, box=N + 2)},
        (N + 1, N + 2, N),
    ),
    "some in each of two files": (
        {"added_tokens": {B: N + 2}, "tokenizer_config": decoder(image=N, answer=N + 1)},
        (N + 1, N + 2, N),
    ),
    "in tokenizer.json": (
        {"tokenizer": listed(token("<image>", N, True), token(A, N + 1), token(B, N + 2))},
        (N + 1, N + 2, N),
    ),
    "before, in tokenizer.json": (
        {"tokenizer": listed(token(A, N), token(B, N + 1), token("<image>", N + 2, True))},
        (N, N + 1, N + 2),
    ),
    "named, additional": ({"tokenizer_config": {"additional_special_tokens": ["<image>", A, B]}}, (N + 1, N + 2, N)),
    "named, extra": ({"tokenizer_config": {"extra_special_tokens": [A, {"content": B}]}}, (N, N + 1, N + 2)),
    "named, by name": (
        {"tokenizer_config": {"extra_special_tokens": {"b": A, "c": B}, "add_bos_token": False}},
        (N, N + 1, N + 2),
    ),
    "named, roles": (
        {"tokenizer_config": {"sep_token": A, "cls_token": {"content": B}, "pad_token": None}},
        (N, N + 1, N + 2),
    ),
    "named, map": ({"special_tokens_map": {"sep_token": A, "additional_special_tokens": [B]}}, (N, N + 1, N + 2)),
}


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("model", [MODEL, None], ids=["tokenizer.model", "tokenizer.json"])
def test_added_tokens_have_the_ids_that_the_files_give_them(name, model, tmp_path):
    files, ids = IDS[name]
    if model is None and "tokenizer" not in files:
        content = tokenizer_json()
        files = files | {"tokenizer": content | {"added_tokens": content["added_tokens"][:-1]}}
    found = read(write(tmp_path, **files), image_id=ids[2], model=model)
    assert (found.ids[A], found.ids[B], found.image_id) == ids
    assert len(found) == N + 3
    around = EMBEDDED.encode("a"), EMBEDDED.encode(" cat\n")
    assert found.encode(f"a{A}{B} cat\n") == [*around[0], ids[0], ids[1], *around[1]]


def test_gemmas_pieces_get_locations_and_codes_before_or_after_the_image_as_the_config_says(tmp_path):
    """PaliGemma's files have the image last; PaliGemmaProcessor adds it to Gemma's tokenizer first."""
    base = MODEL[: MODEL.index(LOCATIONS[0].encode()) - 4]
    extra = len(LOCATIONS) + len(SEGMENTS)
    assert read(tmp_path, N, model=base).ids == EMBEDDED.ids
    first = N - extra
    assert read(tmp_path, first, model=base).encode("<image><loc0000><seg127>") == [first, first + 1, N]
    write(tmp_path, added_tokens={"<image>": N})
    assert read(tmp_path, N, model=base).ids == EMBEDDED.ids


# --------------------------------------------------------------------------------------------------------------- text

FLAGS = {  # flags of A, a text, and the same text cut into parts
    "plain": ({}, f"a {A} b", ["a ", A, " b"]),
    "special": ({"special": True}, f"a {A} b", ["a ", A, " b"]),
    "left": ({"lstrip": True, "normalized": False}, f"a \t {A} b", ["a", A, " b"]),
    "right": ({"rstrip": True, "normalized": False}, f"a {A} \t b", ["a ", A, "b"]),
    "both": ({"lstrip": True, "rstrip": True, "normalized": False}, f"a  {A}  b", ["a", A, "b"]),
    "newlines are tokens of their own": ({"lstrip": True, "normalized": False}, f"a\n\n{A}", ["a\n\n", A]),
    "spaces are no white space after normalization": ({"lstrip": True, "normalized": True}, f"a {A}", ["a ", A]),
    "a word": ({"single_word": True}, f"a {A} {A}s", ["a ", A, " <answer>s"]),
    "a word among marks": ({"single_word": True}, f"{A}\u0301 {A}", ["<answer>\u0301 ", A]),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_decide_what_is_cut_out_of_a_text(name, tmp_path):
    flags, text, parts = FLAGS[name]
    found = read(write(tmp_path, tokenizer=listed(token("<image>", N, True), token(A, N + 1, **flags))))
    assert found.encode(text) == [i for part in parts for i in ([N + 1] if part == A else EMBEDDED.encode(part))]


CONTENTS = {  # token, whether it is normalized, and a text that contains it
    "two words": (True, "two words"),
    "raw words": (False, "raw words"),
    "with\u2581bar": (True, "with bar"),
    "\n### Answer": (False, "\n### Answer"),
    "<loc0001><loc0001>": (True, "<loc0001><loc0001>"),
    "猫": (False, "猫"),
    "(.*)+": (True, "(.*)+"),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_tokens_of_any_text_are_cut_out_and_written(content, tmp_path):
    normalized, text = CONTENTS[content]
    entry = token(content, N + 1, normalized=normalized)
    found = read(write(tmp_path, tokenizer=listed(token("<image>", N, True), entry)))
    assert found.encode(f"a{text}b") == [*EMBEDDED.encode("a"), N + 1, *EMBEDDED.encode("b")]
    assert found.decode(found.encode(f"a{text}b")) == f"a{text}b"


def test_the_longest_token_wins(tmp_path):
    tokens = [token(text, N + 1 + i) for i, text in enumerate(("<a", "<a>", "<a>b", ">"))]
    found = read(write(tmp_path, tokenizer=listed(token("<image>", N, True), *tokens)))
    assert found.encode("<a>b<a><a>><loc0001>") == [N + 3, N + 2, N + 2, N + 4, *EMBEDDED.encode("<loc0001>")]


def test_special_tokens_are_not_written_and_others_are(tmp_path):
    found = read(write(tmp_path, tokenizer=listed(token("<image>", N, True), token(A, N + 1), token(B, N + 2, True))))
    cat = EMBEDDED.encode(" cat")
    assert found.decode([N + 1, *cat, N + 2, N, N + 1, N + 1, N + 3, *cat]) == f"{A} cat{A}{A} cat"
    euro = [EMBEDDED.pieces.piece_to_id(f"<0x{byte:02X}>") for byte in "€".encode()]
    assert found.decode([euro[0], N + 2, *euro[1:]]) == "€"
    assert found.decode([euro[0], N + 1, *euro[1:]]).count("\N{REPLACEMENT CHARACTER}") == 3


# ------------------------------------------------------------------------------------------------------------- refused

REFUSED = {
    "two ids": ({"added_tokens": {A: N + 2}, "tokenizer_config": decoder(image=N, answer=N + 1)}, f"{N + 1} in "),
    "an id of a piece": ({"added_tokens": {A: 5}}, f"'{A}' is token 5, but that is "),
    "an id of another token": (
        {"added_tokens": {A: N + 1, B: N + 1, "<image>": N}},
        f"'{B}' is token {N + 1}, but that is '{A}'",
    ),
    "another id than the piece": ({"added_tokens": {"<loc0001>": N + 1}}, f"'<loc0001>' is token {N + 1}, but"),
    "a gap": ({"added_tokens": {"<image>": N, A: N + 3}}, f"no file says what token {N + 1} is"),
    "beyond the table": (
        {"added_tokens": {"<image>": N, **{f"<{i}>": N + i for i in range(1, 65)}}},
        f"has {N + 64} rows",
    ),
    "an id as text": ({"added_tokens": {A: "last"}}, "id is 'last'"),
    "a decoder of text": ({"tokenizer_config": {"added_tokens_decoder": {str(N): A, "x": A}}}, "id is 'x'"),
    "a decoder of lists": (
        {"tokenizer_config": {"added_tokens_decoder": {str(N): []}}},
        f"added_tokens_decoder: {N} is '[]'",
    ),
    "a decoder as list": ({"tokenizer_config": {"added_tokens_decoder": [A]}}, "added_tokens_decoder is ["),
    "names of numbers": ({"tokenizer_config": {"extra_special_tokens": [7]}}, "extra_special_tokens is '7'"),
    "names as text": ({"tokenizer_config": {"additional_special_tokens": A}}, "additional_special_tokens is"),
    "an image elsewhere": ({"tokenizer_config": decoder(answer=N, image=N + 1)}, f"<image> is token {N + 1} in "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tokens_that_do_not_fit_are_refused_in_one_sentence(name, tmp_path):
    files, said = REFUSED[name]
    with pytest.raises(BadModel) as error:
        read(write(tmp_path, **files))
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config", "added_tokens", "special_tokens_map"])
def test_links_out_of_the_folder_are_refused(name, tmp_path):
    outside, folder = write(tmp_path / "outside", **{name: {}}), tmp_path / "folder"
    folder.mkdir()
    (folder / f"{name}.json").symlink_to(outside / f"{name}.json")
    with pytest.raises(BadModel, match=r"is a link to .* outside the model's folder"):
        read(folder)


@pytest.mark.parametrize("name", ["tokenizer_config", "added_tokens", "special_tokens_map"])
@pytest.mark.parametrize("content", ["", "[]", '{"a": ', '{"a": ' * 100_000])
def test_damaged_files_are_named(name, content, tmp_path):
    (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(BadModel) as error:
        read(tmp_path)
    assert str(tmp_path / f"{name}.json") in str(error.value)
