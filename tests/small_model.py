"""A model folder with the small sizes of `tiny` and the embedded tokenizer, whose answers vary with the prompt."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import tiny
from PIL import Image

from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import Tokenizer

TOKENIZER = Tokenizer((EMBEDDED / "tokenizer.model").read_bytes())
IMAGE = TOKENIZER.image_id
PICTURES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 14, 3), np.uint8)) for i in range(3)]


def config_of(vision: dict[str, int] = {}, text: dict[str, int] = {}) -> PaliGemmaConfig:  # noqa: B006
    """The small config with other sizes. Seven rows of the table lie beyond the tokenizer's last piece."""
    return PaliGemmaConfig(
        dataclasses.replace(tiny.CONFIG.vision, **vision),
        dataclasses.replace(tiny.CONFIG.text, **{"vocab_size": IMAGE + 8} | text),
        image_token_index=IMAGE,
    )


CONFIG = config_of()
SIDE, EACH = CONFIG.vision.image_size, CONFIG.vision.num_patches


def with_tokenizer(folder: Path) -> Path:
    shutil.copyfile(EMBEDDED / "tokenizer.model", folder / "tokenizer.model")
    return folder


def write_folder(folder: Path, eos: int | list[int] = 1) -> Path:
    """Random weights with an untied head and a small embedding: with a tied head, every token would follow itself."""
    tiny.write_folder(folder, CONFIG)
    tensors = {tiny.spell(name, "saved 5.x"): x for name, x in tiny.random_tensors(CONFIG).items()}
    embedding = tensors["language_model.model.embed_tokens.weight"]
    tensors["lm_head.weight"] = np.random.default_rng(3).standard_normal(embedding.shape).astype(np.float32)
    tensors["language_model.model.embed_tokens.weight"] = embedding / 8
    tiny.save(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(tiny.config_json(CONFIG) | {"eos_token_id": eos}))
    return with_tokenizer(folder)


def ids(*text: int, pictures: int = 1) -> np.ndarray:
    return np.array([IMAGE] * EACH * pictures + list(text))


def pixels(pictures: int = 1, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (pictures, 3, SIDE, SIDE)).astype(dtype)
