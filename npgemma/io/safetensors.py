"""safetensors files as arrays that are views of memory maps: data is read when it is used.

The safetensors library checks the file (https://github.com/huggingface/safetensors, 'Format'). The tensors are mapped
here, because the library's NumPy interface copies them and does not support bfloat16. npgemma holds bfloat16 as uint16
bits (see layers.shapes).
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from npgemma.errors import BadModel
from npgemma.io.model_folder import member
from npgemma.io.strict_json import read_json
from npgemma.io.unusable import WEIGHTS, folder_report, foreign_kind, listed
from npgemma.layers.shapes import Array

INDEX = "model.safetensors.index.json"
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def everything(name: str) -> bool:
    """Every tensor is wanted."""
    return True


def open_file(
    path: Path, dtypes: Mapping[str, np.dtype[Any]] = DTYPES, wanted: Callable[[str], bool] = everything
) -> dict[str, Array]:
    """The tensors of one file that are `wanted` by their names, mapped read-only.

    BadModel if the file is missing or damaged, or a wanted tensor has a dtype that is not in `dtypes`.
    """
    return open_with_metadata(path, dtypes, wanted)[0]


def open_with_metadata(
    path: Path, dtypes: Mapping[str, np.dtype[Any]] = DTYPES, wanted: Callable[[str], bool] = everything
) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors of one file, and its metadata. BadModel as for `open_file`."""
    try:
        with safe_open(path, framework="numpy", backend="pread"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=unique_keys)
        data = mapped(path)[8 + length :]
    except FileNotFoundError:
        raise BadModel(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        kind = foreign_kind(path)
        if kind:
            raise BadModel(f"{path} is {kind}") from None
        raise BadModel(f"{path} is not a valid safetensors file: {reason(error)}; download or save it again") from None
    metadata = header.pop("__metadata__", {})
    entries = [(name, entry) for name, entry in header.items() if wanted(name)]
    return {name: tensor(data, entry, dtypes, f"{path}: tensor {name!r}") for name, entry in entries}, metadata


# What the library says of a damaged file, and what that means.
REASONS = {
    "header too small": "it has fewer than 8 bytes",
    "header too large": "its first 8 bytes do not give the length of a header",
    "invalid header length": "it ends before its header does",
    "not fully covered": "its length is not that of its tensors, so it is cut short or has bytes too many",
    "UTF-8": "its header is not text",
    "invalid JSON": "its header is not a list of tensors",
    "offset": "the places of its tensors do not fit their shapes, or each other",
}


def reason(error: Exception) -> str:
    """Why a file cannot be read, without the words of the library."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next((meaning for text, meaning in REASONS.items() if text in str(error)), str(error))


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


def tensor(data: Array, entry: Mapping[str, Any], dtypes: Mapping[str, np.dtype[Any]], where: str) -> Array:
    """The view of `data` that a header entry describes. The library has already checked the sizes."""
    if entry["dtype"] not in dtypes:
        hint = "save it in one of these" if entry["dtype"] in ("F64", "C64") else "use the model that is not quantised"
        raise BadModel(f"{where} is stored as {entry['dtype']}; npgemma reads {', '.join(dtypes)}: {hint}")
    start, end = entry["data_offsets"]
    try:
        return data[start:end].view(dtypes[entry["dtype"]]).reshape(entry["shape"])
    except ValueError as error:
        raise BadModel(f"{where} of shape {entry['shape']}: {error}") from None


def weight_files(model: Path) -> list[Path]:
    """The files that `open_model` maps, without the missing ones.

    As in transformers, a folder's weights are model.safetensors if it exists, else the shards that the index names.
    """
    if not model.is_dir():
        return [model]
    whole = member(model, WEIGHTS)
    files = [whole] if whole.exists() else [member(model, shard) for shard in sorted(set(weight_map(model).values()))]
    return [path for path in files if path.exists()]


def open_model(model: Path, wanted: Callable[[str], bool] = everything) -> dict[str, Array]:
    """The tensors of a model that are `wanted` by their names: one file, or a folder."""
    return open_folder(model, wanted) if model.is_dir() else open_file(model, wanted=wanted)


def open_folder(folder: Path, wanted: Callable[[str], bool] = everything) -> dict[str, Array]:
    """The tensors of a model folder: those of `weight_files`. BadModel if one is missing or does not fit the index."""
    whole = member(folder, WEIGHTS)
    shard_of = {} if whole.exists() else weight_map(folder)
    if not shard_of and not whole.exists():
        raise BadModel(folder_report(folder, WEIGHTS))
    if not shard_of:
        return open_file(whole, wanted=wanted)
    paths = {shard: member(folder, shard) for shard in sorted(set(shard_of.values()))}
    gone = [shard for shard, path in paths.items() if not path.exists()]
    if gone:
        raise BadModel(folder_report(folder, listed(gone)))
    tensors: dict[str, Array] = {}
    for shard, path in paths.items():
        found = open_file(path, wanted=wanted)
        names = {name for name, its_shard in shard_of.items() if its_shard == shard and wanted(name)}
        if names != found.keys():
            missing, extra = sorted(names - found.keys()), sorted(found.keys() - names)
            differences = "; ".join(
                f"only in the {where}: {listed(some)}" for where, some in (("index", missing), ("file", extra)) if some
            )
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
