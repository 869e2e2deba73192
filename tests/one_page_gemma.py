"""Gemma 2 and 3 on one page: what they change in Gemma 1, which one_page.py spells, in float64 with NumPy alone.

`config` is the text section of config.json with every key written out. Axes: T rows, S key rows, N query heads, K key
heads, H width of a head, D width of the decoder, F width of an MLP, V vocabulary.
"""

import numpy as np
from one_page import gelu, linear, rms_norm, rope, softmax


def capped(x, cap):
    """cap tanh(x / cap), if there is a cap (Gemma 2, 2024)."""
    return cap * np.tanh(x / cap) if cap else x  # N T S, T V


def masks(token_type_ids, window):
    """Each row sees itself and those before, or the last `window` of them; the prefix (type 0) sees all of itself."""
    prefix = np.equal(token_type_ids, 0)  # T
    full = np.tri(len(prefix), dtype=bool)  # T T: [row, key]
    near = full & ~np.tri(len(prefix), k=-window, dtype=bool)  # T T
    return [mask | (prefix[:, None] & prefix) for mask in (full, near)]


def attend(config, q, keys, values, mask):
    """softmax(cap(q k^T / sqrt(query_pre_attn_scalar))) v; N/K query heads share a key head."""
    keys, values = (a.repeat(q.shape[1] // a.shape[1], axis=1) for a in (keys, values))  # S N H
    scores = np.einsum("tnh, snh -> nts", q, keys) / np.sqrt(config["query_pre_attn_scalar"])  # N T S
    scores = capped(scores, config.get("attn_logit_softcapping"))  # N T S
    return np.einsum("nts, snh -> tnh", softmax(np.where(mask, scores, -np.inf)), values)  # T N H


def decoder(w, config, x, positions, token_type_ids, name="model."):
    """x += norm attention(norm x), x += norm GeGLU(norm x) in every layer, then a last norm."""
    H, eps, full_and_near = config["head_dim"], config["rms_norm_eps"], masks(token_type_ids, config["sliding_window"])
    for i, kind in enumerate(config["layer_types"]):
        layer, sliding = f"{name}layers.{i}.", kind == "sliding_attention"
        rotation = config["rope_parameters"]
        rotation = rotation.get(kind, rotation)  # Gemma 3 has one for each kind of layer
        places = positions / rotation.get("factor", 1.0)  # T
        y = rms_norm(x, w[layer + "input_layernorm.weight"], eps)  # T D
        q, k, v = (linear(w, f"{layer}self_attn.{a}_proj", y).reshape(len(x), -1, H) for a in "qkv")  # T N H, T K H
        if layer + "self_attn.q_norm.weight" in w:  # Gemma 3
            q = rms_norm(q, w[layer + "self_attn.q_norm.weight"], eps)  # T N H
            k = rms_norm(k, w[layer + "self_attn.k_norm.weight"], eps)  # T K H
        q, k = (rope(a, places, rotation["rope_theta"]) for a in (q, k))  # T N H, T K H
        y = attend(config, q, k, v, full_and_near[sliding]).reshape(len(x), -1)  # T NH
        y = rms_norm(linear(w, layer + "self_attn.o_proj", y), w[layer + "post_attention_layernorm.weight"], eps)  # T D
        x = x + y  # T D
        y = rms_norm(x, w[layer + "pre_feedforward_layernorm.weight"], eps)  # T D
        y = gelu(linear(w, layer + "mlp.gate_proj", y)) * linear(w, layer + "mlp.up_proj", y)  # T F
        x = x + rms_norm(
            linear(w, layer + "mlp.down_proj", y), w[layer + "post_feedforward_layernorm.weight"], eps
        )  # T D
    return rms_norm(x, w[name + "norm.weight"], eps)  # T D


def logits(w, config, x, name="model."):
    """The products with all rows of the table, or of a head of its own, capped in Gemma 2."""
    return capped(x @ w.get("lm_head.weight", w[name + "embed_tokens.weight"]).T, config.get("final_logit_softcapping"))
