"""SigLIP's vision tower on disk: its section of config.json, and the names of its tensors."""

from dataclasses import dataclass, replace

from npgemma.checkpoints.config_keys import TANH_GELU, check_common
from npgemma.checkpoints.layout import table
from npgemma.io.strict_json import Section, words
from npgemma.layers.norms import LayerNorm
from npgemma.layers.tree import SLOT, sized
from npgemma.models.siglip import PatchEmbedding, VisionTower
from npgemma.models.vit import MLP, Attention, Block

HF = table("""
    embedding.weight            embeddings.patch_embedding.weight                D C h w
    embedding.bias              embeddings.patch_embedding.bias                  D
    embedding.position          embeddings.position_embedding.weight             P D
    blocks[i].attn_norm.weight  encoder.layers.{i}.layer_norm1.weight            D
    blocks[i].attn_norm.bias    encoder.layers.{i}.layer_norm1.bias              D
    blocks[i].attn.q            encoder.layers.{i}.self_attn.q_proj.weight       (N H) D
    blocks[i].attn.q_bias       encoder.layers.{i}.self_attn.q_proj.bias         (N H)
    blocks[i].attn.k            encoder.layers.{i}.self_attn.k_proj.weight       (N H) D
    blocks[i].attn.k_bias       encoder.layers.{i}.self_attn.k_proj.bias         (N H)
    blocks[i].attn.v            encoder.layers.{i}.self_attn.v_proj.weight       (N H) D
    blocks[i].attn.v_bias       encoder.layers.{i}.self_attn.v_proj.bias         (N H)
    blocks[i].attn.o            encoder.layers.{i}.self_attn.out_proj.weight     D (N H)
    blocks[i].attn.o_bias       encoder.layers.{i}.self_attn.out_proj.bias       D
    blocks[i].mlp_norm.weight   encoder.layers.{i}.layer_norm2.weight            D
    blocks[i].mlp_norm.bias     encoder.layers.{i}.layer_norm2.bias              D
    blocks[i].mlp.fc1           encoder.layers.{i}.mlp.fc1.weight                F D
    blocks[i].mlp.fc1_bias      encoder.layers.{i}.mlp.fc1.bias                  F
    blocks[i].mlp.fc2           encoder.layers.{i}.mlp.fc2.weight                D F
    blocks[i].mlp.fc2_bias      encoder.layers.{i}.mlp.fc2.bias                  D
    norm.weight                 post_layernorm.weight                            D
    norm.bias                   post_layernorm.bias                              D
""")

# big_vision's files: layers are stacked, matrices are [in, out].
NPZ = table("""
    embedding.weight            embedding/kernel                                                            h w C D
    embedding.bias              embedding/bias                                                              D
    embedding.position          pos_embedding                                                               1 P D
    blocks[i].attn_norm.weight  Transformer/encoderblock/LayerNorm_0/scale[i]                               D
    blocks[i].attn_norm.bias    Transformer/encoderblock/LayerNorm_0/bias[i]                                D
    blocks[i].attn.q            Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel[i]     D N H
    blocks[i].attn.q_bias       Transformer/encoderblock/MultiHeadDotProductAttention_0/query/bias[i]       N H
    blocks[i].attn.k            Transformer/encoderblock/MultiHeadDotProductAttention_0/key/kernel[i]       D N H
    blocks[i].attn.k_bias       Transformer/encoderblock/MultiHeadDotProductAttention_0/key/bias[i]         N H
    blocks[i].attn.v            Transformer/encoderblock/MultiHeadDotProductAttention_0/value/kernel[i]     D N H
    blocks[i].attn.v_bias       Transformer/encoderblock/MultiHeadDotProductAttention_0/value/bias[i]       N H
    blocks[i].attn.o            Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel[i]       N H D
    blocks[i].attn.o_bias       Transformer/encoderblock/MultiHeadDotProductAttention_0/out/bias[i]         D
    blocks[i].mlp_norm.weight   Transformer/encoderblock/LayerNorm_1/scale[i]                               D
    blocks[i].mlp_norm.bias     Transformer/encoderblock/LayerNorm_1/bias[i]                                D
    blocks[i].mlp.fc1           Transformer/encoderblock/MlpBlock_0/Dense_0/kernel[i]                       D F
    blocks[i].mlp.fc1_bias      Transformer/encoderblock/MlpBlock_0/Dense_0/bias[i]                         F
    blocks[i].mlp.fc2           Transformer/encoderblock/MlpBlock_0/Dense_1/kernel[i]                       F D
    blocks[i].mlp.fc2_bias      Transformer/encoderblock/MlpBlock_0/Dense_1/bias[i]                         D
    norm.weight                 Transformer/encoder_norm/scale                                              D
    norm.bias                   Transformer/encoder_norm/bias                                               D
""")


@dataclass(frozen=True)
class SiglipConfig:
    """SigLIP's vision tower, with transformers' names; the defaults are So400m/14 at 224 pixels."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


# Keys that do not matter to the tower: PaliGemma has no head, and its projector has no activation.
HARMLESS = words("""
    vision_use_head projection_dim projector_hidden_act num_image_tokens vocab_size attention_dropout
    initializer_range initializer_factor use_labels is_training num_positions
""")


def read(s: Section) -> SiglipConfig:
    """The config of a section of config.json. BadModel, with file and key, for a value that npgemma cannot compute."""
    check_common(s)
    s.ignore(HARMLESS)
    s.require("model_type", "siglip_vision_model")
    s.require("hidden_act", *TANH_GELU)
    d = SiglipConfig()
    config = SiglipConfig(
        hidden_size=s.count("hidden_size", d.hidden_size, 65536),
        intermediate_size=s.count("intermediate_size", d.intermediate_size, 1 << 20),
        num_hidden_layers=s.count("num_hidden_layers", d.num_hidden_layers, 512),
        num_attention_heads=s.count("num_attention_heads", d.num_attention_heads, 1024),
        num_channels=s.count("num_channels", d.num_channels, 3),
        image_size=s.count("image_size", d.image_size, 4096),
        patch_size=s.count("patch_size", d.patch_size, 4096),
        layer_norm_eps=s.positive("layer_norm_eps", d.layer_norm_eps),
    )
    heads, width = config.num_attention_heads, config.hidden_size
    if s.get("num_attention_heads") is None and width != d.hidden_size:
        # no tensor's shape shows the number of heads, so a wrong one would go unnoticed
        raise s.fault("num_attention_heads", heads, f"that of hidden_size {d.hidden_size} only, not of {width}")
    if width % heads:
        wrong = f"not a multiple of {s.named('num_attention_heads', heads)}"
        raise s.fault("hidden_size", width, wrong)
    if config.num_channels != 3:
        raise s.fault("num_channels", config.num_channels, "not 3 (RGB), which is all that npgemma supports")
    if config.patch_size > config.image_size:
        wrong = f"more than {s.named('image_size', config.image_size)}"
        raise s.fault("patch_size", config.patch_size, wrong)
    return config


def sizes(c: SiglipConfig) -> dict[str, int]:
    """The size of each letter of the tables."""
    return {
        "L": c.num_hidden_layers,
        "D": c.hidden_size,
        "N": c.num_attention_heads,
        "H": c.head_dim,
        "F": c.intermediate_size,
        "C": c.num_channels,
        "h": c.patch_size,
        "w": c.patch_size,
        "P": c.num_patches,
    }


def blank(c: SiglipConfig) -> VisionTower:
    """The weights with a Slot in place of each array."""
    norm = LayerNorm(SLOT, SLOT, c.layer_norm_eps)
    attention = Attention(SLOT, SLOT, SLOT, SLOT, SLOT, SLOT, SLOT, SLOT)
    block = Block(norm, attention, norm, MLP(SLOT, SLOT, SLOT, SLOT))
    ends = sized(VisionTower(PatchEmbedding(SLOT, SLOT, SLOT), (), norm), sizes(c))
    return replace(ends, blocks=(sized(block, sizes(c)),) * c.num_hidden_layers)
