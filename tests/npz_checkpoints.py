"""Small PaliGemmas as .npz files in big_vision's layout."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tiny

from npgemma import testing
from npgemma.checkpoints.paligemma import PaliGemmaConfig, npz_layout
from npgemma.layers.bits import pack

# What a converted model's config says beside the sizes; the tests' own config names another image token.
CONFIG = PaliGemmaConfig(tiny.CONFIG.vision, tiny.CONFIG.text)


def arrays(dtype: str = "float32") -> dict[str, np.ndarray]:
    """Random arrays by big_vision's names; bfloat16 as two bytes without a type, as NumPy writes it."""
    tensors = testing.layout_tensors(npz_layout(CONFIG))
    if dtype == "bfloat16":
        return {name: pack(x).view("V2") for name, x in tensors.items()}
    return {name: x.astype(dtype) for name, x in tensors.items()}


def write(path: Path, tensors: Mapping[str, np.ndarray], compressed: bool = False, prefix: str = "") -> Path:
    save = np.savez_compressed if compressed else np.savez
    save(path, **{prefix + name: x for name, x in tensors.items()})
    return path
