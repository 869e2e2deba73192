"""Small random models as folders, whose window is shorter than their prompts and whose caps bite.

The embedded model is a PaliGemma 1. Golden files, planted mistakes and comparisons with transformers need a model with
norms after attention and MLP, soft caps and windows: a PaliGemma 2. Every parameter is noise, norms included, so that
none can be left out unnoticed. A PaliGemma whose decoder is a Gemma 3 does not exist; the one here is for mistakes in
norms of queries and keys, and in the two kinds of rotary positions.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from npgemma.api.processor import Inputs, PictureProcessor
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.checkpoints.gemma_config import FULL, GEMMA_2, GEMMA_3, SLIDING, GemmaConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig, hf_layout, read_tensors
from npgemma.checkpoints.siglip import SiglipConfig
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import Tokenizer
from npgemma.layers.bits import round_to_bfloat16
from npgemma.testing import write_folder

IMAGE_TOKEN = Tokenizer((EMBEDDED / "tokenizer.model").read_bytes()).image_id
NOISE = 0.5  # the standard deviation of every parameter
WINDOW = 5
SUFFIX = 3  # the last tokens of a prompt: the mask hides nothing from a prefix
# So many tokens after the prompt that the last see no row of it in layers with a window.
STEPS = WINDOW + 1
VISION = SiglipConfig(
    hidden_size=24,
    intermediate_size=36,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=28,
    patch_size=7,
)


def config_of(family: GemmaConfig, **more: object) -> PaliGemmaConfig:
    """The config of a small model with a decoder of this family. transformers wants a width that N divides."""
    text = replace(
        family,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        vocab_size=IMAGE_TOKEN + 8,
        query_pre_attn_scalar=22.0,
        sliding_window=WINDOW,
        **more,
    )
    return PaliGemmaConfig(VISION, text, tied=False, image_token_index=IMAGE_TOKEN)


PALIGEMMA_2 = config_of(GEMMA_2, attn_logit_softcapping=5.0, final_logit_softcapping=6.0)
WITH_GEMMA_3 = config_of(GEMMA_3, rope_factor=8.0, layer_types=(SLIDING, FULL) * 2)


def write_model(folder: Path, config: PaliGemmaConfig, seed: int = 4) -> Path:
    """Write a model with the embedded model's tokenizer; returns the folder."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: round_to_bfloat16(rng.standard_normal(shape).astype(np.float32) * NOISE)
        for name, shape in hf_layout(config).shapes.items()
    }
    write_folder(folder, config, tensors)
    shutil.copyfile(EMBEDDED / "tokenizer.model", folder / "tokenizer.model")
    return folder


class SuffixProcessor(PictureProcessor):
    """Makes the last tokens of every prompt a suffix."""

    def __call__(self, *args: Any, **kwargs: Any) -> Inputs:
        inputs = super().__call__(*args, **kwargs)
        for types in inputs.token_type_ids:
            types[-SUFFIX:] = 1
        return inputs


def load_with_suffix(folder: Path, config: PaliGemmaConfig) -> VisionLanguageModel:
    """A model that `write_model` wrote, in float32. Its prompts end with a suffix."""
    weights = hf_layout(config).fill(read_tensors(folder, config))
    model = VisionLanguageModel(folder, config, weights, np.dtype(np.float32))
    p = model.processor
    model.processor = SuffixProcessor(p.tokenizer, p.side, p.tokens_per_image, p.bos_id, p.eos_id, p.settings)
    return model
