"""npgemma's choices where implementations differ, as golden files state them.

The texts are in golden files, whose bytes depend on them.
"""

from typing import Any

from npgemma.api.classifier import Classifier
from npgemma.api.dual_encoder import DualEncoder
from npgemma.api.generation import Model
from npgemma.api.load import AnyModel
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.models.gemma import Decoder
from npgemma.models.siglip import Siglip

# A PaliGemma.
POLICY: dict[str, Any] = {
    "positions": "from 1",
    "mask": "the prefix sees all of itself, the suffix is causal",
    "norm": "rms_norm times (1 + weight); layer_norm with the biased variance",
    "scale": "text embeddings times sqrt(D), image features as they are; scores divided by sqrt(H)",
    "gelu": "tanh",
    "softmax": "largest score taken off first; rows not to be seen are exactly 0",
    "rope": "half-split pairs; angles in float64 for the truth, in float32 for the envelopes",
    "soft_caps": None,
}
# A Gemma without pictures.
LANGUAGE_MODEL = POLICY | {
    "positions": "from 0",
    "mask": "causal",
    "norm": "rms_norm times (1 + weight)",
    "scale": "embeddings times sqrt(D); scores divided by sqrt(H)",
}
# What the decoder of PaliGemma 2 adds.
POST_NORMS = "what attention and the MLP write is normed before it is added"
UNCAPPED = "big_vision does not cap logits: its likeliest tokens are the same, its probabilities are not"
PREFIX = (
    "sees all of itself in the first pass, whatever the window, as in transformers; later rows see the window alone"
)
# What differs elsewhere from a PaliGemma 2.
UNWINDOWED = "big_vision has no window: where a prompt is longer, its logits differ from the second new token on"
# What the decoder of Gemma 3 adds.
HEADS_NORMED = "each head of q and k, before RoPE"
# Any encoder.
ENCODER: dict[str, Any] = {
    "norm": "layer_norm with the biased variance",
    "softmax": POLICY["softmax"],
    "positions": "a learned row for each patch or token, from the first row of the table on",
}
SCALED = "scores divided by sqrt(H); cosines times e^logit_scale"
SIGLIP = ENCODER | {
    "class_token": None,
    "mask": "none in either tower: padding is seen",
    "pooling": {"vision": "a learned probe attends to all rows of the last norm", "text": "the last row, padding too"},
    "scale": SCALED + ", plus logit_bias",
    "probabilities": "sigmoid of each score",
    "loss": "sigmoid loss, divided by the number of pictures",
}
CLIP = ENCODER | {
    "class_token": "before the patches, with the first position",
    "mask": "none for pictures; causal for texts",
    "pooling": {
        "vision": "the row of the class token, before the last norm",
        "text": "the row of the first end token, after the last norm",
    },
    "scale": SCALED,
    "probabilities": "softmax over the texts",
    "loss": "mean of the cross entropies of texts for each picture and of pictures for each text",
}
VIT = ENCODER | {
    "class_token": CLIP["class_token"],
    "mask": "none",
    "pooling": "the row of the class token, after the last norm",
    "scale": "scores divided by sqrt(H)",
    "probabilities": "softmax over the labels",
}
GELUS = {"gelu_pytorch_tanh": "gelu, tanh form", "gelu": "gelu, erf form", "quick_gelu": "x / (1 + e^(-1.702 x))"}


def policy(model: AnyModel) -> dict[str, Any]:
    """What `model` computes where implementations differ."""
    if isinstance(model, Classifier):
        several = {"probabilities": "sigmoid of each logit"} if model.config.multi_label else {}
        return VIT | several | {"towers": {"vision": tower(model.config.vision)}}
    if isinstance(model, DualEncoder):
        found = SIGLIP if isinstance(model.weights, Siglip) else CLIP
        return found | {"towers": {"vision": tower(model.config.vision), "text": tower(model.config.text)}}
    return decoder_policy(model)


def tower(config: Any) -> dict[str, Any]:
    """What the towers of encoders differ in, whatever their size."""
    return {"activation": GELUS[config.hidden_act], "layer_norm_eps": config.layer_norm_eps}


def decoder_policy(model: Model) -> dict[str, Any]:
    """POLICY or LANGUAGE_MODEL, with what the decoder of Gemma 2 or 3 adds or computes otherwise."""
    p, reads_pictures = model.decoder, isinstance(model, VisionLanguageModel)
    base, first = POLICY if reads_pictures else LANGUAGE_MODEL, p.blocks[0]
    if first.attn_post_norm is None:
        return base
    scale = first.attn.scale or first.attn.q.shape[2] ** -0.5
    caps: dict[str, Any] = {"scores": first.attn.cap, "logits": p.cap}
    layers = [i for i, block in enumerate(p.blocks) if block.attn.window is not None]
    window: dict[str, Any] = {"rows": p.window, "layers": layers}
    order = {"scores_before": "the mask"}
    if reads_pictures:
        order |= {"elsewhere": UNCAPPED}
        window |= {"prefix": PREFIX, "elsewhere": UNWINDOWED}
    found = base | {
        "scale": base["scale"].replace("divided by sqrt(H)", f"times {scale}"),
        "soft_caps": caps | order if any(caps.values()) else None,
        "post_norms": POST_NORMS,
        "window": window,
    }
    return found if first.attn.q_norm is None else found | {"head_norms": HEADS_NORMED, "rotation": rotation(p)}


def rotation(p: Decoder) -> list[dict[str, float]]:
    """The theta of each layer, and the factor that its positions are divided by."""
    return [{"theta": block.attn.theta, "factor": block.attn.factor} for block in p.blocks]
