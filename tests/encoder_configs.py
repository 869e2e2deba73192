"""Small encoders, whose sizes mostly differ from each other: nine patches, with two columns of pixels left over."""

from dataclasses import replace

from npgemma.checkpoints.image_processor import CLIP_PIXELS
from npgemma.checkpoints.towers import DualEncoderConfig, TextConfig, VisionConfig
from npgemma.checkpoints.vit import ViTConfig

VISION = VisionConfig(16, 24, 1, 2, image_size=14, patch_size=4)
TEXT = TextConfig(50, 20, 28, 2, 4, max_position_embeddings=7)
SIGLIP = DualEncoderConfig(
    model_type="siglip",
    vision=VISION,
    text=TEXT,
    embedding_size=16,
    eos_token_id=1,
)
CLIP = DualEncoderConfig(
    model_type="clip",
    vision=replace(VISION, layer_norm_eps=1e-5, hidden_act="quick_gelu"),
    text=replace(TEXT, layer_norm_eps=1e-5, hidden_act="gelu"),
    embedding_size=11,
    eos_token_id=9,
    pixels=CLIP_PIXELS,
)
VIT = ViTConfig(replace(VISION, layer_norm_eps=1e-12, hidden_act="gelu"), ("cat", "dog", "bus", "cup", "hat"))


def clip_content(width: int, vision: dict, text: dict, dicts: bool) -> dict:
    """A config.json of OpenAI's repositories on the hub: of the newer ones, text_config_dict says what counts."""
    junk = {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "top_k": 50,
        "dropout": 0.0,
        "projection_dim": width,
    }
    sections = {
        "text_config": junk | {"model_type": "clip_text_model", "hidden_act": "quick_gelu"} | text,
        "vision_config": junk | {"model_type": "clip_vision_model", "hidden_act": "quick_gelu"} | vision,
    }
    sections |= {"text_config_dict": text if dicts else None, "vision_config_dict": vision if dicts else None}
    return {"model_type": "clip", "projection_dim": width, "logit_scale_init_value": 2.6592} | sections


def siglip_content(vision: dict, text: dict) -> dict:
    """A config.json of Google's repositories on the hub."""
    vision, text = {"model_type": "siglip_vision_model"} | vision, {"model_type": "siglip_text_model"} | text
    return {"model_type": "siglip", "initializer_factor": 1.0, "vision_config": vision, "text_config": text}


def vit_content(sizes: dict) -> dict:
    """A config.json of Google's ViTs on the hub, whose thousand labels are those of ImageNet."""
    labels = {str(i): f"n{i:08d}" for i in range(1000)}
    return {"model_type": "vit", "id2label": labels, "label2id": {label: i for i, label in labels.items()}} | sizes


CLIP_L = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24, patch_size=14)
CLIP_L_TEXT = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
SO400M = dict(hidden_size=1152, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=27)
# By name on the hub: config.json, and the number of elements of the weights.
HUB = {
    "clip-vit-base-patch32": (clip_content(512, {}, {}, False), 151_277_313),
    "clip-vit-base-patch16": (clip_content(512, {"patch_size": 16}, {}, False), 149_620_737),
    "clip-vit-large-patch14": (clip_content(768, CLIP_L, CLIP_L_TEXT, True), 427_616_513),
    "clip-vit-large-patch14-336": (clip_content(768, CLIP_L | {"image_size": 336}, CLIP_L_TEXT, True), 427_944_193),
    "siglip-base-patch16-224": (siglip_content({}, {}), 203_155_970),
    "siglip-so400m-patch14-224": (
        siglip_content(SO400M | {"patch_size": 14}, SO400M | {"max_position_embeddings": 16}),
        877_360_306,
    ),
    "siglip-so400m-patch14-384": (
        siglip_content(SO400M | {"patch_size": 14, "image_size": 384}, SO400M),
        877_960_498,
    ),
    "siglip2-base-patch16-224": (siglip_content({}, {"vocab_size": 256000}), 375_187_970),
    "siglip2-so400m-patch14-384": (
        siglip_content(SO400M | {"patch_size": 14, "image_size": 384}, SO400M | {"vocab_size": 256000}),
        1_136_008_498,
    ),
    "vit-base-patch16-224": (vit_content({}), 86_567_656),
    "vit-large-patch16-224": (
        vit_content(dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24)),
        304_326_632,
    ),
}
