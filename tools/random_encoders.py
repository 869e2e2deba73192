"""Small random SigLIP, CLIP and ViT as folders: every parameter is noise, so that none can be left out unnoticed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from random_models import NOISE, VISION

import npgemma
from npgemma.checkpoints import clip, siglip, vit
from npgemma.checkpoints.image_processor import CLIP_PIXELS
from npgemma.checkpoints.towers import DualEncoderConfig, TextConfig
from npgemma.checkpoints.vit import ViTConfig
from npgemma.golden import Golden, read_golden, record
from npgemma.io import clip_vocabulary, siglip_tokenizer
from npgemma.io.clip_tokenizer import ALPHABET, END, START
from npgemma.io.model_folder import EMBEDDED_PAIR
from npgemma.io.picture import Picture
from npgemma.layers.bits import round_to_bfloat16
from npgemma.testing import save_tensors

SIGLIP, CLIP, VIT, SEVERAL = "SigLIP", "CLIP", "ViT", "ViT that finds several labels"
CLIP_PIECES = [*ALPHABET, START, END]  # a text is its letters: there are no merges
TEXT = TextConfig(128, 20, 28, 2, 4, max_position_embeddings=12)
NOISE_PICTURES = np.random.default_rng(0).integers(0, 256, (2, 40, 31, 3), np.uint8)
IMAGES: list[Picture] = [npgemma.sample_picture(), *NOISE_PICTURES]
TEXTS = ["a red cat", "two", "star on it"]
LOG_SCALE = 2.5  # as in a trained model, it makes of cosines scores that differ
QUICK = {"layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"}
VIT_CONFIG = ViTConfig(replace(VISION, layer_norm_eps=1e-12, hidden_act="gelu"), tuple("abcdefg"))
CONFIGS: dict[str, tuple[ModuleType, Any]] = {
    SIGLIP: (siglip, DualEncoderConfig(siglip.MODEL_TYPE, VISION, TEXT, VISION.hidden_size, eos_token_id=1)),
    CLIP: (
        clip,
        DualEncoderConfig(
            clip.MODEL_TYPE,
            replace(VISION, **QUICK),
            replace(TEXT, vocab_size=len(CLIP_PIECES), **QUICK),
            embedding_size=22,
            eos_token_id=len(CLIP_PIECES) - 1,
            pixels=CLIP_PIXELS,
        ),
    ),
    VIT: (vit, VIT_CONFIG),
    SEVERAL: (vit, replace(VIT_CONFIG, multi_label=True)),
}


class Written(NamedTuple):
    """A model, and what it runs on."""

    model: Any
    images: list[Picture]
    texts: list[str]

    def record(self, path: Path, schedule: str = "hf_eager") -> Golden:
        """A golden file with every tap."""
        record(self.model, self.images, self.texts, path, "ops", schedule=schedule)
        return read_golden(path)


def write_encoder(folder: Path, name: str, seed: int = 4) -> Written:
    """Write a model, and its tokenizer if it has one, to `folder`; three pictures and texts go with it."""
    checkpoint, config = CONFIGS[name]
    rng = np.random.default_rng(seed)
    tensors = {
        tensor: round_to_bfloat16(rng.standard_normal(shape).astype(np.float32) * NOISE)
        for tensor, shape in checkpoint.hf_layout(config).shapes.items()
    }
    if name not in (VIT, SEVERAL):
        tensors["logit_scale"] = np.full_like(tensors["logit_scale"], LOG_SCALE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(checkpoint.config_json(config)))
    save_tensors(tensors, folder / "model.safetensors")
    write_tokenizer(folder, name)
    return Written(npgemma.load(folder), IMAGES, [] if name in (VIT, SEVERAL) else TEXTS)


def write_tokenizer(folder: Path, name: str) -> None:
    """SigLIP's is that of the embedded pair."""
    if name == SIGLIP:
        found = next(EMBEDDED_PAIR / file for file in siglip_tokenizer.FILES if (EMBEDDED_PAIR / file).exists())
        shutil.copyfile(found, folder / found.name)
    if name == CLIP:
        (folder / clip_vocabulary.VOCAB).write_text(json.dumps({piece: i for i, piece in enumerate(CLIP_PIECES)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
