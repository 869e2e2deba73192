"""safetensors files as arrays that are views of memory maps: data is read when it is used.

The safetensors library checks the file (https://github.com/huggingface/safetensors, 'Format'). The tensors are mapped
here, because the library's NumPy interface copies them and does not support bfloat16. npgemma holds bfloat16 as uint16
bits (see layers.shapes).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from npgemma.errors import BadModel
from npgemma.io.hub_cache import is_unfinished
from npgemma.io.model_folder import member
from npgemma.io.strict_json import read_json
from npgemma.layers.shapes import Array

INDEX = "model.safetensors.index.json"
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
}


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
        with safe_open(path, framework="numpy", backend="pread"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=unique_keys)
        data = mapped(path)[8 + length :]
    except FileNotFoundError:
        unfinished = path.parent.parent.name == "snapshots" and is_unfinished(path.parents[2])
        raise BadModel(f"{path} is missing{': the download is incomplete' if unfinished else ''}") from None
    except (OSError, ValueError, SafetensorError) as error:
        hint = "the download may be incomplete, or the file may be a git-lfs pointer"
        raise BadModel(f"{path} is not a valid safetensors file ({error}); {hint}") from None
    metadata = header.pop("__metadata__", {})
    return {name: tensor(data, entry, dtypes, f"{path}: tensor {name!r}") for name, entry in header.items()}, metadata


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
    except ValueError as error:
        raise BadModel(f"{where} of shape {entry['shape']}: {error}") from None


def weight_files(model: Path) -> list[Path]:
    """The files that `open_model` maps, without the missing ones."""
    if not model.is_dir():
        return [model]
    shards = set(weight_map(model).values()) or {"model.safetensors"}
    return [path for shard in sorted(shards) if (path := member(model, shard)).exists()]


def open_model(model: Path) -> dict[str, Array | Unreadable]:
    """All tensors of a model: one file, or a folder."""
    return open_folder(model) if model.is_dir() else open_any(model)[0]


def open_folder(folder: Path) -> dict[str, Array | Unreadable]:
    """All tensors of a model folder: model.safetensors, or the shards that model.safetensors.index.json names."""
    shard_of = weight_map(folder)
    if not shard_of:
        return open_any(member(folder, "model.safetensors"))[0]
    shards = {shard: open_any(member(folder, shard))[0] for shard in sorted(set(shard_of.values()))}
    tensors: dict[str, Array | Unreadable] = {}
    for shard, found in shards.items():
        listed = {name for name, its_shard in shard_of.items() if its_shard == shard}
        if listed != found.keys():
            missing, extra = sorted(listed - found.keys()), sorted(found.keys() - listed)
            differences = f"only in the index: {missing[:10]}, only in the file: {extra[:10]}"
            raise BadModel(f"{folder / INDEX} and {shard} list different tensors; {differences}")
        tensors |= found
    return tensors


def weight_map(folder: Path) -> dict[str, str]:
    """The file name of the shard of each tensor, from the index; empty without an index.

    BadModel for a shard that is not a plain file name: a path such as ../x could lead out of the model's folder.
    """
    index = member(folder, INDEX)
    if not index.exists():
        return {}
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise BadModel(f"{index}: weight_map is missing or empty")
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", shard, re.ASCII):
            wrong = f"{shard!r}, which is not a plain file name ending in .safetensors"
            raise BadModel(f"{index}: tensor {name!r} is in {wrong}")
    return shard_of
