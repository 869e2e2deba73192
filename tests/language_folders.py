"""Folders of small language models with random weights, one for each family of Gemma, and their logits on one page."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import one_page
import one_page_gemma

from npgemma import testing
from npgemma.checkpoints.gemma_config import FULL, LANGUAGE_MODELS, SLIDING
from npgemma.checkpoints.language_model import LanguageModelConfig, config_json, hf_layout
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import GEMMAS, Tokenizer

TOKENIZER = Tokenizer((EMBEDDED / "tokenizer.model").read_bytes(), family=GEMMAS["gemma"])
PIECES = len(TOKENIZER)
BOS, EOS, START, END = 2, 1, PIECES, PIECES + 1  # <start_of_turn> and <end_of_turn> follow the pieces
SOFT = PIECES + 2  # Gemma 3's <image_soft_token>, which has no row
WINDOW = 5
SMALL: dict[str, Any] = dict(
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=512,
)
BITE = dict(query_pre_attn_scalar=5, sliding_window=WINDOW)
TEXTS = {
    "gemma": dict(vocab_size=PIECES + 9),  # seven rows of the table belong to no token
    "gemma2": dict(vocab_size=PIECES + 9, attn_logit_softcapping=1.0, final_logit_softcapping=3.0, **BITE),
    "gemma3_text": dict(vocab_size=SOFT, rope_factor=8.0, layer_types=(SLIDING, FULL, SLIDING), **BITE),
}
FAMILIES = list(TEXTS)
TEMPLATE = """{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\\n' + m['content'] | trim }}\
<end_of_turn>
{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""


@cache
def config_of(family: str, tied: bool = False, **text: Any) -> LanguageModelConfig:
    values = SMALL | TEXTS[family] | text
    return LanguageModelConfig(replace(LANGUAGE_MODELS[family], **values), tied)


@cache
def tensors_of(config: LanguageModelConfig) -> dict[str, np.ndarray]:
    """Random tensors. A table that is not the head is small: else every token would follow itself."""
    tensors = testing.layout_tensors(hf_layout(config))
    if not config.tied:
        tensors["model.embed_tokens.weight"] /= 8
    return tensors


def write_folder(
    folder: Path, config: LanguageModelConfig, tensors: dict[str, np.ndarray] | None = None, *, chats: bool = True
) -> Path:
    """A model folder with the embedded model's pieces, the tokens of turns and, if it `chats`, a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(config)))
    testing.save_tensors(tensors or tensors_of(config), folder / "model.safetensors")
    shutil.copyfile(EMBEDDED / "tokenizer.model", folder / "tokenizer.model")
    added = ["<start_of_turn>", "<end_of_turn>"]
    added += ["<image_soft_token>"] * (config.text.model_type == "gemma3_text")
    settings = {"extra_special_tokens": added} | ({"chat_template": TEMPLATE} if chats else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def logits(config: LanguageModelConfig, ids: Any, tensors: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """The logits of every row, in float64, from the second spelling; `tensors` are those of `tensors_of` by default."""
    w, c = {name: x.astype(np.float64) for name, x in (tensors or tensors_of(config)).items()}, config.text
    positions, types = np.arange(len(ids)), np.ones(len(ids))
    x = w["model.embed_tokens.weight"][np.asarray(ids)] * np.sqrt(c.hidden_size)
    if c.model_type == "gemma":
        w = {name if name == "lm_head.weight" else f"language_model.{name}": x for name, x in w.items()}
        x = one_page.decoder(w, {"text_config": asdict(c)}, x, positions, one_page.prefix_lm_mask(types))
        return x @ w.get("lm_head.weight", w["language_model.model.embed_tokens.weight"]).T
    local = c.rope_local_base_freq or c.rope_theta
    rope = {
        FULL: {"rope_theta": c.rope_theta, "factor": c.rope_factor},
        SLIDING: {"rope_theta": local},
    }
    spelled = asdict(c) | {"layer_types": c.layer_kinds, "rope_parameters": rope}
    return one_page_gemma.logits(w, spelled, one_page_gemma.decoder(w, spelled, x, positions, types))


def greedy(
    config: LanguageModelConfig,
    ids: Sequence[int],
    steps: int,
    ends: Sequence[int] = (EOS,),
    tensors: dict[str, np.ndarray] | None = None,
) -> list[int]:
    """The likeliest of the tokens that the tokenizer writes, again and again, until one of `ends`."""
    new: list[int] = []
    while len(new) < steps and not (new and new[-1] in ends):
        new.append(int(logits(config, [*ids, *new], tensors)[-1, :SOFT].argmax()))
    return new


def logprobs(config: LanguageModelConfig, ids: Sequence[int], answer: Sequence[int]) -> list[float]:
    """log P of each token of `answer` after `ids`: among all rows of the table."""
    rows = logits(config, [*ids, *answer])[len(ids) - 1 : -1]
    return [float(row[token] - np.log(np.exp(row).sum())) for row, token in zip(rows, answer, strict=True)]


def preferring(config: LanguageModelConfig, row: int, ids: Sequence[int]) -> dict[str, np.ndarray]:
    """Tensors with which the model prefers the token `row` to the third that it writes after `ids` otherwise."""
    tensors = dict(tensors_of(config))
    head = tensors["lm_head.weight"] = tensors["lm_head.weight"].copy()
    head[row] = 1.25 * head[greedy(config, ids, 3)[2]]
    return tensors


def turn_ids(text: str) -> list[int]:
    """The ids of a conversation that begins with this message, up to where the model answers."""
    user, line, model = (TOKENIZER.encode(each) for each in (f"user\n{text}", "\n", "model\n"))
    return [BOS, START, *user, END, *line, START, *model]
