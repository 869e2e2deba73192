"""The files of CLIP's tokenizer: three forms, the tokens that a folder adds, and what is refused."""

import json

import pytest
from clip_files import IDS, MERGES, MERGES_TXT, openai_file, tokenizer_json, write

from npgemma.errors import BadModel
from npgemma.io.clip_tokenizer import END, START
from npgemma.io.clip_vocabulary import OPENAI, OPENAI_MERGES, read_clip_tokenizer

N = len(IDS)
TEXT = f"The cat's ca!! {END} é"


def test_the_forms_of_the_files_give_the_same_ids(tmp_path):
    folders = [tmp_path / name for name in ("pairs", "text", "vocab")]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "tokenizer.json").write_text(json.dumps(tokenizer_json(merges=[list(pair) for pair in MERGES])))
    (folders[1] / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    write(folders[2])
    first, *others = [read_clip_tokenizer(folder, N) for folder in folders]
    assert first.ids == IDS
    for other in others:
        assert other.ids == IDS
        assert other.encode(TEXT) == first.encode(TEXT)


def test_openais_file_says_merges_from_which_the_ids_follow(tmp_path):
    openai = read_clip_tokenizer(openai_file(tmp_path / OPENAI).parent, 512 + OPENAI_MERGES + 2)
    assert (openai.start_id, openai.end_id, len(openai)) == (49406, 49407, 49408)
    # the ids of visible signs are those of ASCII, from "!" on; with the end of a word, 256 more
    assert openai.encode("cat!") == [49406, 514, 256, 49407]
    assert openai.encode("x") == [49406, 256 + ord("x") - ord("!"), 49407]


def test_a_file_may_be_named(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    write(other)
    assert read_clip_tokenizer(tmp_path, N, other / "vocab.json").ids == IDS


@pytest.mark.parametrize(
    ("files", "text", "expected"),
    [
        ({"added_tokens.json": {"<dog>": N}}, "the<dog>", [IDS["the</w>"], N]),
        ({"tokenizer_config.json": {"pad_token": "!"}}, "!!", [IDS["!"]] * 2),
        ({"tokenizer_config.json": {"pad_token": "[PAD]"}}, "[PAD]a[pad]", [N, IDS["a</w>"], IDS["[</w>"]]),
    ],
)
def test_added_tokens_are_cut_out(files, text, expected, tmp_path):
    write(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert read_clip_tokenizer(tmp_path).encode(text)[1 : 1 + len(expected)] == expected


def without(text: str) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(piece for piece in IDS if piece != text)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"vocab\.json is missing, and so are tokenizer\.json and bpe_simple_vocab_16e6\.txt\.gz: .*hf download"),
        ({"vocab.json": IDS}, r"merges\.txt is missing, which belongs to vocab\.json"),
        ({"vocab.json": IDS, "merges.txt": ""}, r"merges\.txt is empty"),
        ({"vocab.json": IDS, "merges.txt": b"a \xff"}, r"merges\.txt cannot be read: byte 2 is not UTF-8"),
        ({"vocab.json": IDS, "merges.txt": "a b c"}, r"merges\.txt: merge 1 is 'a b c', not two pieces"),
        ({"vocab.json": IDS, "merges.txt": "<html>"}, r"merges\.txt is an HTML page"),
        ({"vocab.json": IDS, "merges.txt": "x y"}, r"vocab\.json: the merges make 'xy' of 'x' and 'y', .* lacks"),
        (
            {"vocab.json": without("z</w>"), "merges.txt": MERGES_TXT},
            r"vocab\.json lacks 'z</w>', one of the 512 signs",
        ),
        ({"vocab.json": IDS | {"cat</w>": 3}, "merges.txt": MERGES_TXT}, "none or several with the id 4"),
        ({"vocab.json": IDS | {"cat</w>": "3"}, "merges.txt": MERGES_TXT}, "an id that is not a whole number"),
        ({"vocab.json": [], "merges.txt": ""}, r"vocab\.json contains a JSON list"),
        ({"vocab.json": '{"a":'}, r"vocab\.json cannot be read as JSON"),
        ({"tokenizer.json": tokenizer_json(end_of_word_suffix="")}, "end_of_word_suffix is '', not CLIP's"),
        ({"tokenizer.json": tokenizer_json(type="Unigram")}, "type is 'Unigram', not CLIP's"),
        ({"tokenizer.json": tokenizer_json(merges={})}, "merges is a dict, not a list"),
        ({"tokenizer.json": tokenizer_json(merges=[["a"]])}, r"merges: merge 1 is \"\['a'\]\", not two pieces"),
        ({"tokenizer.json": tokenizer_json(merges=[["a", 1]])}, "merge 1 is .* not two pieces"),
        ({"tokenizer.json": tokenizer_json(vocab=without("!"))}, "lacks '!', one of the 512 signs"),
        ({"tokenizer.json": {"model": None}}, "end_of_word_suffix is None, not CLIP's"),
        ({OPENAI: b"\x1f\x8b\x08damaged"}, "txt.gz is damaged: .*; download it again"),
        (
            {OPENAI: "not compressed"},
            r"txt\.gz is not a tokenizer of CLIP; name a tokenizer\.json, a vocab\.json beside its merges\.txt, or",
        ),
        ({OPENAI: "<html>"}, r"txt\.gz is an HTML page"),
        ({OPENAI: ""}, r"txt\.gz is empty"),
    ],
)
def test_missing_and_damaged_files_are_refused_by_name(files, message, tmp_path):
    for name, content in files.items():
        data = content if isinstance(content, str | bytes) else json.dumps(content)
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(BadModel, match=message) as error:
        read_clip_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_openais_file_cut_short_is_refused(tmp_path):
    whole = openai_file(tmp_path / OPENAI, 1000)
    with pytest.raises(BadModel, match=r"has 1,000 merges, fewer than the 48,894 of CLIP"):
        read_clip_tokenizer(tmp_path)
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(BadModel, match=r"is damaged: Compressed file ended"):
        read_clip_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "rows", "says"),
    [({}, N - 1, rf"vocab\.json has '{END}' as token {N - 1}, but"), ({"pad_token": "[PAD]"}, N, r"adds '\[PAD\]'")],
)
def test_a_tokenizer_with_ids_beyond_the_table_is_refused(config, rows, says, tmp_path):
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    says = says.replace("|", r"\|")
    with pytest.raises(BadModel, match=rf"{says}.* the embedding table has {rows} rows"):
        read_clip_tokenizer(tmp_path, rows)
    assert read_clip_tokenizer(tmp_path, rows + 1).start_id == IDS[START]
