"""SigLIP 1, and 2 of a fixed resolution, on disk: config.json, and the names of its tensors; PaliGemma's tower too."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from npgemma.checkpoints import towers
from npgemma.checkpoints.config_keys import TANH_GELU, check_common
from npgemma.checkpoints.image_processor import SIGLIP_KINDS, read_files
from npgemma.checkpoints.layout import FLOAT32, Layout, Part, make_layout, table, within
from npgemma.checkpoints.pairs import check_pair, pair_names, pair_tensors
from npgemma.checkpoints.towers import DualEncoderConfig, TextConfig, VisionConfig
from npgemma.checkpoints.towers import footprint as footprint
from npgemma.checkpoints.towers import shortest_run as shortest_run
from npgemma.io.safetensors import open_model
from npgemma.io.strict_json import Section, words
from npgemma.layers.shapes import Array
from npgemma.layers.tree import SLOT, sized
from npgemma.models.siglip import (
    PatchEmbedding,
    PoolingHead,
    Projection,
    Siglip,
    TextTower,
    VisionTower,
)
from npgemma.models.vit import TokenEmbedding

# The vision tower, which PaliGemma has too.
HF_VISION = towers.HF_BLOCKS + table("""
    embedding.weight    embeddings.patch_embedding.weight       D C h w
    embedding.bias      embeddings.patch_embedding.bias         D
    embedding.position  embeddings.position_embedding.weight    P D
    norm.weight         post_layernorm.weight                   D
    norm.bias           post_layernorm.bias                     D
""")
HF_VISION_HEAD = (
    within(towers.FUSED_ATTENTION, "", "attention.{}")
    + towers.HF_MLP
    + table("""
    probe               probe                                   1 1 D
    norm.weight         layernorm.weight                        D
    norm.bias           layernorm.bias                          D
""")
)
HF_TEXT = towers.HF_BLOCKS + table("""
    embedding.tokens    embeddings.token_embedding.weight       V D
    embedding.position  embeddings.position_embedding.weight    S D
    norm.weight         final_layer_norm.weight                 D
    norm.bias           final_layer_norm.bias                   D
    head.weight         head.weight                             E D
    head.bias           head.bias                               E
""")
HF_PAIR = table("""
    log_scale           logit_scale                             1
    bias                logit_bias                              1
""")

# big_vision's files.
NPZ_VISION_ENDS = table("""
    embedding.weight    embedding/kernel                        h w C D
    embedding.bias      embedding/bias                          D
    embedding.position  pos_embedding                           1 P D
    norm.weight         Transformer/encoder_norm/scale          D
    norm.bias           Transformer/encoder_norm/bias           D
""")
NPZ_VISION = NPZ_VISION_ENDS + within(towers.NPZ_STACKED, "", "Transformer/{}")
NPZ_VISION_HEAD = (
    within(towers.NPZ_ATTENTION, "", "MultiHeadDotProductAttention_0/{}")
    + within(towers.NPZ_MLP, "", "MlpBlock_0/{}")
    + table("""
    probe               probe                                   1 1 D
    norm.weight         LayerNorm_0/scale                       D
    norm.bias           LayerNorm_0/bias                        D
""")
)
NPZ_TEXT_ENDS = table("""
    embedding.tokens    Embed_0/embedding                       V D
    embedding.position  pos_embedding                           1 S D
    norm.weight         Encoder_0/encoder_norm/scale            D
    norm.bias           Encoder_0/encoder_norm/bias             D
    head.weight         head/kernel                             D E
    head.bias           head/bias                               E
""")
NPZ_PAIR = table("""
    log_scale           t                                       1
    bias                b                                       1
""")

MODEL_TYPE = "siglip"
VISION = VisionConfig(768, 3072, 12, 12, patch_size=16)
DEFAULT = DualEncoderConfig(MODEL_TYPE, VISION, TextConfig(), 768, 1)

# Keys that do not matter to PaliGemma's tower: it has no head, and its projector has no activation.
HARMLESS_IN_PALIGEMMA = words("""
    vision_use_head projection_dim projector_hidden_act num_image_tokens vocab_size
""")
# transformers' text_config says that texts end with token 49407, which is CLIP's; SigLIP's tokenizers end them with 1.
HARMLESS = words("""
    initializer_factor initializer_range logit_scale_init_value projection_dim eos_token_id
""")


def read_tower(s: Section) -> VisionConfig:
    """PaliGemma's tower from its section of config.json. BadModel, with file and key, as for `read_vision`."""
    check_common(s)
    s.ignore(HARMLESS_IN_PALIGEMMA)
    s.require("model_type", "siglip_vision_model")
    return towers.read_vision(s, VisionConfig(), *TANH_GELU)


def blank_tower(c: VisionConfig) -> VisionTower:
    """The vision tower with a Slot in place of each array."""
    ends = VisionTower(PatchEmbedding(SLOT, SLOT, SLOT), (), towers.blank_norm(c))
    return replace(sized(ends, towers.vision_sizes(c)), blocks=towers.blank_blocks(c))


def read_config(folder: Path) -> DualEncoderConfig:
    """The config of a model folder. BadModel, with file and key, for a value that npgemma cannot compute."""
    return read_sections(folder)[0]


def read_sections(folder: Path) -> tuple[DualEncoderConfig, dict[str, Section]]:
    """The config of a model folder, and the files that it was read from. BadModel as for `read_config`."""
    return read_files(folder, parse, SIGLIP_KINDS)


def parse(s: Section) -> DualEncoderConfig:
    """The config of the whole config.json, in which a missing key has the value of SigLIP base at 224 pixels."""
    inner, tower = s.section("text_config"), s.section("vision_config")
    check_pair(s, MODEL_TYPE, (inner, tower))
    for each in (s, inner, tower):
        each.ignore(HARMLESS)
    tower.require("vision_use_head", True)
    vision = towers.read_vision(tower, VISION, *TANH_GELU)
    text = towers.read_text(inner, TextConfig(), *TANH_GELU)
    if (width := inner.count("projection_size", text.hidden_size, 65536)) != vision.hidden_size:
        wrong = f"not the width of the vision tower, {tower.named('hidden_size', vision.hidden_size)}"
        raise inner.fault("projection_size", width, wrong)
    return replace(DEFAULT, vision=vision, text=text, embedding_size=width)


def config_json(c: DualEncoderConfig) -> dict[str, object]:
    """The content of config.json for Hugging Face."""
    tokens = {"bos_token_id": None, "eos_token_id": c.eos_token_id, "pad_token_id": c.eos_token_id}
    return {
        "model_type": MODEL_TYPE,
        "text_config": {"model_type": "siglip_text_model", "projection_size": c.embedding_size}
        | tokens
        | asdict(c.text),
        "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": True} | asdict(c.vision),
    }


@lru_cache(maxsize=8)
def blank(c: DualEncoderConfig) -> Siglip:
    """The weights with a Slot in place of each array."""
    head = PoolingHead(SLOT, towers.ATTENTION, towers.blank_norm(c.vision), towers.MLP_SLOTS)
    text = TextTower(TokenEmbedding(SLOT, SLOT), (), towers.blank_norm(c.text), Projection(SLOT, SLOT))
    text = sized(text, towers.text_sizes(c.text) | {"E": c.embedding_size})
    return Siglip(
        vision=blank_tower(c.vision),
        vision_head=sized(head, towers.vision_sizes(c.vision)),
        text=replace(text, blocks=towers.blank_blocks(c.text)),
        log_scale=towers.NUMBER,
        bias=towers.NUMBER,
    )


def hf_parts(c: DualEncoderConfig) -> tuple[Part, ...]:
    vision, text = towers.vision_sizes(c.vision), towers.text_sizes(c.text) | {"E": c.embedding_size}
    return (
        Part(HF_VISION, vision, "vision.", "vision_model."),
        Part(HF_VISION_HEAD, vision, "vision_head.", "vision_model.head."),
        Part(HF_TEXT, text, "text.", "text_model."),
        Part(HF_PAIR, {}),
    )


NAMES = pair_names(hf_parts(DEFAULT))


@lru_cache(maxsize=8)
def hf_layout(c: DualEncoderConfig) -> Layout[Siglip]:
    """The names that transformers 5 saves."""
    return make_layout(blank(c), *hf_parts(c))


def npz_layout(c: DualEncoderConfig, stacked: bool) -> Layout[Siglip]:
    """The names of big_vision's files, without the `params/` before them.

    The layers of SigLIP 2 are `stacked` on the first axis of their tensors; each layer of SigLIP 1 has its own.
    """
    blocks = towers.NPZ_STACKED if stacked else towers.NPZ_BLOCKS
    vision, text = towers.vision_sizes(c.vision), towers.text_sizes(c.text) | {"E": c.embedding_size}
    return make_layout(
        blank(c),
        Part(NPZ_VISION_ENDS + within(blocks, "", "Transformer/{}"), vision, "vision.", "img/"),
        Part(NPZ_VISION_HEAD, vision, "vision_head.", "img/MAPHead_0/"),
        Part(NPZ_TEXT_ENDS + within(blocks, "", "Encoder_0/{}"), text, "text.", "txt/"),
        Part(NPZ_PAIR, {}),
    )


def read_tensors(model: Path, c: DualEncoderConfig) -> dict[str, Array]:
    """A model's tensors by the names that transformers 5 saves, mapped and checked.

    Every tensor that the config asks for must exist with its shape, and no other may. BadModel as for `pair_tensors`
    and `open_model`.
    """
    return pair_tensors(open_model(model), model, NAMES, hf_layout(c))


def weights(tensors: Mapping[str, Array], c: DualEncoderConfig, vectors: np.dtype = FLOAT32) -> Siglip:
    """The weights, from tensors by the names that transformers 5 saves; norms, biases and positions as `vectors`."""
    return hf_layout(c).fill(tensors, vectors)


def names_of(p: Siglip, c: DualEncoderConfig) -> dict[str, str]:
    """The names that transformers 5 saves, by the path of each array of the weights."""
    return {each.leaf.path: each.name for each in hf_layout(c).stored}
