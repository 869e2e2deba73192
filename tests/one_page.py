"""PaliGemma on one page: python one_page.py [MODEL_FOLDER PICTURE.png PROMPT]. From pixels to words, in float64.

A vision tower (SigLIP) makes P rows of a picture, and a decoder (Gemma) reads them and the prompt and writes the answer.
Nothing is cached: every new token costs a whole pass. `w` maps the names in model.safetensors to arrays, whose matrices
are [out, in]; `config` is the content of config.json. The comments give shapes, one letter per meaning:
B pictures, C channels, Y X height and width in pixels, G side of a patch, P patches of a picture, E width of the tower,
T rows, S key rows, N query heads, K key heads, H width of a head, D width of the decoder, F width of an MLP, V vocabulary.
"""

import json
import re
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np

# what a config.json may leave out, as in PaliGemma 3B
VISION = {"image_size": 224, "patch_size": 14, "num_hidden_layers": 27, "num_attention_heads": 16, "layer_norm_eps": 1e-6}
TEXT = {"num_hidden_layers": 18, "head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}


def linear(w, name, x):
    """x W^T + b; most layers of Gemma have no b."""
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)  # .. out


def layer_norm(x, weight, bias, eps):
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last axis (Ba et al. 2016)."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias  # P E


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * (1 + weight), over the last axis (Zhang and Sennrich 2019; the 1 is Gemma's)."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * (1.0 + weight)  # T D


def gelu(x):
    """x times the normal distribution function of x, in its tanh form (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))  # T F


def softmax(x):
    """exp(x) / sum(exp(x)) over the last axis; taking the maximum off first changes nothing but prevents overflow."""
    e = np.exp(x - x.max(-1, keepdims=True))  # N T S
    return e / e.sum(-1, keepdims=True)  # N T S


def rope(x, positions, theta):
    """Rotate each pair (x[j], x[j + H/2]) by the angle position * theta^(-2j/H) (RoFormer, Su et al. 2021)."""
    H = x.shape[-1]
    angles = np.outer(positions, theta ** (-np.arange(0, H, 2) / H))  # T H/2
    pairs = (x[..., : H // 2] + 1j * x[..., H // 2 :]) * np.exp(1j * angles)[:, None]  # T N H/2
    return np.concatenate([pairs.real, pairs.imag], axis=-1)  # T N H


def attend(q, keys, values, mask):
    """softmax(q k^T / sqrt(H)) v (Vaswani et al. 2017); query head n reads key head n // (N/K) (Ainslie et al. 2023)."""
    share = q.shape[1] // keys.shape[1]  # N/K
    scores = np.einsum("tnh, snh -> nts", q, keys.repeat(share, axis=1)) / np.sqrt(q.shape[2])  # N T S
    weights = softmax(np.where(mask, scores, -np.inf))  # N T S
    return np.einsum("nts, snh -> tnh", weights, values.repeat(share, axis=1))  # T N H


def patch_embedding(w, config, pixel_values):
    """Multiply each patch by one matrix and add a row for its position (ViT, Dosovitskiy et al. 2021)."""
    G, (Y, X) = (VISION | config["vision_config"])["patch_size"], pixel_values.shape[2:]
    corners = [(y, x) for y in range(0, Y - G + 1, G) for x in range(0, X - G + 1, G)]  # P; leftover pixels drop out
    patches = np.array([pixel_values[:, :, y : y + G, x : x + G] for y, x in corners], np.float64)  # P B C G G
    x = np.einsum("pbcyx, ecyx -> bpe", patches, w["vision_tower.embeddings.patch_embedding.weight"])  # B P E
    return x + w["vision_tower.embeddings.patch_embedding.bias"] + w["vision_tower.embeddings.position_embedding.weight"]


def vision_tower(w, config, pixel_values):
    """x += attention(norm x), x += MLP(norm x) in each layer, and a last norm (SigLIP, Zhai et al. 2023)."""
    vision = VISION | config["vision_config"]
    N, eps = vision["num_attention_heads"], vision["layer_norm_eps"]
    x = patch_embedding(w, config, pixel_values)  # B P E
    for i in range(vision["num_hidden_layers"]):
        layer = f"vision_tower.encoder.layers.{i}."
        y = layer_norm(x, w[layer + "layer_norm1.weight"], w[layer + "layer_norm1.bias"], eps)  # B P E
        q, k, v = (linear(w, f"{layer}self_attn.{a}_proj", y).reshape(*x.shape[:2], N, -1) for a in "qkv")  # B P N H
        y = np.array([attend(q[b], k[b], v[b], True) for b in range(len(x))])  # B P N H; every patch sees every patch
        x = x + linear(w, layer + "self_attn.out_proj", y.reshape(x.shape))  # B P E
        y = layer_norm(x, w[layer + "layer_norm2.weight"], w[layer + "layer_norm2.bias"], eps)  # B P E
        x = x + linear(w, layer + "mlp.fc2", gelu(linear(w, layer + "mlp.fc1", y)))  # B P E
    return layer_norm(x, w["vision_tower.post_layernorm.weight"], w["vision_tower.post_layernorm.bias"], eps)  # B P E


def image_features(w, config, pixel_values):
    """One linear layer brings the rows of the tower to the width of the decoder (PaliGemma, Beyer et al. 2024)."""
    return linear(w, "multi_modal_projector.linear", vision_tower(w, config, pixel_values))  # B P D


def embed_prompt(w, config, input_ids, image_rows):
    """sqrt(D) times the row of each token in the table (Gemma 2024); image rows, unscaled, replace the image tokens."""
    table, image = w["language_model.model.embed_tokens.weight"], np.equal(input_ids, config.get("image_token_index", 257152))
    x = table[np.where(image, 0, input_ids)] * np.sqrt(table.shape[1])  # T D
    x[image] = np.reshape(image_rows, (-1, x.shape[1]))  # T D
    return x


def prefix_lm_mask(token_type_ids):
    """A row sees itself and the rows before; the prefix, type 0, sees all of itself (Beyer et al. 2024, section 3.2)."""
    prefix, t = np.equal(token_type_ids, 0), np.arange(len(token_type_ids))  # T
    return (t <= t[:, None]) | (prefix & prefix[:, None])  # T T: [row, key]


def decoder(w, config, x, positions, mask):
    """x += attention(norm x), x += GeGLU(norm x) in each layer, and a last norm (Gemma 2024; Shazeer 2020)."""
    text = TEXT | config["text_config"] | (config["text_config"].get("rope_parameters") or {})
    H, eps, theta = text["head_dim"], text["rms_norm_eps"], text["rope_theta"]
    for i in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}."
        y = rms_norm(x, w[layer + "input_layernorm.weight"], eps)  # T D
        q, k, v = (linear(w, f"{layer}self_attn.{a}_proj", y).reshape(len(x), -1, H) for a in "qkv")  # T N H, 2 of T K H
        y = attend(rope(q, positions, theta), rope(k, positions, theta), v, mask)  # T N H
        x = x + linear(w, layer + "self_attn.o_proj", y.reshape(len(x), -1))  # T D
        y = rms_norm(x, w[layer + "post_attention_layernorm.weight"], eps)  # T D
        y = gelu(linear(w, layer + "mlp.gate_proj", y)) * linear(w, layer + "mlp.up_proj", y)  # T F
        x = x + linear(w, layer + "mlp.down_proj", y)  # T D
    return rms_norm(x, w["language_model.model.norm.weight"], eps)  # T D


def forward(w, config, input_ids, pixel_values, token_type_ids, first_position=1):
    """The logits of each row: its products with the rows of the embedding table (Gemma 2024), or of an own head."""
    images = [] if pixel_values is None else image_features(w, config, pixel_values)  # B P D
    x = embed_prompt(w, config, input_ids, images)  # T D
    x = decoder(w, config, x, first_position + np.arange(len(x)), prefix_lm_mask(token_type_ids))  # T D
    return x @ w.get("lm_head.weight", w["language_model.model.embed_tokens.weight"]).T  # T V


def generate(w, config, input_ids, pixel_values, max_new_tokens, eos_ids=(), choices=None):
    """Greedy decoding: append the token of the largest logit among the first `choices` until it is an end token."""
    new = []
    while len(new) < max_new_tokens and not (new and new[-1] in eos_ids):
        types = [0] * len(input_ids) + [1] * len(new)  # T
        logits = forward(w, config, [*input_ids, *new], pixel_values, types)  # T V
        new.append(int(logits[-1, :choices].argmax()))
    return new


def read_weights(folder):
    """safetensors: 8 bytes of header length, a header in JSON, the values; the names are brought to today's spelling."""
    w = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                dtype = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[entry["dtype"]]
                x = np.frombuffer(data[start + begin : start + end], dtype).reshape(entry["shape"])
                x = (x.astype("<u4") << 16).view("<f4") if dtype == "<u2" else x  # BF16 is the upper half of F32
                w[name.replace("vision_model.", "").replace("language_model.lm_head", "lm_head")] = x.astype(np.float64)
    return w


def read_picture(path, size):
    """A PNG of 8-bit gray or RGB, alpha over white, resized by bicubic antialiasing (Keys 1981), from -1 to 1: 1 C Y X."""
    data, at, packed = path.read_bytes(), 8, b""
    while at < len(data):  # chunks: length, name, content, checksum
        name, end = data[at + 4 : at + 8], at + 8 + int.from_bytes(data[at : at + 4], "big")
        packed, at = packed + data[at + 8 : end] * (name == b"IDAT"), end + 4
    (X, Y, depth, colour, interlace), = np.frombuffer(data[16:29], ">u4, >u4, u1, u1, u1, u1, u1")
    rows = [[0] * (X * C + C)]  # C zeros left of each row
    for kind, *line in np.frombuffer(zlib.decompress(packed), np.uint8).reshape(Y, -1).tolist():
        row = [0] * C
        for byte, b, c in zip(line, rows[-1][C:], rows[-1]):
            a = row[-C]
            paeth = ...
            row.append((byte + (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
        rows.append(row)
    image = np.array(rows)[1:, C:].reshape(Y, X, C)  # Y X C
    return
