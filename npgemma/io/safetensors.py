"""safetensors files as arrays that are views of memory maps: data is read when it is used.

The safetensors library checks the file (https://github.com/huggingface/safetensors, 'Format'). The tensors are mapped
here, because the library's NumPy interface copies them and does not support bfloat16. npgemma holds bfloat16 as uint16
bits (see layers.shapes).
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from npgemma.errors import BadModel, listed, shortened
from npgemma.io.file_kinds import first_bytes, foreign_kind
from npgemma.io.foreign import Damaged, parsing
from npgemma.io.model_folder import SUFFIX, member
from npgemma.io.regular_files import open_regular, regular
from npgemma.io.strict_json import read_json
from npgemma.io.unusable import CONFIG, INDEX, WEIGHTS, folder_report, is_weights
from npgemma.layers.shapes import Array

__all__ = [
    "INDEX",
    "open_any",
    "open_file",
    "open_folder",
    "open_model",
    "open_with_metadata",
    "readable",
    "unused_weights",
    "weight_files",
]

# A file in a folder, or in folders inside it.
PLAIN_PATH = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*\.safetensors(?:\.index\.json)?", re.ASCII)
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}


# What a header may be; those of the largest models have a tenth of it. The rest is made to take memory and time.
LARGEST_HEADER, MOST_TENSORS, LONGEST_NAME, MOST_AXES = 16_000_000, 100_000, 1000, 64


class Unreadable(NamedTuple):
    """A tensor of a dtype that npgemma does not read: an error only if the model uses it."""

    shape: tuple[int, ...]
    dtype: str
    where: str


def open_file(path: Path, dtypes: Mapping[str, np.dtype[Any]] = DTYPES) -> dict[str, Array]:
    """The tensors of one file, mapped read-only. BadModel if it is missing, damaged, or of a dtype not in `dtypes`."""
    return open_with_metadata(path, dtypes)[0]


def open_with_metadata(
    path: Path, dtypes: Mapping[str, np.dtype[Any]] = DTYPES
) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors of one file, and its metadata. BadModel as for `open_file`."""
    tensors, metadata = open_any(path, dtypes)
    return readable(tensors, dtypes), metadata


def readable(
    tensors: Mapping[str, Array | Unreadable], dtypes: Mapping[str, np.dtype[Any]] = DTYPES
) -> dict[str, Array]:
    """The same tensors. BadModel, with its dtype, for one that cannot be read."""
    for x in tensors.values():
        if isinstance(x, Unreadable):
            supported = ", ".join(dtypes)
            raise BadModel(f"{x.where} is stored as {x.dtype}; npgemma reads {supported}: convert it to one of them")
    return {name: x for name, x in tensors.items() if not isinstance(x, Unreadable)}


def open_any(
    path: Path, dtypes: Mapping[str, np.dtype[Any]] = DTYPES
) -> tuple[dict[str, Array | Unreadable], dict[str, str]]:
    """As `open_with_metadata`, but a tensor of a dtype not in `dtypes` is an Unreadable."""
    try:
        with parsing():
            length, header = checked_header(path)
            data = mapped(path)[8 + length :]
    except FileNotFoundError:
        raise BadModel(f"{path} is missing") from None
    except Damaged as error:
        kind = foreign_kind(path)
        if kind:
            raise BadModel(f"{path} is {kind}") from None
        raise BadModel(
            f"{path} is not a valid safetensors file: {reason(path, error)}; download or save it again"
        ) from None
    metadata = header.pop("__metadata__", None) or {}
    for name, entry in header.items():
        if len(name) > LONGEST_NAME or len(entry["shape"]) > MOST_AXES:
            limits = f"npgemma reads names of at most {LONGEST_NAME} characters and at most {MOST_AXES} axes"
            found = f"a tensor {shortened(name)!r} with {len(entry['shape']):,} axes"
            raise BadModel(f"{path} holds {found}; {limits}")
    return {name: tensor(data, entry, dtypes, f"{path}: tensor {name!r}") for name, entry in header.items()}, metadata


def checked_header(path: Path) -> tuple[int, dict[str, Any]]:
    """The length of a header, and its content, which the library has checked. BadModel if it is too large."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length <= LARGEST_HEADER:
            text = file.read(length)
            # an entry is an object with two lists and some numbers
            if max(text.count(b"{"), text.count(b"[") // 2, text.count(b",") // 20) > MOST_TENSORS:
                raise BadModel(f"{path} has a header for more than {MOST_TENSORS:,} tensors; save it again, in parts")
        elif length < path.stat().st_size:
            limit = f"{LARGEST_HEADER // 1_000_000} MB"
            raise BadModel(f"{path} has a header of {length:,} bytes; npgemma reads up to {limit}: save it again")
    with safe_open(regular(path), framework="numpy", backend="pread"):
        pass
    return length, json.loads(text, object_pairs_hook=unique_keys)


# What the library says of a damaged file, and what that means.
REASONS = {
    "header too small": "it has fewer than 8 bytes",
    "header too large": "its first 8 bytes do not give the length of a header",
    "invalid header length": "it ends before its header does",
    "unknown variant": "a tensor has a dtype that npgemma does not know",
    "UTF-8": "its header is not text",
    "utf-8": "its header is not text",
    "JSON": "its header is not a list of tensors",
    "offset": "the places of its tensors do not fit their shapes, or each other",
    "overflow": "the places of its tensors do not fit their shapes, or each other",
    "appears twice": "a tensor is named twice",
}


def reason(path: Path, error: Damaged) -> str:
    """Why a file cannot be read, without the words of the library."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if not any(first_bytes(path) or b"1"):
        return "it begins with zeros, so the download may be incomplete"
    if "not fully covered" in str(error):
        return size_problem(path)
    return next((meaning for text, meaning in REASONS.items() if text in str(error)), "its header is damaged")


def size_problem(path: Path) -> str:
    """The size of a file whose header is valid, beside the size that the header describes."""
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    asked = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    has = path.stat().st_size
    why = "the download may be incomplete" if has < asked else f"{has - asked:,} bytes follow the last tensor"
    return f"it has {has:,} bytes and its tensors need {asked:,}, so {why}"


def mapped(path: Path) -> Array:
    """The bytes of a file, mapped read-only; read into memory if mapping fails (some network drives)."""
    try:
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except OSError:
        return np.fromfile(path, np.uint8)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. ValueError for a repeated key: the format forbids it, but its readers take the last one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a tensor name appears twice")
    return found


def tensor(
    data: Array, entry: Mapping[str, Any], dtypes: Mapping[str, np.dtype[Any]], where: str
) -> Array | Unreadable:
    """The view of `data` that a header entry describes. The library has already checked the sizes."""
    if entry["dtype"] not in dtypes:
        return Unreadable(tuple(entry["shape"]), entry["dtype"], where)
    start, end = entry["data_offsets"]
    try:
        return data[start:end].view(dtypes[entry["dtype"]]).reshape(entry["shape"])
    except ValueError:
        raise BadModel(f"{where} has the shape {entry['shape']}, which NumPy cannot hold") from None


def weight_files(model: Path) -> list[Path]:
    """The files that `open_model` maps, without the missing ones."""
    if not model.is_dir():
        return [model]
    start = first_file(model)
    files = (
        [start] if start.suffix == SUFFIX else [member(model, shard) for shard in sorted({*weight_map(start).values()})]
    )
    return [path for path in files if path.exists()]


def unused_weights(model: Path, names: Iterable[str]) -> list[str]:
    """Those of the names of files beside a model that are weights, or an index, and that `open_model` does not open."""
    folder = model if model.is_dir() else model.parent
    start = first_file(model) if model.is_dir() else model
    used = {path.relative_to(folder).as_posix() for path in (start, *weight_files(model))}
    return [name for name in names if is_weights(name) and name not in used]


def first_file(folder: Path) -> Path:
    """The file that tells where the weights of a folder are, a .safetensors or an index, in transformers' order.

    It is the one that config.json names as `transformers_weights`, model.safetensors, or its index; model.safetensors
    if none of them exists.
    """
    named = named_file(member(folder, CONFIG))
    present = (path for name in (WEIGHTS, INDEX) if (path := member(folder, name)).is_file())
    return member(folder, named) if named else next(present, folder / WEIGHTS)


def named_file(config: Path) -> str | None:
    """The `transformers_weights` of a config.json. BadModel if that is not a file in its folder."""
    name = read_json(config).get("transformers_weights") if config.is_file() else None
    if name is not None and not (isinstance(name, str) and PLAIN_PATH.fullmatch(name)):
        wrong = f"not the name of a {SUFFIX} file or a {SUFFIX}.index.json in its folder"
        raise BadModel(f"{config}: transformers_weights is {name!r}, {wrong}")
    return name


def open_model(model: Path) -> dict[str, Array | Unreadable]:
    """All tensors of a model: one file, or a folder."""
    return open_folder(model) if model.is_dir() else open_any(model)[0]


def open_folder(folder: Path) -> dict[str, Array | Unreadable]:
    """All tensors of a model folder: those of `weight_files`. BadModel if one is missing or does not fit the index."""
    start = first_file(folder)
    if not start.exists():
        raise BadModel(folder_report(folder, start.relative_to(folder).as_posix()))
    if start.suffix == SUFFIX:
        return open_any(start)[0]
    shard_of = weight_map(start)
    paths = {shard: member(folder, shard) for shard in sorted(set(shard_of.values()))}
    gone = [shard for shard, path in paths.items() if not path.exists()]
    if gone:
        raise BadModel(folder_report(folder, *gone))
    tensors: dict[str, Array | Unreadable] = {}
    for shard, path in paths.items():
        found = open_any(path)[0]
        names = {name for name, its_shard in shard_of.items() if its_shard == shard}
        if names != found.keys():
            missing, extra = sorted(names - found.keys()), sorted(found.keys() - names)
            differences = "; ".join(
                f"only in the {where}: {listed(some)}" for where, some in (("index", missing), ("file", extra)) if some
            )
            raise BadModel(f"{start} and {shard} list different tensors; {differences}")
        tensors |= found
    return tensors


def weight_map(index: Path) -> dict[str, str]:
    """The file name of the shard of each tensor, from an index.

    BadModel for a shard that is not a plain file name: a path such as ../x could lead out of the model's folder.
    """
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise BadModel(f"{index}: weight_map is missing or empty")
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", shard, re.ASCII):
            wrong = f"{shard!r}, which is not a plain file name ending in .safetensors"
            raise BadModel(f"{index}: tensor {name!r} is in {wrong}")
    return shard_of
