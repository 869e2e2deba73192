"""config.json as Google's repositories on the hub have it, as sparse as there, with the leftovers that are there.

`content(name)` gives the file of a model: of PaliGemma 1 and 2 by size ("paligemma2-3b"), and of language models
("gemma-2-2b"). PaliGemma 2's files are gated; theirs are what transformers' conversion script writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

UNCHANGED: Mapping[str, object] = MappingProxyType({})

PALIGEMMA_TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "vocab_size": 257216,
}
# The decoders of PaliGemma 2 have leftovers of the config that the script starts from, gemma-2-2b-it's.
PALIGEMMA_2_TEXT = {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 107],
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "model_type": "gemma2",
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "vocab_size": 257216,
}
SIZES_10B = {
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
}
SIZES_28B = {
    "head_dim": 128,
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144,
}
PALIGEMMA_TEXTS = {
    "paligemma-3b": PALIGEMMA_TEXT,
    "paligemma2-3b": PALIGEMMA_2_TEXT,
    "paligemma2-10b": PALIGEMMA_2_TEXT | SIZES_10B,
    "paligemma2-28b": PALIGEMMA_2_TEXT | SIZES_28B,
}
TOWER = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}
PALIGEMMA = {
    "architectures": ["PaliGemmaForConditionalGeneration"],
    "bos_token_id": 2,
    "eos_token_id": 1,
    "hidden_size": 2048,
    "image_token_index": 257152,
    "model_type": "paligemma",
    "pad_token_id": 0,
}
LEFTOVERS = {
    "paligemma-3b": {"config": {"ignore_index": -100}, "vision_config": {"projector_hidden_act": "gelu_fast"}},
    "paligemma2-3b": {"config": {"num_hidden_layers": 26}, "vision_config": {"num_positions": 256}},
    "paligemma2-10b": {"config": {"num_hidden_layers": 42}, "vision_config": {"num_positions": 1024}},
    "paligemma2-28b": {"config": {"num_hidden_layers": 46}, "vision_config": {"num_positions": 4096}},
}

LANGUAGE_MODEL = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "use_cache": True,
}
GEMMA = LANGUAGE_MODEL | {
    "architectures": ["GemmaForCausalLM"],
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
GEMMA_7B = {
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
}
GEMMA_2 = LANGUAGE_MODEL | {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
GEMMA_3 = LANGUAGE_MODEL | {
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "vocab_size": 262144,
}
LANGUAGE_MODELS = {
    "gemma-2b": GEMMA,
    "gemma-7b": GEMMA | GEMMA_7B,
    "gemma-2-2b": GEMMA_2,
    "gemma-2-9b": GEMMA_2 | SIZES_10B | {"_attn_implementation": "eager", "sliding_window_size": 4096},
    "gemma-2-27b": GEMMA_2 | SIZES_28B | {"_attn_implementation": "eager", "sliding_window_size": 4096},
    "gemma-3-270m": GEMMA_3
    | {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "_sliding_window_pattern": 6}
    | {"layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "use_bidirectional_attention": False},
    "gemma-3-1b": GEMMA_3
    | {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "sliding_window_pattern": 6}
    | {"cache_implementation": "hybrid", "eos_token_id": [1, 106]},
}
# What text_config of gemma-3-4b-pt holds; that of the 12b has other sizes and heads.
GEMMA_3_4B_TEXT = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
NAMES = (*PALIGEMMA_TEXTS, *LANGUAGE_MODELS)


def content(
    name: str,
    vision: Mapping[str, object] = UNCHANGED,
    text: Mapping[str, object] = UNCHANGED,
    dtype: str = "bfloat16",
) -> dict:
    """config.json of a model, with other values in the section of the vision tower or of the decoder.

    A language model has no vision tower, and its decoder's section is the file.
    """
    written = {"torch_dtype": dtype, "transformers_version": "4.47.0.dev0"}
    if name in LANGUAGE_MODELS:
        return with_as_many_kinds(LANGUAGE_MODELS[name] | text | written)
    decoder, tower = PALIGEMMA_TEXTS[name] | text, TOWER | LEFTOVERS[name]["vision_config"] | vision
    width, patches = decoder["hidden_size"], (tower.get("image_size", 224) // tower["patch_size"]) ** 2
    return (
        PALIGEMMA
        | LEFTOVERS[name]["config"]
        | written
        | {
            "projection_dim": width,
            "text_config": decoder | {"num_image_tokens": patches, "torch_dtype": dtype},
            "vision_config": tower | {"num_image_tokens": patches, "projection_dim": width},
        }
    )


def with_as_many_kinds(values: dict) -> dict:
    """A decoder's section whose list of kinds, if there is one, fits the number of its layers."""
    layers, kinds = values["num_hidden_layers"], values.get("layer_types")
    return values if kinds is None else values | {"layer_types": (kinds * layers)[:layers]}
