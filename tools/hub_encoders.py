"""config.json of published encoders as their repositories on the hub have it: `content(name)`, by the hub's name.

The hub's configs of SigLIP are this sparse. Those of ViT and CLIP also have keys of training and the names of labels;
here labels are numbered.
"""

from __future__ import annotations

from collections.abc import Mapping

from hub_configs import UNCHANGED

LABELS = 1000
VIT = {
    "architectures": ["ViTForImageClassification"],
    "hidden_act": "gelu",
    "hidden_size": 768,
    "id2label": {str(i): f"LABEL_{i}" for i in range(LABELS)},
    "image_size": 224,
    "intermediate_size": 3072,
    "label2id": {f"LABEL_{i}": i for i in range(LABELS)},
    "layer_norm_eps": 1e-12,
    "model_type": "vit",
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "qkv_bias": True,
}
VIT_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
CLASSIFIERS = {"vit-base-patch16-224": VIT, "vit-large-patch16-224": VIT | VIT_LARGE}

CLIP = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 512}
CLIP_LARGE = CLIP | {"projection_dim": 768}
SIGLIP = {"architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip"}
CLIP_LARGE_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
CLIP_LARGE_VISION = VIT_LARGE | {"patch_size": 14, "projection_dim": 768}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27}
# The whole model, its text tower, and its vision tower, without the model_type of the towers.
PAIRS: Mapping[str, tuple[dict, dict, dict]] = {
    "clip-vit-base-patch32": (CLIP, {}, {}),
    "clip-vit-base-patch16": (CLIP, {}, {"patch_size": 16}),
    "clip-vit-large-patch14": (CLIP_LARGE, CLIP_LARGE_TEXT, CLIP_LARGE_VISION),
    "siglip-base-patch16-224": (SIGLIP, {}, {}),
    "siglip-so400m-patch14-384": (SIGLIP, SO400M, SO400M | {"image_size": 384, "patch_size": 14}),
    "siglip2-base-patch16-224": (SIGLIP, {"vocab_size": 256000}, {}),
}
NAMES = (*CLASSIFIERS, *PAIRS)


def content(
    name: str,
    vision: Mapping[str, object] = UNCHANGED,
    text: Mapping[str, object] = UNCHANGED,
    dtype: str = "float32",
) -> dict:
    """config.json of an encoder, with other values for its towers. A ViT's only tower is the whole file."""
    written = {"torch_dtype": dtype, "transformers_version": "4.47.0.dev0"}
    if name in CLASSIFIERS:
        return CLASSIFIERS[name] | vision | written
    whole, words, picture = PAIRS[name]
    kind = whole["model_type"]
    towers = {
        "text_config": words | {"model_type": f"{kind}_text_model"} | text,
        "vision_config": picture | {"model_type": f"{kind}_vision_model"} | vision,
    }
    return whole | towers | written
