"""A Hugging Face cache made by hand, file by file as huggingface_hub leaves it; and a model to put into it."""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import tiny

from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import Tokenizer

VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"
LARGE = (".safetensors", ".model", ".npz")  # what a repository keeps in LFS, where files are named by their sha256


def write_model(folder: Path, seed: int = 0, dtype: str = "bfloat16", shards: int = 1) -> Path:
    """A model with random weights and the embedded tokenizer, which answers prompts; returns its folder."""
    image = Tokenizer((EMBEDDED / "tokenizer.model").read_bytes()).image_id
    text = dataclasses.replace(tiny.CONFIG.text, vocab_size=image + 8)
    config = dataclasses.replace(tiny.CONFIG, text=text, image_token_index=image)
    tiny.write_folder(folder, config, seed, dtype=dtype, shards=shards)
    shutil.copyfile(EMBEDDED / "tokenizer.model", folder / "tokenizer.model")
    return folder


def repository(cache: Path, repo: str) -> Path:
    """The folder of a repository."""
    return cache / f"models--{repo.replace('/', '--')}"


def blob_name(content: bytes, large: bool) -> str:
    """The sha256 of a large file; of a small one the sha1 that git gives it."""
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob " + str(len(content)).encode() + b"\0" + content).hexdigest()


def download(
    cache: Path, repo: str, folder: Path, commit: str = COMMIT, refs: Sequence[str] = ("main",), links: bool = True
) -> Path:
    """Put the files of a folder into a cache as one commit of a repository; returns the snapshot.

    Without `links`, as where there are none (Windows): each file stands in the snapshot itself.
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
    """Write what a branch or tag is; a name with slashes is a file in folders."""
    path = repository(cache, repo) / "refs" / ref
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
