"""Files that transformers and authors of models write contain no unknown keys."""

import json
from pathlib import Path

import pytest
import tiny

from npgemma.checkpoints.known_keys import unknown_keys

PICTURES = {"do_rescale": True, "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PICTURES |= {"do_resize": True, "resample": 3, "do_normalize": True, "image_processor_type": "SiglipImageProcessor"}
PICTURES |= {"size": {"height": 35, "width": 35}, "image_seq_length": 25}

# By file: what the hub's sparse old configs say beyond sizes, what transformers 5 saves, and fine-tunings of others.
HUB = {
    "config.json": {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "ignore_index": -100,
        "hidden_size": 2048,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.0.dev0",
        "text_config": {"torch_dtype": "float32", "num_image_tokens": 25, "hidden_activation": None},
        "vision_config": {"num_image_tokens": 25, "projector_hidden_act": "gelu_fast", "vision_use_head": False},
    },
    "generation_config.json": {
        "_from_model_config": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "transformers_version": "4.42.0.dev0",
    },
    "preprocessor_config.json": PICTURES
    | {"do_convert_rgb": None, "processor_class": "PaliGemmaProcessor", "_valid_processor_keys": ["images", "size"]},
    "tokenizer_config.json": {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {"0": {"content": "<pad>", "special": True}},
        "additional_special_tokens": ["<image>"],
        "bos_token": "<bos>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>",
        "model_max_length": 10**30,
        "pad_token": "<pad>",
        "processor_class": "PaliGemmaProcessor",
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    },
    "special_tokens_map.json": {"bos_token": {"content": "<bos>"}, "additional_special_tokens": [], "unk_token": "<u>"},
    "added_tokens.json": {"<image>": 257152},
}
SAVED = {
    "config.json": {
        "dtype": "bfloat16",
        "transformers_version": "5.24.0",
        "tie_word_embeddings": True,
        "vocab_size": 257152,
        "text_config": {
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "dtype": "bfloat16",
            "eos_token_id": 1,
            "initializer_range": 0.02,
            "pad_token_id": 0,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "tie_word_embeddings": True,
            "use_bidirectional_attention": True,
            "use_cache": True,
        },
        "vision_config": {"attention_dropout": 0.0, "dtype": "bfloat16", "vocab_size": 257152},
    },
    "generation_config.json": {"do_sample": False, "max_new_tokens": 50, "eos_token_id": [1, 5], "top_p": 1.0},
    "processor_config.json": {
        "image_processor": PICTURES | {"do_convert_rgb": True},
        "processor_class": "PaliGemmaProcessor",
    },
    "tokenizer_config.json": {
        "backend": "tokenizers",
        "extra_special_tokens": ["<image>"],
        "is_local": True,
        "local_files_only": False,
        "mask_token": "<mask>",
        "vocab_file": "tokenizer.model",
    },
}
OLDER = {
    "config.json": {
        "_name_or_path": "google/paligemma-3b-pt-224",
        "_attn_implementation_autoset": True,
        "_vocab_size": 257152,
        "auto_map": {"AutoModel": "x.Y"},
        "text_config": {"torchscript": False, "top_k": 50, "min_length": 0, "is_decoder": False, "id2label": {}},
        "vision_config": {"output_attentions": False, "repetition_penalty": 1.0, "pruned_heads": {}},
    },
    "processor_config.json": {"processor_class": "PaliGemmaProcessor", "image_seq_length": 25},
    "chat_template.json": {"chat_template": "{{ messages }}"},
}


def merged(old: dict, new: dict) -> dict:
    """`old` with the values of `new`, objects merged."""
    inner = {key: merged(old[key], value) for key, value in new.items() if isinstance(old.get(key), dict)}
    return old | new | inner


@pytest.mark.parametrize("files", [HUB, SAVED, OLDER], ids=["hub", "saved", "older"])
def test_files_in_use_contain_no_unknown_keys(files: dict, tmp_path: Path) -> None:
    for name, content in files.items():
        full = merged(tiny.config_json(), content) if name == "config.json" else content
        (tmp_path / name).write_text(json.dumps(full))
    assert unknown_keys(tmp_path) == []
