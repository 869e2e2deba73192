"""Model folders with a given config.json."""

import json
from pathlib import Path

import tiny

from npgemma.checkpoints.paligemma import PaliGemmaConfig, read_config


def read(content: object, folder: Path) -> PaliGemmaConfig:
    """The config of a folder whose config.json is `content`: bytes or text as they are, anything else as JSON."""
    raw = content if isinstance(content, str | bytes) else json.dumps(content)
    (folder / "config.json").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return read_config(folder)


def changed(path: str, value: object) -> dict:
    """A small valid config with the value at `path` (keys with dots between) replaced."""
    config = tiny.config_json()
    *sections, key = path.split(".")
    at = config
    for section in sections:
        at = at.setdefault(section, {})
    at[key] = value
    return config


def paths() -> list[str]:
    """Every key of the small config, and those that only some configs have."""
    found = []
    for key, value in tiny.config_json().items():
        found += [key] + [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key]
    more = ("rope_parameters", "rope_parameters.rope_type", "rope_parameters.rope_theta", "rope_scaling")
    more += ("rope_scaling.factor", "eos_token_id", "num_image_tokens", "quantization_config", "per_layer_config")
    more += ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
    more += ("sliding_window", "layer_types")
    found += ["image_token_id", "suppress_tokens", "vision_config.hidden_act"]
    return found + [f"text_config.{key}" for key in (*more, "hidden_act", "hidden_activation", "attention_bias")]
