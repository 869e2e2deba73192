"""Folders of small encoders with random weights and tokenizers; and what the second spelling makes of them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import clip_files
import encoder_configs
import numpy as np
import one_page_encoders
import siglip_files

from npgemma.checkpoints import clip, siglip, vit
from npgemma.testing import layout_tensors, save_tensors

# 12 positions, of which texts use fewer; the tokenizers have 100 pieces and 521.
TEXT = replace(encoder_configs.TEXT, max_position_embeddings=12)
SIGLIP = replace(encoder_configs.SIGLIP, text=replace(TEXT, vocab_size=100))
CLIP = replace(
    encoder_configs.CLIP,
    text=replace(encoder_configs.CLIP.text, vocab_size=len(clip_files.PIECES), max_position_embeddings=12),
    eos_token_id=clip_files.IDS[clip_files.END],
)
VIT = encoder_configs.VIT


def write(folder: Path, checkpoint: ModuleType, config: Any) -> Path:
    """A model folder without a tokenizer; returns it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(checkpoint.config_json(config)))
    save_tensors(layout_tensors(checkpoint.hf_layout(config)), folder / "model.safetensors")
    return folder


def write_siglip(folder: Path) -> Path:
    write(folder, siglip, SIGLIP)
    (folder / "spiece.model").write_bytes(siglip_files.spiece_model())
    return folder


def write_clip(folder: Path) -> Path:
    return clip_files.write(write(folder, clip, CLIP))


def write_vit(folder: Path) -> Path:
    return write(folder, vit, VIT)


@dataclass(frozen=True)
class Second:
    """The second spelling of one of these models, in float64."""

    checkpoint: ModuleType
    config: Any

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        stored = layout_tensors(self.checkpoint.hf_layout(self.config))
        return {name: np.asarray(x, np.float64) for name, x in stored.items()}

    def __call__(self, function: str, *inputs: np.ndarray) -> np.ndarray:
        """One of the functions of `one_page_encoders`."""
        config: Any = self.checkpoint.config_json(self.config)
        found: np.ndarray = getattr(one_page_encoders, function)(self.tensors, config, *inputs)
        return found
