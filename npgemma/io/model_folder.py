"""Find a model by name, and the files that belong to it. Nothing is ever downloaded."""

import os
import re
from pathlib import Path

from npgemma.errors import BadModel
from npgemma.io.hub_cache import cache_folder, is_repo_id, snapshot, snapshot_in
from npgemma.io.unusable import ADAPTER_CONFIG, file_report, listed, repo_name

EMBEDDED = Path(__file__).parent.parent / "assets" / "tiny"
SUFFIX = ".safetensors"
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
# org/name and a revision in the address of a model's page, or of a file of it.
HUB_URL = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:/(?:tree|blob|resolve)/([^/?#]+))?"
)


def find_model(name: str | Path | None) -> Path:
    """The path of a model: a folder, or a .safetensors file.

    In this order: None is the embedded model; an existing folder; an existing .safetensors file; org/name or
    org/name@revision in the Hugging Face cache; `tiny`, the embedded model. BadModel for any other name.
    """
    if name is None:
        return EMBEDDED
    path = Path(name)
    if path.suffix == SUFFIX and os.path.isfile(path):
        if SHARD.search(path.stem):
            raise BadModel(f"{path} is one of several files of a model; give their folder, {path.parent}")
        return path
    folder = find_folder(name, "config.json", ADAPTER_CONFIG)
    if folder is None and str(name) == "tiny":
        return EMBEDDED
    if folder is None:
        raise not_found(name, f"no such folder, no such {SUFFIX} file")
    if not (folder / "config.json").exists() and (folder / ADAPTER_CONFIG).exists():
        raise BadModel(
            f"{folder} is a LoRA adapter, not a model; load the model that it was trained on, with this as its adapter"
        )
    return folder


def find_adapter(name: str | Path) -> Path:
    """The folder of a LoRA adapter: an existing one, or org/name[@revision] in the cache. BadModel if not found."""
    folder = find_folder(name, ADAPTER_CONFIG)
    if folder is None:
        raise not_found(name, "no such folder", "adapter ")
    if (folder / ADAPTER_CONFIG).exists():
        return folder
    inside = sorted(path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG}"))  # named adapters, or checkpoints
    if len(inside) > 1:
        raise BadModel(f"{folder} contains several adapters; give the folder of one: {listed(map(str, inside))}")
    return inside[0] if inside else folder


def find_folder(name: str | Path, *needed: str) -> Path | None:
    """An existing folder, or a snapshot in the Hugging Face cache with one of the files `needed`; None if not found."""
    path = Path(name)
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that no folder can have
        in_cache = path.name.startswith("models--") and (path / "snapshots").is_dir()
        return snapshot_in(path, repo_name(path.name), "main", *needed) if in_cache else path
    if os.path.exists(path):
        raise BadModel(file_report(path, needed[0]))
    repo, _, revision = str(name).partition("@")
    return snapshot(repo, revision or "main", *needed) if is_repo_id(repo) else None


def not_found(name: str | Path, tried: str, kind: str = "") -> BadModel:
    """The error for a name that matches nothing: what was tried, and what would help."""
    url = HUB_URL.match(str(name))
    if url:
        repo, revision = url.groups()
        as_name = repo + (f"@{revision}" if revision and revision != "main" else "")
        raise BadModel(
            f"{name} is a URL; npgemma does not download models: run 'hf download {repo}', then give {as_name}"
        )
    repo, _, _ = str(name).partition("@")
    hint = f"; npgemma does not download models: run 'hf download {repo}' first" if is_repo_id(repo) else ""
    cache = f"no such repository in the Hugging Face cache {cache_folder()}"
    return BadModel(f"{kind}{name} was not found: there is {tried}, and {cache}{hint}")


def folder_of(model: Path) -> Path:
    """The folder that contains the config and tokenizer of a model."""
    return model if model.is_dir() else model.parent


def member(folder: Path, name: str) -> Path:
    """`folder / name`. BadModel if that is a link to a file outside the folder.

    The snapshots of a Hugging Face cache consist of links into its blobs, which are allowed. Any other link would let
    a model read files that do not belong to it.
    """
    path = folder / name
    root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parents[1] / "blobs")
    if real.exists() and not any(real.is_relative_to(each) for each in allowed):
        raise BadModel(f"{path} is a link to {real}, outside the model's folder; copy the file into the folder")
    return path
