"""Small PaliGemmas with random weights, in memory and as folders: sizes pairwise distinct, so a swapped axis cannot
fit.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors

from npgemma.io.checkpoint import expected_shapes
from npgemma.io.config import Config, TextConfig, VisionConfig
from npgemma.layers.bfloat16 import pack

CONFIG = Config(
    vision=VisionConfig(
        hidden_size=12,
        intermediate_size=17,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=35,
        patch_size=7,
    ),
    text=TextConfig(
        hidden_size=11,
        intermediate_size=23,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        vocab_size=61,
    ),
    image_token_index=57,
)

# How each release of transformers spells the parts of a name; {} is where the tail goes.
SPELLINGS = {
    "hub": ("language_model.model.{}", "vision_tower.vision_model.{}", "{}"),
    "memory 4.52": ("model.language_model.{}", "model.vision_tower.vision_model.{}", "model.{}"),
    "memory 5.6": ("model.language_model.{}", "model.vision_tower.{}", "model.{}"),
    "saved 5.x": ("language_model.model.{}", "vision_tower.{}", "{}"),
}


def random_tensors(config: Config = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of the config by plain name, float32 on the bfloat16 grid, so that every stored dtype holds it
    exactly.

    Scaled so that activations stay near one: matrices by their fan-in, norms near their neutral value.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        x = rng.standard_normal(shape)
        if len(shape) > 1 and "embed" not in name:
            x /= np.sqrt(np.prod(shape[1:]))
        elif len(shape) == 1:
            x *= 0.2
            x += 1.0 if "norm" in name and "text" not in name and name.endswith("weight") else 0.0
        tensors[name] = (np.round(x * 128) / 128).clip(-1.875, 1.875).astype(np.float32)
    return tensors


def spell(name: str, spelling: str) -> str:
    """A plain name as one of SPELLINGS stores it."""
    text, vision, projector = SPELLINGS[spelling]
    for prefix, pattern in (("text.", text), ("vision.", vision)):
        if name.startswith(prefix):
            return pattern.format(name.removeprefix(prefix))
    return projector.format(name)


def save(tensors: Mapping[str, np.ndarray], path: Path, dtype: str = "float32") -> None:
    """Write a safetensors file; dtype is 'float32', 'float16' or 'bfloat16'."""
    stored = {
        name: np.ascontiguousarray(pack(x) if dtype == "bfloat16" else x.astype(dtype)) for name, x in tensors.items()
    }
    specs = {
        name: safetensors.TensorSpec(dtype=dtype, shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes)
        for name, x in stored.items()
    }
    path.write_bytes(safetensors.serialize(specs))


def config_json(config: Config = CONFIG) -> dict:
    """The config as a Hugging Face config.json says it."""
    return {
        "model_type": "paligemma",
        "image_token_index": config.image_token_index,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids[0],
        "pad_token_id": 0,
        "hidden_size": config.text.hidden_size,
        "projection_dim": config.text.hidden_size,
        "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False}
        | {"projection_dim": config.text.hidden_size}
        | vars(config.vision),
        "text_config": {"model_type": "gemma"} | vars(config.text),
    }


def write_folder(
    folder: Path,
    config: Config = CONFIG,
    seed: int = 0,
    spelling: str = "saved 5.x",
    dtype: str = "float32",
    shards: int = 1,
) -> Path:
    """A model folder with random weights (no tokenizer); returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(config)))
    tensors = {spell(name, spelling): x for name, x in random_tensors(config, seed).items()}
    if shards == 1:
        save(tensors, folder / "model.safetensors", dtype)
        return folder
    homes = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(homes.values()):
        save({name: x for name, x in tensors.items() if homes[name] == shard}, folder / shard, dtype)
    index = {"metadata": {}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
