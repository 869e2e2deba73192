"""SigLIP, CLIP and ViT on one page, from pixels and tokens to scores, in float64 and with NumPy alone.

`w` maps transformers' tensor names to arrays, matrices are [out, in]; `config` is config.json with every key. Axes:
B pictures or texts, C channels, T rows, S rows that are seen, N heads, H width of a head, D width of a tower.
"""

import math

import numpy as np


def affine(w, name, x):
    """x W^T + b; some layers have no b."""
    return np.einsum("...i, oi -> ...o", x, w[name + ".weight"]) + w.get(name + ".bias", 0.0)


def norm(w, name, x, eps):
    """Zero mean and variance one over the last axis, then a scale and a shift (Ba et al. 2016)."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return (
        centred * (np.mean(centred**2, axis=-1, keepdims=True) + eps) ** -0.5 * w[name + ".weight"] + w[name + ".bias"]
    )


ACTIVATIONS = {
    "gelu_pytorch_tanh": lambda x: x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: x * np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def mix(q, k, v, heads, mask):
    """Each of the heads mixes the rows v by softmax(q k^T / sqrt(H)) (Vaswani et al. 2017)."""
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1) for x in (q, k, v))  # B T N H, B S N H
    scores = np.exp(np.einsum("btnh, bsnh -> bnts", q, k) / math.sqrt(q.shape[-1])) * mask
    mixed = np.einsum("bnts, bsnh -> btnh", scores / scores.sum(-1, keepdims=True), v)
    return mixed.reshape(*mixed.shape[:2], -1)  # B T D


def encoder(w, config, x, mask, names):
    """Blocks that add attention, then an MLP, of the normed rows (Dosovitskiy et al. 2021, section 3.1)."""
    eps, act = config["layer_norm_eps"], ACTIVATIONS[config["hidden_act"]]
    first, q, k, v, out, second, fc1, fc2 = names.split()
    for i in range(config["num_hidden_layers"]):
        y = norm(w, first.format(i), x, eps)
        y = mix(*(affine(w, name.format(i), y) for name in (q, k, v)), config["num_attention_heads"], mask)
        x = x + affine(w, out.format(i), y)
        x = x + affine(w, fc2.format(i), act(affine(w, fc1.format(i), norm(w, second.format(i), x, eps))))
    return x


def block_names(tower):
    """The names that CLIP and SigLIP have for the parts of a block of one of their towers."""
    parts = (
        "layer_norm1 self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj layer_norm2 mlp.fc1 mlp.fc2"
    )
    return " ".join(f"{tower}.encoder.layers.{{}}.{part}" for part in parts.split())


def cut(pixels, size):
    """The patches of each picture, left to right and top to bottom: B T C size size."""
    sides = [range(0, side - size + 1, size) for side in pixels.shape[2:]]
    return np.stack([pixels[:, :, y : y + size, x : x + size] for y in sides[0] for x in sides[1]], axis=1)


def embed_patches(kernel, pixels):
    return np.einsum("btcyx, dcyx -> btd", cut(pixels.astype(np.float64), kernel.shape[-1]), kernel)


def direction(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def siglip_images(w, config, pixels):
    """SigLIP's pictures: a learned probe attends to the normed patches, and an MLP is added (Zhai et al. 2023)."""
    vision, name = config["vision_config"], "vision_model.embeddings."
    x = embed_patches(w[name + "patch_embedding.weight"], pixels) + w[name + "patch_embedding.bias"]
    x = encoder(w, vision, x + w[name + "position_embedding.weight"], 1, block_names("vision_model"))
    x = norm(w, "vision_model.post_layernorm", x, vision["layer_norm_eps"])
    head, probe = "vision_model.head.", np.repeat(w["vision_model.head.probe"], len(x), axis=0)
    matrices, biases = (np.split(w[f"{head}attention.in_proj_{name}"], 3) for name in ("weight", "bias"))
    q, k, v = (rows @ a.T + b for rows, a, b in zip((probe, x, x), matrices, biases, strict=True))
    r = affine(w, head + "attention.out_proj", mix(q, k, v, vision["num_attention_heads"], 1))
    y = affine(w, head + "mlp.fc1", norm(w, head + "layernorm", r, vision["layer_norm_eps"]))
    return direction((r + affine(w, head + "mlp.fc2", ACTIVATIONS[vision["hidden_act"]](y)))[:, 0])


def siglip_texts(w, config, ids):
    """SigLIP's texts: every row sees every row, and the last one is the text's."""
    text, name = config["text_config"], "text_model.embeddings."
    x = w[name + "token_embedding.weight"][ids] + w[name + "position_embedding.weight"][: ids.shape[1]]
    x = encoder(w, text, x, 1, block_names("text_model"))
    return direction(
        affine(w, "text_model.head", norm(w, "text_model.final_layer_norm", x[:, -1], text["layer_norm_eps"]))
    )


def siglip(w, config, pixels, ids):
    """The scores of each picture and each text, whose sigmoid is a probability."""
    scores = siglip_images(w, config, pixels) @ siglip_texts(w, config, ids).T
    return scores * np.exp(w["logit_scale"]) + w["logit_bias"]


def clip_images(w, config, pixels):
    """CLIP's pictures: a class token before the patches, and a norm before the blocks (Radford et al. 2021)."""
    vision, name = config["vision_config"], "vision_model.embeddings."
    x = embed_patches(w[name + "patch_embedding.weight"], pixels)
    x = np.insert(x, 0, w[name + "class_embedding"], axis=1) + w[name + "position_embedding.weight"]
    x = norm(w, "vision_model.pre_layrnorm", x, vision["layer_norm_eps"])
    x = encoder(w, vision, x, 1, block_names("vision_model"))
    x = norm(w, "vision_model.post_layernorm", x, vision["layer_norm_eps"])
    return direction(affine(w, "visual_projection", x[:, 0]))


def clip_texts(w, config, ids):
    """CLIP's texts: a row sees those before it, and the first end token's row is the text's."""
    text, name = config["text_config"], "text_model.embeddings."
    x = w[name + "token_embedding.weight"][ids] + w[name + "position_embedding.weight"][: ids.shape[1]]
    x = encoder(w, text, x, np.tril(np.ones(2 * ids.shape[1:])), block_names("text_model"))
    x = [rows[list(row).index(text["eos_token_id"])] for rows, row in zip(x, ids, strict=True)]
    x = norm(w, "text_model.final_layer_norm", np.array(x), text["layer_norm_eps"])
    return direction(affine(w, "text_projection", x))


def clip(w, config, pixels, ids):
    """The scores of each picture and each text, of which a softmax over the texts makes probabilities."""
    return clip_images(w, config, pixels) @ clip_texts(w, config, ids).T * np.exp(w["logit_scale"])


VIT_BLOCK = """
    layernorm_before attention.attention.query attention.attention.key attention.attention.value attention.output.dense
    layernorm_after intermediate.dense output.dense
"""


def vit(w, config, pixels):
    """ViT: a class token before the patches, whose row says what the picture shows (Dosovitskiy et al. 2021)."""
    name = "vit.embeddings."
    x = embed_patches(w[name + "patch_embeddings.projection.weight"], pixels)
    x = x + w[name + "patch_embeddings.projection.bias"]
    x = np.insert(x, 0, w[name + "cls_token"][0], axis=1) + w[name + "position_embeddings"]
    x = encoder(w, config, x, 1, " ".join(f"vit.encoder.layer.{{}}.{part}" for part in VIT_BLOCK.split()))
    return affine(w, "classifier", norm(w, "vit.layernorm", x, config["layer_norm_eps"])[:, 0])
