"""What a file or a folder is that cannot be used as a model, and what to do: the second half of an error message.

A message that something is missing helps little where the model is there in another form: as a pickle, in the layout of
another framework, one folder further down, or as a download that has not finished.
"""

import re
from collections.abc import Iterator
from pathlib import Path

CONFIG, WEIGHTS, ADAPTER_CONFIG = "config.json", "model.safetensors", "adapter_config.json"
# Files that belong to a model for npgemma, and tell nothing about what is missing.
OURS = {WEIGHTS, "adapter_model.safetensors", "vae-oid.npz", "training_args.bin", "optimizer.pt", "scheduler.pt"}
MOST_LINES, MOST_NAMES = 8, 5

# Beginnings of files, and what such a file is.
KINDS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself; run 'git lfs pull', or download it again"),
    (b"<!doctype html", "an HTML page, not the file itself: probably a login page or an error; download it again"),
    (b"<html", "an HTML page, not the file itself: probably a login page or an error; download it again"),
    (b"<?xml", "an XML document, not the file itself: probably an error of the server; download it again"),
    (b"gguf", "a GGUF file, which npgemma does not read; use the model's repository in Hugging Face layout"),
    (b"\x89hdf", "an HDF5 file, which npgemma does not read; use the model's repository in Hugging Face layout"),
    (b"pk\x03\x04", "a zip archive: of NumPy arrays, or a pickle of PyTorch"),
    (b"\x80\x02", "a pickle, which can run any code when it is loaded, so npgemma does not read it"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
)
PICKLE = "a pickle, which npgemma does not read; load it with transformers and write it with save_pretrained"
OTHER = "which npgemma does not read; use the model's repository in Hugging Face layout"
# Names of files in a folder that is not a model for npgemma, and what they are. The first that fits counts.
NAMES: tuple[tuple[str, str], ...] = (
    (r"adapter_config\.json", "the folder is a LoRA adapter: load the model that it was trained on, with --adapter"),
    (r"(pytorch_model|consolidated).*\.(bin|pth|pt)|.*\.(pt|pth|ckpt|bin)", PICKLE),
    (r".*\.npz", "perhaps big_vision's format; run 'npgemma convert FILE.npz FOLDER'"),
    (r".*\.gguf", f"the format of llama.cpp, {OTHER}"),
    (r".*\.(h5|keras)|task\.json|preprocessor\.json", f"the format of Keras, {OTHER}"),
    (r".*\.msgpack|_METADATA|_CHECKPOINT_METADATA|ocdbt.*", f"the format of Flax or Orbax, {OTHER}"),
    (r".*\.sbs|.*\.onnx|.*\.mlpackage|.*\.task|.*\.tflite", f"another format, {OTHER}"),
    (r".*-\d{5}-of-\d{5}\.safetensors", "shards; their index, model.safetensors.index.json, is missing"),
    (r"model\.(\w+)\.safetensors", "a variant of the weights; to use it, give this file as the model"),
    (r".*\.safetensors", "weights under another name; to use them, give this file as the model"),
    (r".*\.(zip|tar|tgz|gz|bz2|xz|7z)", "an archive; unpack it first"),
    (r".*\.(incomplete|part|crdownload|tmp|aria2)", "a download that has not finished; start it again"),
)


def foreign_kind(path: Path) -> str | None:
    """What a file is by its first bytes, if it is one of KINDS or empty; None if it is not, or cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError:
        return None
    if not start:
        return "empty; download or copy it again"
    return next((kind for beginning, kind in KINDS if start.startswith(beginning)), None)


def file_report(path: Path, wanted: str) -> str:
    """What a file is that was given where a folder with the file `wanted` is needed."""
    kind = foreign_kind(path) or (None if path.suffix == ".safetensors" else meaning_of(path.name))
    what = f"{path} is {kind}" if kind else f"{path} is neither a folder nor a .safetensors file"
    return f"{what}; give the folder that contains {wanted}"


def meaning_of(name: str) -> str | None:
    """What a file of this name is, if it is one of NAMES."""
    return next((meaning for pattern, meaning in NAMES if re.fullmatch(pattern, name)), None)


def folder_report(folder: Path, wanted: str) -> str:
    """`wanted` is missing in `folder`: what is there in its place, and what to do, one finding a line."""
    missing, found = f"{folder / wanted} is missing", list(findings(folder, wanted))
    if len(found) < 2:
        return ": ".join([missing, *found])
    if len(found) > MOST_LINES:
        found = [*found[: MOST_LINES - 1], f"and {len(found) - MOST_LINES + 1} more"]
    return "\n  ".join([f"{missing}; its folder contains", *found])


def findings(folder: Path, wanted: str) -> Iterator[str]:
    """What a folder holds in place of the file `wanted`."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield f"the folder cannot be read: {error.strerror}"
        return
    yield from cache_findings(folder, entries)
    yield from unfinished_downloads(folder)
    if wanted == ADAPTER_CONFIG and (folder / CONFIG).exists():
        yield "the folder is a model, not an adapter"
    if wanted == CONFIG and (folder / WEIGHTS).exists():
        yield f"{WEIGHTS}: weights; copy {CONFIG} from the same place"
    groups: dict[str, list[str]] = {}
    for entry in entries:
        meaning = meaning_of(entry.name)
        if meaning and entry.name not in OURS:
            groups.setdefault(meaning, []).append(entry.name)
    for meaning, names in groups.items():
        yield f"{listed(names)}: {meaning}"
    models = [f"{each.name}/" for each in entries if each.is_dir() and is_model(each)]
    if models:
        yield f"{listed(models)}: a folder with a model; give this folder"
    if not entries:
        yield "the folder is empty"


def is_model(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CONFIG, ADAPTER_CONFIG))


def cache_findings(folder: Path, entries: list[Path]) -> Iterator[str]:
    """If a folder is a part of a Hugging Face cache above the snapshots: which name to give instead."""
    repos = [each.name for each in entries if each.name.startswith("models--")]
    if repos:
        yield f"this is a Hugging Face cache; give the name of a model in it: {listed(map(repo_name, repos))}"
    for home in (folder, folder.parent):
        if home.name.startswith("models--") and (home / "snapshots").is_dir():
            yield f"this is a part of the Hugging Face cache; give the model's name, {repo_name(home.name)}"
            return


def repo_name(folder: str) -> str:
    """'models--org--name' is org/name."""
    return folder.removeprefix("models--").replace("--", "/")


def unfinished_downloads(folder: Path) -> Iterator[str]:
    """Downloads that huggingface_hub began and did not end: in a cache, or with --local-dir."""
    places = [folder / ".cache" / "huggingface" / "download"]
    if folder.parent.name == "snapshots":
        places.append(folder.parents[1] / "blobs")
    count = sum(1 for place in places for _ in place.rglob("*.incomplete"))
    if count:
        yield f"the download is incomplete ({count} unfinished {'file' if count == 1 else 'files'}); run it again"


def listed(names: object) -> str:
    """The first few names."""
    every = list(names)  # type: ignore[call-overload]
    more = f" and {len(every) - MOST_NAMES} more" if len(every) > MOST_NAMES else ""
    return ", ".join(every[:MOST_NAMES]) + more
