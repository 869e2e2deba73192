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
from npgemma.checkpoints.npz_models import CONFIG, NpzModel, infer_model, unprefixed
from npgemma.errors import BadModel
from npgemma.io.atomic_write import remove_leftovers, temporary_folder
from npgemma.io.npz_members import Member, read_members
from npgemma.io.regular_files import read_regular
from npgemma.io.tokenizer_json import MAX_BYTES, TOKENIZER_JSON
from npgemma.io.tokenizers import is_json
from npgemma.io.weight_writing import SHARD_BYTES, write_shards
from npgemma.layers.shapes import Array


def convert(path: Path, folder: Path, tokenizer: Path | None = None, shard_bytes: int = SHARD_BYTES) -> str:
    """Write the model of an .npz file as `folder`, with a tokenizer: by default the file of the right name beside it.

    The dtype is the file's. Returns a sentence about what the folder still needs, which is empty if that is nothing.

    Raises BadModel if the file holds none of the models that `infer_model` knows, if the folder exists and is not
    empty, or if anything cannot be read or written; then nothing is left behind.
    """
    if folder.is_dir():
        remove_leftovers(folder, CONFIG)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadModel(f"{folder} exists and is not an empty folder; name a new one")
    members = unprefixed(read_members(path), path)
    model = infer_model(members, path)
    model.source.check(members, path, "each other")
    pieces = tokenizer_file(path, model, tokenizer)
    try:
        with whole_folder(folder) as unfinished:
            for name, content in model.files.items():
                (unfinished / name).write_text(json.dumps(content, indent=2) + "\n")
            for name, copied in pieces.items():
                (unfinished / name).write_bytes(copied)
            write_weights(members, model, unfinished, shard_bytes)
        return still_needed(path, folder, model, pieces)
    except (OSError, safetensors.SafetensorError) as error:
        raise BadModel(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}") from None


def tokenizer_file(path: Path, model: NpzModel, tokenizer: Path | None) -> dict[str, bytes]:
    """The name in the folder and the content of the tokenizer file that was named, or else of the one beside `path`.

    BadModel if it cannot be read, or if one was named for a model that reads no texts.
    """
    if model.pieces is None:
        if tokenizer is not None:
            raise BadModel(f"{path} is a ViT, which reads no texts; leave out the tokenizer {tokenizer}")
        return {}
    beside = path.parent / model.pieces
    if tokenizer is None and not beside.is_file():
        return {}
    try:
        content = read_regular(tokenizer or beside, MAX_BYTES)
    except OSError as error:
        raise BadModel(f"{tokenizer or beside} cannot be read: {error.strerror or error}") from None
    return {TOKENIZER_JSON if is_json(content) else model.pieces: content}


def still_needed(path: Path, folder: Path, model: NpzModel, pieces: Mapping[str, bytes]) -> str:
    """What to add to a converted folder, as a sentence."""
    if model.pieces is None:
        names = f"write their names into id2label in {folder / CONFIG}"
        return f"{path} does not name its labels, which are now called LABEL_0, LABEL_1 and so on; {names}"
    if pieces:
        return ""
    copy = f"copy the model's {model.pieces} into {folder} before you ask it anything"
    return f"{folder} has no {model.pieces}, since none was beside {path}; {copy}"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files move to `folder` at the end; if the block fails, nothing is left behind.

    It is inside `folder`, which may be a link or the root of a disk: the files must be on its disk, not its parent's.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder, CONFIG) as temporary:
            yield temporary
            # config.json last: without it the folder is not a model
            for file in sorted(temporary.iterdir(), key=lambda file: file.name == CONFIG):
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
        write_shards(scratch, folder, shard_bytes)


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
