"""config.json of a PaliGemma folder -> what the loader has to know.

The hub's configs are sparse: they leave out whatever equals a default of the day they were written. Each gap is filled
with PaliGemma's own value, which is not always the default of the class that transformers would fill it from.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npgemma.errors import BadModel
from npgemma.io.model_folder import member

MAX_JSON_BYTES = 10_000_000


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP's vision tower; the defaults are So400m/14 at 224 pixels."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 14
    layer_norm_eps: float = 1e-6

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class TextConfig:
    """The Gemma decoder; the defaults are Gemma 2B as PaliGemma has it."""

    hidden_size: int = 2048
    intermediate_size: int = 16384
    num_hidden_layers: int = 18
    num_attention_heads: int = 8
    num_key_value_heads: int = 1
    head_dim: int = 256
    vocab_size: int = 257216
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class Config:
    """A PaliGemma: its two halves, whether the head is the embedding table, and the tokens that mean something."""

    vision: VisionConfig
    text: TextConfig
    tied: bool = True
    image_token_index: int = 257152
    bos_token_id: int = 2
    eos_token_ids: tuple[int, ...] = (1,)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. BadModel for whatever is no JSON object, too large, ambiguous or not finite."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {MAX_JSON_BYTES // 1_000_000} MB")
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise BadModel(f"{path} is missing: a model folder needs it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadModel(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadModel(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def parse_json(text: bytes) -> Any:
    """What JSON says. ValueError where it says it twice or says no finite number; RecursionError if nested too deep."""

    def only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key appears twice")
        return found

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number} is no finite number")
        return float(number)

    return json.loads(text, object_pairs_hook=only_once, parse_float=finite, parse_constant=finite)


class Section:
    """One object of a config file, read key by key; every complaint names the file and the key."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def get(self, key: str, default: Any) -> Any:
        """The value, or the default where there is none or null."""
        value = self.values.get(key)
        return default if value is None else value

    def section(self, key: str) -> "Section":
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise BadModel(f"{self.where}: {key} is {value!r}, not an object")
        return Section(value or {}, f"{self.where}: {key}")

    def count(self, key: str, default: int, at_most: int) -> int:
        """A whole number from 1 to `at_most`."""
        value = self.get(key, default)
        if type(value) is not int or not 1 <= value <= at_most:
            raise BadModel(f"{self.where}: {key} is {value!r}, not a whole number from 1 to {at_most}")
        return value

    def positive(self, key: str, default: float) -> float:
        """A finite number above zero."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise BadModel(f"{self.where}: {key} is {value!r}, not a number above zero")
        return float(value)

    def token(self, key: str, default: int, at_most: int) -> int:
        """A token id."""
        value = self.get(key, default)
        if type(value) is not int or not 0 <= value <= at_most:
            raise BadModel(f"{self.where}: {key} is {value!r}, not a token id from 0 to {at_most}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.get(key, default)
        if type(value) is not bool:
            raise BadModel(f"{self.where}: {key} is {value!r}, not true or false")
        return value

    def tokens(self, key: str, default: int, at_most: int) -> tuple[int, ...]:
        """One token id, or a list of them."""
        value = self.values.get(key)
        each = value if isinstance(value, list) and value else [value]
        return tuple(Section({key: one}, self.where).token(key, default, at_most) for one in each)

    def require(self, key: str, *allowed: Any) -> None:
        """Nothing, or one of the values whose mathematics npgemma has."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise BadModel(
                f"{self.where}: {key} is {value!r}, which npgemma does not compute; it knows {list(allowed)}"
            )


def read_vision(s: Section) -> VisionConfig:
    s.require("model_type", "siglip_vision_model")
    s.require("hidden_act", "gelu_pytorch_tanh", "gelu_new", "gelu_fast")
    d = VisionConfig()
    config = VisionConfig(
        hidden_size=s.count("hidden_size", d.hidden_size, 65536),
        intermediate_size=s.count("intermediate_size", d.intermediate_size, 1 << 20),
        num_hidden_layers=s.count("num_hidden_layers", d.num_hidden_layers, 512),
        num_attention_heads=s.count("num_attention_heads", d.num_attention_heads, 1024),
        num_channels=s.count("num_channels", d.num_channels, 3),
        image_size=s.count("image_size", d.image_size, 4096),
        patch_size=s.count("patch_size", d.patch_size, 4096),
        layer_norm_eps=s.positive("layer_norm_eps", d.layer_norm_eps),
    )
    if config.hidden_size % config.num_attention_heads:
        raise BadModel(
            f"{s.where}: {config.num_attention_heads} heads do not divide a hidden_size of {config.hidden_size}"
        )
    if config.num_channels != 3:
        raise BadModel(f"{s.where}: num_channels is {config.num_channels}; npgemma's pictures have 3")
    if config.patch_size > config.image_size:
        raise BadModel(
            f"{s.where}: a patch of {config.patch_size} pixels does not fit a picture of {config.image_size}"
        )
    return config


def read_text(s: Section) -> TextConfig:
    if s.values.get("model_type") == "gemma2":
        raise BadModel(
            f"{s.where}: model_type is 'gemma2': a PaliGemma 2, and npgemma runs PaliGemma 1 (model_type 'gemma')"
        )
    s.require("model_type", "gemma")
    s.require("hidden_activation", "gelu_pytorch_tanh")
    s.require("hidden_act", "gelu_pytorch_tanh", "gelu")  # Gemma's first configs said gelu and meant the tanh form
    s.require("attention_bias", False)
    rotation = s.section("rope_parameters")
    rotation.require("rope_type", "default")
    s.require("rope_scaling")
    d = TextConfig()
    config = TextConfig(
        hidden_size=s.count("hidden_size", d.hidden_size, 65536),
        intermediate_size=s.count("intermediate_size", d.intermediate_size, 1 << 20),
        num_hidden_layers=s.count("num_hidden_layers", d.num_hidden_layers, 512),
        num_attention_heads=s.count("num_attention_heads", d.num_attention_heads, 1024),
        num_key_value_heads=s.count("num_key_value_heads", d.num_key_value_heads, 1024),
        head_dim=s.count("head_dim", d.head_dim, 65536),
        vocab_size=s.count("vocab_size", d.vocab_size, 1 << 24),
        max_position_embeddings=s.count("max_position_embeddings", d.max_position_embeddings, 1 << 24),
        rms_norm_eps=s.positive("rms_norm_eps", d.rms_norm_eps),
        rope_theta=rotation.positive("rope_theta", s.positive("rope_theta", d.rope_theta)),
    )
    if config.num_attention_heads % config.num_key_value_heads:
        raise BadModel(
            f"{s.where}: {config.num_key_value_heads} key heads do not divide {config.num_attention_heads} query heads"
        )
    if config.head_dim % 2:
        raise BadModel(f"{s.where}: head_dim is {config.head_dim}; rotary positions turn pairs, so it must be even")
    return config


def read_config(folder: Path) -> Config:
    """The config of a model folder. BadModel, with file and key, for a value that makes no sense here."""
    path = member(folder, "config.json")
    s = Section(read_json(path), str(path))
    if s.values.get("model_type") != "paligemma":
        raise BadModel(f"{path}: model_type is {s.values.get('model_type')!r}, not 'paligemma'")
    vision, text = read_vision(s.section("vision_config")), read_text(s.section("text_config"))
    return Config(
        vision=vision,
        text=text,
        tied=s.flag("tie_word_embeddings", Config.tied),
        # not bounded by the vocabulary: small models leave the image token without a row, for it is never looked up
        image_token_index=s.token("image_token_index", Config.image_token_index, 1 << 24),
        bos_token_id=s.token("bos_token_id", Config.bos_token_id, text.vocab_size - 1),
        eos_token_ids=s.tokens("eos_token_id", Config.eos_token_ids[0], text.vocab_size - 1),
    )
