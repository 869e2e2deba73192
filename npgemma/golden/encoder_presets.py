"""The preset `transformers` for SigLIP, CLIP and ViT, in the form of mapping files (see mapping).

It is for dumps of forward hooks on the modules of SiglipModel, CLIPModel and ViTForImageClassification, as
tools/dump_transformers.py writes them, with the results of the model under their own names. What attention gives each
picture or text ends in its number. Each mapping was checked with real dumps.
"""

from typing import Any

_VISION = r"vision_model\."
_TEXT = r"text_model\."
# Outputs of a layer's modules, and what is only the input of one: the end of the module's name and that of the tap's.
_PAIR_LAYER = {
    "": "out",
    r"\.layer_norm1": "attn_norm",
    r"\.self_attn\.([qkv])_proj": r"attn.\2",
    r"\.self_attn\.out_proj\.input": "attn.heads",
    r"\.self_attn\.out_proj": "attn.out",
    r"\.layer_norm2\.input": "mid",
    r"\.layer_norm2": "mlp_norm",
    r"\.mlp\.fc1": "mlp.fc1",
    r"\.mlp\.activation_fn": "mlp.hidden",
    r"\.mlp\.fc2": "mlp.out",
}
_VIT_LAYER = {
    "": "out",
    r"\.layernorm_before": "attn_norm",
    r"\.attention\.([qkv])_proj": r"attn.\2",
    r"\.attention\.o_proj\.input": "attn.heads",
    r"\.attention\.o_proj": "attn.out",
    r"\.attention\.probs\.(\d+)": r"attn.pictures.\2.probs",
    r"\.layernorm_after\.input": "mid",
    r"\.layernorm_after": "mlp_norm",
    r"\.mlp\.fc1": "mlp.fc1",
    r"\.mlp\.activation_fn": "mlp.hidden",
    r"\.mlp\.fc2": "mlp.out",
}


def _rules(names: dict[str, str]) -> list[dict[str, Any]]:
    return [{"theirs": theirs, "ours": ours} for theirs, ours in names.items()]


def _layers(theirs: str, ours: str, ends: dict[str, str]) -> dict[str, str]:
    return {rf"{theirs}layers\.(\d+){end}": rf"{ours}layers.\1.{tap}" for end, tap in ends.items()}


def _patches(theirs: str, ours: str) -> dict[str, Any]:
    """The rule for the output of a convolution, whose channels come before rows and columns."""
    return {"theirs": theirs, "ours": ours, "transpose": [0, 2, 3, 1]}


_PAIR = (
    *_rules(_layers(_VISION + r"encoder\.", "vision.", _PAIR_LAYER)),
    *_rules(_layers(_TEXT + r"encoder\.", "text.", _PAIR_LAYER)),
    *_rules(
        {
            _VISION + r"encoder\.layers\.(\d+)\.self_attn\.probs\.(\d+)": r"vision.layers.\1.attn.pictures.\2.probs",
            _TEXT + r"encoder\.layers\.(\d+)\.self_attn\.probs\.(\d+)": r"text.layers.\1.attn.texts.\2.probs",
            _VISION + "embeddings": "vision.embedding",
            _TEXT + "embeddings": "text.embedding",
            _TEXT + "final_layer_norm": "text.norm",
            "(pixel_values|input_ids|image_embeds|text_embeds|logits_per_image|loss)": r"\1",
        }
    ),
    _patches(_VISION + r"embeddings\.patch_embedding", "vision.embedding.patches"),
)
# Tensors that no module returns, or not with every attention; they are compared if they are dumped.
_INSIDE = ["pictures.*", "*.dots", "*.scores", "*.exp", "*.probs", "*.length", "probabilities"]
_OF_PAIR = ["cosine", "scale", "scaled"]
_SAME = ["*.fc2.input", "*.position_embedding", "*.token_embedding", "*.self_attn", "*.mlp", "logits_per_text"]

# The mappings by model_type.
ENCODERS: dict[str, dict[str, Any]] = {
    "siglip": {
        "rules": [
            *_PAIR,
            *_rules(
                {
                    _VISION + "post_layernorm": "vision.norm",
                    _VISION + r"head\.attention": "vision.head.attn.out",
                    _VISION + r"head\.layernorm": "vision.head.norm",
                    _VISION + r"head\.mlp\.fc1": "vision.head.mlp.fc1",
                    _VISION + r"head\.mlp\.activation_fn": "vision.head.mlp.hidden",
                    _VISION + r"head\.mlp\.fc2": "vision.head.mlp.out",
                    _VISION + "head": "vision.head.out",
                    _TEXT + r"head\.input": "text.last",
                    _TEXT + "head": "text.head",
                }
            ),
        ],
        "ignore": [*_SAME, "*.post_layernorm.input", "*.head.attention.probs.*", "*.head.input"],
        # torch's MultiheadAttention, which pools, has no modules inside
        "absent": [*_INSIDE, *_OF_PAIR, "vision.head.attn.[qkv]", "vision.head.attn.heads"],
    },
    "clip": {
        "rules": [
            *_PAIR,
            *_rules(
                {
                    _VISION + "pre_layrnorm": "vision.pre_norm",
                    _VISION + r"post_layernorm\.input": "vision.class",
                    _VISION + "post_layernorm": "vision.post_norm",
                    "visual_projection": "vision.projection",
                    r"text_projection\.input": "text.end",
                    "text_projection": "text.projection",
                }
            ),
        ],
        "ignore": _SAME,
        "absent": [*_INSIDE, *_OF_PAIR],
    },
    "vit": {
        "rules": [
            *_rules(_layers(r"vit\.", "", _VIT_LAYER)),
            *_rules(
                {
                    r"vit\.embeddings": "embedding",
                    r"vit\.layernorm": "norm",
                    r"classifier\.input": "class",
                    "classifier": "logits",
                    "pixel_values": "pixel_values",
                }
            ),
            _patches(r"vit\.embeddings\.patch_embeddings\.projection", "embedding.patches"),
        ],
        "ignore": ["*.fc2.input", "*.patch_embeddings", "*.attention", "*.mlp", "logits"],
        "absent": _INSIDE,
    },
}
