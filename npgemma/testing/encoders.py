"""Small SigLIPs, CLIPs and ViTs, pixels and texts for them, by hypothesis."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np

from npgemma.checkpoints import clip, siglip, vit
from npgemma.checkpoints.image_processor import CLIP_PIXELS
from npgemma.checkpoints.towers import DualEncoderConfig, TextConfig, VisionConfig
from npgemma.checkpoints.vit import ViTConfig
from npgemma.layers.shapes import Array, Float, Int
from npgemma.testing.draws import st
from npgemma.testing.folders import layout_tensors, write_json_and_tensors

EncoderConfig: TypeAlias = DualEncoderConfig | ViTConfig
CHECKPOINTS: dict[str, ModuleType] = {"siglip": siglip, "clip": clip, "vit": vit}
PAD = 1  # SigLIP's texts are padded with their end token


@st.composite
def encoder_configs(draw: st.DrawFn, model_type: str) -> EncoderConfig:
    """Small 'siglip', 'clip' or 'vit': one head or several, odd grids, pixels left over, several gelus."""
    heads, patch, side = draw(st.integers(1, 3)), draw(st.integers(2, 5)), draw(st.integers(2, 4))
    vision = VisionConfig(
        hidden_size=heads * draw(st.integers(3, 6)),
        intermediate_size=draw(st.integers(5, 19)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        image_size=patch * side + draw(st.integers(0, patch - 1)),
        patch_size=patch,
    )
    if model_type == "vit":
        gelu = draw(st.sampled_from(["gelu", "gelu_pytorch_tanh"]))
        return ViTConfig(replace(vision, hidden_act=gelu), tuple("abcdefg"[: draw(st.integers(2, 7))]))
    heads = draw(st.integers(1, 3))
    text = TextConfig(
        vocab_size=draw(st.integers(30, 50)),
        hidden_size=heads * draw(st.integers(3, 6)),
        intermediate_size=draw(st.integers(5, 19)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        max_position_embeddings=draw(st.integers(5, 9)),
    )
    if model_type == "siglip":
        return DualEncoderConfig(model_type, vision, text, vision.hidden_size, PAD)
    gelu = draw(st.sampled_from(["gelu", "quick_gelu"]))
    vision = replace(vision, hidden_act=gelu, layer_norm_eps=1e-5)
    text = replace(text, hidden_act=gelu, layer_norm_eps=1e-5)
    width, end = draw(st.integers(4, 9)), text.vocab_size - 1
    return DualEncoderConfig(model_type, vision, text, width, end, CLIP_PIXELS)


@dataclass(frozen=True)
class DrawnEncoder:
    """A config and a seed, which make its weights: what hypothesis prints is enough to have it again."""

    model_type: str
    config: EncoderConfig
    seed: int

    @property
    def checkpoint(self) -> ModuleType:
        """The module that knows its names on disk."""
        return CHECKPOINTS[self.model_type]

    @property
    def tensors(self) -> dict[str, Array]:
        """By the names that transformers saves; scores are e times the cosines, not some multiple near one."""
        tensors = layout_tensors(self.checkpoint.hf_layout(self.config), self.seed)
        return tensors | ({"logit_scale": tensors["logit_scale"] + 1} if "logit_scale" in tensors else {})

    def write(self, folder: Path, dtype: str = "float32") -> Path:
        """config.json and model.safetensors, without a tokenizer; returns the folder."""
        return write_json_and_tensors(folder, self.checkpoint.config_json(self.config), self.tensors, dtype)


def encoders(model_type: str) -> st.SearchStrategy[DrawnEncoder]:
    """'siglip', 'clip' or 'vit' with random weights."""
    return st.builds(DrawnEncoder, st.just(model_type), encoder_configs(model_type), st.integers(0, 1 << 16))


@st.composite
def pixel_rows(draw: st.DrawFn, config: EncoderConfig) -> Float[Array, "B 3 Y X"]:
    """Pixel values of two to four pictures, in -1 .. 1."""
    side = config.vision.image_size
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    return rng.uniform(-1, 1, (draw(st.integers(2, 4)), 3, side, side)).astype(np.float32)


@st.composite
def text_ids(draw: st.DrawFn, config: DualEncoderConfig) -> Int[Array, "U T"]:
    """Ids of two to four texts, of two words or more, an end token and padding to the context, which is end tokens."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    context, end = config.text.max_position_embeddings, config.eos_token_id
    words = [i for i in range(config.text.vocab_size) if i != end]
    ids = np.full((draw(st.integers(2, 4)), context), end)
    for row in ids:
        length = int(rng.integers(2, context - 1))
        row[:length] = rng.choice(words, length)
    return ids
