"""The Gemma decoder on disk: the names of its tensors, and the skeleton of its weights."""

from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from npgemma.checkpoints.footprint import Footprint, Run
from npgemma.checkpoints.gemma_config import SLIDING, GemmaConfig
from npgemma.checkpoints.layout import Line, table
from npgemma.errors import BadModel
from npgemma.layers.norms import RMSNorm
from npgemma.layers.tree import SLOT, sized
from npgemma.models.gemma import MLP, MOST_ROWS, Attention, Block, Decoder, HeadNorm, cache_rows

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

EVERY_FAMILY_HAS = "input_layernorm.weight"
# The tensors by which the families differ, and the model_types of those that have them.
MARKS = {
    "pre_feedforward_layernorm.weight": ("gemma2", "gemma3_text"),
    "self_attn.q_norm.weight": ("gemma3_text",),
}


def hf_lines(c: GemmaConfig) -> tuple[Line, ...]:
    """The table of the family in Hugging Face's layout."""
    return HF if c.model_type == "gemma" else HF_POST_NORMS


def npz_lines(c: GemmaConfig) -> tuple[Line, ...]:
    """The table of the family in big_vision's layout."""
    return NPZ if c.model_type == "gemma" else NPZ_POST_NORMS


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


def blank(c: GemmaConfig, tied: bool, first_position: int = 0) -> Decoder:
    """The weights with a Slot in place of each array; `head` is None if it is tied to the embedding."""
    norm = RMSNorm(SLOT, c.rms_norm_eps)
    post_norm = None if c.model_type == "gemma" else norm
    kinds = {
        kind: sized(Block(norm, blank_attention(c, kind), norm, MLP(SLOT, SLOT, SLOT), post_norm, post_norm), sizes(c))
        for kind in set(c.layer_kinds)
    }
    head = None if tied else SLOT
    ends = sized(Decoder(SLOT, (), norm, head, c.final_logit_softcapping, first_position), sizes(c))
    return replace(ends, blocks=tuple(kinds[kind] for kind in c.layer_kinds))


def blank_attention(c: GemmaConfig, kind: str) -> Attention:
    """The attention of a layer of this kind."""
    has_window = kind == SLIDING
    head_norm = HeadNorm(SLOT, c.rms_norm_eps) if c.model_type == "gemma3_text" else None
    local = c.rope_local_base_freq if has_window else None
    return Attention(
        q=SLOT,
        k=SLOT,
        v=SLOT,
        theta=local or c.rope_theta,
        o=SLOT,
        q_norm=head_norm,
        k_norm=head_norm,
        factor=1.0 if local else c.rope_factor,
        scale=(c.query_pre_attn_scalar or c.head_dim) ** -0.5,
        cap=c.attn_logit_softcapping,
        window=c.sliding_window if has_window else None,
    )


def cache_numbers(decoder: Decoder, tokens: int) -> int:
    """The number of keys and values that the caches of all layers hold for a sequence of so many tokens."""
    layers = [block.attn for block in decoder.blocks]
    return sum(2 * p.k.shape[0] * p.k.shape[1] * cache_rows(tokens, p.window) for p in layers)


def footprint(decoder: Decoder, c: GemmaConfig, run: Run, before: int = 0) -> Footprint:
    """The memory for a run that answers all prompts at the same time.

    Activations peak in an MLP for the rows of all prompts, or in what runs before the decoder, which needs `before`
    numbers. Masks come on top: a byte for each pair of rows of a prompt, twice if layers have a window, and once more
    while the last is made. So do logits: those of a step and of the step before, one row per answer or `logit_rows`, or
    those of a step with drafts, which a cap needs four times; and one row in float64.
    """
    sequences = run.samples * len(run.prompts)
    step_rows = sequences * min(MOST_ROWS, max(1, run.new_tokens - 1))
    rows = max(sum(run.prompts), step_rows)
    activations = max(before, rows * (4 * c.hidden_size + 3 * c.intermediate_size))
    logit_rows = max(2 * sequences, 2 * run.logit_rows, step_rows if decoder.cap is None else 4 * step_rows)
    logits = logit_rows * c.vocab_size * run.itemsize + 4 * 8 * c.vocab_size
    masks = (1 if decoder.window is None else 2) * sum(n * n for n in run.prompts) + max(run.prompts, default=0) ** 2
    caches = run.samples * sum(cache_numbers(decoder, length + run.new_tokens) for length in run.prompts)
    return Footprint(run.weights, caches * run.itemsize, activations * run.itemsize + masks + logits)


def check_family(tensors: Container[str], c: GemmaConfig, prefix: str, where: Path) -> None:
    """BadModel if the norms of all layers are those of another family than the config says.

    `prefix` stands before the names of the decoder's tensors.
    """
    names = (f"{prefix}model.layers.{i}." for i in range(c.num_hidden_layers))
    layers = [layer for layer in names if layer + EVERY_FAMILY_HAS in tensors]
    for mark, families in MARKS.items():
        count = sum(layer + mark in tensors for layer in layers)
        if layers and count == (0 if c.model_type in families else len(layers)):
            found = f"{'hold' if count else 'lack'} {layers[0] + mark}, which belongs to {' and '.join(families)}"
            raise BadModel(
                f"{where}: the tensors {found}, and config.json says that the model_type is {c.model_type!r}; "
                "the two belong to different models"
            )
