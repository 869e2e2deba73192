"""Random models as folders in Hugging Face layout, which a port loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from npgemma.checkpoints.layout import Layout
from npgemma.io.atomic_write import replace_file
from npgemma.layers.bits import pack
from npgemma.layers.norms import LayerNorm
from npgemma.layers.shapes import Array
from npgemma.layers.tree import Leaf


def layout_tensors(layout: Layout[Any], seed: int = 0) -> dict[str, Array]:
    """Random tensors by the names of a layout.

    They are float32 numbers on the bfloat16 grid, so that every stored dtype holds them exactly, and of a size that
    keeps activations near one: matrices are scaled by their fan-in, norms are near their neutral value.
    """
    rng = np.random.default_rng(seed)
    tensors = {name: np.empty(shape, np.float32) for name, shape in layout.shapes.items()}
    for stored in layout.stored:
        stored.part(tensors[stored.name])[...] = stored.from_field(random_array(rng, stored.leaf))
    return tensors


def random_array(rng: np.random.Generator, leaf: Leaf) -> Array:
    x = np.asarray(rng.standard_normal(leaf.value.shape))
    if leaf.kind == "weight" and not leaf.axes.startswith("V"):
        heads_out = leaf.axes.startswith(("N H", "K H"))
        x /= np.sqrt(np.prod(leaf.value.shape[2 if heads_out else 1 :]))
    elif x.ndim < 3 and not leaf.path.endswith("position"):
        x *= 0.2
        x += 1.0 if leaf.owner is LayerNorm and leaf.path.endswith("weight") else 0.0
    return (np.round(x * 128) / 128).clip(-1.875, 1.875).astype(np.float32)


def save_tensors(tensors: Mapping[str, Array], path: Path, dtype: str = "float32") -> None:
    """Write a safetensors file; dtype is 'float32', 'float16' or 'bfloat16'."""
    stored = {
        name: np.array(pack(x) if dtype == "bfloat16" else x.astype(dtype), order="C") for name, x in tensors.items()
    }
    specs = {
        name: safetensors.TensorSpec(dtype=dtype, shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes)
        for name, x in stored.items()
    }
    with replace_file(path) as temporary:
        temporary.write_bytes(safetensors.serialize(specs))


def write_json_and_tensors(
    folder: Path, content: Mapping[str, Any], tensors: Mapping[str, Array], dtype: str = "float32"
) -> Path:
    """config.json and model.safetensors; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    save_tensors(tensors, folder / "model.safetensors", dtype)
    return folder
