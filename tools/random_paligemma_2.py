"""A small random PaliGemma 2 as a folder, whose window is shorter than its prompts and whose caps bite.

The embedded model is a PaliGemma 1. Golden files, planted mistakes and comparisons with transformers need a model with
norms after attention and MLP, soft caps and windows. Every parameter is noise, norms included, so that none can be left
out unnoticed.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

import npgemma
from npgemma.api.processor import Inputs, Processor
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.checkpoints.gemma_config import GEMMA_2
from npgemma.checkpoints.paligemma import PaliGemmaConfig, hf_layout
from npgemma.checkpoints.towers import VisionConfig
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
CONFIG = PaliGemmaConfig(
    vision=VisionConfig(
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=28,
        patch_size=7,
    ),
    text=replace(
        GEMMA_2,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        vocab_size=IMAGE_TOKEN + 8,
        query_pre_attn_scalar=22.0,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=6.0,
        sliding_window=WINDOW,
    ),
    tied=False,
    image_token_index=IMAGE_TOKEN,
)


def write_paligemma_2(folder: Path, seed: int = 0) -> Path:
    """Write the model with the embedded model's tokenizer; returns the folder."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: round_to_bfloat16(rng.standard_normal(shape).astype(np.float32) * NOISE)
        for name, shape in hf_layout(CONFIG).shapes.items()
    }
    write_folder(folder, CONFIG, tensors)
    shutil.copyfile(EMBEDDED / "tokenizer.model", folder / "tokenizer.model")
    return folder


class SuffixProcessor(Processor):
    """Makes the last tokens of every prompt a suffix."""

    def __call__(self, *args: object, **kwargs: object) -> Inputs:
        inputs = super().__call__(*args, **kwargs)
        for types in inputs.token_type_ids:
            types[-SUFFIX:] = 1
        return inputs


def load_with_suffix(folder: Path) -> VisionLanguageModel:
    """The model of a folder, whose prompts end with a suffix."""
    model = npgemma.load(folder)
    p = model.processor
    model.processor = SuffixProcessor(p.tokenizer, p.side, p.tokens_per_image, p.bos_id, p.settings)
    return model
