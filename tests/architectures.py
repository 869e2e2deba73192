"""Every architecture of npgemma, one entry each: tests/test_architectures.py holds the same properties for all of them.

A new model adds an entry: its layouts, a forward pass on a fixed input, and a second spelling of that.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import encoder_configs
import mask_codecs
import numpy as np
import one_page
import one_page_encoders
import one_page_gemma
import one_page_masks
import tiny

from npgemma import testing
from npgemma.checkpoints import clip as clip_checkpoint
from npgemma.checkpoints import gemma as gemma_checkpoint
from npgemma.checkpoints import gemma_config, towers
from npgemma.checkpoints import mask_vqvae as mask_checkpoint
from npgemma.checkpoints import paligemma as paligemma_checkpoint
from npgemma.checkpoints import siglip as siglip_checkpoint
from npgemma.checkpoints import vit as vit_checkpoint
from npgemma.checkpoints.layout import Layout, Part, make_layout
from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Tap, silent
from npgemma.layers.tree import SLOT, Slot, map_tree
from npgemma.models import clip, gemma, mask_vqvae, paligemma, prefix_lm, siglip, vit

C = tiny.CONFIG
JSON = testing.config_json(C)


@dataclass(frozen=True, eq=False)
class Architecture:
    """`layouts` by format, transformers' first; `forward(weights, dtype, tap)` runs the model on one fixed input.

    `second_spelling(tensors)` computes the same in float64, from tensors by the names of the first layout.
    `cached(weights, dtype)` computes the last rows of it with a cache, one row at a time; None if there is no cache.
    """

    layouts: Mapping[str, Layout[Any]]
    forward: Callable[[Any, np.dtype, Tap], Array]
    second_spelling: Callable[[Mapping[str, Array]], Array]
    cached: Callable[[Any, np.dtype], Array] | None = None


# SigLIP's vision tower

PICTURES = testing.draw_row(C, images=2).pixel_values
VISION_SIZES = towers.vision_sizes(C.vision)

BLANK_TOWER = siglip_checkpoint.blank_tower(C.vision)

VISION_TOWER = Architecture(
    layouts={
        "hf": make_layout(
            BLANK_TOWER, Part(siglip_checkpoint.HF_VISION, VISION_SIZES, "", "vision_tower.vision_model.")
        ),
        "npz": make_layout(BLANK_TOWER, Part(siglip_checkpoint.NPZ_VISION, VISION_SIZES)),
    },
    forward=lambda p, dtype, tap: siglip.vision_tower(p, PICTURES.astype(dtype), tap),
    second_spelling=lambda w: one_page.vision_tower(w, JSON, PICTURES),
)

# Gemma: five tokens, the first three of them a prefix

IDS = np.array([2, 5, 9, 3, 4])
POSITIONS = np.arange(3, 8)
MASK = prefix_lm.prefix_lm_mask(np.array([0, 0, 0, 1, 1]))
TEXT_SIZES = gemma_checkpoint.sizes(C.text)


def decode(p: gemma.Decoder, dtype: np.dtype, tap: Tap = silent) -> Array:
    rows = gemma.Rows(slice(None), POSITIONS, [gemma.Segment(slice(0, 5), MASK)])
    x = gemma.embed_tokens(p, IDS, dtype, tap)
    return gemma.logits(p, gemma.decoder(p, x, rows, [gemma.new_caches(p, 5, dtype)], tap=tap))


def decode_cached(p: gemma.Decoder, dtype: np.dtype) -> Array:
    caches, found = gemma.new_caches(p, 5, dtype), []
    for start, end in ((0, 3), (3, 4), (4, 5)):
        segment = gemma.Segment(slice(0, end - start), MASK[start:end, :end])
        rows = gemma.Rows(slice(None), POSITIONS[start:end], [segment])
        found.append(gemma.decoder(p, gemma.embed_tokens(p, IDS[start:end], dtype), rows, [caches]))
    return gemma.logits(p, np.concatenate(found))


def decode_again(w: Mapping[str, Array]) -> Array:
    x = one_page.decoder(w, JSON, one_page.embed_prompt(w, JSON, IDS, []), POSITIONS, MASK)
    return x @ w["language_model.model.embed_tokens.weight"].T


DECODER = Architecture(
    layouts={
        "hf": make_layout(
            gemma_checkpoint.blank(C.text, tied=True), Part(gemma_checkpoint.HF, TEXT_SIZES, "", "language_model.")
        ),
        "npz": make_layout(gemma_checkpoint.blank(C.text, tied=True), Part(gemma_checkpoint.NPZ, TEXT_SIZES)),
    },
    forward=decode,
    second_spelling=decode_again,
    cached=decode_cached,
)

# Gemma 2 and 3: a window of three tokens, and caps that bite

SMALL = {"hidden_size": 12, "intermediate_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
SMALL |= {"num_hidden_layers": 7, "vocab_size": 31, "query_pre_attn_scalar": 5.0, "sliding_window": 3}
GEMMA_2 = replace(gemma_config.GEMMA_2, **SMALL, attn_logit_softcapping=1.0, final_logit_softcapping=2.0)
GEMMA_3 = replace(gemma_config.GEMMA_3, **SMALL, rope_factor=8.0)
TYPES = np.array([0, 0, 0, 1, 1])


def windowed_decoder(c: gemma_config.GemmaConfig) -> Architecture:
    """Five tokens in one pass; then the last two of them a token at a time."""
    masks = [prefix_lm.prefix_lm_mask(TYPES, window) for window in (None, c.sliding_window)]
    sizes = gemma_checkpoint.sizes(c)
    skeleton = gemma_checkpoint.blank(c, tied=True)

    def run(p: gemma.Decoder, start: int, end: int, caches: list[gemma.Cache], dtype: np.dtype, tap: Tap) -> Array:
        segment = gemma.Segment(slice(0, end - start), *(mask[start:end, :end] for mask in masks))
        rows = gemma.Rows(slice(None), POSITIONS[start:end], [segment])
        x = gemma.embed_tokens(p, IDS[start:end], dtype, tap)
        return gemma.logits(p, gemma.decoder(p, x, rows, [caches], tap=tap))

    def forward(p: gemma.Decoder, dtype: np.dtype, tap: Tap) -> Array:
        return run(p, 0, 5, gemma.new_caches(p, 5, dtype), dtype, tap)

    def cached(p: gemma.Decoder, dtype: np.dtype) -> Array:
        caches = gemma.new_caches(p, 5, dtype)
        return np.concatenate([run(p, *ends, caches, dtype, silent) for ends in ((0, 3), (3, 4), (4, 5))])

    def again(w: Mapping[str, Array]) -> Array:
        config = asdict(c) | {"layer_types": c.layer_kinds, "rope_parameters": {}}
        for kind, theta, factor in (
            (gemma_config.FULL, c.rope_theta, c.rope_factor),
            (gemma_config.SLIDING, c.rope_local_base_freq or c.rope_theta, 1.0),
        ):
            config["rope_parameters"][kind] = {"rope_theta": theta, "factor": factor}
        x = w["model.embed_tokens.weight"][IDS] * np.sqrt(c.hidden_size)
        x = one_page_gemma.decoder(w, config, x, POSITIONS, TYPES)
        return one_page_gemma.logits(w, config, x)

    layouts = {"hf": make_layout(skeleton, Part(gemma_checkpoint.HF_POST_NORMS, sizes))}
    if c.model_type == "gemma2":
        layouts["npz"] = make_layout(skeleton, Part(gemma_checkpoint.NPZ_POST_NORMS, sizes))
    return Architecture(layouts, forward, again, cached)


# PaliGemma 1 and 2: two pictures, a prefix and a suffix; the prefix is longer than the window of PaliGemma 2

C2 = replace(C, text=replace(GEMMA_2, vocab_size=C.text.vocab_size))


def picture_model(c: PaliGemmaConfig, again: Callable[[Mapping[str, Array], testing.Row], Array]) -> Architecture:
    """A whole row in one pass; then its prefix, and a suffix of one token after another."""
    row = testing.draw_row(c, images=2)
    prefix = int((row.token_type_ids == 0).sum())

    def forward(p: paligemma.PaliGemma, dtype: np.dtype, tap: Tap = silent) -> Array:
        return paligemma.forward(p, row.input_ids, row.pixel_values.astype(dtype), row.token_type_ids, tap=tap)

    def cached(p: paligemma.PaliGemma, dtype: np.dtype) -> Array:
        features = paligemma.image_features(p, row.pixel_values.astype(dtype))
        prompt = paligemma.make_prompt(p, row.input_ids[:prefix], row.token_type_ids[:prefix], features)
        caches = [gemma.new_caches(p.text, len(row.input_ids), dtype)]
        found = [prefix_lm.start(p.text, [prompt], caches)]
        found += [prefix_lm.step(p.text, np.array([token]), caches) for token in row.input_ids[prefix:]]
        return np.concatenate(found)

    layouts = {"hf": paligemma_checkpoint.hf_layout(c), "npz": paligemma_checkpoint.npz_layout(c)}
    return Architecture(layouts, forward, lambda w: again(w, row), cached)


def answer_again(w: Mapping[str, Array], row: testing.Row) -> Array:
    return one_page.forward(w, JSON, row.input_ids, row.pixel_values, row.token_type_ids)


def answer_again_2(w: Mapping[str, Array], row: testing.Row) -> Array:
    whole, name = testing.config_json(C2), "language_model.model."
    config = asdict(C2.text) | {"layer_types": C2.text.layer_kinds, "rope_parameters": {"rope_theta": 1e4}}
    x = one_page.embed_prompt(w, whole, row.input_ids, one_page.image_features(w, whole, row.pixel_values))
    x = one_page_gemma.decoder(w, config, x, 1 + np.arange(len(x)), row.token_type_ids, name)
    return one_page_gemma.logits(w, config, x, name)


# The decoder of masks: 32 codes

CODES = np.random.default_rng(0).integers(0, 128, (2, 16))
CODEC, CODEC_TENSORS = mask_codecs.random_codec(), mask_codecs.random_tensors()


@dataclass(frozen=True)
class Masks:
    """What decoding needs of a MaskVQVAE."""

    codebook: Float[Array, "128 E"]
    decoder: mask_vqvae.MaskDecoder


def mask_layout() -> Layout[Masks]:
    parts = [part for part in mask_checkpoint.parts_of(CODEC_TENSORS) if not part.field.startswith("encoder")]
    skeleton = Masks(SLOT, mask_checkpoint.blank().decoder)
    shapes = {stored.leaf.path: stored.shape for stored in make_layout(skeleton, *parts).stored}
    return make_layout(map_tree(lambda leaf: Slot(shapes[leaf.path]), skeleton), *parts)


def decode_masks(p: Masks, dtype: np.dtype, tap: Tap = silent) -> Array:
    p = map_tree(lambda leaf: leaf.value.astype(dtype), p)
    return mask_vqvae.decode_mask(mask_vqvae.MaskVQVAE(p.codebook, p.decoder, CODEC.encoder), CODES)


MASK_DECODER = Architecture(
    layouts={"npz": mask_layout()},
    forward=decode_masks,
    second_spelling=lambda w: one_page_masks.masks(w, CODES),
)

# SigLIP: two pictures whose last two columns are left over, and three texts

SIGLIP_CONFIG = encoder_configs.SIGLIP
PIXELS = np.random.default_rng(0).uniform(-1, 1, (2, 3, 14, 14)).astype(np.float32)
WORDS = np.random.default_rng(0).integers(0, 50, (3, 6))


def siglip_scores(p: siglip.Siglip, dtype: np.dtype, tap: Tap = silent) -> Array:
    images = siglip.encode_images(p, PIXELS.astype(dtype), tap)
    return siglip.logits(p, images, siglip.encode_texts(p, WORDS, dtype, tap), tap)


SIGLIP = Architecture(
    layouts={
        "hf": siglip_checkpoint.hf_layout(SIGLIP_CONFIG),
        "npz": siglip_checkpoint.npz_layout(SIGLIP_CONFIG, stacked=False),
        "npz, stacked": siglip_checkpoint.npz_layout(SIGLIP_CONFIG, stacked=True),
    },
    forward=siglip_scores,
    second_spelling=lambda w: one_page_encoders.siglip(w, siglip_checkpoint.config_json(SIGLIP_CONFIG), PIXELS, WORDS),
)

# CLIP: the same pictures, and texts whose end tokens, 9, stand at different places; what follows does not matter

CLIP_CONFIG = encoder_configs.CLIP
ENDED = np.array([[1, 20, 9, 9, 9, 9], [1, 21, 22, 23, 24, 9], [1, 30, 30, 31, 9, 40]])


def clip_scores(p: clip.Clip, dtype: np.dtype, tap: Tap = silent) -> Array:
    images = clip.encode_images(p, PIXELS.astype(dtype), tap)
    return clip.logits(p, images, clip.encode_texts(p, ENDED, dtype, tap), tap)


CLIP = Architecture(
    layouts={"hf": clip_checkpoint.hf_layout(CLIP_CONFIG), "OpenAI": clip_checkpoint.openai_layout(CLIP_CONFIG)},
    forward=clip_scores,
    second_spelling=lambda w: one_page_encoders.clip(w, clip_checkpoint.config_json(CLIP_CONFIG), PIXELS, ENDED),
)

# ViT: the same pictures

VIT_CONFIG = encoder_configs.VIT

VIT = Architecture(
    layouts={"hf": vit_checkpoint.hf_layout(VIT_CONFIG), "npz": vit_checkpoint.npz_layout(VIT_CONFIG)},
    forward=lambda p, dtype, tap: vit.forward(p, PIXELS.astype(dtype), tap),
    second_spelling=lambda w: one_page_encoders.vit(w, vit_checkpoint.config_json(VIT_CONFIG), PIXELS),
)

ARCHITECTURES = {
    "vision tower": VISION_TOWER,
    "Gemma 1": DECODER,
    "Gemma 2": windowed_decoder(GEMMA_2),
    "Gemma 3": windowed_decoder(GEMMA_3),
    "PaliGemma 1": picture_model(C, answer_again),
    "PaliGemma 2": picture_model(C2, answer_again_2),
    "mask decoder": MASK_DECODER,
    "SigLIP": SIGLIP,
    "CLIP": CLIP,
    "ViT": VIT,
}
