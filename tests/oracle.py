"""PaliGemma's mathematics spelled a second time, in float64, slowly, without npgemma.

Written from the formulas: loops over rows and heads where the package folds and reshapes, complex numbers where it
rotates pairs, and no cache anywhere. It reads the flat dict of plain-named tensors that `tiny.random_tensors` makes (a
matrix is [out, in], heads one after the other in its rows) and a config that has the attributes of a Hugging Face one.
"""

import cmath
import math

import numpy as np

# How many units in the last place, of a tensor's largest entry, its entries may be off after many layers: 2 to 6 are
# seen after a whole forward, in float64 and in float32 alike: the envelope of float32 is float64's, 2^29 times wider.
UNITS = 64


def assert_agrees(actual, expected):
    """`actual`, float32 or float64, is the float64 `expected` but for the rounding of its own dtype."""
    assert actual.dtype in (np.float32, np.float64)
    atol = UNITS * np.finfo(actual.dtype).eps * np.abs(expected).max(initial=0)
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=0, atol=atol, strict=True)


def layer_norm(x, weight, bias, eps):
    return (x - np.mean(x, -1, keepdims=True)) / np.sqrt(np.var(x, -1, keepdims=True) + eps) * weight + bias


def rms_norm(x, weight, eps):
    mean_square = np.einsum("...d,...d->...", x, x) / x.shape[-1]
    return np.einsum("...d,...,d->...d", x, 1 / np.sqrt(mean_square + eps), 1 + weight)


def gelu(x):
    """The tanh form, by way of (1 + tanh u) / 2 = 1 / (1 + exp(-2u))."""
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x * np.exp(-np.logaddexp(0, -2 * u))


def softmax(x):
    return np.exp(x - np.logaddexp.reduce(x, axis=-1, keepdims=True))


def rope(x, positions, theta):
    """Number j of a head and number j + H/2 are one complex number, turned by position * theta^(-2j/H)."""
    rows, heads, width = x.shape
    half = width // 2
    y = np.empty(x.shape)
    for t in range(rows):
        for n in range(heads):
            for j in range(half):
                turned = complex(x[t, n, j], x[t, n, j + half]) * cmath.exp(
                    1j * float(positions[t]) * theta ** (-2 * j / width)
                )
                y[t, n, j], y[t, n, j + half] = turned.real, turned.imag
    return y


def attend(q, keys, values, mask):
    """Row by row and head by head; query head n reads key head n // (N / K), and only the rows that t may see."""
    rows, heads, width = q.shape
    shared = heads // keys.shape[1]
    y = np.zeros((rows, heads, values.shape[2]))
    for t in range(rows):
        seen = [s for s in range(len(keys)) if mask[t, s]]
        for n in range(heads):
            scores = np.array([np.dot(q[t, n], keys[s, n // shared]) / math.sqrt(width) for s in seen])
            for s, probability in zip(seen, softmax(scores), strict=True):
                y[t, n] += probability * values[s, n // shared]
    return y


def linear(x, weight, bias=None):
    return np.einsum("...i,oi->...o", x, weight) + (0 if bias is None else bias)


def split_heads(x, heads):
    """[rows, heads * width] -> [rows, heads, width]: head n is the n-th slice of the columns."""
    width = x.shape[1] // heads
    return np.stack([x[:, n * width : (n + 1) * width] for n in range(heads)], 1)


def join_heads(x):
    return np.concatenate([x[:, n] for n in range(x.shape[1])], 1)


def under(tensors, prefix):
    """The tensors whose names begin with `prefix.`, by the rest of their names, as float64."""
    return {
        name.removeprefix(prefix + "."): np.asarray(x, np.float64)
        for name, x in tensors.items()
        if name.startswith(prefix + ".")
    }


# SigLIP


def patch_embedding(e, pixel_values):
    """[images, channels, side, side] -> [images, patches, width], patch by patch, along the rows of the picture."""
    size = e["patch_embedding.weight"].shape[-1]
    grid = pixel_values.shape[-1] // size
    pictures = []
    for picture in np.asarray(pixel_values, np.float64):
        rows = []
        for y in range(0, grid * size, size):
            for x in range(0, grid * size, size):
                patch = picture[:, y : y + size, x : x + size]
                rows.append(np.einsum("chw,dchw->d", patch, e["patch_embedding.weight"]) + e["patch_embedding.bias"])
        pictures.append(np.array(rows) + e["position_embedding.weight"])
    return np.array(pictures)


def vision_block(w, x, heads, eps):
    """One layer on one picture [patches, width]."""
    h = layer_norm(x, w["layer_norm1.weight"], w["layer_norm1.bias"], eps)
    q, k, v = (
        split_heads(linear(h, w[f"self_attn.{c}_proj.weight"], w[f"self_attn.{c}_proj.bias"]), heads) for c in "qkv"
    )
    mixed = attend(q, k, v, np.ones((len(x), len(x)), bool))
    x = x + linear(join_heads(mixed), w["self_attn.out_proj.weight"], w["self_attn.out_proj.bias"])
    h = layer_norm(x, w["layer_norm2.weight"], w["layer_norm2.bias"], eps)
    h = gelu(linear(h, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
    return x + linear(h, w["mlp.fc2.weight"], w["mlp.fc2.bias"])


def vision_tower(tensors, config, pixel_values):
    """[images, patches, width of the tower]."""
    c = config.vision
    pictures = []
    for x in patch_embedding(under(tensors, "vision_tower.embeddings"), pixel_values):
        for i in range(c.num_hidden_layers):
            layer = under(tensors, f"vision_tower.encoder.layers.{i}")
            x = vision_block(layer, x, c.num_attention_heads, c.layer_norm_eps)
        norm = under(tensors, "vision_tower.post_layernorm")
        pictures.append(layer_norm(x, norm["weight"], norm["bias"], c.layer_norm_eps))
    return np.array(pictures)


def image_features(tensors, config, pixel_values):
    """[images, patches, width of the decoder]."""
    projector = under(tensors, "multi_modal_projector.linear")
    return linear(vision_tower(tensors, config, pixel_values), projector["weight"], projector["bias"])


# Gemma


def text_attention(w, x, positions, mask, config):
    """Attention of one layer, without the residual, over rows that are one whole sequence; `x` is normed already."""
    c = config.text
    q = split_heads(linear(x, w["self_attn.q_proj.weight"]), c.num_attention_heads)
    k = split_heads(linear(x, w["self_attn.k_proj.weight"]), c.num_key_value_heads)
    v = split_heads(linear(x, w["self_attn.v_proj.weight"]), c.num_key_value_heads)
    mixed = attend(rope(q, positions, c.rope_theta), rope(k, positions, c.rope_theta), v, mask)
    return linear(join_heads(mixed), w["self_attn.o_proj.weight"])


def text_mlp(w, x):
    return linear(
        gelu(linear(x, w["mlp.gate_proj.weight"])) * linear(x, w["mlp.up_proj.weight"]), w["mlp.down_proj.weight"]
    )


def text_block(w, x, positions, mask, config):
    eps = config.text.rms_norm_eps
    x = x + text_attention(w, rms_norm(x, w["input_layernorm.weight"], eps), positions, mask, config)
    return x + text_mlp(w, rms_norm(x, w["post_attention_layernorm.weight"], eps))


def text_decoder(tensors, config, x, positions, mask):
    """The last hidden states, normed, of rows that are one whole sequence."""
    for i in range(config.text.num_hidden_layers):
        x = text_block(under(tensors, f"language_model.model.layers.{i}"), x, positions, mask, config)
    return rms_norm(x, under(tensors, "language_model.model.norm")["weight"], config.text.rms_norm_eps)


# PaliGemma


def embed_prompt(tensors, config, input_ids, image_rows):
    """Row by row: the next image row for an image token, else the token's row of the table times sqrt(D)."""
    table = under(tensors, "language_model.model.embed_tokens")["weight"]
    waiting = iter(image_rows)
    return np.array(
        [
            next(waiting) if token == config.image_token_index else table[token] * math.sqrt(table.shape[1])
            for token in input_ids
        ]
    )


def prefix_lm_mask(token_type_ids):
    """mask[t, s]: t may look at s where s comes no later, or where both belong to the prefix."""
    length = len(token_type_ids)
    mask = np.zeros((length, length), bool)
    for t in range(length):
        for s in range(length):
            mask[t, s] = s <= t or (token_type_ids[t] == 0 and token_type_ids[s] == 0)
    return mask


def hidden(tensors, config, input_ids, pixel_values, token_type_ids, first_position=1):
    """The last hidden states of every row."""
    pictures = image_features(tensors, config, pixel_values) if len(pixel_values) else []
    image_rows = [row for picture in pictures for row in picture]
    x = embed_prompt(tensors, config, input_ids, image_rows)
    positions = [first_position + t for t in range(len(input_ids))]
    return text_decoder(tensors, config, x, positions, prefix_lm_mask(token_type_ids))


def forward(tensors, config, input_ids, pixel_values, token_type_ids, first_position=1):
    """The logits of every row; the embedding table is the head, unless the tensors hold another."""
    head = under(tensors, "lm_head" if "lm_head.weight" in tensors else "language_model.model.embed_tokens")["weight"]
    return linear(hidden(tensors, config, input_ids, pixel_values, token_type_ids, first_position), head)


def generate(tensors, config, input_ids, pixel_values, max_new_tokens, eos_ids=(), choices=None):
    """Greedy tokens after `input_ids`, all of them prefix, everything computed anew for each; stops after an end token.

    Only ids below `choices` are chosen; None allows them all.
    """
    ids, types = list(input_ids), [0] * len(input_ids)
    while len(ids) < len(input_ids) + max_new_tokens and not (len(ids) > len(input_ids) and ids[-1] in eos_ids):
        scores = forward(tensors, config, ids, pixel_values, types)[-1][:choices]
        ids.append(int(np.argmax(scores)))
        types.append(1)
    return ids[len(input_ids) :]
