"""Small PaliGemmas with random weights, in memory and as folders; distinct sizes, so that a swapped axis cannot fit."""

import json
from pathlib import Path

import numpy as np

from npgemma import testing
from npgemma.checkpoints.gemma_config import GemmaConfig
from npgemma.checkpoints.layout import in_memory
from npgemma.checkpoints.paligemma import PaliGemmaConfig, read_tensors
from npgemma.checkpoints.paligemma import weights as weights_of
from npgemma.checkpoints.towers import VisionConfig
from npgemma.models.paligemma import PaliGemma
from npgemma.testing import save_tensors as save

CONFIG = PaliGemmaConfig(
    vision=VisionConfig(
        hidden_size=12,
        intermediate_size=17,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=35,
        patch_size=7,
    ),
    text=GemmaConfig(
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

# How each release of transformers spells the names of decoder, vision tower and projector; {} is the rest of the name.
SPELLINGS = {
    "hub": ("language_model.model.{}", "vision_tower.vision_model.{}", "{}"),
    "memory 4.52": ("model.language_model.{}", "model.vision_tower.vision_model.{}", "model.{}"),
    "memory 5.6": ("model.language_model.{}", "model.vision_tower.{}", "model.{}"),
    "saved 5.x": ("language_model.model.{}", "vision_tower.{}", "{}"),
}


def random_tensors(config: PaliGemmaConfig = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """The random tensors of npgemma.testing, by default of the config above."""
    return testing.random_tensors(config, seed)


def config_json(config: PaliGemmaConfig = CONFIG) -> dict:
    """The config.json of npgemma.testing, by default of the config above."""
    return testing.config_json(config)


def spell(name: str, spelling: str) -> str:
    """A name of the hub's files as one of SPELLINGS stores it."""
    text, vision, projector = SPELLINGS[spelling]
    for prefix, pattern in (("language_model.model.", text), ("vision_tower.vision_model.", vision)):
        if name.startswith(prefix):
            return pattern.format(name.removeprefix(prefix))
    return projector.format(name)


def weights(folder: Path, config: PaliGemmaConfig = CONFIG, resident: str | None = None) -> PaliGemma:
    """The weights of a folder: mapped, or with a dtype in memory."""
    tensors = read_tensors(folder, config)
    return weights_of(in_memory(tensors, np.dtype(resident)) if resident else tensors, config)


def write_folder(
    folder: Path,
    config: PaliGemmaConfig = CONFIG,
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
