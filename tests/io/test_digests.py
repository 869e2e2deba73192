"""Digests of a model's files: a blob of the cache is undamaged if its name is the hash of its content."""

import hashlib
from pathlib import Path

import hub
import pytest
from hub import download

from npgemma.errors import BadModel
from npgemma.io.digests import digests, verify_files

# By content: what `sha256sum` and `git hash-object` print.
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
    """The model in a cache: git's sha1 names the small blobs, sha256 the large ones."""
    return download(tmp_path, "org/name", folder)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip(path: Path, bit: int) -> None:
    """Invert one bit of a file; a negative number counts from the end."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("content", KNOWN, ids=["empty", "hello"])
def test_digests_equal_those_of_sha256sum_and_git(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert digests(tmp_path / "file") == KNOWN[content]


@pytest.mark.parametrize("size", [6, 7, 8, 14, 15, 100])
def test_digests_do_not_depend_on_the_chunk_size(size, tmp_path):
    content = bytes(range(size))
    (tmp_path / "file").write_bytes(content)
    assert digests(tmp_path / "file", chunk=7) == (hub.blob_name(content, True), hub.blob_name(content, False))


def test_every_file_of_an_undamaged_snapshot_is_genuine(snapshot):
    found = list(verify_files(snapshot))
    assert [file.name for file in found] == FILES
    assert [file.genuine for file in found] == [True] * 5
    assert [file.sha256 for file in found] == [sha256(snapshot / name) for name in FILES]
    lengths = [len((snapshot / name).resolve().name) for name in FILES]
    assert lengths == [40, 64, 64, 40, 64]  # both kinds of hash are checked


@pytest.mark.parametrize("bit", [0, 8 * 50 + 3, -1])
@pytest.mark.parametrize("name", FILES)
def test_one_inverted_bit_is_detected(name, bit, snapshot):
    flip((snapshot / name).resolve(), bit)
    assert {file.name: file.genuine for file in verify_files(snapshot)} == dict.fromkeys(FILES, True) | {name: False}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_extra_byte_is_detected(name, snapshot):
    blob = (snapshot / name).resolve()
    content = blob.read_bytes()
    for damaged in (content[:-1], content + b"\0", b""):
        blob.write_bytes(damaged)
        assert [file.name for file in verify_files(snapshot) if file.genuine is False] == [name]
        assert [file.name for file in verify_files(snapshot) if file.genuine] == [
            each for each in FILES if each != name
        ]


def test_two_swapped_blobs_are_both_damaged(snapshot):
    one, two = ((snapshot / name).resolve() for name in FILES[1:3])
    contents = one.read_bytes(), two.read_bytes()
    two.write_bytes(contents[0])
    one.write_bytes(contents[1])
    assert [file.name for file in verify_files(snapshot) if file.genuine is False] == FILES[1:3]


def test_files_of_a_plain_folder_are_neither_genuine_nor_damaged(folder):
    found = list(verify_files(folder))
    assert [file.name for file in found] == FILES
    assert {file.genuine for file in found} == {None}
    assert [file.sha256 for file in found] == [sha256(folder / name) for name in FILES]


def test_plain_files_of_a_snapshot_are_neither_genuine_nor_damaged(folder, tmp_path):
    """Without links to blobs, no name gives the expected hash."""
    assert {file.genuine for file in verify_files(download(tmp_path, "org/name", folder, links=False))} == {None}


@pytest.mark.parametrize("name", ["0" * 39, "0" * 41, "0" * 63, "F" * 40, "g" * 64, "config.json", "0" * 64 + ".old"])
def test_a_blob_whose_name_is_not_a_hash_is_neither_genuine_nor_damaged(name, snapshot):
    blob = (snapshot / "config.json").resolve()
    blob = blob.rename(blob.parent / name)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(blob)
    assert [file.genuine for file in verify_files(snapshot)] == [None, True, True, True, True]


def test_a_file_that_is_not_in_blobs_is_not_compared_with_its_name(tmp_path):
    (tmp_path / ("0" * 64)).write_bytes(b"")
    (file,) = verify_files(tmp_path)
    assert file == ("0" * 64, KNOWN[b""][0], None)


def test_folders_are_skipped(folder, tmp_path):
    snapshot = download(tmp_path, "org/name", folder)
    (snapshot / ".cache").mkdir()
    (snapshot / "linked").symlink_to(tmp_path, target_is_directory=True)
    assert [file.name for file in verify_files(snapshot)] == FILES


def test_a_missing_blob_is_damaged_and_the_other_files_are_still_checked(snapshot):
    (snapshot / FILES[2]).resolve().unlink()
    (snapshot / "loop.txt").symlink_to("loop.txt")
    found = {file.name: (file.sha256 != "", file.genuine) for file in verify_files(snapshot)}
    assert found == dict.fromkeys(FILES, (True, True)) | {FILES[2]: (False, False), "loop.txt": (False, False)}


def test_a_link_out_of_the_folder_is_refused_before_it_is_read(snapshot, tmp_path):
    """Its digest would confirm a guess of its content. Reading the sparse file would take minutes."""
    with (tmp_path / "secret").open("wb") as secret:
        secret.truncate(1 << 38)
    (snapshot / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(BadModel, match=r"notes\.txt is a link to .*/secret, outside the model's folder"):
        list(verify_files(snapshot))
