"""Files that are not what their names promise, told by their first bytes: pointers, pages, archives, other formats."""

import bz2
import gzip
import io
import lzma
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import hub
import numpy as np
import pytest

import npgemma
from npgemma.errors import BadModel
from npgemma.io.file_kinds import foreign_kind

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daa\n"


def zipped(*names: str) -> bytes:
    """A zip archive with files of these names."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return whole.getvalue()


def tarred() -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("config.json"))
    return whole.getvalue()


def npz() -> bytes:
    whole = io.BytesIO()
    np.savez(whole, **{"params/img/head/kernel": np.zeros(3)})
    return whole.getvalue()


def npy() -> bytes:
    whole = io.BytesIO()
    np.save(whole, np.zeros(3))
    return whole.getvalue()


RESTRICTED = (
    b"Access to model google/paligemma-3b-pt-224 is restricted. You must have access to it and be authenticated"
)
SERVER, PICKLE, ARCHIVE = "the error message of a server.*hf auth login", "a pickle", "an archive; unpack it first"
CONTENTS = {
    "git-lfs": (POINTER, r"a git-lfs pointer, .*; run 'git lfs pull' in "),
    "git-lfs of old": (b"version https://hawser.github.com/spec/v1\n", "a git-lfs pointer"),
    "git-annex": (b"/annex/objects/MD5E-s12--0.safetensors\n", "a git-annex pointer.*git annex get"),
    "a link as text": (b"../../blobs/0123456789abcdef", "the text of a link"),
    "a page": (b"\n<!DOCTYPE html>\n<html><body>Sign in", "an HTML page.*a login page"),
    "a page without a type": (b"<html lang=en>", "an HTML page"),
    "a page with a mark": (b"\xef\xbb\xbf<!doctype HTML>", "an HTML page"),
    "a page after a comment": (b"<!-- (c) -->\n<head>", "an HTML page"),
    "XHTML": (b'<?xml version="1.0"?>\n<!DOCTYPE html>', "an HTML page"),
    "a bucket's error": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "an XML document"),
    "curl without -L": (b"Found. Redirecting to https://cdn-lfs.hf.co/repos/aa", "the text of a redirect.*curl -L"),
    "a renamed repository": (b"Temporary Redirect. Redirecting to /google/x", "the text of a redirect"),
    "a gated repository": (RESTRICTED, SERVER),
    "a wrong token": (b"Invalid username or password.", SERVER),
    "a wrong name": (b"Repository not found", SERVER),
    "a wrong file": (b"Entry not found", SERVER),
    "404": (b"404: Not Found", SERVER),
    "an error in JSON": (b'{"error":"Repository not found"}', SERVER),
    "GGUF": (b"GGUF\3\0\0\0", "a GGUF file of llama.cpp"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file of Keras"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3", "a TensorFlow Lite file"),
    "PyTorch": (zipped("archive/data.pkl", "archive/data/0"), PICKLE),
    "pickle": (pickle.dumps({}, 4), PICKLE),
    "PyTorch of old": (pickle.dumps(0x1950A86A20F9469CFC6C, 2), PICKLE),
    "npz": (npz(), r"an \.npz archive of NumPy arrays"),
    "npy": (npy(), "a NumPy array"),
    "zip": (zipped("model/config.json"), ARCHIVE),
    "tar": (tarred(), ARCHIVE),
    "gzip": (gzip.compress(b"x"), ARCHIVE),
    "bzip2": (bz2.compress(b"x"), ARCHIVE),
    "xz": (lzma.compress(b"x"), ARCHIVE),
    "a picture": (npgemma.sample_picture().read_bytes(), "a picture"),
    "nothing": (b"", "empty"),
    "spaces": (b"\n \n", "empty"),
}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS)
def test_any_file_of_a_model_that_is_something_else_is_named(content, message, name, small, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((small / file).read_bytes())
    if name.endswith("index.json"):
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadModel, match=rf"/{name} is {message}"):
        npgemma.load(tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.write_model(tmp_path_factory.mktemp("model") / "model")


def test_all_pointers_of_a_folder_are_named_at_once(tmp_path: Path) -> None:
    """A clone without git-lfs: JSON files are there, all large ones are pointers."""
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.model"):
        (tmp_path / name).write_bytes(POINTER)
    others = "model-00002-of-00002.safetensors, tokenizer.model"
    assert foreign_kind(tmp_path / "model-00001-of-00002.safetensors") == (
        f"a git-lfs pointer, not the file itself, like {others}; run 'git lfs pull' in {tmp_path}, "
        "or download the model again"
    )


def test_the_files_of_a_real_model_are_not_foreign(small: Path) -> None:
    for folder in (npgemma.load().folder, small):
        assert [foreign_kind(folder / name) for name in ("config.json", "model.safetensors", "tokenizer.model")] == [
            None
        ] * 3


@pytest.mark.parametrize("length", range(8, 256))
def test_weights_are_not_taken_for_another_kind(length: int, tmp_path: Path) -> None:
    """A file of weights begins with the length of its header, whose first byte may be that of any other format."""
    (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}')
    assert foreign_kind(tmp_path / "x") is None


def test_a_missing_file_and_a_folder_have_no_kind(tmp_path: Path) -> None:
    assert foreign_kind(tmp_path / "gone") is None
    assert foreign_kind(tmp_path) is None
