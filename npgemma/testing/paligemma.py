"""Small PaliGemmas and rows for them, by hypothesis."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npgemma.checkpoints.gemma_config import IN_PALIGEMMA, GemmaConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig, config_json, hf_layout
from npgemma.checkpoints.towers import VisionConfig
from npgemma.layers.shapes import Array, Float, Int
from npgemma.testing.draws import st
from npgemma.testing.folders import layout_tensors, write_json_and_tensors


class Row(NamedTuple):
    """One sequence: ids, the type of each (0 prefix, 1 suffix), and its pictures."""

    input_ids: Int[Array, "T"]
    token_type_ids: Int[Array, "T"]
    pixel_values: Float[Array, "B C Y X"]


@st.composite
def configs(draw: st.DrawFn) -> PaliGemmaConfig:
    """Small PaliGemmas 1 and 2: multi-head, grouped and multi-query, odd grids, pixels left over, tied or not.

    Widths of the two halves, of heads and of the MLPs are mostly distinct, so that a swapped axis cannot fit. PaliGemma
    2 has windows shorter than most prompts, caps near the scores and logits, and another scale than its heads' width.
    """
    heads, patch = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    vision = VisionConfig(
        hidden_size=heads * draw(st.integers(2, 5)),
        intermediate_size=draw(st.integers(5, 19)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        image_size=patch * draw(st.integers(1, 4)) + draw(st.integers(0, patch - 1)),
        patch_size=patch,
    )
    text = draw(st.sampled_from(sorted(IN_PALIGEMMA)).flatmap(decoder_configs))
    return PaliGemmaConfig(
        vision, text, tied=draw(st.booleans()), image_token_index=text.vocab_size - draw(st.integers(1, 3))
    )


@st.composite
def decoder_configs(draw: st.DrawFn, family: str) -> GemmaConfig:
    """Small decoders of a PaliGemma whose text_config has this model_type."""
    key_heads = draw(st.integers(1, 3))
    text = replace(
        IN_PALIGEMMA[family],
        hidden_size=draw(st.integers(7, 17)),
        intermediate_size=draw(st.integers(6, 29)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=key_heads * draw(st.integers(1, 3)),
        num_key_value_heads=key_heads,
        head_dim=2 * draw(st.integers(2, 6)),
        vocab_size=draw(st.integers(30, 70)),
        max_position_embeddings=512,
    )
    if family == "gemma":
        return text
    return replace(
        text,
        hidden_size=text.num_attention_heads * draw(st.integers(2, 5)),  # transformers wants a multiple
        query_pre_attn_scalar=2 * draw(st.integers(0, 4)) + 1,
        attn_logit_softcapping=draw(st.sampled_from([0.5, 1.0, 2.0])),
        final_logit_softcapping=draw(st.sampled_from([1.0, 2.0, 5.0])),
        sliding_window=draw(st.integers(3, 9)),
    )


@dataclass(frozen=True)
class DrawnModel:
    """A config and a seed, which make its weights: what hypothesis prints is enough to have it again."""

    config: PaliGemmaConfig
    seed: int

    @property
    def tensors(self) -> dict[str, Array]:
        return random_tensors(self.config, self.seed)

    def write(self, folder: Path, dtype: str = "float32") -> Path:
        """Its folder in Hugging Face layout; see `write_folder`."""
        return write_folder(folder, self.config, self.tensors, dtype)


def models() -> st.SearchStrategy[DrawnModel]:
    """Models with random weights."""
    return st.builds(DrawnModel, configs(), st.integers(0, 1 << 16))


def weights(config: PaliGemmaConfig) -> st.SearchStrategy[dict[str, Array]]:
    """Weights of one config, by name."""
    return st.integers(0, 1 << 16).map(lambda seed: random_tensors(config, seed))


@st.composite
def token_rows(draw: st.DrawFn, config: PaliGemmaConfig) -> Row:
    """A sequence for a config: one or two pictures' tokens, begin-of-sequence, a prefix, and a suffix."""
    images, prefix, suffix = draw(st.integers(1, 2)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    return draw_row(config, images, prefix, suffix, draw(st.integers(0, 1 << 16)))


def draw_row(config: PaliGemmaConfig, images: int = 1, prefix: int = 4, suffix: int = 3, seed: int = 0) -> Row:
    """The sequence [image tokens, bos, prefix | suffix] with random ids and pixels in -1 .. 1."""
    rng = np.random.default_rng(seed)
    usable = [i for i in range(3, config.text.vocab_size) if i != config.image_token_index]
    image_ids = [config.image_token_index] * (images * config.vision.num_patches)
    ids = np.array([*image_ids, config.bos_token_id, *rng.choice(usable, prefix + suffix)])
    types = np.array([0] * (len(ids) - suffix) + [1] * suffix)
    side = config.vision.image_size
    return Row(ids, types, rng.uniform(-1, 1, (images, 3, side, side)).astype(np.float32))


def random_tensors(config: PaliGemmaConfig, seed: int = 0) -> dict[str, Array]:
    """Random tensors of a PaliGemma, by the names that transformers 5 saves; see `layout_tensors`."""
    return layout_tensors(hf_layout(config), seed)


def write_folder(folder: Path, config: PaliGemmaConfig, tensors: Mapping[str, Array], dtype: str = "float32") -> Path:
    """config.json and model.safetensors, with the names that transformers 5 saves; returns the folder."""
    return write_json_and_tensors(folder, config_json(config), tensors, dtype)
