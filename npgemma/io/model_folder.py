"""Find a model by name, and the files that belong to it. Nothing is ever downloaded."""

import os
from pathlib import Path

from npgemma.errors import BadModel
from npgemma.io.hub_cache import cache_folder, is_repo_id, snapshot

EMBEDDED = Path(__file__).parent.parent / "assets" / "tiny"
SUFFIX = ".safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def find_model(name: str | Path | None) -> Path:
    """The path of a model: a folder, or a .safetensors file.

    In this order: None is the embedded model; an existing folder; an existing .safetensors file; org/name or
    org/name@revision in the Hugging Face cache; `tiny`, the embedded model. BadModel for any other name.
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
        raise not_found(name, f"no such folder, no such {SUFFIX} file")
    if not (folder / "config.json").exists() and (folder / ADAPTER_CONFIG).exists():
        raise BadModel(
            f"{folder} is a LoRA adapter, not a model; load the model that it was trained on, with this as its adapter"
        )
    return folder


def find_adapter(name: str | Path) -> Path:
    """The folder of a LoRA adapter: an existing one, or org/name[@revision] in the cache. BadModel if not found.

    One of its two files stands for the folder. PEFT saves named adapters, and the Trainer saves checkpoints, in folders
    of their own within the given one: it is one of them, if there is one only.
    """
    path = Path(name)
    is_file = path.name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) and os.path.isfile(path)
    folder = find_folder(path.parent if is_file else name, ADAPTER_CONFIG)
    if folder is None:
        raise not_found(name, "no such folder", "adapter ")
    if (folder / ADAPTER_CONFIG).exists():
        return folder
    inner = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{ADAPTER_CONFIG}"))
    if len(inner) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in inner[:10])
        raise BadModel(f"{folder} contains {len(inner)} adapters: {names}; give the path of one, such as {inner[-1]}")
    return inner[0] if inner else folder


def find_folder(name: str | Path, *needed: str) -> Path | None:
    """An existing folder, or a snapshot in the Hugging Face cache with one of the files `needed`; None if not found."""
    path = Path(name)
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that no folder can have
        return path
    if os.path.exists(path):
        raise BadModel(f"{path} is neither a folder nor a {SUFFIX} file; give the folder that contains {needed[0]}")
    repo, _, revision = str(name).partition("@")
    return snapshot(repo, revision or "main", *needed) if is_repo_id(repo) else None


def not_found(name: str | Path, tried: str, kind: str = "") -> BadModel:
    """The error for a name that matches nothing: what was tried, and what would help."""
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
