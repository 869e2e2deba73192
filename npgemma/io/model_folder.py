"""Where a model is, and which files belong to it. Nothing is ever downloaded."""

import os
from pathlib import Path

from npgemma.errors import BadModel
from npgemma.io.hub_cache import cache_folder, is_repo_id, snapshot

EMBEDDED = Path(__file__).parent.parent / "assets" / "tiny"
SUFFIX = ".safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def find_model(name: str | Path | None) -> Path:
    """The model that `name` names: a folder, or a .safetensors file in one.

    In this order: nothing is the model inside npgemma; then an existing folder; a .safetensors file; org/name or
    org/name@revision in the Hugging Face cache; and `tiny`, the model inside again. BadModel, with what was tried, if
    it is none of these.
    """
    if name is None:
        return EMBEDDED
    path = Path(name)
    if path.suffix == SUFFIX and os.path.isfile(path):
        return path
    folder = find_folder(name, "config.json", ADAPTER_CONFIG)
    if folder is None and str(name) == "tiny":
        return EMBEDDED
    if folder is None:
        raise nowhere(name, f"{name} is no model here: there is no such folder, no such {SUFFIX} file")
    if not (folder / "config.json").exists() and (folder / ADAPTER_CONFIG).exists():
        raise BadModel(f"{folder} is a LoRA adapter; give the model it was trained on, and this as the adapter to it")
    return folder


def find_adapter(name: str | Path) -> Path:
    """The folder of a LoRA adapter: an existing one, or org/name[@revision] in the cache; BadModel if it is none."""
    folder = find_folder(name, ADAPTER_CONFIG)
    if folder is None:
        raise nowhere(name, f"{name} is no adapter here: there is no such folder")
    return folder


def find_folder(name: str | Path, *needed: str) -> Path | None:
    """An existing folder, or one of the Hugging Face cache that holds one of the files `needed`; None if it is none."""
    path = Path(name)
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that no folder can have
        return path
    if os.path.exists(path):
        raise BadModel(f"{path} is neither a folder nor a {SUFFIX} file; give the folder that {needed[0]} is in")
    repo, _, revision = str(name).partition("@")
    return snapshot(repo, revision or "main", *needed) if is_repo_id(repo) else None


def nowhere(name: str | Path, complaint: str) -> BadModel:
    """What was tried, and what would help."""
    repo, _, _ = str(name).partition("@")
    hint = f"; npgemma downloads nothing, 'hf download {repo}' would put it there" if is_repo_id(repo) else ""
    return BadModel(f"{complaint}, and no such name in the Hugging Face cache {cache_folder()}{hint}")


def folder_of(model: Path) -> Path:
    """The folder that holds what a model needs beside its weights."""
    return model if model.is_dir() else model.parent


def member(folder: Path, name: str) -> Path:
    """`folder / name`. BadModel if that is a link which leads out of the folder.

    The snapshots of a Hugging Face cache are links into its blobs; any other way out would read a file that is not
    the model's.
    """
    path = folder / name
    root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append(root.parents[1] / "blobs")
    if real.exists() and not any(real.is_relative_to(home) for home in homes):
        raise BadModel(f"{path} is a link to {real}, outside the model's folder; put the file itself there")
    return path
