"""Write a checkpoint with random weights in the layout of a published model, to measure without the real weights.

    python tools/make_checkpoint.py FOLDER --image-size 224 --dtype bfloat16
    python tools/make_checkpoint.py FOLDER --model paligemma2-3b
    python tools/make_checkpoint.py FOLDER --model siglip-so400m-patch14-384 --dtype float32
    python tools/make_checkpoint.py FOLDER --set vision.num_hidden_layers=4 --set text.num_key_value_heads=2

Every number in the sections of the vision tower and of the decoder, or the text tower, can be set.

The folder resembles the hub's, without a tokenizer: shards with an index, the hub's spelling of the names, and a
config.json as sparse as the hub's. Weights are normal with a deviation of 1/sqrt(fan-in), so that activations neither
vanish nor explode. Only a block of a tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_configs
import hub_encoders
import numpy as np

from npgemma.checkpoints import gemma, gemma_config
from npgemma.checkpoints.layout import Part, make_layout
from npgemma.checkpoints.model_types import MODEL_TYPES
from npgemma.io.strict_json import Section
from npgemma.layers.bits import pack

SHARD_BYTES = 1_500_000_000
BLOCK_NUMBERS = 1 << 16
STORED_AS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

WITH_LAYOUT = ("paligemma", "siglip", "clip", "vit")  # their modules give the layout of the files on the hub
OF_GEMMA = ("language_model.", "model.")  # what the names of a decoder's tensors begin with
NAMES = (*hub_configs.NAMES, *hub_encoders.NAMES)

Shapes = dict[str, tuple[int, ...]]


def config(name: str, *values: Any) -> dict:
    """config.json of a published model; `values` are those of `content` in `hub_configs` and `hub_encoders`."""
    home = hub_encoders if name in hub_encoders.NAMES else hub_configs
    return home.content(name, *values)


def tensor_shapes(content: dict) -> Shapes:
    """The shape of every tensor that a config.json asks for, by the name that the files on the hub have."""
    s, kind = Section(content, "config.json"), content["model_type"]
    if kind in WITH_LAYOUT:
        found: Shapes = MODEL_TYPES[kind].hf_layout(MODEL_TYPES[kind].parse(s)).shapes
        return found
    c = gemma_config.read(s, gemma_config.LANGUAGE_MODELS)
    return make_layout(gemma.blank(c, tied=True), Part(gemma.hf_lines(c), gemma.sizes(c))).shapes


def shards(shapes: Shapes, item_bytes: int) -> Iterator[Shapes]:
    """The tensors in order, cut into groups of about SHARD_BYTES."""
    group: Shapes = {}
    size = 0
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * item_bytes
        if group and size + nbytes > SHARD_BYTES:
            yield group
            group, size = {}, 0
        group[name] = shape
        size += nbytes
    yield group


def random_blocks(rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str) -> Iterator[np.ndarray]:
    """Normal numbers of deviation 1/sqrt(fan-in) for a matrix, 0.02 about the neutral value for the rest."""
    layer_norm = "norm" in name and name.endswith("weight") and not name.startswith(OF_GEMMA)
    scale = 0.02 if len(shape) <= 1 else math.prod(shape[1:]) ** -0.5
    numbers = math.prod(shape)
    for start in range(0, numbers, BLOCK_NUMBERS):
        x = rng.standard_normal(min(BLOCK_NUMBERS, numbers - start), np.float32)
        x *= np.float32(scale)
        if layer_norm:
            x += np.float32(1)
        yield pack(x) if dtype == "bfloat16" else x.astype(dtype, copy=False)


def write_shard(path: Path, rng: np.random.Generator, group: Shapes, dtype: str) -> int:
    """A safetensors file, written block by block; returns the size of its tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "np"}}
    end = 0
    for name, shape in group.items():
        start, end = end, end + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": STORED_AS[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in group.items():
            for block in random_blocks(rng, name, shape, dtype):
                file.write(block.data)
    return end


def setting(text: str) -> tuple[str, str, float]:
    """'vision.patch_size=7' as (vision, patch_size, 7)."""
    name, _, number = text.partition("=")
    part, _, key = name.partition(".")
    if part not in ("vision", "text"):
        raise ValueError(text)
    return part, key, json.loads(number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="paligemma-3b", choices=NAMES, help="(default: %(default)s)")
    parser.add_argument("--image-size", type=int, help="(default: the model's)")
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(BYTES))
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="PART.KEY=NUMBER")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    vision, text = ({key: number for home, key, number in a.set if home == part} for part in ("vision", "text"))
    if a.image_size is not None:
        vision["image_size"] = a.image_size
    content = config(a.model, vision, text, a.dtype)
    groups = list(shards(tensor_shapes(content), BYTES[a.dtype]))
    a.folder.mkdir(parents=True, exist_ok=True)
    (a.folder / "config.json").write_text(json.dumps(content, indent=2))
    rng = np.random.Generator(np.random.SFC64(a.seed))
    weight_map = {}
    for i, group in enumerate(groups, 1):
        shard = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        size = write_shard(a.folder / shard, rng, group, a.dtype)
        weight_map |= dict.fromkeys(group, shard)
        print(f"{shard}: {len(group)} tensors, {size:,} bytes", flush=True)
    index = {"metadata": {}, "weight_map": weight_map}
    (a.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


if __name__ == "__main__":
    main()
