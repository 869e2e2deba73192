"""safetensors files as arrays that are views of memory maps: nothing is read until it is used.

The safetensors library checks the file (https://github.com/huggingface/safetensors, 'Format'); then the tensors are
mapped here, because its NumPy side copies them and has no bfloat16. In npgemma bfloat16 is uint16 bits (see
layers.shapes).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from npgemma.errors import BadModel
from npgemma.io.hub_cache import is_unfinished
from npgemma.io.model_folder import member
from npgemma.io.strict_json import read_json
from npgemma.layers.shapes import Array

INDEX = "model.safetensors.index.json"
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def open_file(path: Path, dtypes: Mapping[str, np.dtype[Any]] = DTYPES) -> dict[str, Array]:
    """The tensors of one file, mapped read-only. BadModel if it is missing, damaged, or of a dtype not in `dtypes`."""
    return open_with_metadata(path, dtypes)[0]


def open_with_metadata(
    path: Path, dtypes: Mapping[str, np.dtype[Any]] = DTYPES
) -> tuple[dict[str, Array], dict[str, str]]:
    """`open_file`, and the strings that the file holds beside its tensors."""
    try:
        with safe_open(path, framework="numpy", backend="pread"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=named_once)
        data = contents(path)[8 + length :]
    except FileNotFoundError:
        unfinished = path.parent.parent.name == "snapshots" and is_unfinished(path.parents[2])
        raise BadModel(f"{path} is missing{': its download is not finished' if unfinished else ''}") from None
    except (OSError, ValueError, SafetensorError) as error:
        hint = "is it still downloading, or a placeholder for a large file?"
        raise BadModel(f"{path} is not a usable safetensors file ({error}); {hint}") from None
    metadata = header.pop("__metadata__", {})
    return {name: tensor(data, entry, dtypes, f"{path}: tensor {name!r}") for name, entry in header.items()}, metadata


def contents(path: Path) -> Array:
    """The bytes of a file, mapped read-only; read into memory where they cannot be mapped (some network drives)."""
    try:
        return np.asarray(np.memmap(path, np.uint8, "r"))
    except OSError:
        return np.fromfile(path, np.uint8)


def named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of distinct keys. The format forbids the same name twice, its readers let the last one win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a tensor name appears twice")
    return found


def tensor(data: Array, entry: Mapping[str, Any], dtypes: Mapping[str, np.dtype[Any]], where: str) -> Array:
    """The view of `data` that a header entry describes; its sizes were checked when the file was opened."""
    if entry["dtype"] not in dtypes:
        raise BadModel(f"{where} is stored as {entry['dtype']}; npgemma reads {', '.join(dtypes)}")
    start, end = entry["data_offsets"]
    try:
        return data[start:end].view(dtypes[entry["dtype"]]).reshape(entry["shape"])
    except ValueError as error:
        raise BadModel(f"{where} of shape {entry['shape']}: {error}") from None


def weight_files(model: Path) -> list[Path]:
    """The files that `open_model` maps, but for those that are missing."""
    if not model.is_dir():
        return [model]
    shards = set(weight_map(model).values()) or {"model.safetensors"}
    return [path for shard in sorted(shards) if (path := member(model, shard)).exists()]


def open_model(model: Path) -> dict[str, Array]:
    """All tensors of a model, which is one file or a folder."""
    return open_folder(model) if model.is_dir() else open_file(model)


def open_folder(folder: Path) -> dict[str, Array]:
    """All tensors of a model folder: model.safetensors, or the shards that model.safetensors.index.json names."""
    homes = weight_map(folder)
    if not homes:
        return open_file(member(folder, "model.safetensors"))
    shards = {shard: open_file(member(folder, shard)) for shard in sorted(set(homes.values()))}
    tensors: dict[str, Array] = {}
    for shard, found in shards.items():
        listed = {name for name, home in homes.items() if home == shard}
        if listed != found.keys():
            missing, extra = sorted(listed - found.keys()), sorted(found.keys() - listed)
            raise BadModel(
                f"{folder / INDEX} and {shard} disagree: only listed {missing[:10]}, only stored {extra[:10]}"
            )
        tensors |= found
    return tensors


def weight_map(folder: Path) -> dict[str, str]:
    """Which shard holds each tensor, as the index says; nothing where there is no index.

    A shard must be a plain file name in that folder: an index that says ../ or /etc would read what is not the model's.
    """
    index = member(folder, INDEX)
    if not index.exists():
        return {}
    homes = read_json(index).get("weight_map")
    if not isinstance(homes, dict) or not homes:
        raise BadModel(f"{index}: weight_map is missing or empty")
    for name, shard in homes.items():
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*\.safetensors", shard, re.ASCII):
            raise BadModel(
                f"{index}: tensor {name!r} is in {shard!r}, which is no plain file name ending in .safetensors"
            )
    return homes
