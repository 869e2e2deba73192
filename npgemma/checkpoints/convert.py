"""A model of Google's in one .npz file -> a folder in Hugging Face layout.

Both layouts are tables over the same weights, so a tensor is converted by reading it with one table and writing it with
the other. Each goes through memory alone; what is converted waits in a scratch file on the target's disk.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from npgemma.checkpoints.layout import Stored
from npgemma.checkpoints.npz_models import NpzModel, infer_model, unprefixed
from npgemma.errors import BadModel
from npgemma.io.npz_members import Member, read_members
from npgemma.io.safetensors import INDEX
from npgemma.io.tokenizers import TOKENIZER
from npgemma.layers.shapes import Array

SHARD_BYTES = 2_000_000_000
DTYPE_NAMES = {"<f4": "float32", "<f2": "float16", "<u2": "bfloat16"}


def convert(path: Path, folder: Path, tokenizer: Path | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the model of an .npz file as `folder`, with the tokenizer if there is one. The dtype is the file's.

    Raises BadModel if the file holds none of the models that `infer_model` knows, if the folder exists and is not
    empty, or if anything cannot be read or written; then nothing is left behind.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadModel(f"{folder} exists and is not an empty folder; name a new one")
    members = unprefixed(read_members(path), path)
    model = infer_model(members, path)
    model.source.check(members, path, "each other")
    try:
        pieces = None if tokenizer is None else tokenizer.read_bytes()
    except OSError as error:
        raise BadModel(f"{tokenizer} cannot be read: {error.strerror or error}") from None
    try:
        with whole_folder(folder) as unfinished:
            (unfinished / "config.json").write_text(json.dumps(model.content, indent=2) + "\n")
            if pieces is not None:
                (unfinished / TOKENIZER).write_bytes(pieces)
            write_weights(members, model, unfinished, shard_bytes)
    except (OSError, safetensors.SafetensorError) as error:
        raise BadModel(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}") from None


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move to `folder` at the end; if the block fails, nothing is left behind.

    It is inside `folder`, which may be a link or the root of a disk: the files must be on its disk, not its parent's.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".npgemma-", dir=folder) as temporary:
            yield Path(temporary)
            # config.json last: without it the folder is not a model
            for file in sorted(Path(temporary).iterdir(), key=lambda file: file.name == "config.json"):
                file.rename(folder / file.name)
    except BaseException:
        for each in made:
            with suppress(OSError):
                each.rmdir()
        raise


def write_weights(members: Mapping[str, Member], model: NpzModel, folder: Path, shard_bytes: int) -> None:
    """Write every tensor into safetensors files of about `shard_bytes`, with an index if there are several."""
    targets = {stored.leaf.path: stored for stored in model.target.stored}
    sources: dict[str, list[Stored]] = {}
    for stored in model.source.stored:
        sources.setdefault(stored.name, []).append(stored)
    dtypes = {targets[each.leaf.path].name: members[name].dtype for name, group in sources.items() for each in group}
    with tempfile.TemporaryFile(dir=folder) as file:
        scratch = mapped_scratch(file, model.target.shapes, dtypes)
        for name, group in sources.items():
            with members[name].open(folder) as x:
                for source in group:
                    target = targets[source.leaf.path]
                    target.part(scratch[target.name])[...] = target.from_field(source.to_field(source.part(x)))
        groups = list(shards(scratch, shard_bytes))
        weight_map: dict[str, str] = {}
        for i, names in enumerate(groups, 1):
            shard = "model.safetensors" if len(groups) == 1 else f"model-{i:05d}-of-{len(groups):05d}.safetensors"
            write_shard({name: scratch[name] for name in names}, folder / shard)
            weight_map |= dict.fromkeys(names, shard)
    if len(groups) > 1:
        size = sum(x.nbytes for x in scratch.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def mapped_scratch(
    file: Any, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]]
) -> dict[str, Array]:
    """An array for each shape, one behind the other in a file. OSError if the disk is too small for all of them."""
    starts: dict[str, int] = {}
    end = 0
    for name, shape in shapes.items():
        starts[name] = end
        end += -(-math.prod(shape) * dtypes[name].itemsize // 64) * 64
    reserve(file, end)
    return {name: np.memmap(file, dtypes[name], "r+", starts[name], shape) for name, shape in shapes.items()}


def reserve(file: Any, size: int) -> None:
    """Make a file of `size` bytes that the disk really has: a full disk that a map finds out ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, 1 << 20):  # macOS, Windows
        file.write(bytes(min(1 << 20, size - start)))
    file.flush()


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


def write_shard(tensors: Mapping[str, Array], path: Path) -> None:
    specs = {
        name: safetensors.TensorSpec(
            dtype=DTYPE_NAMES[x.dtype.str], shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes
        )
        for name, x in tensors.items()
    }
    path.touch()
    mode = path.stat().st_mode
    safetensors.serialize_file(specs, path, {"format": "pt"})
    path.chmod(mode)  # the library writes files that only their owner can read
