"""Small encoders, whose sizes mostly differ from each other: nine patches, with two columns of pixels left over."""

from npgemma.checkpoints.towers import DualEncoderConfig, TextConfig, VisionConfig

SIGLIP = DualEncoderConfig(
    model_type="siglip",
    vision=VisionConfig(16, 24, 1, 2, image_size=14, patch_size=4),
    text=TextConfig(50, 20, 28, 2, 4, max_position_embeddings=7),
    embedding_size=16,
    eos_token_id=1,
)
