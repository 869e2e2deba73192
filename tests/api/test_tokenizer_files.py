"""Models whose tokenizer is a tokenizer.json, a file of one's own, or has added tokens: what they answer."""

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file
from small_model import CONFIG, PICTURES, TOKENIZER, write_folder
from tokenizer_files import MODEL, token, tokenizer_json, write

import npgemma
from npgemma.commands.cli import main
from npgemma.errors import BadModel

N = TOKENIZER.image_id
A, B = "<answer>", "<box>"
PROMPT = "caption en"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights, and a tokenizer.model."""
    return write_folder(tmp_path_factory.mktemp("tokenizers") / "model")


@pytest.fixture
def bare(folder, tmp_path):
    """The same model without a tokenizer."""
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.model").unlink()
    return tmp_path / "bare"


def ask(model):
    return model.generate(PICTURES[0], PROMPT, max_new_tokens=5)


def test_a_tokenizer_json_answers_as_tokenizer_model_does(folder, bare):
    assert ask(npgemma.load(write(bare, tokenizer=tokenizer_json()))) == ask(npgemma.load(folder))


@pytest.mark.parametrize("name", ["tokenizer.model", "mine.json", "mine"])
def test_a_tokenizer_of_ones_own_takes_the_place_of_the_folders(name, folder, bare, tmp_path):
    file = tmp_path / name
    file.write_bytes(MODEL if name == "tokenizer.model" else json.dumps(tokenizer_json()).encode())
    assert ask(npgemma.load(bare, tokenizer=file)) == ask(npgemma.load(folder))
    (bare / "tokenizer.model").write_bytes(b"damaged")
    assert ask(npgemma.load(bare, tokenizer=str(file))) == ask(npgemma.load(folder))


def test_added_tokens_of_the_folder_are_added_to_a_tokenizer_of_ones_own(bare, tmp_path):
    (tmp_path / "base.model").write_bytes(MODEL)
    write(bare, added_tokens={"<image>": N, A: N + 1})
    assert npgemma.load(bare, tokenizer=tmp_path / "base.model").tokenizer.encode(A) == [N + 1]


def test_a_tokenizer_that_is_missing_is_refused_before_the_weights_are_read(bare, tmp_path):
    with pytest.raises(BadModel, match=r"tokenizer .*nowhere.* is not a file; name a tokenizer\.model or"):
        npgemma.load(bare, tokenizer=tmp_path / "nowhere")


def test_a_folder_without_a_tokenizer_says_where_to_take_one_from(bare):
    with pytest.raises(BadModel) as error:
        ask(npgemma.load(bare))
    for part in (str(bare), "tokenizer.json", "hf download google/paligemma-3b-pt-224 tokenizer.model", "--tokenizer"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_git_lfs_pointer_is_named(name, bare):
    (bare / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(BadModel, match="is a git-lfs pointer"):
        ask(npgemma.load(bare))


def test_the_commands_take_a_tokenizer(bare, tmp_path, capsys):
    (tmp_path / "base.model").write_bytes(MODEL)
    flags = ("-m", str(bare), "--max-new-tokens", "2")
    assert main(["ocr", str(npgemma.sample_picture()), *flags, "--tokenizer", str(tmp_path / "base.model")]) == 0
    assert main(["ocr", str(npgemma.sample_picture()), *flags]) == 1
    assert main(["ocr", str(npgemma.sample_picture()), *flags, "--tokenizer", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "tokenizer.model is missing" in err
    assert f"tokenizer {tmp_path} is not a file" in err


def test_inspect_counts_the_pieces_of_a_tokenizer_json(bare, capsys):
    write(bare, tokenizer=tokenizer_json(), added_tokens={A: N + 1})
    assert main(["inspect", str(bare), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer_pieces"] == N + 2


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(("added", "special"), [(N + 1, False), (N + 2, True)])
def test_a_model_answers_with_added_tokens_but_never_with_image_or_spare_rows(added, special, num_beams, folder, bare):
    """The head prefers <image> and the spare rows to the added token, and that one to all others."""
    content = tokenizer_json()
    content = content | {"added_tokens": [*content["added_tokens"], token(A, N + 1), token(B, N + 2, True)]}
    (first, *_) = ask(npgemma.load(folder)).token_ids
    tensors = load_file(bare / "model.safetensors")
    head = tensors["lm_head.weight"].copy()
    head[N:] = 3 * head[first]
    head[[N + 1, N + 2]] = 0
    head[added] = 2 * head[first]
    save_file(tensors | {"lm_head.weight": head}, bare / "model.safetensors")
    model = npgemma.load(write(bare, tokenizer=content))
    assert CONFIG.text.vocab_size == N + 8
    answer = model.generate(PICTURES[0], PROMPT, max_new_tokens=1, num_beams=num_beams)
    assert answer.token_ids == [added]
    assert answer.text == ("" if special else A)


def test_an_added_token_in_the_prompt_is_one_id(bare):
    model = npgemma.load(write(bare, tokenizer=tokenizer_json(), added_tokens={A: N + 1}))
    (row,) = model.processor([PICTURES[0]], [f"caption{A} en"]).input_ids
    assert [*row].count(N + 1) == 1
    assert [*row].count(N) == CONFIG.vision.num_patches


def test_an_id_without_a_piece_has_no_text(bare):
    model = npgemma.load(write(bare, tokenizer=tokenizer_json()))
    assert model.tokenizer.decode([N + 7, *TOKENIZER.encode("cat"), N + 5]) == "cat"
