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
