"""What the towers of ViT, CLIP and SigLIP have in common on disk: configs, blocks, and the memory of a run."""

from dataclasses import dataclass, replace
from typing import Any

from npgemma.checkpoints.config_keys import TANH_GELU
from npgemma.checkpoints.footprint import Footprint, Run
from npgemma.checkpoints.layout import table, within
from npgemma.io.pixels import PALIGEMMA, PixelSettings
from npgemma.io.strict_json import Section, words
from npgemma.layers.activations import Activation, gelu, gelu_erf, quick_gelu
from npgemma.layers.norms import LayerNorm
from npgemma.layers.threads import rows_at_a_time
from npgemma.layers.tree import SLOT, Slot, sized
from npgemma.models.vit import MLP, Attention, Block

ACTIVATIONS: dict[str, Activation] = {"gelu_pytorch_tanh": gelu, "gelu": gelu_erf, "quick_gelu": quick_gelu}
# Which of them each name in a config.json means.
SPELLINGS = (
    dict.fromkeys(TANH_GELU, "gelu_pytorch_tanh") | {name: name for name in ACTIVATIONS} | {"gelu_python": "gelu"}
)

# The parts of a block, as transformers names them in all towers but ViT's.
HF_ATTENTION_OUT = table("""
    attn.o            out_proj.weight             D (N H)
    attn.o_bias       out_proj.bias               D
""")
HF_ATTENTION = HF_ATTENTION_OUT + table("""
    attn.q            q_proj.weight               (N H) D
    attn.q_bias       q_proj.bias                 (N H)
    attn.k            k_proj.weight               (N H) D
    attn.k_bias       k_proj.bias                 (N H)
    attn.v            v_proj.weight               (N H) D
    attn.v_bias       v_proj.bias                 (N H)
""")
# torch.nn.MultiheadAttention holds the rows of q, k and v in one matrix.
FUSED_ATTENTION = HF_ATTENTION_OUT + table("""
    attn.q            in_proj_weight[0]           (3 N H) D
    attn.k            in_proj_weight[1]           (3 N H) D
    attn.v            in_proj_weight[2]           (3 N H) D
    attn.q_bias       in_proj_bias[0]             (3 N H)
    attn.k_bias       in_proj_bias[1]             (3 N H)
    attn.v_bias       in_proj_bias[2]             (3 N H)
""")
HF_MLP = table("""
    mlp.fc1           mlp.fc1.weight              F D
    mlp.fc1_bias      mlp.fc1.bias                F
    mlp.fc2           mlp.fc2.weight              D F
    mlp.fc2_bias      mlp.fc2.bias                D
""")
HF_NORMS = table("""
    attn_norm.weight  layer_norm1.weight          D
    attn_norm.bias    layer_norm1.bias            D
    mlp_norm.weight   layer_norm2.weight          D
    mlp_norm.bias     layer_norm2.bias            D
""")
HF_BLOCK = HF_NORMS + within(HF_ATTENTION, "", "self_attn.{}") + HF_MLP
HF_BLOCKS = within(HF_BLOCK, "blocks[i].", "encoder.layers.{i}.{}")

# big_vision's files: matrices are [in, out], layers are stacked or each has its own arrays.
NPZ_ATTENTION = table("""
    attn.q            query/kernel                D N H
    attn.q_bias       query/bias                  N H
    attn.k            key/kernel                  D N H
    attn.k_bias       key/bias                    N H
    attn.v            value/kernel                D N H
    attn.v_bias       value/bias                  N H
    attn.o            out/kernel                  N H D
    attn.o_bias       out/bias                    D
""")
NPZ_MLP = table("""
    mlp.fc1           Dense_0/kernel              D F
    mlp.fc1_bias      Dense_0/bias                F
    mlp.fc2           Dense_1/kernel              F D
    mlp.fc2_bias      Dense_1/bias                D
""")
NPZ_NORMS = table("""
    attn_norm.weight  LayerNorm_0/scale           D
    attn_norm.bias    LayerNorm_0/bias            D
    mlp_norm.weight   LayerNorm_1/scale           D
    mlp_norm.bias     LayerNorm_1/bias            D
""")
NPZ_BLOCK = (
    NPZ_NORMS + within(NPZ_ATTENTION, "", "MultiHeadDotProductAttention_0/{}") + within(NPZ_MLP, "", "MlpBlock_0/{}")
)
NPZ_STACKED = within(NPZ_BLOCK, "blocks[i].", "encoderblock/{}[i]")
NPZ_BLOCKS = within(NPZ_BLOCK, "blocks[i].", "encoderblock_{i}/{}")


@dataclass(frozen=True)
class VisionConfig:
    """A vision tower, with transformers' names; the defaults are PaliGemma's, SigLIP So400m/14 at 224 pixels."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class TextConfig:
    """A text tower, with transformers' names; the defaults are those of SigLIP base."""

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 64
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class DualEncoderConfig:
    """CLIP or SigLIP, by `model_type`.

    Two towers, the width of their embeddings, the token that ends a text, and how pictures become numbers; SigLIP's do
    as PaliGemma's.
    """

    model_type: str
    vision: VisionConfig
    text: TextConfig
    embedding_size: int
    eos_token_id: int
    pixels: PixelSettings = PALIGEMMA


# Keys that do not matter to a tower.
HARMLESS = words("""
    attention_dropout dropout initializer_range initializer_factor use_labels is_training num_positions pad_token_id
    bos_token_id
""")
# What old releases of transformers wrote into every config: how a language model would write, and other tasks.
LEFTOVERS = words("""
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences remove_invalid_values repetition_penalty
    suppress_tokens temperature tie_word_embeddings top_k top_p typical_p use_cache
""")


def read_vision(s: Section, d: VisionConfig, *activations: str) -> VisionConfig:
    """The vision tower of a section of config.json, in which a missing key has the value that `d` has.

    BadModel, with file and key, for a value that npgemma cannot compute.
    """
    s.ignore(HARMLESS)
    config = VisionConfig(
        hidden_size=s.count("hidden_size", d.hidden_size, 65536),
        intermediate_size=s.count("intermediate_size", d.intermediate_size, 1 << 20),
        num_hidden_layers=s.count("num_hidden_layers", d.num_hidden_layers, 512),
        num_attention_heads=s.count("num_attention_heads", d.num_attention_heads, 1024),
        num_channels=s.count("num_channels", d.num_channels, 3),
        image_size=s.count("image_size", d.image_size, 4096),
        patch_size=s.count("patch_size", d.patch_size, 4096),
        layer_norm_eps=s.positive("layer_norm_eps", d.layer_norm_eps),
        hidden_act=read_activation(s, d.hidden_act, *activations),
    )
    check_heads(s, config, d)
    if config.num_channels != 3:
        raise s.fault("num_channels", config.num_channels, "not 3 (RGB), which is all that npgemma supports")
    if config.patch_size > config.image_size:
        wrong = f"more than {s.named('image_size', config.image_size)}"
        raise s.fault("patch_size", config.patch_size, wrong)
    return config


def read_text(s: Section, d: TextConfig, *activations: str) -> TextConfig:
    """The text tower of a section of config.json; defaults and errors as for `read_vision`."""
    s.ignore(HARMLESS)
    config = TextConfig(
        vocab_size=s.count("vocab_size", d.vocab_size, 1 << 24),
        hidden_size=s.count("hidden_size", d.hidden_size, 65536),
        intermediate_size=s.count("intermediate_size", d.intermediate_size, 1 << 20),
        num_hidden_layers=s.count("num_hidden_layers", d.num_hidden_layers, 512),
        num_attention_heads=s.count("num_attention_heads", d.num_attention_heads, 1024),
        max_position_embeddings=s.count("max_position_embeddings", d.max_position_embeddings, 1 << 20),
        layer_norm_eps=s.positive("layer_norm_eps", d.layer_norm_eps),
        hidden_act=read_activation(s, d.hidden_act, *activations),
    )
    check_heads(s, config, d)
    return config


def read_activation(s: Section, default: str, *supported: str) -> str:
    """The activation of the MLPs, one of those supported: any of SPELLINGS if none is named."""
    s.require("hidden_act", *(supported or SPELLINGS))
    return SPELLINGS[s.get("hidden_act", default)]


def check_heads(s: Section, c: VisionConfig | TextConfig, d: VisionConfig | TextConfig) -> None:
    """BadModel unless the heads divide the width, and are stated if the width is not the default one."""
    heads, width = c.num_attention_heads, c.hidden_size
    if s.get("num_attention_heads") is None and width != d.hidden_size:
        # no tensor's shape shows the number of heads, so a wrong one would go unnoticed
        raise s.fault("num_attention_heads", heads, f"that of hidden_size {d.hidden_size} only, not of {width}")
    if width % heads:
        wrong = f"not a multiple of {s.named('num_attention_heads', heads)}"
        raise s.fault("hidden_size", width, wrong)


def vision_sizes(c: VisionConfig) -> dict[str, int]:
    """The size of each letter of the tables of a vision tower; T counts the patches and a class token."""
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
        "T": c.num_patches + 1,
    }


def text_sizes(c: TextConfig) -> dict[str, int]:
    """The size of each letter of the tables of a text tower."""
    return {
        "L": c.num_hidden_layers,
        "D": c.hidden_size,
        "N": c.num_attention_heads,
        "H": c.head_dim,
        "F": c.intermediate_size,
        "V": c.vocab_size,
        "S": c.max_position_embeddings,
    }


ATTENTION = Attention(SLOT, SLOT, SLOT, SLOT, SLOT, SLOT, SLOT, SLOT)
MLP_SLOTS = MLP(SLOT, SLOT, SLOT, SLOT)
NUMBER: Any = Slot(())  # the Slot of a single number


def blank_norm(c: VisionConfig | TextConfig) -> LayerNorm:
    """A layer norm with a Slot in place of each array, which has no shape yet."""
    return LayerNorm(SLOT, SLOT, c.layer_norm_eps)


def blank_blocks(c: VisionConfig | TextConfig) -> tuple[Block, ...]:
    """The blocks of a tower with a Slot in place of each array."""
    block = Block(blank_norm(c), ATTENTION, blank_norm(c), MLP_SLOTS)
    letters = {"D": c.hidden_size, "N": c.num_attention_heads, "H": c.head_dim, "F": c.intermediate_size}
    return (sized(block, letters),) * c.num_hidden_layers


def vision_numbers(c: VisionConfig, pictures: int) -> int:
    """How many numbers the activations of so many pictures have at a time."""
    pixels = pictures * c.num_channels * c.image_size**2
    return pixels + encoder_numbers(c, pictures, c.num_patches + 1)


def encoder_numbers(c: VisionConfig | TextConfig, sequences: int, rows: int) -> int:
    """The rows that go into an encoder and come out of it, and what its blocks compute of some of them at a time."""
    active = rows_at_a_time(sequences, rows) * (2 * c.hidden_size + 2 * c.intermediate_size)
    return sequences * rows * 2 * c.hidden_size + active


def footprint(c: DualEncoderConfig, run: Run) -> Footprint:
    """The memory for a run that embeds all pictures at the same time, and then all texts."""
    texts = encoder_numbers(c.text, len(run.prompts), max(run.prompts, default=0))
    most = max(vision_numbers(c.vision, run.pictures), texts)
    embeddings = (run.pictures + len(run.prompts)) * c.embedding_size
    return Footprint(run.weights, 0, (most + embeddings) * run.itemsize)


def shortest_run(c: DualEncoderConfig, weights: int, itemsize: int) -> Run:
    """One picture and one text, with so many bytes of weights."""
    return Run(weights, itemsize, 1, [c.text.max_position_embeddings])


def with_vocabulary(c: DualEncoderConfig, rows: int) -> DualEncoderConfig:
    """The config of the same model with another number of rows in its table of tokens."""
    return replace(c, text=replace(c.text, vocab_size=rows))
