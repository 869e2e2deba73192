"""Small random models as folders, whose window is shorter than their prompts and whose caps bite.

The embedded models are a PaliGemma 1 and a Gemma 3. Golden files, planted mistakes and comparisons with transformers
need models with norms after attention and MLP, soft caps and windows: a PaliGemma 2, and Gemma 1, 2 and 3 as language
models. Every parameter is noise, norms included, so that none can be left out unnoticed.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from npgemma.api.processor import Inputs, PictureProcessor
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.checkpoints import language_model, paligemma
from npgemma.checkpoints.gemma_config import FULL, LANGUAGE_MODELS, SLIDING, GemmaConfig
from npgemma.checkpoints.language_model import LanguageModelConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.checkpoints.towers import VisionConfig
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import Tokenizer
from npgemma.layers.bits import round_to_bfloat16
from npgemma.testing import save_tensors

IMAGE_TOKEN = Tokenizer((EMBEDDED / "tokenizer.model").read_bytes()).image_id
NOISE = 0.5  # the standard deviation of every parameter
# That of a Gemma 1, whose scores nothing bounds: with more, most probabilities are 0 or 1, and their errors chance.
NOISE_OF_GEMMA_1 = 0.25
PROMPT = "a blue star and a green circle"  # for the language models: 8 tokens
WINDOW = 5
SUFFIX = 3  # the last tokens of a prompt: the mask hides nothing from a prefix
# So many tokens after the prompt that the last see no row of it in layers with a window.
STEPS = WINDOW + 1
VISION = VisionConfig(
    hidden_size=24,
    intermediate_size=36,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=28,
    patch_size=7,
)


def decoder_of(family: str, **more: object) -> GemmaConfig:
    """The config of a small decoder. transformers wants a width that N divides."""
    return replace(
        LANGUAGE_MODELS[family],
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        vocab_size=IMAGE_TOKEN + 8,
        **more,
    )


LATER = {"query_pre_attn_scalar": 22.0, "sliding_window": WINDOW}
GEMMA_2 = decoder_of("gemma2", **LATER, attn_logit_softcapping=5.0, final_logit_softcapping=6.0)
GEMMA_3 = decoder_of("gemma3_text", **LATER, rope_factor=8.0, layer_types=(SLIDING, FULL) * 2)
PALIGEMMA_2 = PaliGemmaConfig(VISION, GEMMA_2, tied=False, image_token_index=IMAGE_TOKEN)
# The language models, by the numbers of their families.
GEMMAS = {
    number: LanguageModelConfig(text, tied=False)
    for number, text in enumerate((decoder_of("gemma"), GEMMA_2, GEMMA_3), start=1)
}
Config: TypeAlias = PaliGemmaConfig | LanguageModelConfig


def write_model(folder: Path, config: Config, seed: int = 4, noise: float | None = None) -> Path:
    """Write a model with the embedded model's tokenizer; returns the folder. `noise` is that of its parameters."""
    rng = np.random.default_rng(seed)
    noise = noise or (NOISE_OF_GEMMA_1 if config.text.model_type == "gemma" else NOISE)
    checkpoint = paligemma if isinstance(config, PaliGemmaConfig) else language_model
    tensors = {
        name: round_to_bfloat16(rng.standard_normal(shape).astype(np.float32) * noise)
        for name, shape in checkpoint.hf_layout(config).shapes.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(checkpoint.config_json(config)))
    save_tensors(tensors, folder / "model.safetensors")
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
    weights = paligemma.hf_layout(config).fill(paligemma.read_tensors(folder, config))
    model = VisionLanguageModel(folder, config, weights, np.dtype(np.float32))
    p = model.processor
    model.processor = SuffixProcessor(p.tokenizer, p.side, p.tokens_per_image, p.bos_id, p.eos_id, p.settings)
    return model
