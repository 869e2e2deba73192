"""safetensors files, written."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors

from npgemma.io.safetensors import INDEX
from npgemma.io.unusable import WEIGHTS
from npgemma.layers.shapes import Array

SHARD_BYTES = 2_000_000_000
DTYPE_NAMES = {"<f4": "float32", "<f2": "float16", "<u2": "bfloat16", "<f8": "float64"}


def write_shards(tensors: Mapping[str, Array], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write every tensor into files of about `shard_bytes`, with an index if there are several."""
    groups = list(shards(tensors, shard_bytes))
    weight_map: dict[str, str] = {}
    for i, names in enumerate(groups, 1):
        shard = WEIGHTS if len(groups) == 1 else f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        write_file({name: tensors[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    if len(groups) > 1:
        size = sum(x.nbytes for x in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def shards(tensors: Mapping[str, Array], most: int) -> Iterator[list[str]]:
    """The names in order, in groups of up to `most` bytes; a larger tensor is a group of its own."""
    group: list[str] = []
    size = 0
    for name, x in tensors.items():
        if group and size + x.nbytes > most:
            yield group
            group, size = [], 0
        group.append(name)
        size += x.nbytes
    yield group


def write_file(tensors: Mapping[str, Array], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one file. The metadata says by default that the names are those of torch, as transformers asks for."""
    held = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    specs = {
        name: safetensors.TensorSpec(
            dtype=DTYPE_NAMES[x.dtype.str], shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes
        )
        for name, x in held.items()
    }
    path.touch()
    mode = path.stat().st_mode
    safetensors.serialize_file(specs, path, dict(metadata or {"format": "pt"}))
    path.chmod(mode)  # the library writes files that only their owner can read
