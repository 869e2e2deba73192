"""PaliGemma on one page, from pixels to words, in float64: python one_page.py [MODEL_FOLDER PICTURE.png PROMPT]

A vision tower (SigLIP) turns a picture into P rows; a decoder (Gemma) reads them and the prompt and writes the answer.
`w` maps tensor names to arrays, matrices are [out, in]; what `config` (config.json) lacks is PaliGemma 3B's. Axes:
B pictures, C channels, Y X height and width, G side of a patch, P patches of a picture, E width of the tower, T rows,
S key rows, N query heads, K key heads, H width of a head, D width of the decoder, F width of an MLP, V vocabulary.
"""

import json
import re
import sys
import zlib
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

TOWER = "vision_tower.vision_model."  # what the names of its weights begin with
VIT = {"image_size": 224, "patch_size": 14, "num_hidden_layers": 27, "num_attention_heads": 16, "layer_norm_eps": 1e-6}
GEMMA = {"num_hidden_layers": 18, "head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}


def linear(w, name, x):
    """x W^T + b; the layers of Gemma have no b."""
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)  # .. out


def layer_norm(x, weight, bias, eps):
    """(x - mean) / sqrt(variance + eps) * weight + bias, over the last axis (Ba et al. 2016)."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias  # B P E


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * (1 + weight), over the last axis (Zhang and Sennrich 2019; the 1 is Gemma's)."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * (1.0 + weight)  # T D


def gelu(x):
    """x times the normal distribution function of x, in its tanh form (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))  # .. F


def softmax(x):
    """exp(x) / sum(exp(x)), over the last axis; subtracting the maximum changes nothing and prevents overflow."""
    e = np.exp(x - x.max(-1, keepdims=True))  # N T S
    return e / e.sum(-1, keepdims=True)  # N T S


def rope(x, positions, theta):
    """Rotate each pair (x[j], x[j + H/2]) by the angle position * theta^(-2j/H) (RoFormer, Su et al. 2021)."""
    H = x.shape[-1]
    angles = np.outer(positions, theta ** (-np.arange(0, H, 2) / H))  # T H/2
    pairs = (x[..., : H // 2] + 1j * x[..., H // 2 :]) * np.exp(1j * angles)[:, None]  # T N H/2
    return np.concatenate([pairs.real, pairs.imag], axis=-1)  # T N H


def attend(q, keys, values, mask):
    """softmax(q k^T / sqrt(H)) v (Vaswani et al. 2017); N/K query heads share a key head (Ainslie et al. 2023)."""
    keys, values = (a.repeat(q.shape[1] // a.shape[1], axis=1) for a in (keys, values))  # S N H
    scores = np.einsum("tnh, snh -> nts", q, keys) / np.sqrt(q.shape[2])  # N T S
    return np.einsum("nts, snh -> tnh", softmax(np.where(mask, scores, -np.inf)), values)  # T N H


def patch_embedding(w, config, pixel_values):
    """Multiply each patch by one matrix and add the row of its position (ViT, Dosovitskiy et al. 2021)."""
    name, G, (Y, X) = TOWER + "embeddings.", (VIT | config["vision_config"])["patch_size"], pixel_values.shape[2:]
    patches = [pixel_values[..., y * G :, x * G :][..., :G, :G] for y, x in np.ndindex(Y // G, X // G)]  # P B C G G
    x = np.einsum("pbcyx, ecyx -> bpe", patches, w[name + "patch_embedding.weight"], dtype=np.float64)  # B P E
    return x + w[name + "patch_embedding.bias"] + w[name + "position_embedding.weight"]  # B P E


def vision_tower(w, config, pixel_values):
    """x += attention(norm x), x += MLP(norm x) in every layer, then a last norm (SigLIP, Zhai et al. 2023)."""
    vision, x = VIT | config["vision_config"], patch_embedding(w, config, pixel_values)  # B P E
    (B, P, E), N, eps = x.shape, vision["num_attention_heads"], vision["layer_norm_eps"]
    for layer in (f"{TOWER}encoder.layers.{i}." for i in range(vision["num_hidden_layers"])):
        y = layer_norm(x, w[layer + "layer_norm1.weight"], w[layer + "layer_norm1.bias"], eps)  # B P E
        q, k, v = (linear(w, f"{layer}self_attn.{a}_proj", y).reshape(B, P, N, E // N) for a in "qkv")  # B P N H
        y = np.reshape([attend(q[b], k[b], v[b], True) for b in range(B)], (B, P, E))  # each patch sees every patch
        x = x + linear(w, layer + "self_attn.out_proj", y)  # B P E
        y = layer_norm(x, w[layer + "layer_norm2.weight"], w[layer + "layer_norm2.bias"], eps)  # B P E
        x = x + linear(w, layer + "mlp.fc2", gelu(linear(w, layer + "mlp.fc1", y)))  # B P E
    return layer_norm(x, w[TOWER + "post_layernorm.weight"], w[TOWER + "post_layernorm.bias"], eps)  # B P E


def image_features(w, config, pixel_values):
    """One linear layer brings the rows of the tower to the width of the decoder (PaliGemma, Beyer et al. 2024)."""
    return linear(w, "multi_modal_projector.linear", vision_tower(w, config, pixel_values))  # B P D


def embed_prompt(w, config, input_ids, image_rows):
    """sqrt(D) times the table's row of each token (Gemma 2024); image rows, unscaled, replace the image tokens."""
    table = w["language_model.model.embed_tokens.weight"]  # V D
    image = np.equal(input_ids, config.get("image_token_index", 257152))  # T
    x = table[np.where(image, 0, input_ids)] * np.sqrt(table.shape[1])  # T D
    x[image] = np.reshape(image_rows, (-1, table.shape[1]))  # T D
    return x


def prefix_lm_mask(token_type_ids):
    """Each row sees itself and those before; the prefix (type 0) sees all of itself (Beyer et al. 2024, sec. 3.2)."""
    prefix = np.equal(token_type_ids, 0)  # T
    return np.tri(len(prefix), dtype=bool) | (prefix[:, None] & prefix)  # T T: [row, key]


def decoder(w, config, x, positions, mask):
    """x += attention(norm x), x += GeGLU(norm x) in every layer, then a last norm (Gemma 2024; Shazeer 2020)."""
    text = GEMMA | config["text_config"] | (config["text_config"].get("rope_parameters") or {})
    H, eps, theta = text["head_dim"], text["rms_norm_eps"], text["rope_theta"]
    for layer in (f"language_model.model.layers.{i}." for i in range(text["num_hidden_layers"])):
        y = rms_norm(x, w[layer + "input_layernorm.weight"], eps)  # T D
        q, k, v = (linear(w, f"{layer}self_attn.{a}_proj", y).reshape(len(x), -1, H) for a in "qkv")  # T N H, T K H
        y = attend(rope(q, positions, theta), rope(k, positions, theta), v, mask)  # T N H
        x = x + linear(w, layer + "self_attn.o_proj", y.reshape(len(x), -1))  # T D
        y = rms_norm(x, w[layer + "post_attention_layernorm.weight"], eps)  # T D
        y = gelu(linear(w, layer + "mlp.gate_proj", y)) * linear(w, layer + "mlp.up_proj", y)  # T F
        x = x + linear(w, layer + "mlp.down_proj", y)  # T D
    return rms_norm(x, w["language_model.model.norm.weight"], eps)  # T D


def forward(w, config, input_ids, pixel_values, token_type_ids, first_position=1):
    """The logits of each row: its products with all rows of the table (Gemma 2024), or of a head of its own."""
    images = [] if pixel_values is None else image_features(w, config, pixel_values)  # B P D
    x = embed_prompt(w, config, input_ids, images)  # T D
    x = decoder(w, config, x, first_position + np.arange(len(x)), prefix_lm_mask(token_type_ids))  # T D
    return x @ w.get("lm_head.weight", w["language_model.model.embed_tokens.weight"]).T  # T V


def generate(w, config, input_ids, pixel_values, max_new_tokens, eos_ids=(), choices=None):
    """Greedy: append the token of the largest logit among the first `choices`, again and again, until an end token."""
    new = []
    while len(new) < max_new_tokens and not (new and new[-1] in eos_ids):
        logits = forward(w, config, [*input_ids, *new], pixel_values, [0] * len(input_ids) + [1] * len(new))  # T V
        new.append(int(logits[-1, :choices].argmax()))
    return new


def read_weights(path):
    """safetensors: 8 bytes with the size of the header, the header in JSON, the values; old names become today's."""
    w, data = {}, path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            dtype, size = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[entry["dtype"]], int(np.prod(entry["shape"]))
            x = np.frombuffer(data, dtype, size, start + entry["data_offsets"][0]).reshape(entry["shape"])
            x = (x.astype("<u4") << 16).view("<f4") if dtype == "<u2" else x  # BF16 is the upper half of F32
            w[name.replace("language_model.lm_head", "lm_head")] = x.astype(np.float64)
    return w


def read_picture(path, size):
    """A PNG of 8-bit gray or RGB, alpha over white, resized by antialiased bicubic (Keys 1981), scaled to -1..1."""
    data, at, packed = path.read_bytes(), 8, b""
    while at < len(data):  # each chunk is length, name, content, checksum
        name, end = data[at + 4 : at + 8], at + 8 + int.from_bytes(data[at : at + 4], "big")
        packed, at = packed + data[at + 8 : end] * (name == b"IDAT"), end + 4
    assert data[24:29] in [bytes([8, colour, 0, 0, 0]) for colour in (0, 2, 4, 6)], "the PNG must be 8-bit gray or RGB"
    (X, Y), C = np.frombuffer(data, ">u4", 2, 16).tolist(), {0: 1, 2: 3, 4: 2, 6: 4}[data[25]]
    rows = [[0] * (C + X * C)]  # zeros lie left of the picture and above it
    for kind, *line in np.frombuffer(zlib.decompress(packed), np.uint8).reshape(Y, -1).tolist():
        rows.append([0] * C)
        for byte, b, c in zip(line, rows[-2][C:], rows[-2], strict=False):  # b above, c above left
            a = rows[-1][-C]  # left
            paeth = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            rows[-1].append((byte + (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
    image = np.array(rows)[1:, C:].reshape(Y, X, C)  # Y X C
    image = image if C % 2 else np.rint(255 + (image[..., :-1] - 255) * image[..., -1:] / 255)  # Y X 1 or 3
    for scale in (X / size, Y / size):  # resize along X and transpose; then the same along Y
        d = abs(np.arange(image.shape[1]) + 0.5 - scale * (np.arange(size)[:, None] + 0.5)) / max(scale, 1.0)  # size X
        k = np.where(d < 1, (1.5 * d - 2.5) * d**2 + 1, np.where(d < 2, ((2.5 - 0.5 * d) * d - 4) * d + 2, 0))  # size X
        image = np.clip(np.floor(k / k.sum(1, keepdims=True) @ image + 0.5), 0, 255).swapaxes(0, 1)  # size Y C
    return np.broadcast_to((image / 255 - 0.5).transpose(2, 0, 1) / 0.5, (1, 3, size, size))  # B C Y X


def tokenize(path, prompt):
    """Read a SentencePiece model (Kudo and Richardson 2018) and encode by byte pairs (Sennrich et al. 2016)."""
    data, scores = iter(path.read_bytes()), {}
    for field in data:  # a protobuf message is a list of fields: number, size (7 bits in each of 1 or 2 bytes), content
        size = byte if (byte := next(data)) < 128 else byte - 128 + 128 * next(data)
        content = bytes(islice(data, size))
        if field == 10:  # a piece: 10, size, text; 21, score; the rest is not needed
            end = 2 + content[1]
            scores[content[2:end].decode()] = np.frombuffer(content, "<f4", 1, end + 1)[0]
    symbols = re.findall(r"<\w+>|.", prompt.replace(" ", "\u2581"), re.DOTALL)  # <loc0000> and its like stay whole
    while pairs := {i: scores[a + b] for i, (a, b) in enumerate(pairwise(symbols)) if a + b in scores}:
        i = max(pairs, key=pairs.get)  # the best score, and the leftmost of equals
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    assert scores.keys() >= set(symbols), f"the tokenizer lacks {set(symbols) - scores.keys()}"
    return list(scores), [list(scores).index(symbol) for symbol in symbols]


if __name__ == "__main__":
    assets = Path(__file__).parent.parent / "npgemma" / "assets"
    folder, picture, prompt = sys.argv[1:] or (assets / "tiny", assets / "sample.png", "caption en")
    w, config = read_weights(Path(folder, "model.safetensors")), json.loads(Path(folder, "config.json").read_text())
    vision = VIT | config["vision_config"]
    texts, ids = tokenize(Path(folder, "tokenizer.model"), prompt + "\n")
    ids = [config.get("image_token_index", 257152)] * (vision["image_size"] // vision["patch_size"]) ** 2 + [2, *ids]
    new = generate(w, config, ids, read_picture(Path(picture), vision["image_size"]), 128, [1], len(texts))
    print("".join(texts[i] for i in new).removesuffix("<eos>").replace("\u2581", " "))
