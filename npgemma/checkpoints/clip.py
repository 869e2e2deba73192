"""CLIP on disk: config.json, and the names of its tensors in transformers' files and in OpenAI's."""

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from npgemma.checkpoints import towers
from npgemma.checkpoints.image_processor import CLIP_KINDS, CLIP_PIXELS, read_files
from npgemma.checkpoints.layout import FLOAT32, Layout, Part, make_layout, table, translated, within
from npgemma.checkpoints.names import by_saved_name, unwrapped
from npgemma.checkpoints.pairs import check_pair, pair_names, pair_tensors
from npgemma.checkpoints.towers import DualEncoderConfig, TextConfig, VisionConfig
from npgemma.checkpoints.towers import footprint as footprint
from npgemma.checkpoints.towers import shortest_run as shortest_run
from npgemma.io.safetensors import open_model, readable
from npgemma.io.strict_json import Section, words
from npgemma.layers.shapes import Array
from npgemma.layers.tree import SLOT, sized
from npgemma.models.clip import Clip, PatchEmbedding, Projection, TextTower, VisionTower
from npgemma.models.vit import TokenEmbedding

# transformers' name of the first norm has a mistake in it.
HF_VISION = towers.HF_BLOCKS + table("""
    embedding.weight       embeddings.patch_embedding.weight       D C h w
    embedding.class_token  embeddings.class_embedding              D
    embedding.position     embeddings.position_embedding.weight    T D
    pre_norm.weight        pre_layrnorm.weight                     D
    pre_norm.bias          pre_layrnorm.bias                       D
    post_norm.weight       post_layernorm.weight                   D
    post_norm.bias         post_layernorm.bias                     D
""")
HF_TEXT = towers.HF_BLOCKS + table("""
    embedding.tokens       embeddings.token_embedding.weight       V D
    embedding.position     embeddings.position_embedding.weight    S D
    norm.weight            final_layer_norm.weight                 D
    norm.bias              final_layer_norm.bias                   D
""")
HF_PROJECTION = table("""
    projection.weight      weight                                  E D
""")
HF_PAIR = table("""
    log_scale              logit_scale                             -
""")

# OpenAI's state dict, in which q, k and v are one matrix.
OPENAI_BLOCK = within(towers.FUSED_ATTENTION, "", "attn.{}") + table("""
    attn_norm.weight       ln_1.weight                             D
    attn_norm.bias         ln_1.bias                               D
    mlp.fc1                mlp.c_fc.weight                         F D
    mlp.fc1_bias           mlp.c_fc.bias                           F
    mlp.fc2                mlp.c_proj.weight                       D F
    mlp.fc2_bias           mlp.c_proj.bias                         D
    mlp_norm.weight        ln_2.weight                             D
    mlp_norm.bias          ln_2.bias                               D
""")
OPENAI_BLOCKS = within(OPENAI_BLOCK, "blocks[i].", "transformer.resblocks.{i}.{}")
OPENAI_VISION = OPENAI_BLOCKS + table("""
    embedding.weight       conv1.weight                            D C h w
    embedding.class_token  class_embedding                         D
    embedding.position     positional_embedding                    T D
    pre_norm.weight        ln_pre.weight                           D
    pre_norm.bias          ln_pre.bias                             D
    post_norm.weight       ln_post.weight                          D
    post_norm.bias         ln_post.bias                            D
    projection.weight      proj                                    D E
""")
OPENAI_TEXT = OPENAI_BLOCKS + table("""
    embedding.tokens       token_embedding.weight                  V D
    embedding.position     positional_embedding                    S D
    norm.weight            ln_final.weight                         D
    norm.bias              ln_final.bias                           D
    projection.weight      text_projection                         D E
""")

MODEL_TYPE = "clip"
# CLIP ViT-B/32.
VISION = VisionConfig(768, 3072, 12, 12, patch_size=32, layer_norm_eps=1e-5, hidden_act="quick_gelu")
TEXT = TextConfig(49408, 512, 2048, 12, 8, 77, layer_norm_eps=1e-5, hidden_act="quick_gelu")
DEFAULT = DualEncoderConfig(MODEL_TYPE, VISION, TEXT, 512, 49407, CLIP_PIXELS)
# What OpenAI's configs on the hub say instead of the end token: there transformers takes the largest id of a text,
# which is the end token, the last of the vocabulary.
WRONG_END = 2

# Keys that do not matter: the projections have the projection_dim of the whole model.
HARMLESS = words("""
    projection_dim logit_scale_init_value initializer_factor initializer_range eos_token_id
""")


def read_config(folder: Path) -> DualEncoderConfig:
    """The config of a model folder. BadModel, with file and key, for a value that npgemma cannot compute."""
    return read_sections(folder)[0]


def read_sections(folder: Path) -> tuple[DualEncoderConfig, dict[str, Section]]:
    """The config of a model folder, and the files that it was read from. BadModel as for `read_config`."""
    return read_files(folder, parse, CLIP_KINDS)


def parse(s: Section) -> DualEncoderConfig:
    """The config of the whole config.json, in which a missing key has the value of CLIP ViT-B/32."""
    inner, tower = tower_section(s, "text_config"), tower_section(s, "vision_config")
    check_pair(s, MODEL_TYPE, (inner, tower))
    for each in (s, inner, tower):
        each.ignore(HARMLESS)
    text = towers.read_text(inner, TEXT)
    end = inner.token("eos_token_id", DEFAULT.eos_token_id, max(text.vocab_size - 1, WRONG_END))
    return replace(
        DEFAULT,
        vision=towers.read_vision(tower, VISION),
        text=text,
        embedding_size=s.count("projection_dim", DEFAULT.embedding_size, 65536),
        eos_token_id=text.vocab_size - 1 if end == WRONG_END else end,
    )


def tower_section(s: Section, key: str) -> Section:
    """The section of a tower: as in transformers, the one whose key ends in _dict replaces the other if it is there."""
    s.ignore([key])
    return s.section(key if s.get(f"{key}_dict") is None else f"{key}_dict")


def config_json(c: DualEncoderConfig) -> dict[str, object]:
    """The content of config.json for Hugging Face."""
    width = {"projection_dim": c.embedding_size}
    return {
        "model_type": MODEL_TYPE,
        "projection_dim": c.embedding_size,
        "text_config": {"model_type": "clip_text_model", "eos_token_id": c.eos_token_id} | width | asdict(c.text),
        "vision_config": {"model_type": "clip_vision_model"} | width | asdict(c.vision),
    }


@lru_cache(maxsize=8)
def blank(c: DualEncoderConfig) -> Clip:
    """The weights with a Slot in place of each array."""
    norm, act = towers.blank_norm(c.vision), towers.ACTIVATIONS[c.vision.hidden_act]
    vision = VisionTower(PatchEmbedding(SLOT, SLOT, SLOT), norm, (), act, norm, Projection(SLOT))
    norm, act = towers.blank_norm(c.text), towers.ACTIVATIONS[c.text.hidden_act]
    text = TextTower(TokenEmbedding(SLOT, SLOT), (), act, norm, Projection(SLOT), c.eos_token_id)
    vision_sizes, text_sizes = sizes(c)
    return Clip(
        vision=replace(sized(vision, vision_sizes), blocks=towers.blank_blocks(c.vision)),
        text=replace(sized(text, text_sizes), blocks=towers.blank_blocks(c.text)),
        log_scale=towers.NUMBER,
    )


def sizes(c: DualEncoderConfig) -> tuple[dict[str, int], dict[str, int]]:
    """The size of each letter of the tables of the vision tower and of the text tower."""
    width = {"E": c.embedding_size}
    return towers.vision_sizes(c.vision) | width, towers.text_sizes(c.text) | width


def hf_parts(c: DualEncoderConfig) -> tuple[Part, ...]:
    vision, text = sizes(c)
    return (
        Part(HF_VISION, vision, "vision.", "vision_model."),
        Part(HF_TEXT, text, "text.", "text_model."),
        Part(HF_PROJECTION, vision, "vision.", "visual_projection."),
        Part(HF_PROJECTION, text, "text.", "text_projection."),
        Part(HF_PAIR, {}),
    )


NAMES = pair_names(hf_parts(DEFAULT))
# The same for OpenAI's files, which state some numbers of the config as tensors.
OPENAI_NAMES = replace(NAMES, unused=re.compile("input_resolution|context_length|vocab_size"), table="")
OPENAI_HAS = "visual.class_embedding"


@lru_cache(maxsize=8)
def hf_layout(c: DualEncoderConfig) -> Layout[Clip]:
    """The names that transformers 5 saves."""
    return make_layout(blank(c), *hf_parts(c))


def openai_layout(c: DualEncoderConfig) -> Layout[Clip]:
    """The names of OpenAI's state dict."""
    vision, text = sizes(c)
    return make_layout(
        blank(c),
        Part(OPENAI_VISION, vision, "vision.", "visual."),
        Part(OPENAI_TEXT, text, "text."),
        Part(HF_PAIR, {}),
    )


def read_tensors(model: Path, c: DualEncoderConfig) -> dict[str, Array]:
    """A model's tensors by the names that transformers 5 saves, mapped and checked, from its files or from OpenAI's.

    Every tensor that the config asks for must exist with its shape, and no other may. BadModel as for `pair_tensors`
    and `open_model`.
    """
    stored = open_model(model)
    if any(unwrapped(name).endswith(OPENAI_HAS) for name in stored):
        tensors, layout = by_saved_name(stored, model, OPENAI_NAMES), openai_layout(c)
        layout.check(tensors, model)
        return translated(readable(tensors), layout, hf_layout(c))
    return pair_tensors(stored, model, NAMES, hf_layout(c))


def weights(tensors: Mapping[str, Array], c: DualEncoderConfig, vectors: np.dtype = FLOAT32) -> Clip:
    """The weights, from tensors by the names that transformers 5 saves; norms, biases and positions as `vectors`."""
    return hf_layout(c).fill(tensors, vectors)


def names_of(p: Clip, c: DualEncoderConfig) -> dict[str, str]:
    """The names that transformers 5 saves, by the path of each array of the weights."""
    return {each.leaf.path: each.name for each in hf_layout(c).stored}
