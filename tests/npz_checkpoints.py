"""Small PaliGemmas as .npz files in big_vision's layout."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny

from npgemma import testing
from npgemma.checkpoints.gemma_config import IN_PALIGEMMA
from npgemma.checkpoints.paligemma import PaliGemmaConfig, npz_layout
from npgemma.layers.bits import pack

# What a converted model's config says beside the sizes; the tests' own config names another image token.
CONFIG = PaliGemmaConfig(tiny.CONFIG.vision, tiny.CONFIG.text)
# Its heads are those of PaliGemma 2 28b, whose query_pre_attn_scalar is not their width.
PALIGEMMA_2 = PaliGemmaConfig(
    tiny.CONFIG.vision,
    replace(
        IN_PALIGEMMA["gemma2"],
        hidden_size=288,
        intermediate_size=23,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        vocab_size=61,
        query_pre_attn_scalar=144,
    ),
)
CONFIGS = {"PaliGemma 1": CONFIG, "PaliGemma 2": PALIGEMMA_2}


def arrays(dtype: str = "float32", config: PaliGemmaConfig = CONFIG) -> dict[str, np.ndarray]:
    """Random arrays by big_vision's names; bfloat16 as two bytes without a type, as NumPy writes it."""
    tensors = testing.layout_tensors(npz_layout(config))
    if dtype == "bfloat16":
        return {name: pack(x).view("V2") for name, x in tensors.items()}
    return {name: x.astype(dtype) for name, x in tensors.items()}


def write(path: Path, tensors: Mapping[str, np.ndarray], compressed: bool = False, prefix: str = "") -> Path:
    save = np.savez_compressed if compressed else np.savez
    save(path, **{prefix + name: x for name, x in tensors.items()})
    return path
