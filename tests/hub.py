"""Write a Hugging Face cache as huggingface_hub writes it, and a model to put into it."""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny

from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import Tokenizer

VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"
LARGE = (".safetensors", ".model", ".npz")  # files in LFS, whose blobs are named by their sha256


def write_model(folder: Path, seed: int = 0, dtype: str = "bfloat16", shards: int = 1) -> Path:
    """Write a model with random weights and the embedded tokenizer; returns its folder."""
    image = Tokenizer((EMBEDDED / "tokenizer.model").read_bytes()).image_id
    text = dataclasses.replace(tiny.CONFIG.text, vocab_size=image + 8)
    config = dataclasses.replace(tiny.CONFIG, text=text, image_token_index=image)
    tiny.write_folder(folder, config, seed, dtype=dtype, shards=shards)
    shutil.copyfile(EMBEDDED / "tokenizer.model", folder / "tokenizer.model")
    return folder


def empty_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `folder` the cache, whatever the environment says; returns it."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    folder.mkdir()
    return folder


def repository(cache: Path, repo: str) -> Path:
    """The folder of a repository in the cache."""
    return cache / f"models--{repo.replace('/', '--')}"


def blob_name(content: bytes, large: bool) -> str:
    """The sha256 of a large file, or git's sha1 of a small one."""
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob " + str(len(content)).encode() + b"\0" + content).hexdigest()


def download(
    cache: Path, repo: str, folder: Path, commit: str = COMMIT, refs: Sequence[str] = ("main",), links: bool = True
) -> Path:
    """Put the files of a folder into a cache as one commit of a repository; returns the snapshot.

    Without `links`, the snapshot contains the files themselves, as on Windows.
    """
    home = repository(cache, repo)
    snapshot, blobs = home / "snapshots" / commit, home / "blobs"
    for each in (snapshot, blobs, home / "refs"):
        each.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        content = path.read_bytes()
        blob = blobs / blob_name(content, path.suffix in LARGE)
        if links:
            blob.write_bytes(content)
            (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
        else:
            (snapshot / path.name).write_bytes(content)
    for ref in refs:
        point(cache, repo, ref, commit)
    return snapshot


def point(cache: Path, repo: str, ref: str, content: str | bytes) -> Path:
    """Write the ref of a branch or tag; a name with slashes is a file in nested folders."""
    path = repository(cache, repo) / "refs" / ref
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
