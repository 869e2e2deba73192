"""The Gemma decoder on disk: its section of config.json, and the names of its tensors."""

from dataclasses import dataclass, replace

from npgemma.checkpoints.config_keys import TANH_GELU, check_common
from npgemma.checkpoints.layout import table
from npgemma.errors import BadModel
from npgemma.io.strict_json import Section, words
from npgemma.layers.norms import RMSNorm
from npgemma.layers.tree import SLOT, sized
from npgemma.models.gemma import MLP, Attention, Block, Decoder, HeadNorm

# In Gemma 1, post_attention_layernorm is the norm before the MLP: nothing that attention wrote is normed.
HF = table("""
    embedding                   model.embed_tokens.weight                            V D
    blocks[i].attn_norm.weight  model.layers.{i}.input_layernorm.weight              D
    blocks[i].attn.q            model.layers.{i}.self_attn.q_proj.weight             (N H) D
    blocks[i].attn.k            model.layers.{i}.self_attn.k_proj.weight             (K H) D
    blocks[i].attn.v            model.layers.{i}.self_attn.v_proj.weight             (K H) D
    blocks[i].attn.o            model.layers.{i}.self_attn.o_proj.weight             D (N H)
    blocks[i].mlp_norm.weight   model.layers.{i}.post_attention_layernorm.weight     D
    blocks[i].mlp.gate          model.layers.{i}.mlp.gate_proj.weight                F D
    blocks[i].mlp.up            model.layers.{i}.mlp.up_proj.weight                  F D
    blocks[i].mlp.down          model.layers.{i}.mlp.down_proj.weight                D F
    norm.weight                 model.norm.weight                                    D
""")
# Gemma 2 and 3, whose post_attention_layernorm is the norm of what attention writes.
HF_POST_NORMS = table("""
    embedding                        model.embed_tokens.weight                           V D
    blocks[i].attn_norm.weight       model.layers.{i}.input_layernorm.weight             D
    blocks[i].attn.q                 model.layers.{i}.self_attn.q_proj.weight            (N H) D
    blocks[i].attn.k                 model.layers.{i}.self_attn.k_proj.weight            (K H) D
    blocks[i].attn.v                 model.layers.{i}.self_attn.v_proj.weight            (K H) D
    blocks[i].attn.o                 model.layers.{i}.self_attn.o_proj.weight            D (N H)
    blocks[i].attn.q_norm.weight     model.layers.{i}.self_attn.q_norm.weight            H
    blocks[i].attn.k_norm.weight     model.layers.{i}.self_attn.k_norm.weight            H
    blocks[i].attn_post_norm.weight  model.layers.{i}.post_attention_layernorm.weight    D
    blocks[i].mlp_norm.weight        model.layers.{i}.pre_feedforward_layernorm.weight   D
    blocks[i].mlp.gate               model.layers.{i}.mlp.gate_proj.weight               F D
    blocks[i].mlp.up                 model.layers.{i}.mlp.up_proj.weight                 F D
    blocks[i].mlp.down               model.layers.{i}.mlp.down_proj.weight               D F
    blocks[i].mlp_post_norm.weight   model.layers.{i}.post_feedforward_layernorm.weight  D
    norm.weight                      model.norm.weight                                   D
""")
HF_HEAD = table("""
    head                        lm_head.weight                                       V D
""")

# big_vision's files: layers are stacked, keys and values fused, and matrices are [in, out].
NPZ = table("""
    embedding                   embedder/input_embedding                             V D
    blocks[i].attn_norm.weight  layers/pre_attention_norm/scale[i]                   D
    blocks[i].attn.q            layers/attn/q_einsum/w[i]                            N D H
    blocks[i].attn.k            layers/attn/kv_einsum/w[i, 0]                        K D H
    blocks[i].attn.v            layers/attn/kv_einsum/w[i, 1]                        K D H
    blocks[i].attn.o            layers/attn/attn_vec_einsum/w[i]                     N H D
    blocks[i].mlp_norm.weight   layers/pre_ffw_norm/scale[i]                         D
    blocks[i].mlp.gate          layers/mlp/gating_einsum[i, 0]                       D F
    blocks[i].mlp.up            layers/mlp/gating_einsum[i, 1]                       D F
    blocks[i].mlp.down          layers/mlp/linear[i]                                 F D
    norm.weight                 final_norm/scale                                     D
""")
# PaliGemma 2 adds the norms of what attention and MLP write.
NPZ_POST_NORMS = NPZ + table("""
    blocks[i].attn_post_norm.weight  layers/post_attention_norm/scale[i]             D
    blocks[i].mlp_post_norm.weight   layers/post_ffw_norm/scale[i]                   D
""")
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class GemmaConfig:
    """The decoder, with transformers' names; the defaults are those of Gemma 2B in PaliGemma.

    `query_pre_attn_scalar` is head_dim if None. `layer_types` says which layers have a window, 'sliding_attention' or
    'full_attention' for each; an empty one is that of the model_type.
    """

    hidden_size: int = 2048
    intermediate_size: int = 16384
    num_hidden_layers: int = 18
    num_attention_heads: int = 8
    num_key_value_heads: int = 1
    head_dim: int = 256
    vocab_size: int = 257216
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    model_type: str = "gemma"
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    rope_local_base_freq: float = 10000.0
    rope_factor: float = 1.0

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        return self.layer_types or default_layer_types(self.model_type, self.num_hidden_layers)


# What a config that leaves a key out means by it, for each model_type.
DEFAULTS = {
    "gemma": GemmaConfig(),
    "gemma2": GemmaConfig(
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_key_value_heads=4,
        vocab_size=256000,
        model_type="gemma2",
        query_pre_attn_scalar=256.0,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        sliding_window=4096,
    ),
    "gemma3_text": GemmaConfig(
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_key_value_heads=4,
        vocab_size=262208,
        max_position_embeddings=131072,
        rope_theta=1e6,
        model_type="gemma3_text",
        query_pre_attn_scalar=256.0,
        sliding_window=4096,
    ),
}


def default_layer_types(model_type: str, layers: int, pattern: int = 6) -> tuple[str, ...]:
    """Every layer of Gemma 1 is full, every second of Gemma 2, every sixth of Gemma 3."""
    period = {"gemma": 1, "gemma2": 2}.get(model_type, pattern)
    return tuple(SLIDING if (i + 1) % period else FULL for i in range(layers))


# Keys that do not matter to the decoder. transformers reads tie_word_embeddings outside this section only.
HARMLESS = words("""
    bos_token_id eos_token_id pad_token_id tie_word_embeddings use_bidirectional_attention use_cache
    attention_dropout initializer_range
""")
# With a factor of 1, these rotary positions are the plain ones, up to max_position_embeddings.
SCALED_BY_FACTOR = ("linear", "dynamic", "llama3")
ROTATION_HARMLESS = words("""
    type rope_type factor rope_theta original_max_position_embeddings low_freq_factor high_freq_factor
""")


def read(s: Section) -> GemmaConfig:
    """The config of a section of config.json. BadModel, with file and key, for a value that npgemma cannot compute."""
    check_common(s)
    s.ignore(HARMLESS)
    if s.get("model_type") == "gemma2":
        what = "model_type is 'gemma2': the model is a PaliGemma 2; npgemma supports PaliGemma 1 (model_type 'gemma')"
        raise BadModel(f"{s.where}: {what}")
    s.require("model_type", "gemma")
    s.require("hidden_activation", *TANH_GELU)
    s.require("hidden_act", *TANH_GELU, "gelu")  # Gemma's first configs say gelu for the tanh form
    s.require("attention_bias", False)
    d = GemmaConfig()
    config = GemmaConfig(
        hidden_size=s.count("hidden_size", d.hidden_size, 65536),
        intermediate_size=s.count("intermediate_size", d.intermediate_size, 1 << 20),
        num_hidden_layers=s.count("num_hidden_layers", d.num_hidden_layers, 512),
        num_attention_heads=s.count("num_attention_heads", d.num_attention_heads, 1024),
        num_key_value_heads=s.count("num_key_value_heads", d.num_key_value_heads, 1024),
        head_dim=s.count("head_dim", d.head_dim, 65536),
        vocab_size=s.count("vocab_size", d.vocab_size, 1 << 24),
        max_position_embeddings=s.count("max_position_embeddings", d.max_position_embeddings, 1 << 24),
        rms_norm_eps=s.positive("rms_norm_eps", d.rms_norm_eps),
        rope_theta=read_rope_theta(s, d.rope_theta),
    )
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    if queries % keys:
        wrong = f"not a multiple of {s.named('num_key_value_heads', keys)}"
        raise s.fault("num_attention_heads", queries, wrong)
    if config.head_dim % 2:
        raise s.fault("head_dim", config.head_dim, "not even, as rotary positions need it, since they rotate pairs")
    return config


def read_rope_theta(s: Section, default: float) -> float:
    """The base of the rotary positions. BadModel, with file and key, for another kind of positions.

    As in transformers, `rope_scaling` (of version 4) goes before `rope_parameters` (of version 5), unless it is empty,
    and a theta in either before the older key next to them.
    """
    sections = s.section("rope_scaling"), s.section("rope_parameters")
    rotation = next((each for each in sections if each.values), sections[1])
    for each in sections:
        each.ignore(ROTATION_HARMLESS)
    key = "type" if rotation.get("rope_type") is None else "rope_type"
    kind = rotation.get(key, "default")
    if kind in SCALED_BY_FACTOR:
        factor = rotation.get("factor")
        if factor != 1:
            what = f"{key} is {kind!r} with the factor {factor!r}; npgemma supports 'default', or a factor of 1"
            raise BadModel(f"{rotation.where}: {what}")
    else:
        rotation.require(key, "default")
    for each in (s, rotation):
        each.require("partial_rotary_factor", 1)
    return rotation.positive("rope_theta", s.positive("rope_theta", default))


def sizes(c: GemmaConfig) -> dict[str, int]:
    """The size of each letter of the tables."""
    return {
        "L": c.num_hidden_layers,
        "V": c.vocab_size,
        "D": c.hidden_size,
        "N": c.num_attention_heads,
        "K": c.num_key_value_heads,
        "H": c.head_dim,
        "F": c.intermediate_size,
    }


def blank(c: GemmaConfig, tied: bool) -> Decoder:
    """The weights with a Slot in place of each array; `head` is None if it is tied to the embedding."""
    norm = RMSNorm(SLOT, c.rms_norm_eps)
    post_norm = None if c.model_type == "gemma" else norm
    head_norm = HeadNorm(SLOT, c.rms_norm_eps) if c.model_type == "gemma3_text" else None
    scale = (c.query_pre_attn_scalar or c.head_dim) ** -0.5
    mlp = MLP(SLOT, SLOT, SLOT)

    def block(kind: str) -> Block:
        sliding = kind == SLIDING
        attn = Attention(
            SLOT,
            SLOT,
            SLOT,
            c.rope_local_base_freq if sliding else c.rope_theta,
            SLOT,
            head_norm,
            head_norm,
            factor=1.0 if sliding else c.rope_factor,
            scale=scale,
            cap=c.attn_logit_softcapping,
            window=c.sliding_window if sliding else None,
        )
        return Block(norm, attn, norm, mlp, post_norm, post_norm)

    kinds = {kind: sized(block(kind), sizes(c)) for kind in (SLIDING, FULL)}
    ends = sized(Decoder(SLOT, (), norm, None if tied else SLOT, c.final_logit_softcapping), sizes(c))
    return replace(ends, blocks=tuple(kinds[kind] for kind in c.layer_kinds))


def cache_numbers(decoder: Decoder) -> int:
    """The number of keys and values that the caches of all layers hold for each token."""
    return sum(2 * block.attn.k.shape[0] * block.attn.k.shape[1] for block in decoder.blocks)
