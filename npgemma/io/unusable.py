"""What a file or a folder is that cannot be used as a model, and what to do: the second half of an error message.

A message that something is missing helps little where the model is there in another form: as a pickle, in the layout of
another framework, one folder further down, or as a download that has not finished.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from npgemma.errors import listed
from npgemma.io.file_kinds import ARCHIVE, ELSEWHERE, VAGUE, first_bytes, foreign_kind

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")
MOST_LINES, MOST_FOLDERS, MOST_DEPTH = 8, 1000, 6

# What a training leaves beside its weights, and weights that npgemma reads: they do not explain what is missing.
SILENT = re.compile(
    r"model\.safetensors|adapter_model\.safetensors|vae-oid\.npz|"
    r"(?:training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state)[\w-]*\.\w+"
)
SHARD = re.compile(r".*[-_.]\d+[-_]of[-_]0*(\d+)\.safetensors")
UNFINISHED = "a download that has not finished; start it again"
# Names of files in a folder that is not a model for npgemma, and what they are. The first that fits counts.
NAMES = tuple(
    (re.compile(pattern, re.IGNORECASE), meaning)
    for pattern, meaning in (
        (r".*\.(incomplete|part|partial|crdownload|download|opdownload|tmp|aria2|!ut)", UNFINISHED),
        (
            r"pytorch_model.*\.bin",
            "a pickle, which npgemma does not read; load its folder with transformers, write it with save_pretrained",
        ),
        (
            r".*\.(bin|pt|pth|ckpt|pkl|pickle|nemo)",
            "a pickle, which npgemma does not read; load it with torch and write its tensors with safetensors.torch",
        ),
        (r".*\.distcp|\.metadata", "a distributed checkpoint of PyTorch; merge it with 'accelerate merge-weights'"),
        (r"zero_to_fp32\.py|global_step\d+", "a checkpoint of DeepSpeed; run its zero_to_fp32.py --safe_serialization"),
        (r".*\.npz", "perhaps big_vision's format; run 'npgemma convert {file} FOLDER', then give FOLDER"),
        (r".*\.(gguf|ggml)", f"the format of llama.cpp, {ELSEWHERE}"),
        (r"tf_model.*\.h5|saved_model\.pb", f"the format of TensorFlow, {ELSEWHERE}"),
        (r".*\.(h5|keras)|task\.json|preprocessor\.json|metadata\.json", f"the format of Keras, {ELSEWHERE}"),
        (
            r".*\.msgpack|_METADATA|_CHECKPOINT_METADATA|.*ocdbt.*|.*\.orbax.*",
            f"the format of Flax or Orbax, {ELSEWHERE}",
        ),
        (
            r".*\.(sbs|onnx|onnx_data|mlpackage|mlmodel|mlmodelc|task|tflite|litertlm|engine|plan|pte|ot|npy|mar)|"
            r"openvino_model\.xml",
            f"another format, {ELSEWHERE}",
        ),
        (
            SHARD.pattern,
            "shards; their index, model.safetensors.index.json, is missing: download it, too",
        ),
        (
            rf"(?!{re.escape(INDEX)}).*\.safetensors\.index(\.\w+)?\.json",
            f"the index of a variant; to use its shards, copy it to {INDEX}",
        ),
        (r"model\.(\w+)\.safetensors", "a variant of the weights; to use it, give the file as the model: {file}"),
        (r"adapters?\.safetensors", "weights of an adapter"),
        (r".*\.safetensors", "weights under another name; to use them, give the file as the model: {file}"),
        (r".*\.(zip|tar|tgz|tbz2?|txz|gz|bz2|xz|7z|rar|zst)", ARCHIVE),
    )
)
ADAPTER = "the folder is a LoRA adapter: load the model that it was trained on, with --adapter {folder}"


# Weights by their names, in whatever format, and their indices; not the mask codec, nor the state of a training.
WEIGHT_NAMES = re.compile(r".*\.(safetensors|bin|pth?|ckpt|gguf|npz|h5|msgpack)(\.index.*\.json)?", re.IGNORECASE)


# --------------------------------------------------------------------------------------------------------------- files


def is_weights(name: str) -> bool:
    """Whether a file is weights, or an index of them, by its name."""
    silent = SILENT.fullmatch(name) and not name.endswith(".safetensors")
    return WEIGHT_NAMES.fullmatch(name) is not None and not silent


def file_report(path: Path, wanted: str) -> str:
    """What a file is that was given where a folder with the file `wanted` is needed, and what to do."""
    what, rest = f"{path} is neither a folder nor a .safetensors file", f"give the folder that contains {wanted}"
    if path.suffix.lower() == ".safetensors":
        what = f"{path} is a file"
    kind = foreign_kind(path)
    by_name = meaning_of(path.name)
    if path.parent.name == "blobs" and path.parents[1].name.startswith("models--"):
        return f"{what}, but a blob of the Hugging Face cache; give the model's name, {repo_name(path.parents[1].name)}"
    if by_name and (kind is None or kind in VAGUE):
        kind = by_name.format(file=path, folder=path.parent)
    if kind and not path.name.lower().endswith(".safetensors"):
        return f"{what}: it is {kind}" + (f", then {rest}" if kind == ARCHIVE else "")
    if (path.parent / wanted).exists():
        return f"{what}; give its folder, {path.parent}"
    return f"{what}; {rest}"


def meaning_of(name: str) -> str | None:
    """What a file of this name is, if it is one of NAMES; it may ask for {file} and {folder}."""
    return next((meaning for pattern, meaning in NAMES if pattern.fullmatch(name)), None)


# ------------------------------------------------------------------------------------------------------------- folders


def folder_report(folder: Path, *wanted: str) -> str:
    """`wanted` are missing in `folder`: what else is, what is there in their place, and what to do."""
    found = list(findings(folder, wanted))
    missing = f"{folder / listed(wanted)} {'is' if len(wanted) == 1 else 'are'} missing"
    also = other_needs(folder, wanted) if is_part_of_model(folder) or not found else []
    if also and not {ADAPTER_CONFIG, ADAPTER_WEIGHTS} & {*wanted} and any(folder.iterdir()):
        missing += f", and so {'is' if len(also) == 1 else 'are'} {' and '.join(also)}"
    if not found:
        found = [*only_partly_downloaded(folder)] if any(folder.iterdir()) else ["the folder is empty"]
    if len(found) < 2:
        return ": ".join([missing, *found])
    if len(found) > MOST_LINES:
        found = [*found[: MOST_LINES - 1], f"and {len(found) - MOST_LINES + 1} more"]
    return "\n  ".join([f"{missing}; its folder contains", *found])


def findings(folder: Path, wanted: Sequence[str]) -> Iterator[str]:
    """What a folder holds in place of the files `wanted`."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield f"the folder cannot be read: {error.strerror}"
        return
    yield from cache_findings(folder, entries)
    yield from unfinished_downloads(folder)
    if ADAPTER_CONFIG in wanted and (folder / CONFIG).exists() and not (folder / ADAPTER_WEIGHTS).exists():
        yield "the folder is a model, not an adapter"
    if (folder / ADAPTER_CONFIG).exists() and not {ADAPTER_CONFIG, ADAPTER_WEIGHTS} & {*wanted}:
        yield ADAPTER.format(folder=folder)
    for config, weights in ((CONFIG, WEIGHTS), (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        if config in wanted and (folder / weights).exists():
            rest = download_command(folder) if is_snapshot(folder) else f"copy {config} from the same place"
            yield f"{weights}: weights; {rest}"
    if (folder / INDEX).exists() and any(map(SHARD.fullmatch, wanted)):
        again = download_command(folder) if is_snapshot(folder) else "download every shard"
        yield f"{INDEX} names {'them' if len(wanted) > 1 else 'it'}; {again}"
    top, below = [*named_findings(entries)], [*folders_below(folder)]
    yield from top
    yield from model_folders(folder, below)
    if not top and not any(map(is_model, below)):
        files = (each for inner in below for each in sorted(inner.iterdir()))
        yield from named_findings(files, folder)


def named_findings(entries: Iterable[Path], root: Path | None = None) -> Iterator[str]:
    """The files that NAMES knows, those of the same kind together, by their names or by their paths below `root`."""
    groups: dict[str, list[Path]] = {}
    for entry in entries:
        known = SILENT.fullmatch(entry.name) or (SHARD.fullmatch(entry.name) and has_index(entry.parent))
        meaning = None if known else meaning_of(entry.name)
        if meaning:
            groups.setdefault(meaning, []).append(entry)
    for meaning, paths in groups.items():
        names = [each.relative_to(root).as_posix() if root else each.name for each in paths]
        yield f"{listed(names)}: {meaning.format(file=paths[0], folder=paths[0].parent)}"


def has_index(folder: Path) -> bool:
    """Whether there is an index of shards, be it of a variant."""
    return any(folder.glob("*.safetensors.index*.json"))


def is_part_of_model(folder: Path) -> bool:
    """Whether some of the files of a model are there."""
    return any_exists(folder, (CONFIG, WEIGHTS, INDEX, *TOKENIZERS))


def other_needs(folder: Path, wanted: Sequence[str]) -> list[str]:
    """The other files that a model needs and a folder lacks, so that one message names them all."""
    needs = {CONFIG: (CONFIG,), WEIGHTS: (WEIGHTS, INDEX), TOKENIZERS[0]: TOKENIZERS}
    if not any(name == CONFIG or name.endswith((".safetensors", INDEX)) for name in wanted):
        return []
    if CONFIG not in wanted:
        needs.pop(WEIGHTS)  # they are what is missing
    return [need for need, any_of in needs.items() if need not in wanted and not any_exists(folder, any_of)]


def any_exists(folder: Path, names: Iterable[str]) -> bool:
    return any(os.path.exists(folder / name) for name in names)


def is_model(folder: Path) -> bool:
    """Whether a folder has the config of a model or an adapter."""
    return any_exists(folder, (CONFIG, ADAPTER_CONFIG))


def model_folders(folder: Path, below: Iterable[Path]) -> Iterator[str]:
    """The folders further down that hold a model, and those with an adapter."""
    kinds = {"a model": (CONFIG, "give this folder", "give one of these folders")}
    kinds["a LoRA adapter"] = (ADAPTER_CONFIG, "give this folder as the adapter", "give one of these as the adapter")
    rest = list(below)
    for kind, (config, one, several) in kinds.items():
        paths = [each for each in rest if (each / config).exists()]
        rest = [each for each in rest if each not in paths]
        if paths:
            names = listed(f"{each.relative_to(folder).as_posix()}/" for each in paths)
            yield f"{names}: {'a folder' if len(paths) == 1 else 'folders'} with {kind}; " + (
                f"{one}, {paths[0]}" if len(paths) == 1 else several
            )


def folders_below(folder: Path) -> Iterator[Path]:
    """The folders inside a folder, without hidden ones: the first few of them, and not too deep."""
    found = 0
    for path, inner, _ in os.walk(folder):
        here = Path(path)
        inner[:] = sorted(name for name in inner if not name.startswith((".", "__", "models--")))
        if len(here.relative_to(folder).parts) >= MOST_DEPTH:
            inner.clear()
        if here != folder:
            found += 1
            yield here
        if found >= MOST_FOLDERS:
            return


# ----------------------------------------------------------------------------------------------- the Hugging Face cache


def cache_findings(folder: Path, entries: list[Path]) -> Iterator[str]:
    """If a folder is a part of a Hugging Face cache above the snapshots: what to give instead."""
    for cache, names in ((folder, entries), (folder / "hub", sorted((folder / "hub").glob("models--*")))):
        repos = [each.name for each in names if each.name.startswith("models--")]
        if repos:
            which = f"{listed(map(repo_name, repos))}, or its folder, such as {cache / repos[0]}"
            yield f"this is a Hugging Face cache; give the name of a model in it: {which}"
    home = next((home for home in (folder, folder.parent) if is_repository(home)), None)
    if home is not None:
        snapshots = [each for each in sorted((home / "snapshots").iterdir()) if each.is_dir()]
        which = f", or one of {listed(map(str, snapshots))}" if snapshots else ""
        yield f"this is a part of a Hugging Face cache; give the model's name, {repo_name(home.name)}{which}"


def is_repository(folder: Path) -> bool:
    """Whether a folder is that of a repository in a Hugging Face cache."""
    return folder.name.startswith("models--") and (folder / "snapshots").is_dir()


def is_snapshot(folder: Path) -> bool:
    """Whether a folder is a revision of a repository in a Hugging Face cache."""
    return folder.parent.name == "snapshots" and is_repository(folder.parents[1])


def repo_name(folder: str) -> str:
    """'models--org--name' is org/name."""
    return folder.removeprefix("models--").replace("--", "/")


def download_command(folder: Path) -> str:
    """How to download the rest of a snapshot."""
    home = folder.parents[1]
    refs = [each for each in sorted((home / "refs").rglob("*")) if each.is_file()]
    names = [each.relative_to(home / "refs").as_posix() for each in refs if first_bytes(each) == folder.name.encode()]
    revision = "" if "main" in names else f" --revision {[*names, folder.name][0]}"
    return f"run 'hf download {repo_name(home.name)}{revision}'"


def only_partly_downloaded(folder: Path) -> Iterator[str]:
    """For a snapshot of a cache that lacks a file: why, and what to do."""
    if is_snapshot(folder):
        yield f"only some of the files were downloaded; {download_command(folder)}"


def unfinished_downloads(folder: Path) -> Iterator[str]:
    """Downloads that huggingface_hub began and did not end: in a cache, or with --local-dir."""
    in_cache = is_snapshot(folder)
    place = folder.parents[1] / "blobs" if in_cache else folder / ".cache" / "huggingface" / "download"
    count = sum(1 for _ in place.rglob("*.incomplete"))
    if count:
        again = download_command(folder) if in_cache else "run it again"
        yield f"the download is incomplete ({count} unfinished {'file' if count == 1 else 'files'}); {again}"
