"""Find a model by name, and the files that belong to it. Nothing is ever downloaded."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from npgemma.errors import BadModel, listed
from npgemma.io.hub_cache import cache_folder, is_repo_id, similar, snapshot, snapshot_of
from npgemma.io.strict_json import read_json
from npgemma.io.unusable import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    INDEX,
    SHARD,
    WEIGHTS,
    file_report,
    folder_report,
    is_repository,
)

ASSETS = Path(__file__).parent.parent / "assets"
EMBEDDED, EMBEDDED_LANGUAGE, EMBEDDED_PAIR = ASSETS / "tiny", ASSETS / "tiny-gemma", ASSETS / "tiny-siglip"
SUFFIX = ".safetensors"
ADAPTER_FILES = (ADAPTER_WEIGHTS, "adapters.safetensors")  # of PEFT and MLX
# org/name and a revision in the address of a model's page, or of a file of it.
HUB_URL = re.compile(
    r"(?:(?:https?://|git@|ssh://git@)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)[/:]|hf://)(?:models/)?"
    r"([^/?#@\s]+/[^/?#@\s]+?)(?:\.git)?/?(?:(?:/(?:tree|blob|resolve|raw|commits?)/|@)(refs/\w+/[^/?#]+|[^/?#]+).*)?(?:[/?#].*)?"
)


def find_model(name: str | Path | None) -> Path:
    """The path of a model: a folder, or a .safetensors file.

    In this order: None is the embedded model; an existing folder; an existing .safetensors file; org/name or
    org/name@revision in the Hugging Face cache; `tiny`, the embedded model, `tiny-gemma`, the embedded language model,
    or `tiny-siglip`, the embedded SigLIP. BadModel for any other name, and for what cannot be a model: one of several
    shards, an adapter, or a folder with another format.
    """
    if name is None:
        return EMBEDDED
    path = Path(name)
    if path.suffix.lower() == SUFFIX and os.path.isfile(path):
        return whole_model(path)
    folder = find_folder(name, CONFIG, ADAPTER_CONFIG)
    embedded = {each.name: each for each in (EMBEDDED, EMBEDDED_LANGUAGE, EMBEDDED_PAIR)}
    if folder is None and str(name) in embedded:
        return embedded[str(name)]
    if folder is None:
        raise not_found(name, f"no such folder, no such {SUFFIX} file")
    if not (folder / CONFIG).exists() and (folder / ADAPTER_CONFIG).exists():
        raise adapter_as_model(folder)
    keras = (folder / CONFIG).exists() and any(folder.glob("*.weights.h5"))
    if keras and not any((folder / each).exists() for each in (WEIGHTS, INDEX)):
        raise BadModel(folder_report(folder, WEIGHTS))  # Keras has a config.json, too
    return folder


def whole_model(path: Path) -> Path:
    """A .safetensors file that may be a whole model; BadModel for one of several shards, or the file of an adapter."""
    shard = SHARD.fullmatch(path.name)
    if shard and int(shard[1]) > 1:
        raise BadModel(f"{path} is one of the {int(shard[1])} files of a model; give their folder, {path.parent}")
    if path.name in ADAPTER_FILES or ((path.parent / ADAPTER_CONFIG).exists() and not (path.parent / CONFIG).exists()):
        raise adapter_as_model(path.parent)
    return path


def adapter_as_model(folder: Path) -> BadModel:
    """The error for an adapter that was given as a model; it names the model that the adapter was trained on."""
    config = folder / ADAPTER_CONFIG
    base = read_json(config).get("base_model_name_or_path") if config.exists() else None
    trained_on = f"the model that it was trained on{f', {base}' if isinstance(base, str) and base else ''}"
    return BadModel(
        f"{folder} is a LoRA adapter, not a model; load {trained_on}, with this as its adapter (--adapter {folder})"
    )


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
        names = listed(str(path.relative_to(folder)) for path in inner)
        raise BadModel(f"{folder} contains {len(inner)} adapters: {names}; give the path of one, such as {inner[-1]}")
    return inner[0] if inner else folder


def find_folder(name: str | Path, *needed: str) -> Path | None:
    """An existing folder, or a snapshot in the Hugging Face cache with one of the files `needed`; None if not found.

    A repository's folder in a cache, or its `snapshots`, is the snapshot that its name would find.
    """
    path = Path(name)
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that no folder can have
        here = Path(os.path.abspath(path))
        home = here.parent if here.name == "snapshots" else here
        return snapshot_of(home, *needed) if is_repository(home) else path
    if os.path.exists(path):
        raise BadModel(file_report(path, needed[0]))
    repo, _, revision = str(name).partition("@")
    return snapshot(repo, revision or "main", *needed) if is_repo_id(repo) else None


OWNER = "a name on the Hugging Face hub begins with its owner, as in google/paligemma-3b-mix-224"


def not_found(name: str | Path, tried: str, kind: str = "") -> BadModel:
    """The error for a name that matches nothing: what was tried, and what would help."""
    text = str(name)
    url = HUB_URL.fullmatch(text)
    if url and is_repo_id(url[1]) and url[1].partition("/")[0] not in ("datasets", "spaces", "models", "api"):
        revision = unquote(url[2] or "main")
        as_name = url[1] if revision == "main" else f"{url[1]}@{revision}"
        return BadModel(f"{kind}{name} is a URL; {download_first(url[1], revision)}, then give {as_name}")
    if "://" in text:
        return BadModel(f"{kind}{name} is a URL; npgemma does not download models: download it, then give its folder")
    repo, _, revision = text.strip("/").partition("@")
    cache = f"no such repository in the Hugging Face cache {cache_folder()}"
    cached = similar(repo)
    like = f", which contains {', '.join(cached)}" if cached else ""
    hint = ""
    if is_repo_id(repo):
        hint = f"; {download_first(repo, revision or 'main')} first" if "/" in repo else f"; {OWNER}"
    return BadModel(f"{kind}{name} was not found: there is {tried}, and {cache}{like}{hint}")


def download_first(repo: str, revision: str) -> str:
    """How to download a revision of a repository."""
    flag = "" if revision == "main" else f" --revision {revision}"
    return f"npgemma does not download models: run 'hf download {repo}{flag}'"


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
