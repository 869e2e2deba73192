"""big_vision's PaliGemma in one .npz file -> a folder in Hugging Face layout.

Both layouts are tables over the same weights, so a tensor is converted by reading it with one table and writing it with
the other. Each goes through memory alone; what is converted waits in a scratch file on the target's disk.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from npgemma.checkpoints.gemma import GemmaConfig
from npgemma.checkpoints.layout import Stored
from npgemma.checkpoints.paligemma import PaliGemmaConfig, config_json, hf_layout, npz_layout
from npgemma.checkpoints.siglip import SiglipConfig
from npgemma.errors import BadModel
from npgemma.io.npz_members import Member, read_members
from npgemma.io.safetensors import INDEX
from npgemma.io.tokenizers import TOKENIZER
from npgemma.layers.shapes import Array

SHARD_BYTES = 2_000_000_000
DTYPE_NAMES = {"<f4": "float32", "<f2": "float16", "<u2": "bfloat16"}


def convert(path: Path, folder: Path, tokenizer: Path | None = None, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the model of an .npz file as `folder`, with the tokenizer if there is one. The dtype is the file's.

    Raises BadModel if the file is not a PaliGemma 1 of big_vision, if the folder exists and is not empty, or if
    anything cannot be written; then nothing is left behind.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadModel(f"{folder} exists and is not an empty folder; name a new one")
    members = {name.removeprefix("params/"): member for name, member in read_members(path).items()}
    config = infer_config(members, path)
    npz_layout(config).check(members, path, "each other")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".npgemma-", dir=folder.parent) as unfinished:
            written = Path(unfinished) / "model"
            written.mkdir()
            write_weights(members, config, written, shard_bytes)
            (written / "config.json").write_text(json.dumps(config_json(config), indent=2) + "\n")
            if tokenizer is not None:
                shutil.copyfile(tokenizer, written / TOKENIZER)
            if folder.exists():
                folder.rmdir()
            written.rename(folder)
    except OSError as error:
        raise BadModel(f"{folder} cannot be written: {error.strerror or error}") from None


def infer_config(members: Mapping[str, Member], path: Path) -> PaliGemmaConfig:
    """The sizes of a model from the shapes of its arrays. BadModel for other models than PaliGemma 1."""
    if "llm/layers/post_ffw_norm/scale" in members or "llm/layers/post_attention_norm/scale" in members:
        raise BadModel(f"{path} is a PaliGemma 2 (four norms a layer); npgemma converts PaliGemma 1")
    if "llm/layers/attn/qkv_einsum/w" in members:
        raise BadModel(f"{path} has fused q, k and v (qkv_einsum), as Gemma 7B; npgemma converts PaliGemma's Gemma 2B")

    def shape(name: str, axes: int) -> tuple[int, ...]:
        found = members[name].shape if name in members else None
        if found is None or len(found) != axes:
            what = "is missing" if found is None else f"has shape {list(found)}"
            raise BadModel(f"{path} is not a PaliGemma of big_vision: {name} {what}")
        return found

    block = "img/Transformer/encoderblock/"
    patch, _, channels, width = shape("img/embedding/kernel", 4)
    _, patches, _ = shape("img/pos_embedding", 3)
    depth, _, heads, _ = shape(f"{block}MultiHeadDotProductAttention_0/query/kernel", 4)
    _, _, mlp_width = shape(f"{block}MlpBlock_0/Dense_0/kernel", 3)
    side = math.isqrt(patches)
    vision = SiglipConfig(width, mlp_width, depth, heads, channels, side * patch, patch)
    rows, text_width = shape("llm/embedder/input_embedding", 2)
    layers, query_heads, _, head_width = shape("llm/layers/attn/q_einsum/w", 4)
    _, _, key_heads, _, _ = shape("llm/layers/attn/kv_einsum/w", 5)
    _, _, _, text_mlp_width = shape("llm/layers/mlp/gating_einsum", 4)
    text = GemmaConfig(text_width, text_mlp_width, layers, query_heads, key_heads, head_width, rows)
    return PaliGemmaConfig(vision, text)


def write_weights(members: Mapping[str, Member], config: PaliGemmaConfig, folder: Path, shard_bytes: int) -> None:
    """Write every tensor into safetensors files of about `shard_bytes`, with an index if there are several."""
    targets = {stored.leaf.path: stored for stored in hf_layout(config).stored}
    sources: dict[str, list[Stored]] = {}
    for stored in npz_layout(config).stored:
        sources.setdefault(stored.name, []).append(stored)
    dtypes = {targets[each.leaf.path].name: members[name].dtype for name, group in sources.items() for each in group}
    with tempfile.TemporaryFile(dir=folder) as file:
        scratch = mapped_scratch(file, hf_layout(config).shapes, dtypes)
        for name, group in sources.items():
            with members[name].open(folder) as x:
                for source in group:
                    target = targets[source.leaf.path]
                    scratch[target.name][...] = target.from_field(source.to_field(x[source.index]))
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
    """An array for each shape, one behind the other in a file."""
    arrays: dict[str, Array] = {}
    end = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * dtypes[name].itemsize
        file.truncate(end + size)
        arrays[name] = np.memmap(file, dtypes[name], "r+", end, shape)
        end += -(-size // 64) * 64
    return arrays


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
    safetensors.serialize_file(specs, path, {"format": "pt"})
    path.chmod(0o644)  # the library writes files that only their owner can read
