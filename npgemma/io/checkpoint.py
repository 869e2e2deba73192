"""A PaliGemma folder in Hugging Face layout -> the weights of models.paligemma.

Every tensor that the config asks for must be there in its shape, and no other: a checkpoint that almost fits would run
and answer nonsense.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npgemma.errors import BadModel
from npgemma.io.config import Config, TextConfig, VisionConfig
from npgemma.io.names import HEAD, NOT_USED, plain_name
from npgemma.io.safetensors import open_model
from npgemma.layers.matmul import BLOCK, row_blocks, widened
from npgemma.layers.ops import LayerNorm, RMSNorm
from npgemma.layers.shapes import Array
from npgemma.layers.threads import in_parallel
from npgemma.models import gemma, siglip
from npgemma.models.paligemma import PaliGemma, Projector


def expected_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor a checkpoint of this config holds, by plain name, the optional untied head aside."""
    v, t = c.vision, c.text
    shapes: dict[str, tuple[int, ...]] = {
        "vision.embeddings.patch_embedding.weight": (v.hidden_size, v.num_channels, v.patch_size, v.patch_size),
        "vision.embeddings.patch_embedding.bias": (v.hidden_size,),
        "vision.embeddings.position_embedding.weight": (v.num_patches, v.hidden_size),
        "vision.post_layernorm.weight": (v.hidden_size,),
        "vision.post_layernorm.bias": (v.hidden_size,),
        "multi_modal_projector.linear.weight": (t.hidden_size, v.hidden_size),
        "multi_modal_projector.linear.bias": (t.hidden_size,),
        "text.embed_tokens.weight": (t.vocab_size, t.hidden_size),
        "text.norm.weight": (t.hidden_size,),
    }
    for i in range(v.num_hidden_layers):
        layer = f"vision.encoder.layers.{i}."
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {layer + name + ".weight": (v.hidden_size,), layer + name + ".bias": (v.hidden_size,)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[layer + f"self_attn.{name}.weight"] = (v.hidden_size, v.hidden_size)
            shapes[layer + f"self_attn.{name}.bias"] = (v.hidden_size,)
        shapes[layer + "mlp.fc1.weight"] = (v.intermediate_size, v.hidden_size)
        shapes[layer + "mlp.fc1.bias"] = (v.intermediate_size,)
        shapes[layer + "mlp.fc2.weight"] = (v.hidden_size, v.intermediate_size)
        shapes[layer + "mlp.fc2.bias"] = (v.hidden_size,)
    for i in range(t.num_hidden_layers):
        layer = f"text.layers.{i}."
        shapes |= {
            layer + f"{name}.weight": (t.hidden_size,) for name in ("input_layernorm", "post_attention_layernorm")
        }
        shapes[layer + "self_attn.q_proj.weight"] = (t.num_attention_heads * t.head_dim, t.hidden_size)
        shapes[layer + "self_attn.k_proj.weight"] = (t.num_key_value_heads * t.head_dim, t.hidden_size)
        shapes[layer + "self_attn.v_proj.weight"] = (t.num_key_value_heads * t.head_dim, t.hidden_size)
        shapes[layer + "self_attn.o_proj.weight"] = (t.hidden_size, t.num_attention_heads * t.head_dim)
        shapes[layer + "mlp.gate_proj.weight"] = (t.intermediate_size, t.hidden_size)
        shapes[layer + "mlp.up_proj.weight"] = (t.intermediate_size, t.hidden_size)
        shapes[layer + "mlp.down_proj.weight"] = (t.hidden_size, t.intermediate_size)
    return shapes


def check(tensors: Mapping[str, Array], config: Config, where: Path) -> None:
    """BadModel, naming every tensor that is missing, unexpected or of another shape than the config asks for."""
    expected = expected_shapes(config)
    if HEAD in tensors or not config.tied:
        expected[HEAD] = expected["text.embed_tokens.weight"]
    missing = [f"  missing     {name} {shape}" for name, shape in expected.items() if name not in tensors]
    extra = [f"  unexpected  {name} {x.shape}" for name, x in tensors.items() if name not in expected]
    wrong = [
        f"  mis-shaped  {name}: stored {tensors[name].shape}, the config asks for {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if missing or extra or wrong:
        count = f"{len(missing)} missing, {len(extra)} unexpected, {len(wrong)} mis-shaped"
        raise BadModel("\n".join([f"{where}: the tensors do not fit config.json ({count})", *missing, *extra, *wrong]))


def read_tensors(model: Path, config: Config) -> dict[str, Array]:
    """A model's tensors by plain name, mapped and checked. BadModel as `check` and `open_model` say."""
    tensors: dict[str, Array] = {}
    spelled: dict[str, str] = {}
    for stored, array in open_model(model).items():
        name = plain_name(stored)
        if NOT_USED.fullmatch(name):
            continue
        if name in tensors:
            raise BadModel(f"{model}: {spelled[name]!r} and {stored!r} are two spellings of the same tensor")
        tensors[name], spelled[name] = array, stored
    check(tensors, config, model)
    return tensors


@dataclass(frozen=True)
class Scope:
    """The tensors whose plain names begin with `prefix`, by the rest of their names."""

    tensors: Mapping[str, Array]
    prefix: str = ""

    def at(self, name: str) -> "Scope":
        return Scope(self.tensors, f"{self.prefix}{name}.")

    def matrix(self, name: str) -> Array:
        """A weight as it is stored."""
        return self.tensors[f"{self.prefix}{name}.weight"]

    def vector(self, name: str) -> Array:
        """A norm, a bias or the position table: what is added or multiplied element by element. It becomes float32."""
        return widened(self.tensors[self.prefix + name], np.dtype(np.float32))


def layer_norm(s: Scope, eps: float) -> LayerNorm:
    return LayerNorm(s.vector("weight"), s.vector("bias"), eps)


def rms_norm(s: Scope, eps: float) -> RMSNorm:
    return RMSNorm(s.vector("weight"), eps)


def vision_block(s: Scope, c: VisionConfig) -> siglip.Block:
    heads = (c.num_attention_heads, c.head_dim)
    a, m = s.at("self_attn"), s.at("mlp")
    attention = siglip.Attention(
        q=a.matrix("q_proj").reshape(*heads, -1),
        q_bias=a.vector("q_proj.bias").reshape(heads),
        k=a.matrix("k_proj").reshape(*heads, -1),
        k_bias=a.vector("k_proj.bias").reshape(heads),
        v=a.matrix("v_proj").reshape(*heads, -1),
        v_bias=a.vector("v_proj.bias").reshape(heads),
        o=a.matrix("out_proj").reshape(-1, *heads),
        o_bias=a.vector("out_proj.bias"),
    )
    mlp = siglip.MLP(m.matrix("fc1"), m.vector("fc1.bias"), m.matrix("fc2"), m.vector("fc2.bias"))
    norm1, norm2 = (layer_norm(s.at(name), c.layer_norm_eps) for name in ("layer_norm1", "layer_norm2"))
    return siglip.Block(norm1, attention, norm2, mlp)


def vision_tower(s: Scope, c: VisionConfig) -> siglip.VisionTower:
    e = s.at("embeddings")
    embedding = siglip.PatchEmbedding(
        e.matrix("patch_embedding"), e.vector("patch_embedding.bias"), e.vector("position_embedding.weight")
    )
    blocks = tuple(vision_block(s.at(f"encoder.layers.{i}"), c) for i in range(c.num_hidden_layers))
    return siglip.VisionTower(embedding, blocks, layer_norm(s.at("post_layernorm"), c.layer_norm_eps))


def text_block(s: Scope, c: TextConfig) -> gemma.Block:
    query_heads, key_heads = (c.num_attention_heads, c.head_dim), (c.num_key_value_heads, c.head_dim)
    a, m = s.at("self_attn"), s.at("mlp")
    attention = gemma.Attention(
        q=a.matrix("q_proj").reshape(*query_heads, -1),
        k=a.matrix("k_proj").reshape(*key_heads, -1),
        v=a.matrix("v_proj").reshape(*key_heads, -1),
        theta=c.rope_theta,
        o=a.matrix("o_proj").reshape(-1, *query_heads),
    )
    mlp = gemma.MLP(m.matrix("gate_proj"), m.matrix("up_proj"), m.matrix("down_proj"))
    # In Gemma 1 the norm named post_attention_layernorm stands before the MLP; it norms nothing that attention wrote.
    norm1, norm2 = (rms_norm(s.at(name), c.rms_norm_eps) for name in ("input_layernorm", "post_attention_layernorm"))
    return gemma.Block(norm1, attention, norm2, mlp)


def decoder(s: Scope, c: TextConfig) -> gemma.Decoder:
    table = s.matrix("embed_tokens")
    blocks = tuple(text_block(s.at(f"layers.{i}"), c) for i in range(c.num_hidden_layers))
    return gemma.Decoder(table, blocks, rms_norm(s.at("norm"), c.rms_norm_eps), s.tensors.get(HEAD, table))


def paligemma(tensors: Mapping[str, Array], c: Config) -> PaliGemma:
    """The weights out of tensors by plain name. Matrices stay as they are; norms, biases and positions become float32.

    Head axes are made by reshaping, which copies nothing: the rows of q_proj are the heads one after the other.
    """
    s = Scope(tensors)
    p = s.at("multi_modal_projector")
    projector = Projector(p.matrix("linear"), p.vector("linear.bias"))
    return PaliGemma(
        vision_tower(s.at("vision"), c.vision), projector, decoder(s.at("text"), c.text), c.image_token_index
    )


def in_memory(tensors: Mapping[str, Array], dtype: np.dtype) -> dict[str, Array]:
    """All tensors as `dtype` and in memory, so that the files may go; those that are so already stay where they are."""
    return {name: w if w.flags.owndata and w.dtype == dtype else copied(w, dtype) for name, w in tensors.items()}


def copied(w: Array, dtype: np.dtype) -> Array:
    """`w` widened to `dtype`, a block at a time, in memory of its own."""
    copy = np.empty(w.shape, dtype)
    in_parallel(
        lambda block: copy.__setitem__(block, widened(w[block], dtype)), row_blocks(w.reshape(len(w), -1), BLOCK)
    )
    return copy
