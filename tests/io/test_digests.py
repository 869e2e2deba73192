"""npgemma verify: damaged blobs are told by their names, weights that are no numbers by theirs."""

import hashlib
import json
from pathlib import Path

import hub
import numpy as np
import pytest
import tiny
from hub import download

from npgemma.checkpoints.layout import not_finite
from npgemma.checkpoints.paligemma import read_config, read_tensors
from npgemma.commands.cli import main
from npgemma.errors import BadModel
from npgemma.io import digests as verify
from npgemma.io.digests import digests, verify_files
from npgemma.io.model_folder import EMBEDDED
from npgemma.layers import linear as matmul
from npgemma.layers.bits import pack

# Of `printf '' | sha256sum`, `printf 'hello\n' | sha256sum` and, as git prints them, `git hash-object`.
KNOWN = {
    b"": (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
    ),
    b"hello\n": (
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "ce013625030ba8dba906f756967f9e9ca394464a",
    ),
}
FILES = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
FILES += ["model.safetensors.index.json", "tokenizer.model"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return hub.write_model(tmp_path_factory.mktemp("model") / "model", shards=2)


@pytest.fixture
def snapshot(folder, tmp_path) -> Path:
    """The model as a cache holds it: in blobs, of which some are named by git's sha1 and some by sha256."""
    return download(tmp_path, "org/name", folder)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file, counted from its end if negative."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


# -------------------------------------------------------------------------------------------------------------- digests


@pytest.mark.parametrize("content", KNOWN, ids=["nothing", "hello"])
def test_digests_are_what_sha256sum_and_git_print(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert digests(tmp_path / "file") == KNOWN[content]


@pytest.mark.parametrize("size", [6, 7, 8, 14, 15, 100])
def test_digests_do_not_depend_on_how_a_file_is_read(size, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "CHUNK", 7)
    content = bytes(range(size))
    (tmp_path / "file").write_bytes(content)
    assert digests(tmp_path / "file") == (hub.blob_name(content, True), hub.blob_name(content, False))


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_whole_snapshot_is_genuine(snapshot):
    found = list(verify_files(snapshot))
    assert [file.name for file in found] == FILES
    assert [file.genuine for file in found] == [True] * 5
    assert [file.sha256 for file in found] == [sha256(snapshot / name) for name in FILES]
    lengths = [len((snapshot / name).resolve().name) for name in FILES]
    assert lengths == [40, 64, 64, 40, 64]  # or else only one kind was looked at


@pytest.mark.parametrize("bit", [0, 8 * 50 + 3, -1])
@pytest.mark.parametrize("name", FILES)
def test_one_bit_is_seen(name, bit, snapshot):
    flip((snapshot / name).resolve(), bit)
    assert {file.name: file.genuine for file in verify_files(snapshot)} == dict.fromkeys(FILES, True) | {name: False}


@pytest.mark.parametrize("name", FILES)
def test_a_byte_too_few_or_too_many_is_seen(name, snapshot):
    blob = (snapshot / name).resolve()
    content = blob.read_bytes()
    for damaged in (content[:-1], content + b"\0", b""):
        blob.write_bytes(damaged)
        assert [file.name for file in verify_files(snapshot) if file.genuine is False] == [name]
        assert [file.name for file in verify_files(snapshot) if file.genuine] == [
            each for each in FILES if each != name
        ]


def test_two_blobs_that_changed_places_are_both_damaged(snapshot):
    one, two = ((snapshot / name).resolve() for name in FILES[1:3])
    contents = one.read_bytes(), two.read_bytes()
    two.write_bytes(contents[0])
    one.write_bytes(contents[1])
    assert [file.name for file in verify_files(snapshot) if file.genuine is False] == FILES[1:3]


def test_of_a_plain_folder_nothing_is_known_but_the_sha256(folder):
    found = list(verify_files(folder))
    assert [file.name for file in found] == FILES
    assert {file.genuine for file in found} == {None}
    assert [file.sha256 for file in found] == [sha256(folder / name) for name in FILES]


def test_of_a_snapshot_of_plain_files_nothing_is_known(folder, tmp_path):
    """Where there are no links, nothing says what a file should be."""
    assert {file.genuine for file in verify_files(download(tmp_path, "org/name", folder, links=False))} == {None}


@pytest.mark.parametrize("name", ["0" * 39, "0" * 41, "0" * 63, "F" * 40, "g" * 64, "config.json", "0" * 64 + ".old"])
def test_a_blob_that_is_not_named_by_a_hash_is_unknown(name, snapshot):
    blob = (snapshot / "config.json").resolve()
    blob = blob.rename(blob.parent / name)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(blob)
    assert [file.genuine for file in verify_files(snapshot)] == [None, True, True, True, True]


def test_a_file_that_is_named_like_a_hash_is_no_blob(tmp_path):
    (tmp_path / ("0" * 64)).write_bytes(b"")
    (file,) = verify_files(tmp_path)
    assert file == ("0" * 64, KNOWN[b""][0], None)


def test_folders_are_passed_over(folder, tmp_path):
    snapshot = download(tmp_path, "org/name", folder)
    (snapshot / ".cache").mkdir()
    (snapshot / "linked").symlink_to(tmp_path, target_is_directory=True)
    assert [file.name for file in verify_files(snapshot)] == FILES


def test_a_blob_that_is_gone_is_damaged_and_the_others_are_looked_at(snapshot, capsys):
    (snapshot / FILES[2]).resolve().unlink()
    (snapshot / "loop.txt").symlink_to("loop.txt")
    found = {file.name: (file.sha256 != "", file.genuine) for file in verify_files(snapshot)}
    assert found == dict.fromkeys(FILES, (True, True)) | {FILES[2]: (False, False), "loop.txt": (False, False)}
    status, out, err = run(capsys, snapshot)
    assert (status, len(out.splitlines())) == (1, len(FILES) + 1)
    assert "not what was published; delete what it links to and download it again" in err


def test_a_link_out_is_refused_before_it_is_read(snapshot, tmp_path, monkeypatch):
    """Even to say its hash would tell whether a secret is a certain one."""
    (tmp_path / "secret").write_text("sesame")
    (snapshot / "notes.txt").symlink_to(tmp_path / "secret")
    monkeypatch.setattr(
        verify, "digests", lambda path: ("", "") if path.name != "secret" else pytest.fail("it was read")
    )
    with pytest.raises(BadModel, match=r"notes\.txt is a link to .*/secret, outside the model's folder"):
        list(verify_files(snapshot))


# -------------------------------------------------------------------------------------------------------------- numbers

STORED = {
    "float32": lambda x: x,
    "float16": lambda x: x.astype(np.float16),
    "bfloat16": pack,
}
# Of every kind: a table, matrices, a convolution of four axes, a norm, a bias.
TENSORS = [
    "text.embed_tokens.weight",
    "text.layers.2.mlp.down_proj.weight",
    "vision.encoder.layers.1.mlp.fc1.weight",
    "vision.embeddings.patch_embedding.weight",
    "text.layers.0.input_layernorm.weight",
    "multi_modal_projector.linear.bias",
]


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """Blocks of 16 rows, so that the small matrices here are several."""
    monkeypatch.setattr(matmul, "SMALL", 0)
    monkeypatch.setattr(verify, "BLOCK", 64)
    assert len(matmul.row_blocks(np.zeros((61, 11)), 64)) == 4


def weights_with(value: float, name: str, at: int, dtype: str) -> dict[str, np.ndarray]:
    """Random weights of a stored dtype, one number of one tensor replaced."""
    tensors = tiny.random_tensors()
    tensors[name].reshape(-1)[at] = value
    return {name: STORED[dtype](x) for name, x in tensors.items()}


@pytest.mark.parametrize("dtype", STORED)
def test_numbers_are_finite(dtype, small_blocks):
    """The largest that a dtype has, too, and the smallest above zero."""
    largest = {"float32": 3.4028235e38, "float16": 65504.0, "bfloat16": 3.3895314e38}[dtype]
    smallest = {"float32": 1e-45, "float16": 6e-8, "bfloat16": 1e-40}[dtype]
    for value in (largest, -largest, smallest, -0.0):
        found = weights_with(value, TENSORS[0], 0, dtype)
        assert found[TENSORS[0]].dtype == {"bfloat16": "uint16"}.get(dtype, dtype)
        assert not_finite(found) == []


@pytest.mark.parametrize("at", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("name", TENSORS)
def test_what_is_no_number_is_found_by_name(name, dtype, value, at, small_blocks):
    """In the first block and in the last."""
    assert not_finite(weights_with(value, name, at, dtype)) == [name]


@pytest.mark.parametrize("dtype", STORED)
def test_what_is_no_number_is_found_in_any_block_of_any_size(dtype):
    """With the blocks as they are: three of a table of 24,000 rows."""
    x = np.zeros((24_000, 44), np.float32)
    blocks = matmul.row_blocks(x, verify.BLOCK)
    assert len(blocks) >= 3
    for block in blocks:
        for row in (block.start, min(block.stop, len(x)) - 1):
            damaged = x.copy()
            damaged[row, 43] = np.inf
            assert not_finite({"good": STORED[dtype](x), "bad": STORED[dtype](damaged)}) == ["bad"]


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7F81, 0xFFFF, 0x7FC0])
def test_infinities_and_every_nan_of_bfloat16(bits):
    """All of the exponent's bits are 1, whatever the rest."""
    assert not_finite({"x": np.array([0x7F7F, 0xFF7F, 0x0080, bits], np.uint16)}) == ["x"]


@pytest.mark.parametrize("dtype", STORED)
def test_all_that_are_not_finite_are_named(dtype, tmp_path):
    """From a file on, as they are stored."""
    bad = [TENSORS[0], TENSORS[4], TENSORS[2]]
    tensors = tiny.random_tensors()
    for name in bad:
        tensors[name].reshape(-1)[3] = np.nan
    tiny.write_folder(tmp_path)
    spelled = {tiny.spell(name, "saved 5.x"): x for name, x in tensors.items()}
    tiny.save(spelled, tmp_path / "model.safetensors", dtype)
    assert sorted(not_finite(read_tensors(tmp_path, read_config(tmp_path)))) == sorted(bad)


# ---------------------------------------------------------------------------------------------------- the command line


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main(["verify", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_a_whole_model_is_ok_line_by_line(snapshot, capsys):
    lines = [f"ok        {sha256(snapshot / name)}  {name}\n" for name in FILES]
    assert run(capsys, snapshot) == (0, "".join(lines) + "weights   all finite\n", "")


def test_a_model_by_its_name(snapshot, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert run(capsys, "org/name") == run(capsys, snapshot)


def test_a_damaged_model_is_1_and_says_what_to_do(snapshot, capsys):
    """One bit of an embedding, which no answer would show."""
    flip((snapshot / FILES[1]).resolve(), -8 * 100)
    lines = [f"ok        {sha256(snapshot / name)}  {name}" for name in FILES]
    lines[1] = f"damaged   {sha256(snapshot / FILES[1])}  {FILES[1]}"
    status, out, err = run(capsys, snapshot)
    assert (status, out) == (1, "\n".join([*lines, "weights   all finite", ""]))
    said = "not what was published; delete what it links to and download it again"
    assert err == f"npgemma: {FILES[1]}: {said}\n"


def test_a_plain_folder_is_unknown_and_no_error(folder, capsys):
    status, out, err = run(capsys, folder)
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"unknown   {sha256(folder / name)}  {name}" for name in FILES] + [
        "weights   all finite"
    ]


def test_the_model_inside_is_finite(capsys):
    status, out, err = run(capsys)
    assert (status, err) == (0, "")
    assert f"unknown   {sha256(EMBEDDED / 'model.safetensors')}  model.safetensors" in out.splitlines()
    assert out.endswith("\nweights   all finite\n")


def test_json_is_one_object(snapshot, capsys):
    status, out, err = run(capsys, snapshot, "--format", "json")
    assert (status, err) == (0, "")
    assert out.count("\n") == 1
    files = [{"name": name, "sha256": sha256(snapshot / name), "genuine": True} for name in FILES]
    assert json.loads(out) == {"folder": str(snapshot), "files": files, "not_finite": [], "error": None}


def test_json_of_a_damaged_model_says_which(snapshot, capsys):
    flip((snapshot / "tokenizer.model").resolve(), 12345)
    status, out, err = run(capsys, snapshot, "--format", "json")
    assert status == 1
    assert [file["genuine"] for file in json.loads(out)["files"]] == [True, True, True, True, False]
    assert err.startswith("npgemma: tokenizer.model: not what was published")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("dtype", STORED)
def test_weights_that_are_not_finite_are_1_and_named(dtype, form, tmp_path, capsys):
    names = ["text.layers.1.mlp.up_proj.weight", "vision.post_layernorm.bias"]
    tensors = tiny.random_tensors()
    tensors[names[0]][0, 0], tensors[names[1]][-1] = np.inf, np.nan
    tiny.write_folder(tmp_path)
    spelled = {tiny.spell(name, "saved 5.x"): x for name, x in tensors.items()}
    tiny.save(spelled, tmp_path / "model.safetensors", dtype)
    status, out, err = run(capsys, tmp_path, "--format", form)
    assert (status, err) == (1, "")
    if form == "json":
        assert sorted(json.loads(out)["not_finite"]) == names
    else:
        assert out.splitlines()[-1] == f"weights   not finite: {', '.join(sorted(names))}"


def test_a_damaged_config_is_shown_and_then_the_error(snapshot, capsys):
    """The files come first: they say why the weights cannot be looked at."""
    (snapshot / "config.json").resolve().write_bytes(b"{")
    status, out, err = run(capsys, snapshot)
    assert status == 1
    assert out.splitlines()[0].startswith("damaged ")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["ok"] * 4
    unusable, damaged = err.splitlines()
    assert "config.json cannot be read as JSON" in unusable
    assert damaged.startswith("npgemma: config.json: not what was published")
    assert run(capsys, snapshot, "--format", "json")[0] == 1


def test_a_link_out_is_one_sentence(snapshot, tmp_path, capsys):
    (tmp_path / "secret").write_text("sesame")
    (snapshot / "a.txt").symlink_to(tmp_path / "secret")
    status, out, err = run(capsys, snapshot)
    assert (status, out) == (1, "")
    assert err.startswith(f"npgemma: {snapshot}/a.txt is a link to")


def test_a_file_name_cannot_steer_the_terminal(folder, tmp_path, capsys):
    snapshot = download(tmp_path, "org/name", folder)
    (snapshot / "\x1b[2J.txt").write_text("hello\n")
    status, out, _ = run(capsys, snapshot)
    assert status == 0
    assert out.splitlines()[0] == f"unknown   {KNOWN[b'hello' + bytes([10])][0]}  \\x1b[2J.txt"
